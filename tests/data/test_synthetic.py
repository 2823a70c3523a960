from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mink_decouple.data import synthetic
from mink_decouple.data.classes import S3DIS
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.synthetic import SyntheticBuildings, make_room
from mink_decouple.data.synthetic_scan import first_hits, ray_directions, surface
from mink_decouple.data.synthetic_shapes import BALL, CYLINDER, QUARTERS, Kit, Label, Parts, turn_of
from mink_decouple.data.synthetic_style import HELD_OUT_AREA, Dice, Difficulty, Paint, area_style

# Points of each class in the 4 cm clouds of S3DIS, published with RandLA-Net.
S3DIS_COUNTS = {
    "ceiling": 3370714,
    "floor": 2856755,
    "wall": 4919229,
    "beam": 318158,
    "column": 375640,
    "window": 478001,
    "door": 974733,
    "table": 650464,
    "chair": 791496,
    "sofa": 88727,
    "bookcase": 1284130,
    "board": 229758,
    "clutter": 2272837,
}
GREY = Paint((0.5, 0.5, 0.5))


def checksum(cloud: PointCloud) -> str:
    assert cloud.labels is not None
    sha = hashlib.sha256(np.rint(cloud.coords.astype(np.float64) * 1000).astype("<i4").tobytes())
    sha.update(np.rint(cloud.features["rgb"] * 255).astype("u1").tobytes())
    sha.update(cloud.labels.astype("u1").tobytes())
    return sha.hexdigest()


def voxel_counts(cloud: PointCloud, grid: float = 0.05) -> np.ndarray:
    """Return the number of voxels of each class; a voxel has the class of its first point."""
    assert cloud.labels is not None
    _, first = np.unique(np.floor(cloud.coords / grid).astype(np.int64), axis=0, return_index=True)
    return np.bincount(cloud.labels[first], minlength=len(S3DIS.names))


@pytest.fixture(scope="module")
def shares() -> dict[str, np.ndarray]:
    """Class counts of the default set: training areas and area 5."""
    counts = {"train": np.zeros(13, dtype=np.int64), "val": np.zeros(13, dtype=np.int64)}
    for area in range(1, 7):
        for index in range(6):
            counts["val" if area == HELD_OUT_AREA else "train"] += voxel_counts(make_room(area, index))
    return counts


def test_labels_are_the_train_ids_of_s3dis() -> None:
    assert tuple(label.name.lower() for label in Label) == S3DIS.names
    assert list(Label) == list(range(13))


@pytest.mark.parametrize(
    ("area", "index", "expected"),
    [
        (1, 0, "60369be8e68dd7fabeac1b2850a029d54b8d715ebc2ee5dd16e3df2deb8316bb"),
        (5, 3, "8fabacb2108c0fe4b686d363250958db871501c7bfa5e3154243d027a3f4f82d"),
    ],
)
def test_a_room_is_the_same_bytes_everywhere(area: int, index: int, expected: str) -> None:
    # A change of this sum is a change of the dataset: raise GENERATOR_VERSION with it.
    assert checksum(make_room(area, index, seed=0, points=5000)) == expected


def test_rooms_differ_by_seed_area_and_index() -> None:
    sums = {checksum(make_room(a, i, s, 2000)) for a, i, s in [(1, 1, 0), (1, 1, 1), (2, 1, 0), (1, 4, 0)]}
    assert len(sums) == 4


def test_a_room_keeps_the_contract_of_a_labelled_cloud() -> None:
    cloud = make_room(2, 1, seed=3, points=8000)
    assert cloud.labels is not None
    assert 6000 < len(cloud.coords) <= 8000
    assert cloud.coords.dtype == np.float32 and cloud.labels.dtype == np.int64
    rgb = cloud.features["rgb"]
    assert rgb.dtype == np.float32 and rgb.shape == cloud.coords.shape and rgb.min() >= 0.0 and rgb.max() <= 1.0
    millimetres = cloud.coords.astype(np.float64) * 1000
    assert np.abs(millimetres - np.rint(millimetres)).max() < 0.01
    assert set(np.unique(cloud.labels)) <= set(range(13))


def test_class_shares_of_the_training_areas_are_within_a_factor_of_two_of_s3dis(shares: dict[str, np.ndarray]) -> None:
    assert tuple(S3DIS_COUNTS) == S3DIS.names
    target = np.array(list(S3DIS_COUNTS.values())) / sum(S3DIS_COUNTS.values())
    ratio = shares["train"] / shares["train"].sum() / target
    assert ((ratio > 0.5) & (ratio < 2.0)).all(), dict(zip(S3DIS.names, ratio.round(2)))


def test_the_rare_classes_stay_rare(shares: dict[str, np.ndarray]) -> None:
    share = dict(zip(S3DIS.names, shares["train"] / shares["train"].sum()))
    assert min(share, key=lambda name: share[name]) == "sofa"
    assert share["sofa"] < 0.01 and share["board"] < 0.025 and share["beam"] < 0.035


def test_every_class_is_seen_in_training_and_in_area_5(shares: dict[str, np.ndarray]) -> None:
    assert (shares["train"] > 500).all() and (shares["val"] > 100).all()


def test_area_5_is_held_out_whatever_the_number_of_areas(tmp_path: Path) -> None:
    data = SyntheticBuildings(areas=6, rooms_per_area=2, cache=tmp_path)
    assert data.scenes("val") == ["Area_5_lounge_1", "Area_5_office_1"]
    assert {name[:6] for name in data.scenes("train")} == {"Area_1", "Area_2", "Area_3", "Area_4", "Area_6"}
    small = SyntheticBuildings(areas=2, rooms_per_area=1, cache=tmp_path)
    assert small.scenes("train") == ["Area_1_lounge_1"] and small.scenes("val") == ["Area_5_lounge_1"]


def test_room_names_are_unique_and_count_within_their_kind(tmp_path: Path) -> None:
    data = SyntheticBuildings(rooms_per_area=23, cache=tmp_path)
    names = data.scenes("train") + data.scenes("val")
    assert len(set(names)) == 6 * 23
    assert "Area_1_office_3" in names


def test_user_errors_name_the_value_and_the_choices(tmp_path: Path) -> None:
    data = SyntheticBuildings(areas=2, rooms_per_area=1, cache=tmp_path)
    with pytest.raises(ValueError, match="'test', choose train or val"):
        data.scenes("test")
    with pytest.raises(ValueError, match=r"no room 'Area_9'.*Area_1_lounge_1"):
        data.load("Area_9")
    with pytest.raises(ValueError, match="areas is 1, it must be at least 2"):
        SyntheticBuildings(areas=1, cache=tmp_path)


def test_the_cache_returns_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = SyntheticBuildings(areas=2, rooms_per_area=1, points_per_room=2000, cache=tmp_path)
    made = data.load("Area_1_lounge_1")
    assert checksum(made) == checksum(make_room(1, 0, 0, 2000))
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    monkeypatch.setattr(synthetic, "_arrays", lambda *_: pytest.fail("made again"))
    assert checksum(data.load("Area_1_lounge_1")) == checksum(made)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_damaged_cache_file_is_rebuilt(tmp_path: Path, damage: str) -> None:
    data = SyntheticBuildings(areas=2, rooms_per_area=1, points_per_room=1000, cache=tmp_path)
    expected = checksum(data.load("Area_1_lounge_1"))
    (path,) = tmp_path.iterdir()
    raw = path.read_bytes()
    flipped = raw[:2000] + bytes([raw[2000] ^ 255]) + raw[2001:]
    path.write_bytes({"truncate": raw[:-100], "flip": flipped, "empty": b"", "text": b"not a room"}[damage])
    assert checksum(data.load("Area_1_lounge_1")) == expected
    assert synthetic._read(path) is not None


def test_a_stored_room_that_does_not_match_its_sum_is_not_used(tmp_path: Path) -> None:
    arrays, other = (synthetic._arrays(1, index, 0, 1000, Difficulty()) for index in (0, 1))
    path = tmp_path / "room.npz"
    stored: dict[str, Any] = {**other, "sha256": np.array(synthetic._digest(arrays))}
    np.savez(path, **stored)
    assert synthetic._read(path) is None


def test_it_works_without_a_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    data = SyntheticBuildings(areas=2, rooms_per_area=1, points_per_room=1000, cache=tmp_path / "file" / "cache")
    assert len(data.load("Area_1_lounge_1").coords) > 0


def test_the_cache_folder_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINK_DECOUPLE_CACHE", str(tmp_path))
    assert SyntheticBuildings(areas=2).cache == tmp_path


def test_knobs_and_version_are_part_of_the_cache_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(difficulty: Difficulty = synthetic.DIFFICULTY) -> str:
        return SyntheticBuildings(areas=2, cache=tmp_path, difficulty=difficulty)._file_name(1, 0)

    before = name()
    assert name(Difficulty(color_noise=0.5)) != before
    monkeypatch.setattr(synthetic, "GENERATOR_VERSION", -1)
    assert name() != before


def test_area_5_shows_materials_and_designs_of_its_own() -> None:
    hard = Difficulty(style_shift=1.0)
    known = {design for area in (1, 2, 3, 4, 6) for design in area_style(0, area, hard).chairs}
    assert set(area_style(0, 5, hard).chairs) - known
    same = Difficulty(style_shift=0.0)
    assert set(area_style(0, 5, same).chairs) <= known


def solids(dice: Dice, n: int) -> Parts:
    """Return n random solids of every kind around a free space at the origin."""
    kit = Kit()
    for i in range(n):
        side = dice.pick(QUARTERS)
        far = dice.uniform(1.2, 2.5)
        frame = kit.place(side[0] * far, side[1] * far, 0, turn_of(dice.uniform(-2, 2)))
        tilt, size = turn_of(dice.uniform(-1, 1)), dice.uniform(0.1, 0.4)
        if i % 3 == 0:
            frame.box((-size, size), (-0.3, 0.3), (-0.5, 0.2), Label.TABLE, GREY, tilt)
        elif i % 3 == 1:
            frame.rod(0.1, 0.0, (-0.6, 0.4), size, Label.CHAIR, GREY, 0.7)
        else:
            frame.ball((0.0, 0.1, 0.2), (size, 0.2, 0.3), Label.SOFA, GREY, tilt)
    return kit.parts()


def inside(parts: Parts, points: np.ndarray) -> np.ndarray:
    """Tell which of points (n, 3) lie in which of P solids, (n, P)."""
    local = np.einsum("pij,npj->npi", parts.axes, points[:, None] - parts.center) / parts.half
    box = (np.abs(local) <= 1).all(-1)
    ball = (local**2).sum(-1) <= 1
    tube = ((local[..., :2] ** 2).sum(-1) <= 1) & (np.abs(local[..., 2]) <= 1)
    return np.where(parts.kind == BALL, ball, np.where(parts.kind == CYLINDER, tube, box))


def test_first_hits_agree_with_walking_along_the_ray() -> None:
    dice = Dice(11)
    parts, step = solids(dice, 24), 0.004
    directions = ray_directions(dice, 300, -1.0)
    t, hit = first_hits(parts, np.zeros(3), directions)
    assert (hit >= 0).sum() > 15
    for d, distance, row in zip(directions, t, hit):
        walked = inside(parts, np.arange(0, 5, step)[:, None] * d)
        entered = np.flatnonzero(walked.any(1))
        # A step may pass over a corner that the exact ray cuts, never the other way round.
        if len(entered) == 0 or distance < entered[0] * step - 2 * step:
            assert row < 0 or inside(parts, (distance + 1e-6) * d[None])[0, row]
        else:
            assert row >= 0 and abs(distance - entered[0] * step) <= 2 * step
            assert walked[entered[0] : entered[0] + 2, row].any()


def test_normals_are_unit_and_face_the_scanner() -> None:
    dice = Dice(12)
    parts = solids(dice, 30)
    directions = ray_directions(dice, 500, -1.0)
    t, hit = first_hits(parts, np.zeros(3), directions)
    seen = hit >= 0
    normal, _ = surface(parts, hit[seen], directions[seen] * t[seen, None])
    assert np.allclose((normal**2).sum(1), 1.0)
    assert ((normal * directions[seen]).sum(1) < 1e-6).all()


def test_a_wall_hides_what_is_behind_it() -> None:
    kit = Kit()
    kit.place(2, 0).box((-0.1, 0.1), (-5, 5), (-5, 5), Label.WALL, GREY)
    kit.place(3, 0).ball((0, 0, 0), (0.3, 0.3, 0.3), Label.SOFA, GREY)
    parts = kit.parts()
    directions = ray_directions(Dice(1), 2000, -1.0)
    _, hit = first_hits(parts, np.zeros(3), directions)
    assert set(parts.label[hit[hit >= 0]]) == {Label.WALL}


def test_nothing_is_seen_below_the_tripod() -> None:
    directions = ray_directions(Dice(2), 4000, -0.8)
    assert directions.shape == (4000, 3) and directions[:, 2].min() > -0.8
    assert np.allclose((directions**2).sum(1), 1.0)
