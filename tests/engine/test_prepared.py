"""Training on a prepared folder: the same figures as on the clouds, grid clouds on disk, little memory."""

import errno
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import torch

from mink_decouple.config import merge
from mink_decouple.data import load_dataset
from mink_decouple.data.adapters import ADAPTERS
from mink_decouple.data.prepare import prepare
from mink_decouple.data.tensors import TensorWriter, open_tensors
from mink_decouple.engine import pseudo
from mink_decouple.engine.grids import CHUNK_POINTS, grid_path, open_grid, ready_grid
from mink_decouple.engine.scenes import load_split, open_dataset, reveal, training_labels
from mink_decouple.engine.scenes import prepare as in_memory
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rooms(folder, tmp_path_factory):
    """(the tiny rooms with 8-bit colours and intensities, the same prepared)."""
    root = tmp_path_factory.mktemp("eight_bits")
    shutil.copy(folder / "classes.yaml", root)
    for path in folder.glob("*.npz"):
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays["rgb"] = (np.rint(arrays["rgb"] * 255) / 255).astype(np.float32)
        arrays["intensity"] = np.linspace(0, 4000, len(arrays["label"])).astype(np.float32)
        np.savez(root / path.name, **arrays)
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(ADAPTERS["folder"], root, out, workers=1)
    return root, out


@pytest.fixture
def prepared(rooms, tmp_path):
    """A prepared folder that a test may change."""
    return shutil.copytree(rooms[1], tmp_path / "prepared", ignore=shutil.ignore_patterns("grids"))


def at(make_config, root, backbone="minkunet", **overrides):
    return make_config(backbone, **merge({"data": {"root": str(root)}}, overrides))


ONE_EPOCH = {"schedule": {"pretrain": {"epochs": 1}, "i_step": {"epochs": 1}, "ii_step": {"epochs": 1}}}


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
@pytest.mark.parametrize("budget", ["4pt", "full"])
def test_a_prepared_folder_trains_to_the_same_bytes_as_its_clouds(make_config, rooms, tmp_path, backbone, budget):
    settings = merge(ONE_EPOCH, {"labels": {"budget": budget}})
    for name, root in zip(("clouds", "prepared"), rooms):
        Trainer(at(make_config, root, backbone, **settings), tmp_path / name, CPU).run()
    for name in ("metrics.json", "metrics.jsonl", "labels.npz"):
        assert (tmp_path / "clouds" / name).read_bytes() == (tmp_path / "prepared" / name).read_bytes(), name


@pytest.mark.parametrize("height", ["floor", "ground"])
@pytest.mark.parametrize("chunk", [CHUNK_POINTS, 37])
def test_grid_clouds_on_disk_equal_those_in_memory(make_config, rooms, prepared, monkeypatch, height, chunk):
    monkeypatch.setattr("mink_decouple.engine.grids.CHUNK_POINTS", chunk)
    features = ["rgb", "height", "height_wide", "log_intensity", "intensity"]
    data = {"data": {"features": features, "height": height}}
    config = at(make_config, prepared, **data)
    for scene in load_split(config, open_dataset(config), "train"):
        clouds = open_dataset(at(make_config, rooms[0]))
        held = in_memory(clouds.load(scene.name), config)
        first, second = held.grid, scene.grid
        for one, two in ((first.coords, second.coords), (first.labels, second.labels), (first.inverse, second.inverse)):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
        assert first.features.keys() == second.features.keys() == set(features)
        for key, column in first.features.items():
            np.testing.assert_array_equal(column, second.features[key])
        np.testing.assert_array_equal(held.truth, scene.truth)
        np.testing.assert_array_equal(held.cloud.labels, scene.bare.labels)
        assert scene.visible.dtype == np.int64 and (scene.visible == -1).all()
        assert scene.labelled and scene.bare.features == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kept", ["clouds", "prepared"])
def test_a_feature_that_is_not_finite_is_named_where_it_is_asked_for(
    make_config, rooms, tmp_path, monkeypatch, kept, value
):
    monkeypatch.setattr("mink_decouple.engine.grids.CHUNK_POINTS", 37)
    root = shutil.copytree(rooms[0], tmp_path / "clouds")
    with np.load(root / "a.npz") as stored:
        arrays = dict(stored)
    arrays["intensity"][90] = value
    np.savez(root / "a.npz", **arrays)
    if kept == "prepared":
        prepare(ADAPTERS["folder"], root, tmp_path / "prepared", workers=1)
        root = tmp_path / "prepared"
    config = at(make_config, root, data={"features": ["rgb", "intensity"]})
    with pytest.raises(ValueError, match=f"^a: feature 'intensity' is {value} at point 90; replace such values"):
        load_split(config, open_dataset(config), "train")
    config = at(make_config, root)
    assert len(load_split(config, open_dataset(config), "train")) == 2


def test_scoring_in_blocks_counts_every_raw_point_once(make_config, prepared, monkeypatch):
    monkeypatch.setattr("mink_decouple.engine.scenes.BLOCK_POINTS", 17)
    config = at(make_config, prepared)
    scene = load_split(config, open_dataset(config), "val")[0]
    points, truth = (np.concatenate(column) for column in zip(*scene.blocks()))
    np.testing.assert_array_equal(points, scene.grid.inverse)
    np.testing.assert_array_equal(truth, scene.cloud.labels)


def test_visible_labels_of_stored_scenes_are_those_of_the_clouds(make_config, rooms):
    shown = []
    for root in rooms:
        config = at(make_config, root)
        dataset = open_dataset(config)
        scenes = load_split(config, dataset, "train")
        shown.append([s.visible for s in reveal(scenes, training_labels(config, dataset, scenes))])
    assert (shown[0][0] >= 0).sum() == 12
    for one, two in zip(*shown):
        np.testing.assert_array_equal(one, two)


def test_other_settings_have_other_grid_clouds_and_equal_ones_are_made_once(make_config, prepared):
    config = at(make_config, prepared)
    dataset = open_dataset(config)
    path = ready_grid(dataset, "a", config)
    made = path.stat().st_mtime_ns
    assert ready_grid(dataset, "a", at(make_config, prepared, labels={"budget": "9pt"})) == path
    assert path.stat().st_mtime_ns == made
    others = [{"grid": 0.2}, {"features": ["rgb"]}, {"height": "ground"}]
    assert len({grid_path(dataset, "a", at(make_config, prepared, data=data)) for data in others} | {path}) == 4
    assert grid_path(dataset, "a", at(make_config, prepared, data={"features": ["height", "rgb"]})) == path


@pytest.mark.parametrize("damage", ["cut", "coordinate", "empty", "another scene"])
def test_a_damaged_or_stale_grid_cloud_is_made_anew(make_config, prepared, damage):
    config = at(make_config, prepared)
    dataset = open_dataset(config)
    path = ready_grid(dataset, "a", config)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "another scene":
        shutil.copy(ready_grid(dataset, "b", config), path)
    else:
        place = whole.index(load_split(config, dataset, "train")[0].grid.coords.tobytes())
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    left = path.parent / ".a.999.file.part"
    left.write_bytes(b"left by a killed process")
    os.utime(left, (0, 0))
    ready_grid(dataset, "a", config)
    assert path.read_bytes() == whole
    assert not list(path.parent.glob(".*"))


def test_two_trainings_may_make_the_same_grid_cloud_at_once(make_config, prepared, monkeypatch):
    config = at(make_config, prepared)
    dataset = open_dataset(config)
    path = grid_path(dataset, "a", config)
    path.parent.mkdir(parents=True)
    sync = os.fsync

    def overtaken(file):
        monkeypatch.setattr("os.fsync", sync)
        ready_grid(dataset, "a", config)
        assert len(open_grid(path, "a", config.data.grid).inverse) == dataset.record("a").points

    monkeypatch.setattr("os.fsync", overtaken)
    with TensorWriter(path) as slower:
        slower.append("inverse", np.arange(3))
        slower.finish({})
    assert open_tensors(path).arrays["inverse"].tolist() == [0, 1, 2]
    assert not list(path.parent.glob(".*"))


def test_a_changed_scene_gets_a_new_grid_cloud(make_config, rooms, tmp_path):
    root = shutil.copytree(rooms[0], tmp_path / "clouds")
    prepare(ADAPTERS["folder"], root, tmp_path / "out", workers=1)
    config = at(make_config, tmp_path / "out")
    load_split(config, open_dataset(config), "train")
    with np.load(root / "a.npz") as stored:
        arrays = {key: column[:200] for key, column in stored.items()}
    np.savez(root / "a.npz", **arrays)
    prepare(ADAPTERS["folder"], root, tmp_path / "out", workers=1)
    scene = load_split(config, open_dataset(config), "train")[0]
    assert len(scene.cloud) == len(scene.grid.inverse) == 200
    np.testing.assert_array_equal(scene.grid.coords, in_memory(scene.cloud, config).grid.coords)


def test_memory_does_not_grow_with_the_number_of_scenes(make_config, rooms, tmp_path):
    root = tmp_path / "clouds"
    root.mkdir()
    rng = np.random.default_rng(0)
    names = [f"s{i:02d}" for i in range(24)]
    for name in names:
        xyz = rng.uniform(0, 40, (20_000, 3)).astype(np.float32)
        np.savez(root / f"{name}.npz", coords=xyz, label=rng.integers(0, 3, 20_000).astype(np.uint8))
    splits = f"splits: {{train: [{', '.join(names)}], val: []}}"
    (root / "classes.yaml").write_text(f"classes: {{x: {{raw: [1]}}, y: {{raw: [2]}}}}\nignore: [0]\n{splits}\n")
    prepare(ADAPTERS["folder"], root, tmp_path / "out", workers=1)
    config = at(make_config, tmp_path / "out", data={"features": ["height"]}, labels={"budget": "1%"})
    dataset = open_dataset(config)
    load_split(config, dataset, "train")  # makes the grid clouds
    tracemalloc.start()
    try:
        scenes = load_split(config, dataset, "train")
        scenes = reveal(scenes, training_labels(config, dataset, scenes))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one = 20_000 * 8  # the bytes of one int64 array per point of one scene
    assert sum(len(s.grid) for s in scenes) > 400_000
    assert held < 2 * one
    assert peak < 16 * one


def test_probabilities_in_a_temporary_file_give_the_same_run(make_config, rooms, tmp_path, monkeypatch):
    config = at(make_config, rooms[1], pseudo={"delta_d": 0.0, "delta_len": 0.5, "scope": "global"}, **ONE_EPOCH)
    Trainer(config, tmp_path / "held", CPU).run()
    monkeypatch.setattr(pseudo, "HELD_BYTES", 0)
    Trainer(config, tmp_path / "file", CPU).run()
    for name in ("metrics.json", "metrics.jsonl"):
        assert (tmp_path / "held" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()


def test_a_full_disk_for_probabilities_is_one_line(make_config, rooms, monkeypatch):
    def full(file, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = at(make_config, rooms[1])
    scenes = load_split(config, open_dataset(config), "train")
    monkeypatch.setattr(pseudo, "HELD_BYTES", 0)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=r"^.*: no room for .* GB of probabilities .*TMPDIR[^\n]*$"):
        pseudo._room(scenes, 3)


def test_roots_that_do_not_fit_say_what_to_do(make_config, rooms, tmp_path):
    clouds, prepared_root = rooms
    with pytest.raises(ValueError, match=r"tools/prepare\.py --dataset semantic3d --root .*eight_bits"):
        load_dataset(at(make_config, clouds, data={"dataset": "semantic3d"}).data)
    with pytest.raises(ValueError, match=r"prepared from 'folder', but data\.dataset is 'scannet'"):
        load_dataset(at(make_config, prepared_root, data={"dataset": "scannet"}).data)
    with pytest.raises(ValueError, match=r"data\.classes: .* a prepared dataset has its classes"):
        load_dataset(at(make_config, prepared_root, data={"classes": "classes.yaml"}).data)
    with pytest.raises(ValueError, match=r"data\.root: not set; a prepared dataset"):
        load_dataset(at(make_config, None, data={"dataset": "s3dis", "root": None}).data)
    splits = {"train": ["a"], "val": ["b", "c"]}
    dataset = load_dataset(at(make_config, prepared_root, data={"splits": splits}).data)
    assert dataset.scenes("val") == ["b", "c"]
