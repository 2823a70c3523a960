"""Published lists of points and SQN's uniform share as label budgets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.data.budget import LabelSet, class_counts, describe, draw, parse_budget, visible
from mink_decouple.data.budget_lists import read_lists
from mink_decouple.data.cloud import PointCloud, from_world
from mink_decouple.data.grid import GridCloud, subsample
from mink_decouple.data.scannet import ScanNet

OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6)
SAMPLES = Path(os.environ.get("MINK_DECOUPLE_SAMPLES", Path(__file__).resolve().parents[3] / "shared" / "data"))
SAMPLE = SAMPLES / "scannet"
CLASSES = ("ceiling", "floor", "sofa")
Loaded = tuple[PointCloud, GridCloud]


def scene(name: str, count: int = 400, seed: int = 0, ignored: float = 0.3) -> Loaded:
    rng = np.random.default_rng([seed, ord(name)])
    coords = rng.uniform(0, 2, (count, 3)).astype(np.float32)
    labels = np.where(rng.random(count) < ignored, -1, rng.choice(3, count, p=[0.7, 0.28, 0.02])).astype(np.int64)
    cloud = PointCloud(name, coords, labels=labels)
    return cloud, subsample(cloud, 0.25)


def make(text: str, scenes: dict[str, Loaded], seed: int = 0, unit: str = "grid") -> LabelSet:
    return draw(list(scenes), scenes.__getitem__, parse_budget(text), CLASSES, seed, unit)


@given(
    permille=st.integers(1, 1000),
    count=st.integers(1, 300),
    unit=st.sampled_from(["grid", "raw"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_uniform_labels_the_share_of_all_points_of_a_cloud_among_its_labelled_ones(
    permille: int, count: int, unit: str, seed: int
) -> None:
    scenes = {name: scene(name, count, seed) for name in "ab"}
    labels = make(f"uniform:{permille / 10:g}%", scenes, seed, unit)
    for name, (cloud, grid) in scenes.items():
        truth = grid.labels if unit == "grid" else cloud.labels
        assert truth is not None and cloud.labels is not None
        expected = min(max(permille * len(truth) // 1000, 1), int((truth >= 0).sum()))
        assert len(labels.index[name]) == expected
        assert (cloud.labels[labels.index[name]] == labels.label[name]).all()


def test_uniform_takes_classes_as_they_come() -> None:
    scenes = {name: scene(name, 5000, ignored=0.0) for name in "abcd"}
    counts = make("uniform:20%", scenes, unit="raw").counts
    truth = sum(class_counts(cloud.labels, 3) for cloud, _ in scenes.values())  # type: ignore[arg-type]  # labelled
    # Standard deviations of a hypergeometric draw.
    spread = np.sqrt(truth * 0.2 * 0.8)
    assert (np.abs(counts - 0.2 * truth) < 4 * spread).all()
    assert make("uniform:0.02%", scenes, unit="raw").counts.sum() == 4  # one a cloud: most classes get nothing


def test_uniform_depends_on_seed_and_scene_only() -> None:
    together, alone = (make("uniform:5%", {n: scene(n) for n in names}, 3).index["b"] for names in ("abc", "b"))
    np.testing.assert_array_equal(together, alone)
    assert not np.array_equal(alone, make("uniform:5%", {"b": scene("b")}, 4).index["b"])


@pytest.mark.parametrize("text", ["uniform:0%", "uniform:101%"])
def test_uniform_of_nothing_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 100 %"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["uniform:5", "uniform:1pt", "uniform", "list"])
def test_wrong_forms_list_the_right_ones(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be Npt .*uniform:R% .*list:FILE .*label file"):
        parse_budget(text)


@pytest.fixture
def lists() -> dict[str, np.ndarray]:
    return {name: np.random.default_rng(ord(name)).permutation(400)[:30] for name in "abz"}


def test_listed_points_become_labels_whatever_seed_and_unit(lists: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "points30.npz", **lists)
    scenes = {name: scene(name) for name in "ab"}
    text = f"list:{tmp_path / 'points30.npz'}"
    labels = make(text, scenes)
    unlabelled = 0
    for name, (cloud, _) in scenes.items():
        assert cloud.labels is not None
        assert labels.index[name].tolist() == sorted(i for i in lists[name].tolist() if cloud.labels[i] >= 0)
        unlabelled += int((cloud.labels[lists[name]] < 0).sum())
    assert unlabelled > 0 and labels.meta["ignored_points"] == unlabelled
    assert int(labels.counts.sum()) == 60 - unlabelled
    assert (labels.meta["budget"], labels.meta["unit"]) == (text, "raw")
    assert f"not used: {unlabelled}" in describe(labels)
    assert make(text, scenes, seed=5, unit="raw").checksum == labels.checksum
    labels.save(tmp_path / "labels.npz")
    assert LabelSet.load(tmp_path / "labels.npz").meta == labels.meta


def test_without_ignored_points_nothing_is_said_of_them() -> None:
    labels = make("1%", {"a": scene("a")})
    assert "ignored_points" not in labels.meta and "not used" not in describe(labels)


def torch_file(path: Path, content: object, old: bool, alias: bool) -> None:
    """A file of torch.save; `alias` gives NumPy's module its name of before 2.0, as the published files have it."""
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    if alias:
        assert old  # a zip archive has checksums
        path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.mark.skipif(OLD_TORCH, reason="torch before 2.6 cannot allow a name that the file writes differently")
@pytest.mark.parametrize(("old", "alias"), [(False, False), (True, False), (True, True)])
def test_the_published_torch_files_are_read(
    old: bool, alias: bool, lists: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "points30"
    torch_file(path, lists, old, alias)
    found = read_lists(path)
    assert found.keys() == lists.keys()
    for name, index in lists.items():
        np.testing.assert_array_equal(found[name], index)
        assert found[name].dtype == np.int64
    assert parse_budget(f"list:{path}").path == path


class Runs:
    """An object whose unpickling would call a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    for old in (False, True):
        torch_file(tmp_path / "points20", {"a": Runs(tmp_path / "ran")}, old, alias=False)
        with pytest.raises(ValueError, match=r"torch cannot read it without running code .*keep it as \.npz"):
            read_lists(tmp_path / "points20")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": np.array([1.5])}, r"scene a: needs one row of whole numbers from 0, found \(1,\) float64: \[1.5\]"),
        ({"a": np.array([[1]])}, r"scene a: needs one row"),
        ({"a": np.array([3, -1])}, r"found \(2,\) int64: \[3, -1\]"),
        ({"a": np.array(["x"])}, "scene a: needs one row"),
        ({}, "names no scene"),
        ({"names": np.array(["a"]), "index": np.array([0]), "label": np.array([0])}, "name it without 'list:'"),
    ],
)
def test_lists_of_another_form_are_refused(content: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "list.npz", **content)
    with pytest.raises(ValueError, match=rf"list of points .*list\.npz: .*{message}"):
        read_lists(tmp_path / "list.npz")


@pytest.mark.parametrize("content", [[1, 2], torch.arange(3), {"a": [[1], [2, 3]]}])
def test_torch_files_of_another_form_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "points")
    with pytest.raises(ValueError, match=r"list of points .*points: "):
        read_lists(tmp_path / "points")


def test_an_older_torch_is_told_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": np.arange(3)}, tmp_path / "points")
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    with pytest.raises(ValueError, match=r"points: needs torch 2\.6 or newer, found 2\.4\.1\+cpu; keep it as \.npz"):
        read_lists(tmp_path / "points")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "list.npz", a=np.arange(100))
    whole = (tmp_path / "list.npz").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        at = int(rng.integers(len(whole)))
        damaged = whole[:at] if rng.random() < 0.3 else whole[:at] + bytes([rng.integers(256)]) + whole[at + 1 :]
        (tmp_path / "list.npz").write_bytes(damaged)
        try:
            (index,) = read_lists(tmp_path / "list.npz").values()
        except ValueError as error:
            assert str(error).startswith(f"list of points {tmp_path / 'list.npz'}: ")
        else:
            np.testing.assert_array_equal(index, np.arange(100))
    (tmp_path / "points").write_bytes(b"no torch file")
    with pytest.raises(ValueError, match="points: torch cannot read it"):
        read_lists(tmp_path / "points")
    with pytest.raises(FileNotFoundError, match=r"list of points .*nowhere\.npz: no such file"):
        parse_budget(f"list:{tmp_path / 'nowhere.npz'}")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_lists(tmp_path / "nowhere.npz")


def test_a_list_must_fit_the_scenes(lists: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "list.npz", **lists)
    text = f"list:{tmp_path / 'list.npz'}"
    with pytest.raises(ValueError, match=r"list\.npz: has no scene c, but 3 others"):
        make(text, {"c": scene("c")})
    with pytest.raises(ValueError, match=r"scene a: names point \d+, but the cloud has 50 points"):
        make(text, {"a": scene("a", 50)})


def test_a_scene_without_labels_need_not_be_listed_and_gets_none(lists: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "list.npz", **lists)
    scenes = {"a": scene("a")}
    alone = make(f"list:{tmp_path / 'list.npz'}", scenes)
    for name in "bc":  # listed, and not
        bare = PointCloud(name, scene(name)[0].coords)
        scenes[name] = bare, subsample(bare, 0.25)
    labels = make(f"list:{tmp_path / 'list.npz'}", scenes)
    assert [len(labels.index[name]) for name in "abc"] == [len(alone.index["a"]), 0, 0]
    assert labels.meta["ignored_points"] == alone.meta.get("ignored_points", 0) + len(np.unique(lists["b"]))


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no ScanNet sample at {SAMPLE}; set MINK_DECOUPLE_SAMPLES")
def test_scannets_own_lists_hit_the_known_classes() -> None:
    dataset = ScanNet(SAMPLE)
    loaded = {}
    for raw in dataset.scenes():
        (chunk,) = dataset.read(raw, print)
        cloud = from_world(raw.name, chunk.xyz, labels=chunk.labels)
        loaded[raw.name] = cloud, subsample(cloud, 0.04)
    names = dataset.classes.names
    for points, used, ignored in ((20, 15, 5), (200, None, None)):
        budget = parse_budget(f"list:{SAMPLE / 'limited_annotation' / f'points{points}.npz'}")
        labels = draw(["scene0000_00"], loaded.__getitem__, budget, names)
        if points == 20:
            # nyu40 {0: 1, 15: 1, 40: 3} are unannotated or outside the 20 classes.
            assert (int(labels.counts.sum()), labels.meta["ignored_points"]) == (used, ignored)
            known = {"wall": 1, "floor": 3, "cabinet": 4, "sofa": 2, "table": 1, "desk": 1, "curtain": 2, "toilet": 1}
            assert {name: count for name, count in zip(names, labels.counts.tolist()) if count} == known
        else:
            assert int(labels.counts.sum()) + labels.meta["ignored_points"] == 200
            assert labels.counts[names.index("curtain")] == 38
        assert labels.meta["raw_points"] == 81_369
        assert labels.meta["grid_counts"] == class_counts(visible(labels, loaded["scene0000_00"][1]), 20).tolist()
