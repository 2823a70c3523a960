"""Whole networks on both engines: outputs, gradients, training, and weights that pass from one to the other."""

from dataclasses import dataclass

import pytest
import torch
from paired_voxels import CASES, draw_voxels
from torch import Tensor, nn

from mink_decouple.models.segmenter import Segmenter, build_model
from mink_decouple.sparse.engines import Engine

FORWARD, GRADIENT = 1e-5, 1e-4
CLASSES = 13


@dataclass
class Batch:
    voxels: Tensor
    feats: Tensor


def draw(kind: str, items: int, seed: int = 5) -> Batch:
    voxels = draw_voxels(kind, items)
    return Batch(voxels, torch.randn(len(voxels), 3, generator=torch.Generator().manual_seed(seed)))


def build(variant: str, name: str) -> Segmenter:
    return build_model("minkunet", variant, 3, CLASSES, seed=1, engine=name)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("variant", ["tiny", "14A", "34C"])
def test_one_seed_gives_one_set_of_weights_under_the_same_names(minkowski: Engine, variant: str) -> None:
    ours, theirs = build(variant, "native").state_dict(), build(variant, "minkowski").state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("kind", "items"), CASES)
@pytest.mark.parametrize("variant", ["14A", "34C"])
def test_logits_are_the_same(minkowski: Engine, variant: str, kind: str, items: int) -> None:
    batch = draw(kind, items)
    ours, theirs = build(variant, "native").eval(), build(variant, "minkowski").eval()
    with torch.no_grad():
        assert relative(ours(batch), theirs(batch)) <= FORWARD


def gradients(model: Segmenter, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits, and the gradient of a loss by every input and weight."""
    target = torch.randint(0, CLASSES, (len(batch.voxels),), generator=torch.Generator().manual_seed(2))
    inputs = Batch(batch.voxels, batch.feats.to(dtype, copy=True).requires_grad_())
    logits = model.to(dtype)(inputs)
    nn.functional.cross_entropy(logits, target).backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    return {"logits": logits.detach(), "input": inputs.feats.grad, **found}


def without_kinks(model: Segmenter) -> Segmenter:
    """The model with norms whose outputs stay positive, so that no ReLU has a sum near zero to decide on.

    There rounding decides, and all gradients below such a sum differ by up to a few per cent. A network of a hundred
    thousand sums has one in about every tenth pass.
    """
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.weight, 0.02)
            nn.init.constant_(module.bias, 1.0)
    return model


@pytest.mark.parametrize(("kind", "items"), CASES)
@pytest.mark.parametrize("variant", ["14A", "34C"])
def test_gradients_in_single_precision_are_the_same(minkowski: Engine, variant: str, kind: str, items: int) -> None:
    batch = draw(kind, items)
    ours, theirs = (
        gradients(without_kinks(build(variant, name)).eval(), batch, torch.float32) for name in ("native", "minkowski")
    )
    for key in theirs:
        assert relative(ours[key], theirs[key]) <= GRADIENT, key


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("kind", "items"), [("surface", 1), ("surface", 4), ("random", 3), ("negative", 2)])
def test_gradients_in_double_precision_are_the_same(minkowski: Engine, kind: str, items: int, training: bool) -> None:
    # Training in double precision only: the coarsest level has a handful of voxels, and batch statistics of so few
    # magnify rounding thousands of times on either engine.
    batch = draw(kind, items)
    ours, theirs = (
        gradients(build("34C", name).train(training), batch, torch.float64) for name in ("native", "minkowski")
    )
    for key in theirs:
        assert relative(ours[key], theirs[key]) <= (1e-6 if training else 1e-10), key


@pytest.mark.parametrize("variant", ["tiny", "14A"])
def test_ten_training_steps_have_the_same_losses(minkowski: Engine, variant: str) -> None:
    # In double precision: in single precision every step magnifies rounding, which differs from processor to processor.
    losses: dict[str, list[float]] = {"native": [], "minkowski": []}
    for name, values in losses.items():
        model = build(variant, name).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        for step in range(10):
            batch = draw("surface", 4, seed=step)
            batch.feats = batch.feats.double()
            target = (batch.voxels[:, 3] % CLASSES).long()
            loss = nn.functional.cross_entropy(model(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
    assert losses["native"][-1] != losses["native"][0]
    assert losses["native"] == pytest.approx(losses["minkowski"], rel=1e-6)


def test_weights_trained_on_one_engine_run_on_the_other(minkowski: Engine) -> None:
    batch = draw("surface", 2)
    for source, target in (("native", "minkowski"), ("minkowski", "native")):
        trained = build("tiny", source)
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            trained(batch).square().mean().backward()
            optimizer.step()
        other = build_model("minkunet", "tiny", 3, CLASSES, seed=9, engine=target)
        other.load_state_dict(trained.state_dict())
        with torch.no_grad():
            assert relative(other.eval()(batch), trained.eval()(batch)) <= FORWARD


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_voxels_do_not_break_training(minkowski: Engine, count: int) -> None:
    voxels = torch.tensor([[0, 3, 3, 3], [1, -3, 0, 5]], dtype=torch.int32)[:count]
    logits = {}
    for name in ("native", "minkowski"):
        model = build("tiny", name)
        logits[name] = model(Batch(voxels, torch.ones(count, 3)))
        logits[name].sum().backward()
    assert logits["minkowski"].shape == (count, CLASSES) and logits["minkowski"].isfinite().all()
    if count < 2:  # two rows normalised by their own statistics are +-1, by the sign of a rounding error
        torch.testing.assert_close(logits["native"], logits["minkowski"], rtol=1e-4, atol=1e-4)


def test_a_repeated_voxel_is_refused(minkowski: Engine) -> None:
    voxels = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.int32)
    with pytest.raises(ValueError, match="repeat a voxel"):
        build("tiny", "minkowski")(Batch(voxels, torch.ones(2, 3)))


def test_autocast_leaves_the_backbone_in_single_precision(minkowski: Engine) -> None:
    batch, model = draw("surface", 1), build("tiny", "minkowski").eval()
    with torch.no_grad():
        exact = model.features(batch)
        with torch.autocast("cpu", torch.bfloat16):
            same = model.features(batch)
            half = model.features(Batch(batch.voxels, batch.feats.bfloat16()))
    assert same.dtype == half.dtype == torch.float32
    assert relative(same, exact) < 1e-6 and 1e-6 < relative(half, exact) < 0.05
