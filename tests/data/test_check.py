"""Every finding is planted into a clean room and found, alone; the numbers are those of NumPy on the whole cloud."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from mink_decouple.data import scene_stats
from mink_decouple.data.check import Wanted, scene_findings
from mink_decouple.data.check_report import Report, as_data, count_repairs, describe, in_order, lines
from mink_decouple.data.check_splits import class_counts, imbalance, split_findings
from mink_decouple.data.cloud import PointCloud, from_world
from mink_decouple.data.raw import Repair
from mink_decouple.data.scene_stats import View, measure, view_of

WANTED = Wanted(0.1, ("rgb", "height"))
CLASSES = ("floor", "wall", "box")


def room(seed=0, name="room", scale=1.0, offset=(0.0, 0.0, 0.0), points=4000):
    """Floor, wall and box of a room of 4 x 4 x 2.5 metres, coloured and labelled, one point in fifty ignored."""
    rng = np.random.default_rng(seed)
    n = points // 4
    floor = np.c_[rng.uniform(0, 4, (2 * n, 2)), rng.normal(0, 0.005, 2 * n)]
    wall = np.c_[rng.uniform(0, 4, n), rng.normal(0, 0.005, n), rng.uniform(0, 2.5, n)]
    box = np.c_[rng.uniform(1, 2, (n, 2)), rng.uniform(0.2, 1, n)]
    xyz = np.concatenate([floor, wall, box]) * scale + offset
    labels = np.repeat([0, 1, 2], [2 * n, n, n])
    labels[rng.random(len(labels)) < 0.02] = -1
    rgb = rng.uniform(0, 1, (len(xyz), 3)).astype(np.float32)
    return from_world(name, xyz, {"rgb": rgb, "intensity": rng.uniform(1, 9, len(xyz)).astype(np.float32)}, labels)


def stats(cloud, grid=0.1, classes=3):
    return measure(view_of(cloud) if isinstance(cloud, PointCloud) else cloud, grid, classes)


def found(cloud, wanted=WANTED, split="train"):
    return [(f.level, f.kind) for f in scene_findings(stats(cloud, wanted.grid), split, wanted)]


def between(splits, wanted=WANTED):
    measured = {split: [stats(cloud) for cloud in clouds] for split, clouds in splits.items()}
    return list(split_findings(measured, CLASSES, wanted))


def features(cloud, **columns):
    return replace(cloud, features={**cloud.features, **columns})


def view(cloud, coords):
    """A view on coordinates that no `PointCloud` would take."""
    return replace(view_of(cloud), coords=coords.astype(np.float32))


def test_a_clean_room_gives_no_finding():
    assert found(room()) == []
    assert between({"train": [room(0, "a"), room(1, "b")], "val": [room(2, "c")]}) == []


NAN = np.float32("nan")


def with_nan(cloud, rows):
    coords = cloud.coords.copy()
    coords[:rows, 1] = [NAN, np.inf, -np.inf][:rows] if rows <= 3 else NAN
    return view(cloud, coords)


def repeated(cloud, share):
    rows = np.arange(int(len(cloud) * share))
    return cloud.select(np.concatenate([np.arange(len(cloud)), rows]))


def coloured(cloud, change):
    return features(cloud, rgb=change(cloud.features["rgb"]).astype(np.float32))


ASKED = replace(WANTED, features=("rgb", "log_intensity"))
PLANTS = {
    "no points": (lambda c: c.select(np.arange(0)), WANTED, "error", "empty"),
    "nothing finite": (lambda c: with_nan(c, len(c)), WANTED, "error", "empty"),
    "NaN and infinity": (lambda c: with_nan(c, 3), WANTED, "error", "nan"),
    "a few duplicates": (lambda c: repeated(c, 0.05), WANTED, "note", "duplicates"),
    "many duplicates": (lambda c: repeated(c, 0.5), WANTED, "warning", "duplicates"),
    "flat": (lambda c: replace(c, coords=c.coords * np.float32([1, 1, 0])), WANTED, "warning", "flat"),
    "one cell a point": (lambda c: c, replace(WANTED, grid=0.005), "warning", "grid"),
    "nearly one cell a point": (lambda c: c, replace(WANTED, grid=0.02), "note", "grid"),
    "a handful of cells": (lambda c: c, replace(WANTED, grid=2.0), "error", "grid"),
    "black": (lambda c: coloured(c, lambda rgb: 0 * rgb), WANTED, "warning", "colours"),
    "black, not asked for": (lambda c: coloured(c, lambda rgb: 0 * rgb), Wanted(0.1, ("xyz",)), "note", "colours"),
    "one colour": (lambda c: coloured(c, lambda rgb: 0 * rgb + 0.5), WANTED, "warning", "colours"),
    "0..255": (lambda c: coloured(c, lambda rgb: 255 * rgb), WANTED, "error", "colours"),
    "below zero": (lambda c: coloured(c, lambda rgb: rgb - 0.5), WANTED, "error", "colours"),
    "divided by 255 twice": (lambda c: coloured(c, lambda rgb: rgb / 255), WANTED, "warning", "colours"),
    "8 bits as 16": (lambda c: coloured(c, lambda rgb: rgb * 256 / 65535), WANTED, "warning", "colours"),
    "class of another list": (lambda c: replace(c, labels=c.labels + 1), WANTED, "error", "labels"),
    "label below -1": (lambda c: replace(c, labels=np.where(c.labels < 0, -100, c.labels)), WANTED, "error", "labels"),
    "mostly ignored": (lambda c: replace(c, labels=np.where(c.labels == 0, -1, c.labels)), WANTED, "note", "ignored"),
    "all ignored": (lambda c: replace(c, labels=np.full(len(c), -1)), WANTED, "warning", "ignored"),
    "unlabelled": (lambda c: replace(c, labels=None), WANTED, "note", "unlabelled"),
    "no such column": (lambda c: c, replace(WANTED, features=("rgb", "normal")), "error", "features"),
    "no intensity": (lambda c: replace(c, features={"rgb": c.features["rgb"]}), ASKED, "error", "features"),
    "wrong width": (
        lambda c: features(c, normal=np.arange(2 * len(c)).reshape(-1, 2) / len(c)),
        replace(WANTED, features=("normal",)),
        "error",
        "features",
    ),
    "NaN feature": (
        lambda c: features(c, intensity=np.where(c.labels == 2, NAN, c.features["intensity"])),
        ASKED,
        "error",
        "nan",
    ),
    "NaN feature, not asked for": (
        lambda c: features(c, intensity=np.where(c.labels == 2, NAN, c.features["intensity"])),
        WANTED,
        "warning",
        "nan",
    ),
    "constant": (lambda c: features(c, intensity=np.full(len(c), 7.0)), ASKED, "warning", "constant"),
    "too large": (
        lambda c: features(c, intensity=1e4 * c.features["intensity"]),
        replace(WANTED, features=("intensity",)),
        "warning",
        "scale",
    ),
}


@pytest.mark.parametrize("case", PLANTS)
def test_a_planted_fault_is_found_and_nothing_else(case):
    plant, wanted, level, kind = PLANTS[case]
    assert found(plant(room()), wanted) == [(level, kind)]


def test_an_unlabelled_scene_is_no_fault_where_nothing_needs_its_labels():
    cloud = replace(room(), labels=None)
    in_file = replace(WANTED, labels_in_file=True)
    assert found(cloud, split="test") == [] == found(cloud, in_file)
    assert found(cloud, in_file, "val") == [("error", "unlabelled")]


def test_a_training_scene_without_labels_can_only_get_pseudo_labels():
    bare, ignored = replace(room(), labels=None), replace(room(), labels=np.full(4000, -1))
    (bare_line,) = scene_findings(stats(bare), "train", WANTED)
    (ignored_line,) = scene_findings(stats(ignored), "train", WANTED)
    assert str(bare_line) == "room: no labels; its points can only get pseudo-labels"
    assert str(ignored_line).endswith("it gives no labels; its points can only get pseudo-labels")
    (scored,) = scene_findings(stats(ignored), "val", WANTED)
    assert "it scores nothing" in str(scored)
    (finding,) = between({"train": [bare], "val": [room(1, "b")]})
    assert (finding.level, finding.kind) == ("error", "unlabelled") and "no scene of 'train' has labels" in str(finding)
    assert between({"train": [bare, room(2, "c")], "val": [room(1, "b")]}) == []
    assert between({"train": [bare], "val": [room(1, "b")]}, replace(WANTED, labels_in_file=True)) == []


def test_features_that_are_made_need_no_column():
    assert found(room(), Wanted(0.1, ("xyz", "one", "offset", "height", "height_wide"))) == []


def test_a_factor_brings_a_large_feature_near_one():
    cloud = features(room(), intensity=1e4 * room().features["intensity"])
    assert found(cloud, Wanted(0.1, ("intensity",), {"intensity": 1e-4})) == []


@pytest.mark.parametrize(("scale", "unit"), [(100, "centimetres"), (1000, "millimetres")])
@pytest.mark.parametrize("height", [1.6, 2.5, 10.0])
def test_rooms_in_centimetres_and_millimetres_are_suspected(scale, unit, height):
    cloud = room(scale=np.array([scale, scale, scale * height / 2.5]))
    findings = scene_findings(stats(cloud, 10.0), "train", replace(WANTED, grid=10.0))
    (finding,) = [finding for finding in findings if finding.kind == "units"]
    assert finding.level == "warning" and unit in finding.found


def test_metres_are_not_suspected():
    rng = np.random.default_rng(0)
    tile = np.c_[rng.uniform(0, 1000, (20_000, 2)), rng.normal(0, 10, 20_000)]  # airborne, 7 m between points
    mountain = np.c_[tile[:, :2] + [652_000, 6_861_000], tile[:, 0] / 2]  # 500 m high, projected coordinates
    tower = rng.uniform(0, 1, (100_000, 3)) * [0.1, 1, 200]  # 200 m high, scanned from near

    def kinds(xyz):
        return {finding.kind for finding in scene_findings(stats(from_world("t", xyz), 5.0), "test", WANTED)}

    assert "units" not in kinds(tile) | kinds(mountain) | kinds(tower)
    assert "units" in kinds(mountain - mountain.min(axis=0))  # in local coordinates nothing tells them apart


def test_a_scene_scaled_to_unit_size_is_suspected():
    assert found(room(scale=0.02), replace(WANTED, grid=0.002)) == [("warning", "units")]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_digits_lost_in_narrow_types_are_seen(dtype):
    offset = (90.0, 90.0, 0.0) if dtype == np.float16 else (652_000.0, 6_861_000.0, 120.0)
    exact = room(offset=offset, scale=5.0)
    assert stats(exact).step == 0.0
    lost = from_world("room", exact.world().astype(dtype), exact.features, exact.labels)
    assert ("warning", "precision") in found(lost, replace(WANTED, grid=0.5))
    assert stats(lost).step == pytest.approx(0.0625)  # of float16 from 64 on, of float32 from 524,288 on
    millimetres = from_world("room", np.rint(exact.world() * 1000) / 1000, exact.features, exact.labels)
    assert found(millimetres, replace(WANTED, grid=0.5)) == []


@pytest.mark.parametrize("block", [37, 1 << 20])
def test_the_numbers_are_those_of_numpy(monkeypatch, block):
    monkeypatch.setattr(scene_stats, "BLOCK_POINTS", block)
    cloud = repeated(room(offset=(652_000.0, 6_861_000.0, 120.0)), 0.1)
    got = stats(cloud)
    world = cloud.world()
    assert got.points == len(cloud) == 4400 and got.bad == 0
    np.testing.assert_array_equal(got.low, world.min(axis=0))
    np.testing.assert_array_equal(got.high, world.max(axis=0))
    different = np.unique(cloud.coords, axis=0).astype(np.float64)
    assert got.duplicates == (4400 - len(different)) / 4400 and got.duplicates_seen == 1
    size = np.float32(0.1)
    corner = np.floor(cloud.coords.min(axis=0) / size) * size
    assert got.cells == len(np.unique(np.floor((cloud.coords - corner) / size), axis=0))
    np.testing.assert_array_equal(got.labelled, [(cloud.labels == c).sum() for c in range(3)])
    assert got.ignored == (cloud.labels == -1).sum() and got.strange == 0
    for name, column in cloud.features.items():
        summary = got.columns[name]
        assert (summary.low, summary.high, summary.bad) == (column.min(), column.max(), 0)
        assert summary.width == (3 if name == "rgb" else 1)
    squares = ((different[:, None] - different[None]) ** 2).sum(2)
    np.fill_diagonal(squares, np.inf)
    assert got.spacing == pytest.approx(np.median(np.sqrt(squares.min(1))), rel=1e-6)
    assert got.height == pytest.approx(np.subtract(*np.percentile(world[:, 2], (99, 1))), abs=1e-5)


def test_points_that_are_not_finite_are_counted_and_left_out():
    clean, dirty = room(), with_nan(room(), 3)
    got, rest = stats(dirty), stats(clean.select(np.arange(3, len(clean))))
    assert (got.points, got.bad) == (4000, 3)
    assert (got.cells, got.duplicates, got.height) == (rest.cells, rest.duplicates, rest.height)
    np.testing.assert_array_equal(got.low, rest.low)


def test_minus_zero_is_zero():
    coords = np.array([[0.0, 1, 2], [-0.0, 1, 2], [3, 1, 2]], np.float32)
    assert stats(PointCloud("z", coords)).duplicates == pytest.approx(1 / 3)


def test_beyond_the_limits_numbers_are_estimates_that_say_so(monkeypatch):
    monkeypatch.setattr(scene_stats, "EXACT_POINTS", 5000)
    monkeypatch.setattr(scene_stats, "EXACT_CELLS", 5000)
    monkeypatch.setattr(scene_stats, "LOOK_POINTS", 4000)
    cloud = repeated(room(points=40_000), 0.25)
    got, exact = stats(cloud, 0.02), 0.2
    assert got.duplicates_seen >= 8 and got.duplicates == pytest.approx(exact, abs=0.03)
    monkeypatch.undo()
    whole = stats(cloud, 0.02)
    assert got.cells == pytest.approx(whole.cells, rel=0.08) and got.cells != whole.cells
    assert got.spacing == pytest.approx(whole.spacing, rel=0.5)
    (finding,) = scene_findings(got, "train", WANTED)
    assert f"seen on one point in {got.duplicates_seen}" in finding.found


def test_memory_does_not_grow_with_the_points(monkeypatch):
    monkeypatch.setattr(scene_stats, "BLOCK_POINTS", 2000)
    monkeypatch.setattr(scene_stats, "EXACT_POINTS", 2000)
    monkeypatch.setattr(scene_stats, "EXACT_CELLS", 2000)
    monkeypatch.setattr(scene_stats, "LOOK_POINTS", 2000)

    def peak(points):
        coords = np.random.default_rng(0).uniform(0, 50, (points, 3)).astype(np.float32)
        scene = View(
            "s", coords, np.zeros(3), {"z": lambda rows: coords[rows, 2]}, lambda rows: np.ones(2000, np.int64)
        )
        tracemalloc.start()
        try:
            measure(scene, 0.1, 3)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10_000)  # compiles
    small, large = peak(20_000), peak(400_000)
    assert large < 1.5 * small and large < 400_000 * 4


def test_missing_classes_and_imbalance_are_found_by_split():
    only = replace(room(0, "a"), labels=np.where(room(0).labels == 1, 0, room(0).labels))
    (finding,) = between({"train": [only], "val": [room(2, "c")]})
    assert (finding.level, finding.kind) == ("error", "classes") and "class wall in 'train'" in finding.found
    given = replace(WANTED, all_classes=False)
    assert [f.level for f in between({"train": [only], "val": [room(2, "c")]}, given)] == ["warning"]
    (finding,) = between({"train": [room(2, "c")], "val": [only]})
    assert finding.level == "warning" and "class wall in 'val'" in finding.found
    labels = np.zeros(4000, np.int64)
    labels[:10], labels[10:30] = 1, 2
    (finding,) = between({"train": [replace(room(0, "a"), labels=labels)], "val": [room(2, "c")]})
    assert (finding.level, finding.kind) == ("note", "imbalance")
    assert "397 points of floor per point of wall" in finding.found
    assert imbalance(np.array([3970, 0, 10])) == 397 and imbalance(np.zeros(3)) is None
    unlabelled = replace(room(), labels=None)
    np.testing.assert_array_equal(
        class_counts([stats(room()), stats(unlabelled), stats(room(1))], 3),
        sum(np.bincount(room(seed).labels + 1, minlength=4)[1:] for seed in (0, 1)),
    )


def test_a_scene_in_two_splits_is_found_by_name_and_by_content():
    (finding,) = between({"train": [room(0, "a")], "val": [room(1, "a")]})
    assert (finding.level, finding.scene) == ("error", "a") and "'train' and 'val'" in finding.found
    copy = replace(room(0), name="copy").select(np.random.default_rng(5).permutation(4000))  # the order is no matter
    (finding,) = between({"train": [room(0, "a")], "val": [copy]})
    assert (finding.level, finding.scene) == ("error", "copy") and "same points as a in 'train'" in finding.found
    (finding,) = between({"train": [room(0, "a"), copy], "val": [room(1, "b")]})
    assert (finding.level, finding.kind) == ("warning", "overlap")
    nothing = [room(0, name).select(np.arange(0)) for name in "xy"]
    assert between({"train": [room(0, "a"), nothing[0]], "val": [room(1, "b"), nothing[1]]}) == []


@pytest.mark.parametrize(("share", "level"), [(0.2, "warning"), (0.8, "error")])
def test_tiles_that_overlap_are_found_with_the_share_of_common_points(share, level):
    rng = np.random.default_rng(3)
    xyz = np.c_[rng.uniform(0, 100, (20_000, 2)), rng.uniform(0, 3, 20_000)] + [652_000, 6_861_000, 120]
    xyz = np.rint(xyz[np.argsort(xyz[:, 0])] * 1000) / 1000
    cut = 10_000 - int(10_000 * share)
    labels = rng.integers(0, 3, 10_000)
    tiles = [from_world(name, xyz[at : at + 10_000], {}, labels) for name, at in (("left", 0), ("right", cut))]
    assert np.any(tiles[0].offset != tiles[1].offset)
    (finding,) = between({"train": [tiles[0]], "val": [room(1, "b"), tiles[1]]})
    assert (finding.level, finding.scene) == (level, "right") and "left in 'train'" in finding.found
    got = float(finding.found.split("shares ")[1].split("%")[0]) / 100
    assert got == pytest.approx(share, abs=0.12)  # seen on 256 points
    assert f"boxes {share:.0%}" in finding.found or f"boxes {share + 0.01:.0%}" in finding.found
    assert between({"train": tiles, "val": [room(1, "b")]}) == []


def test_scanners_that_see_the_same_place_share_no_points():
    rng = np.random.default_rng(4)
    scans = [
        from_world(f"s{i}", np.rint(rng.normal(0, 5, (20_000, 3)) * 1000) / 1000, {}, rng.integers(0, 3, 20_000))
        for i in range(6)
    ]
    assert between({"train": scans[:3], "val": scans[3:]}) == []


def test_a_scored_training_split_is_noted():
    wanted = replace(WANTED, scored="train")
    assert [(f.level, f.kind) for f in between({"train": [room(0, "a")]}, wanted)] == [("note", "overlap")]


def report(*clouds, findings=(), mended=()):
    splits = {"train": [stats(cloud) for cloud in clouds], "val": [stats(room(9, "v"))]}
    return Report("folder in here", WANTED, CLASSES, splits, in_order(findings), mended, 2)


def test_the_report_is_json_without_nan_and_its_numbers_add_up():
    empty = room(0, "none").select(np.arange(0))
    broken = View("nan", np.full((5, 3), NAN), np.zeros(3), {"q": np.full(5, NAN).__getitem__})
    planted = list(scene_findings(stats(empty), "train", WANTED)) + list(scene_findings(stats(broken), "train", WANTED))
    content = report(room(0, "a"), empty, broken, findings=planted)
    data = json.loads(json.dumps(as_data(content), allow_nan=False))
    assert data["found"] == {"error": 2, "warning": 0, "note": 0} and data["left_out"] == 2
    assert [scene["name"] for scene in data["scenes"]] == ["a", "none", "nan", "v"]
    assert data["scenes"][1]["low"] is None and data["scenes"][2]["not_finite"] == 5
    train = data["splits"]["train"]
    assert train["points"] == 4005 and train["scenes"] == 3 and train["unlabelled_scenes"] == 1
    assert train["labelled"] == sum(train["classes"].values()) == 4000 - train["ignored"]
    assert train["classes"]["box"] == (room().labels == 2).sum()
    text = describe(content)
    assert "2 errors, 0 warnings, 0 notes" in text and f"{train['classes']['box']:,}" in text
    assert not [line for line in text.splitlines() if "no points" in line]  # errors are told by the caller


def test_long_lists_are_cut_and_errors_come_first():
    clouds = [room(seed, f"r{seed}") for seed in range(9)]
    dirty = [found for c in clouds for found in scene_findings(stats(repeated(c, 0.3)), "train", WANTED)]
    errors = [found for c in clouds for found in scene_findings(stats(replace(c, labels=None)), "val", WANTED)]
    content = report(*clouds, findings=dirty + errors)
    assert [f.level for f in content.findings] == ["error"] * 9 + ["warning"] * 9
    text = describe(content).splitlines()
    assert sum(line.startswith("warning: r") for line in text) == 5
    assert "warning: 4 more findings on duplicates; --output FILE.json lists them" in text
    assert len(lines(content.of("error"))) == 6


def test_repairs_are_counted_by_file_and_by_what_was_done():
    ignored = [("a", Repair("a.txt", n, f"<{n}>", "ignored")) for n in (3, 5, 8)]
    repairs = [*ignored, ("a", Repair("a.txt", 9, "0x16", "blank")), ("b", Repair("b.txt", None, "50", "ignored"))]
    mended = count_repairs(repairs)
    assert [(m.file, m.done, m.count, m.line) for m in mended] == [
        ("a.txt", "ignored", 3, 3),
        ("a.txt", "blank", 1, 9),
        ("b.txt", "ignored", 1, None),
    ]
    text = describe(report(room(), mended=mended))
    assert "repaired 3 x a.txt line 3: <3> -> ignored" in text and "2 scenes of the download are left out" in text
