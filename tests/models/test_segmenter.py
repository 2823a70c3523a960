import copy
import io

import pytest
import torch
from randla_helpers import draw
from torch import nn
from torch.nn import functional as F

from mink_decouple.models.heads import MLPHead
from mink_decouple.models.randlanet import RandLANet
from mink_decouple.models.segmenter import Segmenter, build_model


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = RandLANet(3, d_out=(4, 8), ratios=(4, 2))
        return Segmenter(backbone, MLPHead(backbone.out_channels, 4)).train()


def some(seed=0):
    return draw(40, seed, dtype=torch.float32)


def train_steps(model, steps=3):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    target = torch.arange(40) % 4
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(some(step)), target).backward()
        optimizer.step()
        model.train()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(("frozen", "learning"), [("backbone", "classifier"), ("classifier", "backbone")])
def test_a_frozen_part_keeps_every_bit_and_the_other_learns(frozen, learning):
    model = small().freeze(frozen)
    before = copy.deepcopy(model)
    train_steps(model)
    assert same(model.get_submodule(frozen), before.get_submodule(frozen))
    for name, p in model.get_submodule(learning).named_parameters():
        if not name.endswith("bias"):
            assert not torch.equal(p, before.get_submodule(learning).get_parameter(name)), name
    moved = [n for n, b in model.get_submodule(learning).named_buffers() if "running" in n]
    assert moved
    for name in moved:
        assert not torch.equal(
            model.get_submodule(learning).get_buffer(name), before.get_submodule(learning).get_buffer(name)
        )


def test_train_after_freeze_does_not_thaw_and_eval_still_evaluates():
    model = small().freeze("classifier").eval().train()
    assert not model.classifier.fc1.norm.training and model.classifier.dropout.training
    assert model.backbone.stem.norm.training
    model.freeze("backbone").eval().train()
    assert not any(m.training for m in model.backbone.modules()) and model.classifier.fc1.norm.training
    model.eval()
    assert not any(m.training for m in model.modules())


def test_thawing_lets_both_parts_learn_again():
    model = small().freeze("backbone").freeze("classifier").freeze(None)
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())


def test_gradients_pass_through_a_frozen_classifier_and_stop_at_a_frozen_backbone():
    model = small().freeze("classifier")
    model(some()).sum().backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    assert all(p.grad is None for p in model.classifier.parameters())
    model.freeze("backbone")
    assert not model.features(some()).requires_grad and model(some()).requires_grad


def test_a_frozen_backbone_gives_the_features_of_inference():
    model = small()
    train_steps(model, 2)
    frozen = model.freeze("backbone").features(some())
    assert torch.equal(frozen, model.freeze(None).eval().features(some()))


def test_features_do_not_turn_gradients_on():
    with torch.no_grad():
        assert not small().features(some()).requires_grad


def test_logits_are_the_classifier_of_the_features():
    model = small().eval()
    assert torch.equal(model(some()), model.classifier(model.features(some())))


@pytest.mark.parametrize(
    ("variant", "channels", "classes", "classifier", "total"),
    [("5", 6, 13, 4_813, 4.993e6), ("5", 6, 20, 5_044, 4.993e6), ("4", 3, 19, 5_011, 1.241e6)],
)
def test_randla_has_the_published_number_of_parameters(variant, channels, classes, classifier, total):
    counts = build_model("randla", variant, channels, classes).parameter_counts()
    assert counts["classifier"] == classifier
    assert sum(counts.values()) == pytest.approx(total, abs=1e3)


def test_a_frozen_part_still_counts():
    model = small()
    assert model.parameter_counts() == model.freeze("backbone").parameter_counts()


@pytest.mark.parametrize("backbone", ["randla", "minkunet"])
def test_the_seed_decides_the_weights_and_the_global_state_stays(backbone, monkeypatch):
    variant = {"randla": "4", "minkunet": "tiny"}[backbone]
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs were seeded"))
    one, two, other = (build_model(backbone, variant, 3, 5, head="mlp", seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert same(one, two) and not same(one, other)


@pytest.mark.parametrize("backbone", ["randla", "minkunet"])
def test_a_network_is_saved_whole_and_copied(backbone):
    model = build_model(backbone, {"randla": "4", "minkunet": "tiny"}[backbone], 3, 5)
    torch.save(model, file := io.BytesIO())
    assert len(file.getvalue()) > sum(4 * value.numel() for value in model.parameters())
    again = copy.deepcopy(model)
    assert same(model, again)
    if backbone == "minkunet":
        assert again.backbone.engine is model.backbone.engine


def test_each_backbone_has_its_usual_head():
    assert set(build_model("minkunet", "tiny", 3, 5).classifier.state_dict()) == {"linear.weight", "linear.bias"}
    assert isinstance(build_model("randla", "4", 3, 5).classifier, MLPHead)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("pointnet", "5", "mlp"), "backbone is 'pointnet'; choose one of minkunet, randla"),
        (("randla", "18A", "mlp"), "variant of randla is '18A'; choose one of 5, 4"),
        (("minkunet", "5", "mlp"), "variant of minkunet is '5'; choose one of 14A, 18A, 34C, tiny"),
        (("randla", "5", "deep"), "head is 'deep'; choose one of linear, mlp"),
    ],
)
def test_a_wrong_name_lists_the_choices(names, message):
    with pytest.raises(ValueError, match=message):
        build_model(names[0], names[1], 3, 5, head=names[2])


def test_a_wrong_part_lists_the_choices():
    with pytest.raises(ValueError, match="part is 'head'; choose one of backbone, classifier or None"):
        small().freeze("head")
