"""Weights in the naming of MinkowskiEngine's example network, written out here from its public layout."""

import pytest
import torch
from torch import Tensor

from mink_decouple.models.convert import from_example, sizes_of, to_example
from mink_decouple.models.minkunet import VARIANTS
from mink_decouple.models.segmenter import build_model


def example_shapes(variant: str, channels: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the example's state dict: its constructor in words."""
    v = VARIANTS[variant]
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (width,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()

    def block(name: str, before: int, width: int, count: int) -> None:
        for i in range(count):
            shapes[f"{name}.{i}.conv1.kernel"] = (27, before if i == 0 else width, width)
            norm(f"{name}.{i}.norm1", width)
            shapes[f"{name}.{i}.conv2.kernel"] = (27, width, width)
            norm(f"{name}.{i}.norm2", width)
            if i == 0 and before != width:
                shapes[f"{name}.{i}.downsample.0.kernel"] = (before, width)
                norm(f"{name}.{i}.downsample.1", width)

    shapes["conv0p1s1.kernel"] = (v.stem_kernel**3, channels, v.stem)
    norm("bn0", v.stem)
    width, skips = v.stem, []
    for i, stride in enumerate((1, 2, 4, 8)):
        skips.append(width)
        shapes[f"conv{i + 1}p{stride}s2.kernel"] = (8, width, width)
        norm(f"bn{i + 1}", width)
        block(f"block{i + 1}", width, v.planes[i], v.layers[i])
        width = v.planes[i]
    for i, stride in zip((4, 5, 6, 7), (16, 8, 4, 2)):
        shapes[f"convtr{i}p{stride}s2.kernel"] = (8, width, v.planes[i])
        norm(f"bntr{i}", v.planes[i])
        block(f"block{i + 1}", v.planes[i] + skips.pop(), v.planes[i], v.layers[i])
        width = v.planes[i]
    shapes["final.kernel"], shapes["final.bias"] = (width, classes), (1, classes)
    return shapes


def example(variant: str, channels: int = 4, classes: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=generator)
        for name, shape in example_shapes(variant, channels, classes).items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_example_s_weights_load_without_a_name_missing_or_left_over(variant: str) -> None:
    weights = from_example(example(variant))
    model = build_model("minkunet", variant, 4, 5)
    model.load_state_dict(weights)
    assert sizes_of(weights) == (variant, 4, 5)


def test_the_classifier_is_the_last_convolution_turned() -> None:
    state = example("tiny")
    model = build_model("minkunet", "tiny", 4, 5)
    model.load_state_dict(from_example(state))
    features = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    expected = features @ state["final.kernel"] + state["final.bias"]
    torch.testing.assert_close(model.classifier(features), expected)


def test_the_converters_are_inverses() -> None:
    state = example("14A")
    back = to_example(from_example(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_what_wraps_a_state_dict_is_taken_off(wrap) -> None:
    assert from_example(wrap(example("tiny"))).keys() == from_example(example("tiny")).keys()


def test_a_kernel_with_its_volume_and_no_bias_are_read_too() -> None:
    state = example("tiny")
    state["final.kernel"] = state["final.kernel"].unsqueeze(0)
    del state["final.bias"]
    weights = from_example(state)
    assert weights["classifier.linear.weight"].shape == (5, 32) and not weights["classifier.linear.bias"].any()


def test_other_weights_are_refused_with_what_is_missing() -> None:
    state = example("tiny")
    del state["block8.0.conv1.kernel"]
    with pytest.raises(ValueError, match=r"no block8\.0\.conv1\.kernel; it begins with conv0p1s1\.kernel"):
        from_example(state)
    with pytest.raises(ValueError, match="begins with nothing"):
        from_example({})
    with pytest.raises(ValueError, match="7 is no named tensor"):
        from_example({**example("tiny"), 7: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"final\.kernel is \(27, 32, 5\), not that of a 1x1x1 convolution"):
        from_example({**example("tiny"), "final.kernel": torch.zeros(27, 32, 5)})
    wide = from_example({**example("tiny"), "block3.0.conv1.kernel": torch.zeros(27, 32, 999)})
    with pytest.raises(ValueError, match=r"no MinkUNet variant has blocks.*known variants: 14A"):
        sizes_of(wide)


def test_networks_of_other_blocks_are_refused_with_the_known_variants() -> None:
    planes = VARIANTS["tiny"].planes
    bottleneck = {f"block{i + 1}.0.conv1.kernel": torch.zeros(32, planes[i]) for i in range(8)}  # those of MinkUNet50
    for other in (bottleneck, {"conv0p1s1.kernel": torch.zeros(4, 16)}):
        with pytest.raises(ValueError, match="known variants: 14A"):
            sizes_of(from_example({**example("tiny"), **other}))
    partial = {name: value for name, value in example("tiny").items() if not name.startswith("block2.")}
    with pytest.raises(ValueError, match=r"no block2\.0\.conv1\.kernel"):
        sizes_of(from_example(partial))


def test_other_backbones_and_heads_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="only a minkunet"):
        to_example(build_model("randla", "4", 3, 5).state_dict())
    with pytest.raises(ValueError, match="linear classifier"):
        to_example(build_model("minkunet", "tiny", 3, 5, head="mlp").state_dict())
