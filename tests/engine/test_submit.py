"""A checkpoint to a submission: every raw point of the test scenes, in the ids of the server."""

import json
import zipfile

import numpy as np
import pytest
import torch
import yaml

from mink_decouple.cli import main
from mink_decouple.config import loads
from mink_decouple.data.adapters import ADAPTERS
from mink_decouple.data.folder import FolderDataset
from mink_decouple.data.prepare import prepare as prepare_folder
from mink_decouple.data.prepared import PreparedDataset
from mink_decouple.engine import checkpoint
from mink_decouple.engine.evaluate import predict_raw, restore
from mink_decouple.engine.scenes import prepare

STATIONS = {
    "MarketplaceFeldkirch_Station4_rgb_intensity-reduced": "marketsquarefeldkirch4-reduced.labels",
    "sg27_station10_rgb_intensity-reduced": "sg27_10-reduced.labels",
    "sg28_Station2_rgb_intensity-reduced": "sg28_2-reduced.labels",
    "StGallenCathedral_station6_rgb_intensity-reduced": "stgallencathedral6-reduced.labels",
}
EXTRA = "sg27_station3_intensity_rgb"  # of the other benchmark
CLASSES = {
    "classes": {"floor": {"raw": [1]}, "wall": {"raw": [2]}, "box": {"raw": [7]}},
    "ignore": [0],
    "splits": {"train": ["a"], "val": ["b"], "test": [*STATIONS, EXTRA]},
}
SETTINGS = {
    "labels": {"budget": "4pt"},
    "data": {"dataset": "folder", "grid": 0.1, "features": ["rgb", "height"]},
    "model": {"variant": "tiny"},
    "schedule": {"iterations": 0, "steps": 2, "pretrain": {"epochs": 2, "lr": 1e-2}},
    "view": {"batch": 1, "workers": 0},
    "eval": {"votes": 2},
}


def room(rng, points):
    """A floor, a wall and a box, `points` of each."""
    floor = np.c_[rng.uniform(0, 2, (points, 2)), np.zeros(points)]
    wall = np.c_[rng.uniform(0, 2, points), np.zeros(points), rng.uniform(0, 2, points)]
    box = np.r_[0.8, 0.9, 0.2] + rng.uniform(-0.2, 0.2, (points, 3))
    xyz = np.concatenate([floor, wall, box]).astype(np.float32)
    return xyz, rng.random(xyz.shape).astype(np.float32), np.repeat([1, 2, 7], points)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of tiny rooms with the names of test stations, and a network trained on another room for a moment."""
    root = tmp_path_factory.mktemp("submit")
    rooms = root / "rooms"
    rooms.mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a", "b", *STATIONS, EXTRA]):
        xyz, rgb, label = room(rng, 70 + 10 * number)
        labels = {"label": label} if name in "ab" else {}
        np.savez(rooms / f"{name}.npz", coords=xyz, rgb=rgb, **labels)
    (rooms / "classes.yaml").write_text(yaml.safe_dump(CLASSES, sort_keys=False))
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "root": str(rooms)}}
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["--config", str(root / "config.yaml"), "--output", str(root / "run"), "--device", "cpu"]
    assert main(["train", *arguments]) == 0
    return root


def submit(run, output, *more, saved=None):
    saved = saved or run / "run" / "checkpoints" / "last.pt"
    return main(["submit", "--checkpoint", str(saved), "--output", str(output), "--device", "cpu", *more])


def test_the_zip_holds_the_prediction_of_every_raw_point(run, tmp_path):
    output = tmp_path / "submission.zip"
    assert submit(run, output, "--server", "reduced-8") == 0
    state = checkpoint.load(run / "run" / "checkpoints" / "last.pt")
    config = loads(state["config"])
    model = restore(state, config, torch.device("cpu"))
    dataset = FolderDataset(run / "rooms")
    with zipfile.ZipFile(output) as archive:
        assert sorted(archive.namelist()) == sorted(STATIONS.values())
        for name, file in STATIONS.items():
            cloud = dataset.load(name)
            expected = predict_raw(model, config, prepare(cloud, config), 3, torch.device("cpu"))
            found = [int(line) for line in archive.read(file).split()]
            assert len(found) == len(cloud) and found == [[1, 2, 7][i] for i in expected]
    before = output.read_bytes()
    assert submit(run, output, "--server", "reduced-8") == 2 and output.read_bytes() == before


def test_an_exported_network_submits_the_same(run, tmp_path):
    output = tmp_path / "network"
    assert main(["export", "--checkpoint", str(run / "run" / "checkpoints" / "last.pt"), "--output", str(output)]) == 0
    assert submit(run, tmp_path / "a.zip", "--server", "reduced-8") == 0
    assert submit(run, tmp_path / "b.zip", "--server", "reduced-8", saved=output) == 0
    with zipfile.ZipFile(tmp_path / "a.zip") as a, zipfile.ZipFile(tmp_path / "b.zip") as b:
        assert a.namelist() == b.namelist() and all(a.read(name) == b.read(name) for name in a.namelist())


def test_out_of_memory_names_what_to_lower_and_leaves_no_zip(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mink_decouple.engine.submit.predict_blocks", lambda *a: (_ for _ in ()).throw(MemoryError()))
    assert submit(run, tmp_path / "submission.zip", "--server", "reduced-8") == 1
    assert "out of memory on the machine: lower view.crop_points (now 0, whole" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_scenes_of_a_prepared_folder_are_predicted_from_disk_in_blocks(run, tmp_path, monkeypatch):
    prepare_folder(ADAPTERS["folder"], run / "rooms", tmp_path / "prepared", workers=1)
    state = checkpoint.load(run / "run" / "checkpoints" / "last.pt")
    config = loads(state["config"])
    model = restore(state, config, torch.device("cpu"))
    dataset = PreparedDataset(tmp_path / "prepared")
    clouds = {name: dataset.load(name) for name in STATIONS}

    def refuse(self, name):
        raise AssertionError(f"{name} was read into memory")

    monkeypatch.setattr(PreparedDataset, "load", refuse)
    monkeypatch.setattr("mink_decouple.engine.scenes.BLOCK_POINTS", 17)
    output = tmp_path / "submission.zip"
    assert submit(run, output, "--server", "reduced-8", "--set", f"data.root={tmp_path / 'prepared'}") == 0
    with zipfile.ZipFile(output) as archive:
        for name, file in STATIONS.items():
            expected = predict_raw(model, config, prepare(clouds[name], config), 3, torch.device("cpu"))
            assert [int(line) for line in archive.read(file).split()] == [[1, 2, 7][i] for i in expected]


def test_what_cannot_be_submitted_is_named_and_leaves_nothing(run, tmp_path, capsys):
    output = tmp_path / "submission.zip"
    for more, words in (
        ((), "data.dataset 'folder': has no benchmark server; name one with --server"),
        (("--server", "s3dis"), "server 's3dis': unknown; choose from scannet"),
        (("--server", "semantic3d"), "two benchmarks; choose one: reduced-8 or semantic-8"),
        (("--server", "semantic-8"), "semantic-8: 14 of 15 test scenes are missing"),
        (("--server", "scannet"), "scannet: 100 of 100 test scenes are missing"),
        (("--server", "reduced-8", "--set", "view.batch=1"), "view: is fixed by the checkpoint"),
    ):
        assert submit(run, output, *more) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and len(error.splitlines()) == 1
    assert submit(run, tmp_path / "submission.tar", "--server", "reduced-8") == 2
    assert "must end in .zip" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_metrics_hold_the_confusion_of_training_and_of_evaluation(run, tmp_path):
    saved = run / "run" / "checkpoints" / "last.pt"
    assert main(["evaluate", "--checkpoint", str(saved), "--output", str(tmp_path), "--device", "cpu"]) == 0
    for folder in (run / "run", tmp_path):
        content = json.loads((folder / "metrics.json").read_text())
        matrix = np.array(content["confusion"])
        assert matrix.shape == (3, 3) and matrix.sum() == content["points"] > 0
        assert np.trace(matrix) / matrix.sum() == pytest.approx(content["oa"])
        assert "miou_official" not in content  # a folder has no benchmark
