"""The arrays kept for pictures: of the points they name, of the network scored, the same bytes after a resume."""

import json

import numpy as np
import pytest
import torch

from mink_decouple.config import merge
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.engine.batches import SceneLabels, make_batch
from mink_decouple.engine.evaluate import predict_grid
from mink_decouple.engine.predict import crops, turned
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.snapshots import FEATURE_POINTS, add_arrays, richest, scene_features
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")
TWO = {"schedule": {"iterations": 2, "pretrain": {"epochs": 1}, "i_step": {"epochs": 1}, "ii_step": {"epochs": 1}}}


def arrays(path):
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


@pytest.fixture
def trained(make_config, tmp_path):
    def train(backbone="minkunet", **overrides):
        trainer = Trainer(make_config(backbone, **merge(TWO, overrides)), tmp_path / "run", CPU)
        trainer.run()
        return trainer, tmp_path / "run"

    return train


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
def test_features_of_every_iteration_are_of_the_same_points_and_of_the_network_scored(trained, backbone):
    trainer, output = trained(backbone)
    files = {path.stem: arrays(path) for path in (output / "features").iterdir()}
    assert set(files) == {trainer.snapshots.train.name, "c"}
    width = trainer.model.backbone.out_channels
    for scene in (trainer.snapshots.train, trainer.pictured):
        held, grid = files[scene.name], scene.grid
        assert set(held) == {"coords", "truth", "visible", "pretrain", "iter_00_II", "iter_01_II"}
        count = min(len(grid), FEATURE_POINTS)
        assert held["coords"].shape == (count, 3) and held["coords"].dtype == np.float32
        place = {tuple(xyz): row for row, xyz in enumerate(grid.coords.tolist())}
        rows = np.array([place[tuple(xyz)] for xyz in held["coords"].tolist()])
        for name, column in (("truth", scene.truth), ("visible", scene.visible)):
            assert held[name].dtype == np.int64
            np.testing.assert_array_equal(held[name], column[rows])
        for stage in ("pretrain", "iter_00_II", "iter_01_II"):
            assert held[stage].shape == (count, width) and held[stage].dtype == np.float16
        again = scene_features(trainer.model, trainer.config, scene, 3, CPU, rows)
        np.testing.assert_array_equal(held["iter_01_II"], again.astype(np.float16))
        assert not np.array_equal(held["pretrain"], held["iter_01_II"])


def test_features_are_those_of_a_plain_pass(trained):
    trainer, output = trained()
    scene = trainer.pictured
    item = make_batch(
        trainer.config,
        3,
        [(scene, SceneLabels.given(scene), crops(trainer.config, scene)[0])],
        turned(0, trainer.config.augment),
        generator(0),
    )
    with torch.no_grad():
        plain = trainer.model.eval().features(item.batch)[item.batch.inverse].numpy()
    expected = np.empty_like(plain)
    expected[item.points.numpy()] = plain
    held = arrays(output / "features" / "c.npz")
    np.testing.assert_allclose(held["iter_01_II"], expected.astype(np.float16), atol=2e-3, rtol=2e-3)


def test_large_scenes_are_reduced_to_a_part(trained, monkeypatch):
    from mink_decouple.engine import snapshots

    monkeypatch.setattr(snapshots, "FEATURE_POINTS", 30)
    _, output = trained("randla", view={"crop_points": 60})
    held = arrays(output / "features" / "c.npz")
    assert len(held["coords"]) == len(held["truth"]) == 30
    assert np.isfinite(held["pretrain"]).all() and (held["pretrain"].astype(np.float32) != 0).any(1).all()


@pytest.mark.parametrize(("budget", "least"), [("1pt", 3), ("full", 15)])
def test_given_labels_are_among_the_features_that_are_kept(trained, monkeypatch, budget, least):
    from mink_decouple.engine import snapshots

    monkeypatch.setattr(snapshots, "FEATURE_POINTS", 30)
    trainer, output = trained(labels={"budget": budget})
    held = arrays(output / "features" / f"{trainer.snapshots.train.name}.npz")
    given = (held["visible"] >= 0).sum()
    assert len(held["visible"]) == 30
    assert given == least if budget == "1pt" else given >= least


def test_arrays_of_other_points_make_way(tmp_path):
    add_arrays(tmp_path / "a.npz", {"coords": np.zeros((2, 3)), "pretrain": np.ones(2)})
    add_arrays(tmp_path / "a.npz", {"coords": np.ones((2, 3)), "final": np.ones(2)})
    assert set(arrays(tmp_path / "a.npz")) == {"coords", "final"}


def test_views_hold_predictions_of_the_pictured_scene_and_pseudo_labels_of_a_training_scene(trained):
    trainer, output = trained()
    scene, held = trainer.pictured, arrays(output / "views" / "c.npz")
    assert set(held) == {"coords", "truth", "pretrained", "final"}
    np.testing.assert_array_equal(held["coords"], scene.grid.coords)
    np.testing.assert_array_equal(held["truth"], scene.truth)
    final = predict_grid(trainer.networks.asked("eval"), trainer.config, scene, 3, CPU)
    np.testing.assert_array_equal(held["final"], final)
    assert held["final"].dtype == held["pretrained"].dtype == np.int16
    np.testing.assert_array_equal(held["final"][scene.grid.inverse], trainer.state.predictions["final"])
    train = trainer.snapshots.train
    held = arrays(output / "views" / f"{train.name}.npz")
    names = {f"iter_{i:02d}_{key}" for i in (0, 1) for key in ("label", "round")}
    assert set(held) == {"coords", "truth", "visible", *names}
    for number in (0, 1):
        table = PseudoLabelTable.load(output / "pseudo_labels" / f"iter_{number:02d}.npz")[train.name]
        label, round_ = held[f"iter_{number:02d}_label"], held[f"iter_{number:02d}_round"]
        assert label.dtype == np.int16 and round_.dtype == np.uint8
        np.testing.assert_array_equal(label, table.label.numpy())
        np.testing.assert_array_equal(round_, table.round.numpy())


def test_a_resumed_run_leaves_the_same_files(make_config, tmp_path, monkeypatch):
    config = make_config("randla", **TWO)
    Trainer(config, tmp_path / "whole", CPU).run()
    original, saves = Trainer.save, []

    def save(self):
        original(self)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save)
        with pytest.raises(KeyboardInterrupt):
            Trainer(config, tmp_path / "cut", CPU).run()
    Trainer(config, tmp_path / "cut", CPU, resume=True).run()
    for folder in ("features", "views"):
        whole = sorted((tmp_path / "whole" / folder).iterdir())
        assert [p.name for p in whole] == sorted(p.name for p in (tmp_path / "cut" / folder).iterdir()) and whole
        for path in whole:
            assert path.read_bytes() == (tmp_path / "cut" / folder / path.name).read_bytes(), path


def test_adding_replaces_what_is_there_and_refuses_what_it_cannot_read(tmp_path):
    path = tmp_path / "deep" / "x.npz"
    add_arrays(path, {"b": np.arange(3), "a": np.zeros(2)})
    add_arrays(path, {"c": np.ones(1), "a": np.ones(2)})
    held = arrays(path)
    assert list(held) == ["a", "b", "c"] and held["a"].tolist() == [1, 1] and held["b"].tolist() == [0, 1, 2]
    other = tmp_path / "other.npz"
    add_arrays(other, {"c": np.ones(1), "b": np.arange(3), "a": np.ones(2)})
    assert other.read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"x\.npz: damaged"):
        add_arrays(path, {"a": np.ones(1)})


def test_the_richest_scene_is_the_first_with_the_most_classes():
    assert richest(["p", "q", "r"], np.array([[9, 0, 0], [1, 0, 1], [0, 5, 5]])) == "q"


def test_the_final_figures_name_classes_colours_and_groups_and_the_clock_its_machine(trained):
    trainer, output = trained()
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["classes"] == ["floor", "wall", "box"]
    assert metrics["colors"] == trainer.classes.colors.tolist() and len(metrics["colors"]) == 3
    assert set(metrics["groups"]) == {"head", "waist", "tail"}
    assert sorted(c for group in metrics["groups"].values() for c in group) == [0, 1, 2]
    timing = json.loads((output / "timing.json").read_text())
    assert timing["threads"] == torch.get_num_threads() and timing["device"] == "cpu"
    assert timing["peak_memory_mib"] > 50
    assert {"pretrain", "iter_00_I", "iter_00_II", "evaluation", "snapshots"} <= set(timing["seconds"])
