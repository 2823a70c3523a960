"""`check` over folders, prepared folders and the embedded dataset: what it finds, what it writes, how it ends."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mink_decouple.cli import main
from mink_decouple.config import configs_dir, load_config, merge
from mink_decouple.data.adapters import ADAPTERS
from mink_decouple.data.prepare import prepare
from mink_decouple.engine.check import check_data, what_is_wanted

SAMPLES = Path(os.environ.get("MINK_DECOUPLE_SAMPLES", Path(__file__).resolve().parents[3] / "shared" / "data"))
# Of published counts: (scene, grid in metres, points, ignored points, cells, points of some classes)
REAL = {
    "s3dis/Stanford3dDataset_v1.2_Aligned_Version": (
        "Area_3_hallway_3",
        0.04,
        175_075,
        0,
        11_731,
        {"ceiling": 34_283, "floor": 33_948, "door": 35_890},
    ),
    "scannet": ("scene0000_00", 0.04, 81_369, 21_917, None, {"wall": 13_899, "curtain": 5_519, "sink": 362}),
    "semantickitti": ("00_000000", 0.06, 124_668, 4_886, 83_891, {"road": 35_281, "car": 4_234, "motorcyclist": 88}),
}


@pytest.fixture
def clouds(folder, tmp_path):
    """The tiny rooms, to be changed by a test."""
    return shutil.copytree(folder, tmp_path / "clouds")


@pytest.fixture
def rooms(make_config, clouds):
    """`rooms(**overrides)` -> configuration over them."""
    return lambda **overrides: make_config(**merge({"data": {"root": str(clouds)}}, overrides))


def edit(path, **columns):
    with np.load(path) as stored:
        arrays = {**stored, **columns}
    np.savez(path, **{key: column for key, column in arrays.items() if column is not None})


def seen(config):
    return [(f.level, f.kind, f.scene) for f in check_data(config).findings]


def run(root, *more):
    sets = {"data.dataset": "folder", "data.root": root, "data.features": "[rgb, height]", "data.grid": 0.1}
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    return main(["check", *arguments, *more])


def test_clean_rooms_pass_and_the_json_holds_their_counts(clouds, tmp_path, capsys):
    output = tmp_path / "out" / "check.json"
    assert run(clouds, "--output", str(output)) == 0
    printed = capsys.readouterr()
    assert "0 errors, 0 warnings, 0 notes" in printed.out and printed.err == ""

    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads(output.read_text(), parse_constant=refuse)  # NaN and Infinity are no JSON
    assert data["findings"] == [] and data["repairs"] == [] and set(data["splits"]) == {"train", "val"}
    counts = np.zeros(9, int)
    for name in "ab":
        with np.load(clouds / f"{name}.npz") as stored:
            counts += np.bincount(stored["label"], minlength=9)
    assert data["splits"]["train"]["classes"] == {"floor": counts[1], "wall": counts[2], "box": counts[7]}
    assert data["splits"]["train"]["ignored"] == counts[0] and data["splits"]["train"]["points"] == counts.sum()
    assert data["splits"]["train"]["imbalance"] == counts[[1, 2, 7]].max() / counts[[1, 2, 7]].min()


def test_errors_end_with_2_and_are_told_once_on_the_error_stream(clouds, tmp_path, capsys):
    edit(clouds / "a.npz", rgb=None)
    edit(clouds / "c.npz", label=None)
    output = tmp_path / "check.json"
    assert run(clouds, "--output", str(output)) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert "a: lacks 'rgb' of data.features; it has none" in lines[0]
    assert "c: no labels, but it is in the split 'val'" in lines[1]
    assert "lacks" not in printed.out and "2 errors" in printed.out
    assert [f["scene"] for f in json.loads(output.read_text())["findings"]] == ["a", "c"]


def test_a_warning_does_not_stop(clouds, capsys):
    edit(clouds / "a.npz", rgb=np.zeros((400, 3), np.float32))
    assert run(clouds) == 0
    assert "warning: a: all colours are 0; leave rgb out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"coords": np.full((400, 3), np.nan, np.float32)}, "NaN or infinite"),
        ({"label": np.full(400, 3, np.uint8)}, "raw id 3"),
    ],
)
def test_a_scene_that_cannot_be_read_is_an_error_and_the_others_are_checked(clouds, rooms, column, words):
    edit(clouds / "a.npz", **column)
    edit(clouds / "b.npz", rgb=np.zeros((400, 3), np.float32))
    report = check_data(rooms())
    assert [(f.level, f.kind, f.scene) for f in report.findings] == [
        ("error", "unreadable", "a"),
        ("warning", "colours", "b"),
    ]
    assert words in report.findings[0].found and "a.npz" in report.findings[0].found


def test_a_dataset_that_does_not_open_is_one_error_line(tmp_path, capsys):
    assert run(tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.strip() == f"error: {tmp_path / 'nowhere'}: no such folder"


def test_copies_between_the_splits_and_missing_splits_are_errors(clouds, rooms):
    shutil.copy(clouds / "a.npz", clouds / "c.npz")
    assert seen(rooms()) == [("error", "overlap", "c")]
    assert seen(rooms(data={"eval_split": "holdout"})) == [("error", "splits", "")]
    assert seen(rooms(data={"eval_split": "train"})) == [("note", "overlap", "")]


def test_a_test_split_is_checked_too_and_needs_no_labels(clouds, rooms):
    edit(clouds / "b.npz", label=None, rgb=None)
    splits = {"train": ["a"], "val": ["c"], "test": ["b"]}
    assert seen(rooms(data={"splits": splits})) == [("error", "features", "b")]


def test_a_class_without_labels_stops_only_where_training_stops(clouds, rooms):
    for name in "ab":
        with np.load(clouds / f"{name}.npz") as stored:
            label = np.where(stored["label"] == 7, 0, stored["label"])
        edit(clouds / f"{name}.npz", label=label)
    assert seen(rooms()) == [("error", "classes", "")]
    assert seen(rooms(labels={"budget": "uniform:1%"})) == [("warning", "classes", "")]


def test_a_label_file_stands_in_for_the_labels_of_training_scenes(clouds, rooms, tmp_path):
    path = tmp_path / "labels.npz"
    path.touch()
    edit(clouds / "a.npz", label=None)
    assert what_is_wanted(rooms(labels={"budget": str(path)})).labels_in_file
    assert seen(rooms(labels={"budget": str(path)})) == []
    assert seen(rooms()) == [("note", "unlabelled", "a")]
    edit(clouds / "b.npz", label=None)
    assert seen(rooms())[0] == ("error", "unlabelled", "")


@pytest.fixture
def prepared(clouds, tmp_path):
    """The rooms with 8-bit colours, prepared but for room c."""
    for name in "abc":
        with np.load(clouds / f"{name}.npz") as stored:
            edit(clouds / f"{name}.npz", rgb=np.rint(stored["rgb"] * 255).astype(np.uint8))
    with np.load(clouds / "b.npz") as stored:
        edit(clouds / "b.npz", rgb=stored["rgb"].astype(np.float32) / 256)  # finer than 8 bits: a repair
    prepare(ADAPTERS["folder"], clouds, tmp_path / "prepared", workers=1, scenes=["a", "b"])
    return tmp_path / "prepared"


def test_a_prepared_folder_gives_the_numbers_of_its_clouds_and_tells_its_repairs(clouds, prepared, rooms):
    splits = {"train": ["a"], "val": ["b"]}
    stored = check_data(rooms(data={"root": str(prepared), "splits": splits}))
    held = check_data(rooms(data={"splits": splits}))
    assert stored.findings == held.findings == ()
    for split in splits:
        one, two = stored.splits[split][0], held.splits[split][0]
        np.testing.assert_array_equal(one.labelled, two.labelled)
        for key in ("points", "cells", "content", "spacing", "height", "duplicates", "ignored"):
            assert getattr(one, key) == getattr(two, key), key
        np.testing.assert_array_equal(one.low, two.low)
    assert stored.left_out == 1 and held.left_out == 0
    (item,) = stored.mended
    assert (item.scene, item.file, item.count, item.done) == ("b", "b.npz", 1, "rounded to 8 bits")


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_prepared_scene_is_an_error(prepared, rooms, damage):
    config = rooms(data={"root": str(prepared), "splits": {"train": ["a"], "val": ["b"]}})
    path = prepared / "scenes" / "a.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage == "flipped" else whole[:-9])
    if damage == "gone":
        path.unlink()
    assert seen(config) == [("error", "unreadable", "a")]
    words = {"flipped": "checksum", "cut": "truncated", "gone": "no such file"}
    assert words[damage] in check_data(config).findings[0].found


def test_the_embedded_dataset_is_clean(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("MINK_DECOUPLE_CACHE", str(tmp_path))
    synthetic = {"areas": 5, "rooms_per_area": 1, "points_per_room": 3000}
    data = {"dataset": "synthetic", "root": None, "synthetic": synthetic, "grid": 0.2}
    findings = check_data(make_config(data=data)).findings
    assert {finding.kind for finding in findings} <= {"classes", "imbalance"}  # so few rooms lack some classes


def test_the_dense_tiles_have_every_class_of_their_configuration():
    if not (SAMPLES / "lidar_hd_dense").is_dir():
        pytest.skip(f"no sample at {SAMPLES / 'lidar_hd_dense'}; set MINK_DECOUPLE_SAMPLES")
    pytest.importorskip("laspy", reason="LAS files need the extra [las]")
    tree = {"data": {"root": str(SAMPLES / "lidar_hd_dense")}, "labels": {"budget": "1pt"}}
    report = check_data(load_config(configs_dir() / "lidar_hd_dense.yaml", overrides=tree))
    assert report.of("error") == [] and report.of("warning") == []
    for split, scenes in (("train", 6), ("val", 2)):
        counts = np.sum([scene.labelled for scene in report.splits[split]], axis=0)
        assert len(report.splits[split]) == scenes and (counts >= 500).all(), split


@pytest.mark.parametrize("sample", REAL)
def test_the_golden_numbers_of_real_scenes(make_config, tmp_path, sample):
    if not (SAMPLES / sample).is_dir():
        pytest.skip(f"no sample at {SAMPLES / sample}; set MINK_DECOUPLE_SAMPLES")
    name, grid, points, ignored, cells, counts = REAL[sample]
    dataset = sample.split("/", maxsplit=1)[0]
    prepare(ADAPTERS[dataset], SAMPLES / sample, tmp_path / "out", workers=1, scenes=[name])
    splits = {"train": [name], "val": []}
    data = {"dataset": dataset, "root": str(tmp_path / "out"), "splits": splits, "eval_split": "train", "grid": grid}
    report = check_data(make_config(data={**data, "features": ["height"]}))
    (scene,) = report.splits["train"]
    assert (scene.points, scene.ignored, scene.bad, scene.strange) == (points, ignored, 0, 0)
    assert cells is None or scene.cells == cells
    assert {key: scene.labelled[report.classes.index(key)] for key in counts} == counts
    assert report.of("error") == []
