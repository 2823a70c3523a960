"""Classes that a scene does not have, as its labels tell: no pseudo-label of them, and a loss against them."""

import numpy as np
import pytest
import torch

from mink_decouple.config import merge
from mink_decouple.data.sampling import SampleIndex
from mink_decouple.engine import checkpoint
from mink_decouple.engine import pseudo as pseudo_module
from mink_decouple.engine.batches import SceneLabels, make_batch
from mink_decouple.engine.pseudo import make_pseudo_labels
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.scenes import load_split, open_dataset, reveal, training_labels
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")
BOX, UNKNOWN = 2, [True] * 3
SPLIT = {"loss": {"seg_norm": "split"}, "pseudo": {"delta_d": 0.0, "delta_len": 0.05}}


@pytest.fixture
def lacking(make_config, folder, tmp_path):
    """`lacking(**overrides)` -> Config over rooms of which the first, a, has no box."""
    for name in "abc":
        with np.load(folder / f"{name}.npz") as stored:
            room = dict(stored)
        if name == "a":
            keep = room["label"] != 7
            room = {key: value[keep] for key, value in room.items()}
        np.savez(tmp_path / f"{name}.npz", **room)
    (tmp_path / "classes.yaml").write_text((folder / "classes.yaml").read_text())
    return lambda **overrides: make_config(**merge({"data": {"root": str(tmp_path)}}, overrides))


def revealed(config):
    dataset = open_dataset(config)
    scenes = load_split(config, dataset, "train")
    return reveal(scenes, training_labels(config, dataset, scenes))


@pytest.mark.parametrize(
    ("budget", "known"), [("1pt", True), ("5%", True), ("full", True), ("uniform:50%", False), ("60x", False)]
)
def test_labels_of_every_class_of_a_scene_tell_which_are_not_there(lacking, budget, known):
    a, b = revealed(lacking(labels={"budget": budget}))
    assert a.possible(3).tolist() == ([True, True, False] if known else UNKNOWN)
    assert b.possible(3).tolist() == UNKNOWN


def test_a_scan_without_any_label_may_hold_every_class(lacking):
    a, b = revealed(lacking(labels={"budget": "scans:50%", "seed": 1}))
    assert not (a.visible >= 0).any() and (b.visible >= 0).any()  # a seed that labels a is refused, which lacks a class
    assert a.possible(3).tolist() == UNKNOWN


def strokes(path, points=20):
    """Leave a cloud that many labels of each class."""
    with np.load(path) as stored:
        room = dict(stored)
    kept = [np.flatnonzero(room["label"] == raw)[:points] for raw in (1, 2, 7)]
    room["label"][np.setdiff1d(np.arange(len(room["label"])), np.concatenate(kept))] = 0
    np.savez(path, **room)


@pytest.mark.parametrize("budget", ["1pt", "5%", "full"])
def test_a_cloud_of_which_most_is_unlabelled_may_hold_every_class(lacking, tmp_path, capsys, budget):
    strokes(tmp_path / "a.npz")
    config = lacking(labels={"budget": budget}, pseudo={"within": "labelled"})
    a, _ = revealed(config)
    assert a.possible(3).tolist() == UNKNOWN
    Trainer(config, tmp_path / "run", CPU).run()
    said = capsys.readouterr().out
    assert "a: most points have no label, so the labels do not tell which classes are there: pseudo.within" in said


def test_where_all_that_is_known_is_given_nothing_is_said_of_how_many_are_right(lacking, tmp_path, capsys):
    for name in "abc":
        strokes(tmp_path / f"{name}.npz")
    Trainer(lacking(labels={"budget": "full"}, pseudo={"delta_d": 0.0}), tmp_path / "run", CPU).run()
    said = capsys.readouterr().out
    assert "uncertain pseudo-labels" in said and "of them right" not in said


def test_pseudo_labels_are_of_classes_that_the_scene_has(lacking, monkeypatch):
    def sure(model, config, scene, classes, device, votes):
        return np.tile(np.float32([0.02, 0.08, 0.9]), (len(scene.grid), 1))

    monkeypatch.setattr(pseudo_module, "probabilities", sure)
    for within, expected in (("any", BOX), ("labelled", 1)):
        config = lacking(pseudo={"within": within})
        scenes = revealed(config)
        table = make_pseudo_labels(None, config, scenes, 3, CPU).table
        for scene, found in zip(scenes, (expected, BOX), strict=True):
            labels = table[scene.name]
            assert set(labels.label[labels.round > 0].tolist()) == {found}
    # .08 of the .1 that is left
    assert table["a"].confidence[table["a"].round > 0].numpy() == pytest.approx(0.8, abs=0.01)


def test_a_batch_knows_what_its_samples_may_hold(lacking):
    config = lacking(loss={"absent": 1.0})
    items = [
        (s, SceneLabels.given(s), SampleIndex(s.name, np.arange(len(s.grid)), np.zeros(3))) for s in revealed(config)
    ]

    def made(config, groups=None):
        return make_batch(config, 3, items, lambda sample, rng: sample, generator(0), groups=groups)

    assert made(config).present.tolist() == [[True, True, False], UNKNOWN]
    assert made(config).to(CPU).present.tolist() == [[True, True, False], UNKNOWN]
    assert made(config, groups=[(0, 1)]).present.tolist() == [UNKNOWN]
    assert made(lacking()).present is None


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
@pytest.mark.parametrize(
    "overrides", [{"loss": {"absent": 1.0}}, {"loss": {"pseudo_weight": "inv"}}], ids=["absent", "pseudo_weight"]
)
def test_every_switch_gives_another_network(lacking, tmp_path, backbone, overrides):
    weights = []
    for changes in ({}, overrides):
        output = tmp_path / f"run{len(weights)}"
        Trainer(lacking(backbone=backbone, **merge(SPLIT, changes)), output, CPU).run()
        weights.append(checkpoint.load(output / "checkpoints" / "last.pt")["model"])
    assert not all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_labels_that_do_not_tell_leave_the_run_as_it_is_and_it_says_so(lacking, tmp_path, capsys):
    blind = merge(SPLIT, {"labels": {"budget": "uniform:50%"}})
    Trainer(lacking(**blind), tmp_path / "plain", CPU).run()
    assert "which classes a scene has" not in capsys.readouterr().out
    asked = merge(blind, {"loss": {"absent": 1.0}, "pseudo": {"within": "labelled"}})
    Trainer(lacking(**asked), tmp_path / "asked", CPU).run()
    said = capsys.readouterr().out
    assert "labels uniform:50% do not tell which classes a scene has" in said
    assert "loss.absent" in said and "pseudo.within" in said
    plain, other = (tmp_path / name / "metrics.json" for name in ("plain", "asked"))
    assert plain.read_bytes() == other.read_bytes()


def test_weights_of_pseudo_labels_need_a_mean_of_their_own(lacking, tmp_path):
    config = lacking(loss={"pseudo_weight": "inv", "seg_norm": "joint"})
    with pytest.raises(ValueError, match=r"loss.pseudo_weight inv: .*loss.seg_norm split"):
        Trainer(config, tmp_path / "run", CPU)
