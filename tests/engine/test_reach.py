"""Where given labels reach when a forest says so (`labels.spread: forest`)."""

import dataclasses
import itertools
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mink_decouple.data import point_forest
from mink_decouple.data.segments import over_segment, spread_labels
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.engine.reach import reach_of, segments_of
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")
FOREST = {
    "labels": {"spread": "forest", "spread_in": "all"},
    "forest": {"trees": 5, "radii": [2.0, 4.0], "neighbors": 16},
    "segments": {"most": 10},
}


def trainer_of(make_config, folder, **overrides):
    trainer = Trainer(make_config(**{**FOREST, **overrides}), folder, CPU)
    trainer.events.close()
    return trainer


def test_labels_reach_the_segments_of_given_ones_and_the_surest_points(make_config, tmp_path):
    trainer = trainer_of(make_config, tmp_path / "run")
    beyond = 0
    for scene in trainer.scenes:
        found, shown = trainer.reach[scene.name], scene.visible
        assert found.dtype == np.int64 and found.shape == shown.shape
        assert (found[shown >= 0] == -1).all(), "a given label is not told again"
        near = spread_labels(shown, over_segment(scene.grid, trainer.config.segments))
        told = (near >= 0) & (shown < 0)
        assert told.any()
        np.testing.assert_array_equal(found[told], near[told])
        beyond += ((found >= 0) & ~told).sum()
    assert beyond > 100


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_says_how_far(make_config, tmp_path, share):
    trainer = trainer_of(make_config, tmp_path / "run", forest={**FOREST["forest"], "share": share})
    for scene in trainer.scenes:
        near = spread_labels(scene.visible, trainer.segments[scene.name])
        told = (trainer.reach[scene.name] >= 0) & (scene.visible < 0)
        if share == 0:
            np.testing.assert_array_equal(told, (near >= 0) & (scene.visible < 0))
        else:
            assert told.sum() == (scene.visible < 0).sum()


def test_classes_that_a_scene_lacks_are_not_told_there(make_config, tmp_path):
    trainer = trainer_of(make_config, tmp_path / "run", forest={**FOREST["forest"], "share": 1.0})
    first, second = trainer.scenes
    assert first.visible.max() == 2 and (trainer.reach[first.name] == 2).any()
    lacking = dataclasses.replace(first, given=None, occurring=np.array([True, True, False]))
    scenes = [lacking, second]
    found = reach_of(trainer.config, scenes, segments_of(trainer.config, scenes))
    assert set(np.unique(found[first.name])) == {0, 1}
    assert (found[second.name] == 2).any()


def test_scenes_without_any_label_are_reached(make_config, tmp_path):
    trainer = trainer_of(make_config, tmp_path / "run")
    scenes = [dataclasses.replace(trainer.scenes[0], given=None, occurring=None), trainer.scenes[1]]
    found = reach_of(trainer.config, scenes, segments_of(trainer.config, scenes))[scenes[0].name]
    assert 0.2 < (found >= 0).mean() < 0.4, "the share of 30 %, rounded up for each class"
    assert (found == scenes[0].truth)[found >= 0].mean() > 0.6


def test_the_same_labels_reach_the_same_points_and_other_seeds_others(make_config, tmp_path):
    first = trainer_of(make_config, tmp_path / "first", labels={**FOREST["labels"], "seed": 0})
    again = reach_of(first.config, first.scenes, segments_of(first.config, first.scenes))
    assert all((first.reach[scene.name] == again[scene.name]).all() for scene in first.scenes)
    other = trainer_of(make_config, tmp_path / "other", seed=1, labels={**FOREST["labels"], "seed": 0})
    assert other.labels.checksum == first.labels.checksum
    assert any((first.reach[scene.name] != other.reach[scene.name]).any() for scene in first.scenes)


def test_no_forest_is_grown_where_nothing_asks_for_it(make_config, tmp_path, monkeypatch):
    def fail(*arguments):
        raise AssertionError("a forest was grown")

    monkeypatch.setattr("mink_decouple.data.point_forest.fit", fail)
    Trainer(make_config(labels={"spread": "segments"}), tmp_path / "segments", CPU).run()
    supervised = make_config(recipe="supervised", labels={"spread": "forest"})
    Trainer(supervised, tmp_path / "supervised", CPU).run()  # spread_in: pseudo, and it has no pseudo-labels


def test_the_clock_of_the_pre_training_counts_the_forest(make_config, tmp_path, monkeypatch):
    """Also where weights of the labels that reach ask for it before the first epoch."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)), monotonic=time.monotonic)
    for module in ("train", "run"):
        monkeypatch.setattr(f"mink_decouple.engine.{module}.time", clock)
    original = point_forest.fit

    def fit(*arguments, **named):
        for _ in range(1000):
            next(ticks)
        return original(*arguments, **named)

    monkeypatch.setattr(point_forest, "fit", fit)
    weighted = {**FOREST, "loss": {"pseudo_weight": "inv", "seg_norm": "split"}, "schedule": {"iterations": 0}}
    trainer = Trainer(make_config(**weighted), tmp_path / "run", CPU)
    trainer.run()
    assert trainer.state.seconds["pretrain"] > 1000


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
def test_pseudo_labels_and_the_second_step_have_them(make_config, tmp_path, capsys, backbone):
    config = make_config(backbone, **FOREST, ii={"labels": "spread"})
    trainer = Trainer(config, tmp_path / "run", CPU)
    trainer.run()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("forest: given labels reach")]
    reached = sum((trainer.reach[scene.name] >= 0).sum() for scene in trainer.scenes)
    assert len(said) == 1 and f" {reached:,} more points" in said[0] and "% of them right" in said[0]
    table = PseudoLabelTable.load(tmp_path / "run" / "pseudo_labels" / "iter_00.npz")
    for scene in trainer.scenes:
        told = trainer.reach[scene.name] >= 0
        np.testing.assert_array_equal(table[scene.name].label.numpy()[told], trainer.reach[scene.name][told])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (event,) = [line for line in lines if line["event"] == "pseudo_labels"]
    assert sum(event["spread"].values()) == reached


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
def test_the_recipe_learns_from_them_at_once_and_goes_on_as_it_began(make_config, tmp_path, monkeypatch, backbone):
    config = make_config(backbone, "forest", forest=FOREST["forest"])
    metrics = Trainer(config, tmp_path / "whole", CPU).run().metrics
    assert metrics["stages"] == ["pretrain"] and metrics["label_budget"]["labelled"] == 2 * 3 * 4
    original = Trainer.save

    def die(self):
        original(self)
        if self.state.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", die)
        with pytest.raises(KeyboardInterrupt):
            Trainer(config, tmp_path / "cut", CPU).run()
    Trainer(config, tmp_path / "cut", CPU, resume=True).run()
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    assert (whole / "metrics.json").read_bytes() == (cut / "metrics.json").read_bytes()
