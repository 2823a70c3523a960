"""The averaged network: its recursion, what it exchanges with the one that learns, checkpoints that score as runs."""

import pytest
import torch
from torch import nn

from mink_decouple.config import EmaConfig
from mink_decouple.decouple.schedule import average_decay
from mink_decouple.engine import checkpoint
from mink_decouple.engine import train as module
from mink_decouple.engine.ema import Networks
from mink_decouple.engine.evaluate import evaluate_checkpoint
from mink_decouple.engine.train import Trainer
from mink_decouple.models.segmenter import Segmenter

CPU = torch.device("cpu")


def network(value=0.0):
    """One weight in the backbone with a batch norm, one in the classifier."""
    made = Segmenter(nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        made.backbone[0].weight.fill_(value)
        made.classifier.weight.fill_(10 * value)
    return made


def set_to(model, value, counted):
    with torch.no_grad():
        model.backbone[0].weight.fill_(value)
        model.classifier.weight.fill_(10 * value)
        model.backbone[1].running_mean.fill_(100 * value)
        model.backbone[1].num_batches_tracked.fill_(counted)


def test_the_decay_rises_to_its_limit():
    assert [average_decay(0.5, t) for t in range(3)] == [1 / 10, 2 / 11, 3 / 12]
    assert average_decay(0.5, 8) == 0.5 and average_decay(0.5, 1000) == 0.5
    assert torch.equal(average_decay(0.5, torch.tensor([0, 1000])), torch.tensor([0.1, 0.5]))


def test_the_average_follows_the_recursion_worked_by_hand():
    model = network(0.0)
    both = Networks(model, EmaConfig(decay=0.2), lambda: network(7.0))
    assert both.mean.backbone[0].weight.item() == 0.0  # begins with the weights of the network, not with its own
    for counted, value in enumerate((1.0, 2.0, 3.0), start=1):
        set_to(model, value, counted)
        both.step()
    # decays 1/10, 2/11 and, since 3/12 is above it, 0.2
    first = 0.1 * 0.0 + 0.9 * 1.0
    second = 2 / 11 * first + 9 / 11 * 2.0
    third = 0.2 * second + 0.8 * 3.0
    assert both.mean.backbone[0].weight.item() == pytest.approx(third)
    assert both.mean.classifier.weight.item() == pytest.approx(10 * third)
    assert both.mean.backbone[1].running_mean.item() == pytest.approx(100 * third)
    assert both.mean.backbone[1].num_batches_tracked.item() == 3
    assert both.updates == 3
    assert model.backbone[0].weight.item() == 3.0  # the network itself is left alone


def test_what_the_two_exchange_at_the_end_of_a_stage():
    for restart in (True, False):
        model = network(0.0)
        both = Networks(model, EmaConfig(decay=0.9, restart=restart), network)
        set_to(model, 1.0, 1)
        both.step()
        mean = both.mean.backbone[0].weight.item()
        both.stage_ends("I")
        assert model.backbone[0].weight.item() == (mean if restart else 1.0)
        assert both.updates == (0 if restart else 1)
        with torch.no_grad():
            model.classifier.weight.fill_(-5.0)
        both.stage_ends("II")
        assert both.mean.classifier.weight.item() == -5.0
        assert both.mean.backbone[0].weight.item() == mean


def test_without_a_decay_there_is_one_network():
    model = network()
    alone = Networks(model, EmaConfig(), network)
    alone.step()
    alone.stage_ends("I")
    assert alone.mean is None and alone.asked("pseudo") is alone.asked("eval") is model


@pytest.mark.parametrize(("use", "labels", "scores"), [("pseudo", 1, 0), ("eval", 0, 1), ("both", 1, 1)])
def test_the_average_is_asked_for_what_the_switch_says(use, labels, scores):
    both = Networks(network(), EmaConfig(decay=0.9, use=use), network)
    assert (both.asked("pseudo") is both.mean) == bool(labels)
    assert (both.asked("eval") is both.mean) == bool(scores)
    weights = both.asked("eval").state_dict(), both.unscored()
    again = Networks(network(3.0), EmaConfig(decay=0.9, use=use), network)
    again.load(*weights)
    for name in ("model", "mean"):
        ours, theirs = getattr(again, name).state_dict(), getattr(both, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def run(config, output):
    return Trainer(config, output, CPU).run()


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("use", ["pseudo", "eval", "both"])
@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
def test_a_checkpoint_is_scored_as_the_run_was(make_config, tmp_path, backbone, use, restart):
    config = make_config(backbone, ema={"decay": 0.9, "use": use, "restart": restart})
    metrics = run(config, tmp_path / "run").metrics
    again = {
        name: evaluate_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.pt", lambda own: own, tmp_path, CPU)
        for name in ("last", "best")
    }
    assert again["last"]["confusion"] == metrics["confusion"] and again["last"]["miou"] == metrics["miou"]
    assert again["best"]["miou"] == metrics["best"]["miou"]


def test_scoring_by_the_average_leaves_the_training_as_it_is(make_config, tmp_path):
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    run(make_config(), plain)
    run(make_config(ema={"decay": 0.9, "use": "eval", "restart": False}), averaged)
    first = checkpoint.load(plain / "checkpoints" / "last.pt")["model"]
    last = checkpoint.load(averaged / "checkpoints" / "last.pt")
    assert all(torch.equal(first[key], last["ema"]["weights"][key]) for key in first)
    assert not all(torch.equal(first[key], last["model"][key]) for key in first)
    # the II-step's classifier is the same, whichever backbone is below it
    assert all(torch.equal(first[key], last["model"][key]) for key in first if key.startswith("classifier"))


@pytest.mark.parametrize("use", ["pseudo", "eval"])
def test_pseudo_labels_are_made_by_the_network_asked_for(make_config, tmp_path, monkeypatch, use):
    made = []
    original = module.make_pseudo_labels

    def make(model, *rest):
        made.append(model)
        return original(model, *rest)

    monkeypatch.setattr(module, "make_pseudo_labels", make)
    trainer = Trainer(make_config(ema={"decay": 0.9, "use": use}), tmp_path / "run", CPU)
    trainer.run()
    assert made == [trainer.networks.mean if use == "pseudo" else trainer.model]


def test_the_second_step_caches_features_of_the_averaged_backbone_that_was_handed_over(
    make_config, tmp_path, monkeypatch
):
    seen = {}
    original = module.cache_features

    def cache(model, *rest):
        mean = trainer.networks.mean.backbone.state_dict()
        seen["same"] = all(torch.equal(value, mean[key]) for key, value in model.backbone.state_dict().items())
        return original(model, *rest)

    monkeypatch.setattr(module, "cache_features", cache)
    for restart in (True, False):
        trainer = Trainer(make_config(ema={"decay": 0.9, "restart": restart}), tmp_path / str(restart), CPU)
        trainer.run()
        assert seen["same"] == restart
