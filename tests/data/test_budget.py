import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.data.budget import (
    LabelSet,
    check,
    class_counts,
    collect,
    describe,
    draw,
    parse_budget,
    visible,
)
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.grid import GridCloud, subsample

CLASSES = ("ceiling", "floor", "sofa", "never")
Loaded = tuple[PointCloud, GridCloud]


def world(names: str = "abc", count: int = 2000, classes: int = 3) -> dict[str, Loaded]:
    """Scenes with a long tail (class 2 is rare) and some unlabelled points."""
    loaded = {}
    for name in names:
        rng = np.random.default_rng(ord(name))
        coords = rng.uniform(0, 3, (count, 3)).astype(np.float32)
        labels = rng.choice(classes + 1, count, p=[0.1, *([0.7 / (classes - 1)] * (classes - 1)), 0.2]) - 1
        labels[labels == classes - 1] = np.where(rng.random((labels == classes - 1).sum()) < 0.1, classes - 1, 0)
        cloud = PointCloud(name, coords, labels=labels.astype(np.int64))
        loaded[name] = cloud, subsample(cloud, 0.25)
    return loaded


def make(text: str, scenes: dict[str, Loaded] | None = None, seed: int = 0, unit: str = "grid") -> LabelSet:
    scenes = world() if scenes is None else scenes
    return draw(list(scenes), scenes.__getitem__, parse_budget(text), CLASSES, seed, unit)


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("1pt", "per_class", 1),
        ("10pt", "per_class", 10),
        ("1%", "share", Fraction(1, 100)),
        ("0.1%", "share", Fraction(1, 1000)),
        (".5%", "share", Fraction(1, 200)),
        ("100%", "share", 1),
        ("20x", "per_cloud", 20),
        ("full", "full", 1),
        ("scans:10%", "scans", Fraction(1, 10)),
    ],
)
def test_budget_forms(text: str, kind: str, amount: Fraction) -> None:
    budget = parse_budget(text)
    assert (budget.kind, budget.amount, budget.text) == (kind, amount, text)


@pytest.mark.parametrize("text", ["", "pt", "one", "1", "-1%", "1 %%", "scans:3", "scans:1pt"])
def test_wrong_budget_lists_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"label budget .*must be Npt .*scans:R%.*label file"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0pt", "0%", "101%", "0x", "scans:0%"])
def test_budget_of_nothing_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 100 %"):
        parse_budget(text)


def test_budget_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    with pytest.raises(FileNotFoundError, match=r"labels\.npz: no such file"):
        parse_budget(str(path))
    make("1pt").save(path)
    budget = parse_budget(str(path))
    assert (budget.kind, budget.path) == ("file", path)
    with pytest.raises(ValueError, match="load it instead"):
        draw(["a"], world().__getitem__, budget, CLASSES)


@pytest.mark.parametrize("unit", ["grid", "raw"])
@pytest.mark.parametrize("wanted", [1, 3])
def test_npt_labels_n_points_of_every_class_present(unit: str, wanted: int) -> None:
    scenes = world()
    labels = make(f"{wanted}pt", scenes, unit=unit)
    for name, (cloud, grid) in scenes.items():
        truth = grid.labels if unit == "grid" else cloud.labels
        expected = np.minimum(class_counts(truth, 4), wanted)
        np.testing.assert_array_equal(class_counts(labels.label[name], 4), expected)
        np.testing.assert_array_equal(cloud.labels[labels.index[name]], labels.label[name])


@given(percent=st.integers(1, 100), unit=st.sampled_from(["grid", "raw"]), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_share_labels_the_floor_of_the_share_and_at_least_one(percent: int, unit: str, seed: int) -> None:
    scenes = world("a", 600)
    cloud, grid = scenes["a"]
    labels = make(f"{percent}%", scenes, seed, unit)
    present = class_counts(grid.labels if unit == "grid" else cloud.labels, 4)
    expected = [max(percent * int(n) // 100, 1) if n else 0 for n in present]
    assert class_counts(labels.label["a"], 4).tolist() == expected


def test_nx_labels_n_points_per_cloud() -> None:
    labels = make("20x")
    assert [len(index) for index in labels.index.values()] == [20, 20, 20]


def test_grid_unit_labels_one_point_of_the_majority_class_per_cell() -> None:
    scenes = world()
    labels = make("30%", scenes)
    for name, (_, grid) in scenes.items():
        cells = grid.inverse[labels.index[name]]
        assert len(np.unique(cells)) == len(cells)
        np.testing.assert_array_equal(grid.labels[cells], labels.label[name])
        assert (visible(labels, grid) >= 0).sum() == len(cells)


def test_full_on_the_grid_shows_exactly_the_grid_labels() -> None:
    scenes = world()
    labels = make("full", scenes)
    for _, grid in scenes.values():
        np.testing.assert_array_equal(visible(labels, grid), grid.labels)


def test_full_on_raw_points_shows_all_labels() -> None:
    scenes = world()
    labels = make("full", scenes, unit="raw")
    for name, (cloud, _) in scenes.items():
        np.testing.assert_array_equal(labels.index[name], np.flatnonzero(cloud.labels >= 0))


def test_scans_labels_some_clouds_fully_and_the_others_not_at_all() -> None:
    scenes = world("abcdefghij", 300)
    labels, full = make("scans:30%", scenes), make("full", scenes)
    labelled = [name for name in scenes if len(labels.index[name])]
    assert len(labelled) == 3
    assert all(len(labels.index[name]) == len(full.index[name]) for name in labelled)
    assert labelled != [name for name in scenes if len(make("scans:30%", scenes, seed=1).index[name])]


@pytest.mark.parametrize("text", ["1pt", "5%", "7x"])
def test_a_scene_is_drawn_alike_whatever_the_others_are(text: str) -> None:
    together, alone = make(text, world("cab")), make(text, world("b"))
    np.testing.assert_array_equal(together.index["b"], alone.index["b"])
    assert not np.array_equal(make(text, world("a")).index["a"], alone.index["b"])


@given(order=st.permutations([0, 1, 2]), text=st.sampled_from(["2pt", "7%"]))
@settings(max_examples=12, deadline=None)
def test_permuting_class_ids_permutes_the_counts(order: list[int], text: str) -> None:
    cloud, _ = world("a", 500)["a"]
    table = np.array([*order, 3, -1])
    permuted = PointCloud("a", cloud.coords, labels=table[cloud.labels])
    count = [make(text, {"a": (c, subsample(c, 0.25))}, unit="raw").counts for c in (cloud, permuted)]
    np.testing.assert_array_equal(count[1][order], count[0][:3])


def test_same_seed_gives_the_same_file_and_another_seed_does_not(tmp_path: Path) -> None:
    for number, seed in enumerate([5, 5, 6]):
        make("1%", seed=seed).save(tmp_path / f"{number}.npz")
    files = [(tmp_path / f"{number}.npz").read_bytes() for number in range(3)]
    assert files[0] == files[1] != files[2]
    sums = [LabelSet.load(tmp_path / f"{number}.npz").checksum for number in range(3)]
    assert sums[0] == sums[1] != sums[2]


def test_a_saved_label_set_loads_back(tmp_path: Path) -> None:
    labels = make("2%")
    labels.save(tmp_path / "new" / "labels.npz")
    loaded = LabelSet.load(tmp_path / "new" / "labels.npz", CLASSES)
    assert loaded.meta == labels.meta
    for name in labels.index:
        np.testing.assert_array_equal(loaded.index[name], labels.index[name])
        np.testing.assert_array_equal(loaded.label[name], labels.label[name])
        assert loaded.index[name].dtype == loaded.label[name].dtype == np.int64
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["labels.npz"]


def test_known_draw_stays_the_same_across_versions() -> None:
    # A published budget must be drawn again by a later release.
    labels = make("1pt", world("a", 200))
    assert labels.index["a"].tolist() == [12, 123, 199]


def test_other_class_names_are_refused(tmp_path: Path) -> None:
    make("1pt").save(tmp_path / "labels.npz")
    with pytest.raises(ValueError, match=r"'ceiling'.*but the data has \['sky'\]"):
        LabelSet.load(tmp_path / "labels.npz", ["sky"])


def test_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    labels = make("1pt")
    moved = {**labels.index, "a": labels.index["a"] + 1}
    labels.save(path)
    with np.load(path) as stored:
        content = dict(stored)
    LabelSet(moved, labels.label, labels.meta).save(path)
    with np.load(path) as stored:
        content["index"] = stored["index"]
    np.savez(path, **content)
    with pytest.raises(ValueError, match="checksum does not match"):
        LabelSet.load(path)
    for content in (b"", b"no zip at all", path.read_bytes()[:300]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a label file"):
            LabelSet.load(path)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(ValueError, match="not a label file"):
        LabelSet.load(path)
    with pytest.raises(FileNotFoundError):
        LabelSet.load(tmp_path / "none.npz")


def test_check_finds_labels_of_other_data() -> None:
    scenes = world()
    labels = make("1%", scenes)
    cloud, _ = scenes["a"]
    check(labels, "a", cloud)
    with pytest.raises(ValueError, match="scene a: label file points at"):
        check(labels, "a", cloud.select(np.arange(5)))
    with pytest.raises(ValueError, match="scene a: label file says class"):
        check(labels, "a", PointCloud("a", cloud.coords, labels=(cloud.labels + 1) % 3))
    with pytest.raises(ValueError, match="scene z: not in the label file"):
        check(labels, "z", cloud)


def test_visible_ignores_a_tie_and_takes_a_majority() -> None:
    cloud = PointCloud("a", np.zeros((5, 3), np.float32), labels=np.array([0, 0, 1, 1, 2]))
    grid = subsample(cloud, 1.0)
    for index, expected in [([0, 2], -1), ([0, 1, 2], 0), ([4], 2), ([], -1)]:
        chosen = np.array(index, np.int64)
        labels = LabelSet({"a": chosen}, {"a": cloud.labels[chosen]}, {"classes": CLASSES})
        assert visible(labels, grid).tolist() == [expected]


def test_counts_and_shares_are_those_of_raw_and_grid_points() -> None:
    scenes = world()
    labels = make("10%", scenes)
    shown = [visible(labels, grid) for _, grid in scenes.values()]
    grid_points = sum(len(grid) for _, grid in scenes.values())
    assert labels.meta["raw_points"] == 6000
    assert labels.meta["grid_points"] == grid_points
    assert labels.meta["grid_counts"] == class_counts(np.concatenate(shown), 4).tolist()
    assert labels.counts.tolist() == labels.meta["raw_counts"]
    assert labels.meta["raw_share"] == sum(labels.meta["raw_counts"]) / 6000
    assert labels.meta["grid_share"] == sum(labels.meta["grid_counts"]) / grid_points


def test_missing_classes_are_named() -> None:
    labels = make("1pt")
    assert labels.missing == ("never",)
    text = describe(labels)
    assert "without any label: never" in text
    assert all(name in text for name in CLASSES)
    assert len({len(line) for line in text.splitlines()[1:-1]}) == 1


def test_published_indices_become_a_label_set() -> None:
    scenes = world()
    listed = {name: np.array([9, 3, 3, 5]) for name in scenes}
    meta = {"budget": "published", "seed": 0, "unit": "raw"}
    labels = collect(list(scenes), scenes.__getitem__, lambda cloud, _: listed[cloud.name], CLASSES, meta)
    for name, (cloud, _) in scenes.items():
        assert labels.index[name].tolist() == [i for i in (3, 5, 9) if cloud.labels[i] >= 0]


@pytest.mark.parametrize("unit", ["grid", "raw"])
@pytest.mark.parametrize("text", ["1pt", "5%", "7x", "uniform:5%", "full"])
def test_nothing_is_drawn_from_a_scene_without_labels(text: str, unit: str) -> None:
    scenes = world("ab", 300)
    cloud = PointCloud("b", scenes["b"][0].coords)
    ignored = PointCloud("b", cloud.coords, labels=np.full(len(cloud), -1))
    drawn = [make(text, {**scenes, "b": (bare, subsample(bare, 0.25))}, unit=unit) for bare in (cloud, ignored)]
    assert len(drawn[0].index["b"]) == 0 < len(drawn[0].index["a"])
    assert drawn[0].checksum == drawn[1].checksum and drawn[0].meta == drawn[1].meta


def test_scans_are_ranked_among_those_with_labels() -> None:
    scenes, known = world("abcdefghij", 300), world("abcde", 300)
    for name in "fghij":
        bare = PointCloud(name, scenes[name][0].coords)
        scenes[name] = bare, subsample(bare, 0.25)
    for seed in range(5):
        given = make("scans:40%", scenes, seed)
        labelled = [name for name in given.index if len(given.index[name])]
        assert len(labelled) == 2  # of five
        alone = make("scans:40%", known, seed)
        assert labelled == [name for name in alone.index if len(alone.index[name])]


def test_scenes_that_cannot_be_drawn_from_are_named() -> None:
    scenes = world("a", 50)
    cloud, grid = scenes["a"]
    for loaded, message in [
        ((PointCloud("a", cloud.coords, labels=cloud.labels + 9), grid), "scene a: train id"),
        ((PointCloud("b", cloud.coords, labels=cloud.labels), grid), "scene a: loads as 'b'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make("1pt", {"a": loaded})
    with pytest.raises(ValueError, match="different grids"):
        make("1pt", {**scenes, "b": (PointCloud("b", cloud.coords, labels=cloud.labels), *both(cloud, "b", 0.5))})
    for names, message in [([], "got 0 names"), (["a", "a"], "got 2 names")]:
        with pytest.raises(ValueError, match=message):
            draw(names, scenes.__getitem__, parse_budget("1pt"), CLASSES)
    with pytest.raises(ValueError, match="choose one of grid, raw"):
        make("1pt", scenes, unit="voxel")
    with pytest.raises(ValueError, match="seed -1"):
        make("1pt", scenes, seed=-1)


def both(cloud: PointCloud, name: str, size: float) -> tuple[GridCloud]:
    return (subsample(PointCloud(name, cloud.coords, labels=cloud.labels), size),)


def test_small_draws_differ_between_seeds() -> None:
    draws = [make("1pt", world("a"), seed).index["a"].tolist() for seed in range(4)]
    assert all(a != b for a, b in itertools.combinations(draws, 2))
