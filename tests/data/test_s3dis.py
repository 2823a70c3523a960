"""S3DIS: the real room, every known corruption planted into a small copy, and five hundred damaged files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data.cloud import from_world
from mink_decouple.data.grid import subsample
from mink_decouple.data.raw import Repair
from mink_decouple.data.s3dis import ROOMS, S3DIS, restore_bit

SAMPLES = Path(os.environ.get("MINK_DECOUPLE_SAMPLES", Path(__file__).resolve().parents[3] / "shared" / "data"))
SAMPLE = SAMPLES / "s3dis" / "Stanford3dDataset_v1.2_Aligned_Version"
# Lines of the files of hallway_3.
GOLDEN = {
    "ceiling_1": 26285,
    "ceiling_2": 7998,
    "clutter_1": 3568,
    "clutter_2": 5039,
    "clutter_3": 4960,
    "door_1": 6939,
    "door_2": 22182,
    "door_3": 6769,
    "floor_1": 33948,
    "wall_1": 9897,
    "wall_2": 21995,
    "wall_3": 25495,
}
PALETTE = {"ceiling": (0, 255, 0), "table": (170, 120, 200), "chair": (255, 0, 0), "bookcase": (10, 200, 100)}


def room(root: Path, name: str = "Area_5/hallway_6", **files: str) -> Path:
    """A room with objects of a few lines; `files` adds or replaces some, named without .txt."""
    folder = root / name / "Annotations"
    folder.mkdir(parents=True)
    contents = {
        "ceiling_1": "22.350 6.692 3.048 185 187 182\n-1.5 0.25 2 0 255 7\n",
        "wall_3": "1.000 -9.160 1.785 64 60 56\n1.001 2.002 3.003 4 5 6\n",
        "chair_1": "0.1 0.2 0.3 255.000000 103.000000 56.000000\n",
    }
    for stem, content in {**contents, **files}.items():
        (folder / f"{stem}.txt").write_bytes(content.encode("latin-1"))
    return folder


def read(root: Path, chunk_points: int = 10**6, **options: str) -> tuple[np.ndarray, np.ndarray, list[Repair]]:
    """(n, 6) coordinates and colours, labels and repairs of the only room."""
    dataset = S3DIS(root, **options)
    (scene,) = dataset.scenes()
    repairs: list[Repair] = []
    chunks = list(dataset.read(scene, repairs.append, chunk_points))
    assert all(0 < len(chunk.xyz) <= chunk_points for chunk in chunks)
    assert all(chunk.xyz.dtype == np.float64 and chunk.features["rgb"].dtype == np.uint8 for chunk in chunks)
    rows = np.concatenate([np.c_[chunk.xyz, chunk.features["rgb"]] for chunk in chunks])
    return rows, np.concatenate([chunk.labels for chunk in chunks if chunk.labels is not None]), repairs


def test_a_room_is_its_annotation_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    room(tmp_path)
    rows, labels, repairs = read(tmp_path)
    files = [("ceiling_1", 2), ("chair_1", 1), ("wall_3", 2)]
    folder = tmp_path / "Area_5" / "hallway_6" / "Annotations"
    np.testing.assert_array_equal(rows, np.concatenate([np.loadtxt(folder / f"{f}.txt", ndmin=2) for f, _ in files]))
    names = [S3DIS.classes.names[label] for label in labels]
    assert names == ["ceiling", "ceiling", "chair", "wall", "wall"]
    assert repairs == []


def test_names_splits_and_groups(tmp_path: Path) -> None:
    for name in ("Area_5/office_10", "Area_5/WC_1", "Area_1/office_2", "Area_6/copyRoom_1"):
        room(tmp_path, name)
    scenes = S3DIS(tmp_path).scenes()
    assert [(s.name, s.split, s.group) for s in scenes] == [
        ("Area_1_office_2", "train", "Area_1"),
        ("Area_5_WC_1", "val", "Area_5"),
        ("Area_5_office_10", "val", "Area_5"),
        ("Area_6_copyRoom_1", "train", "Area_6"),
    ]
    assert all(
        s.labelled and [p.name for p in s.files] == ["ceiling_1.txt", "chair_1.txt", "wall_3.txt"] for s in scenes
    )


def test_rooms_that_a_download_lacks_are_counted(tmp_path: Path) -> None:
    assert sum(ROOMS.values()) == 272
    for number in range(67):
        room(tmp_path, f"Area_5/office_{number}")
    for number in range(23):
        room(tmp_path, f"Area_3/office_{number}")
    assert S3DIS(tmp_path).lacking() == ["Area_5: 67 of its 68 rooms", "nothing of Area_1, Area_2, Area_4, Area_6"]


def test_classes_stand_in_the_order_and_colours_of_pointnet() -> None:
    names = "ceiling floor wall beam column window door table chair sofa bookcase board clutter"
    assert S3DIS.classes.names == tuple(names.split())
    for name, color in PALETTE.items():
        assert tuple(S3DIS.classes.colors[S3DIS.classes.names.index(name)]) == color


@pytest.mark.parametrize("chunk_points", [1, 2, 3, 1000])
def test_the_size_of_chunks_changes_neither_points_nor_repairs(chunk_points: int, tmp_path: Path) -> None:
    lines = [f"{i}.5 0 0 {i} 0 0" for i in range(20)]
    lines[13] = "13.5 0 0 1\x13 0 0"
    room(tmp_path, floor_1="\n".join(lines), stairs_1="1 1 1 1 1 1\n")
    whole, labels, repairs = read(tmp_path)
    rows, same, told = read(tmp_path, chunk_points)
    np.testing.assert_array_equal(rows, whole)
    np.testing.assert_array_equal(same, labels)
    assert told == repairs and len(told) == 3


# Every control byte found in the dataset; the last is a room file's, whose value its neighbours tell.
@pytest.mark.parametrize(
    ("damaged", "meant"),
    [
        ("22.350 6.692 3.048 185\x00187 182", "22.350 6.692 3.048 185 187 182"),
        ("0.1 0.2 0.3 103.0\x100000 1.000000 2.000000", "0.1 0.2 0.3 103.000000 1.000000 2.000000"),
        ("0.1 0.2 0.3 56.00\x10000 1.000000 2.000000", "0.1 0.2 0.3 56.000000 1.000000 2.000000"),
        ("0.1 0.2 0.3 2\x111.000000 1.000000 2.000000", "0.1 0.2 0.3 211.000000 1.000000 2.000000"),
        ("19.302 -9.1\x160 1.785 64 60 56", "19.302 -9.160 1.785 64 60 56"),
    ],
)
def test_a_known_control_byte_is_mended_and_reported(damaged: str, meant: str, tmp_path: Path) -> None:
    room(tmp_path, ceiling_1=f"1 2 3 4 5 6\n{damaged}\n7 8 9 10 11 12\n")
    rows, _, repairs = read(tmp_path)
    assert rows[1].tolist() == [float(word) for word in meant.split()]
    (repair,) = repairs
    assert (repair.file, repair.line) == ("Area_5/hallway_6/Annotations/ceiling_1.txt", 2)
    assert repair.found.isprintable() and "\\x" in repair.found and meant in repair.done


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 2 3 4\x00\x005 6", "is not 6 numbers"),  # blocks of NUL bytes are a broken download
        ("1 2 3 4 \x015 6", "is not 6 numbers"),
        ("1 2 3 4\x105 6", "is not 6 numbers"),
        ("1 2 3 4 5", "is not 6 numbers"),
        ("1 2 3 4 5 6 7", "is not 6 numbers"),
        ("1 2 nan 4 5 6", "is not 6 numbers"),
        ("1 2 3 4 5 256", "colours must be whole numbers in 0..255, found 1 2 3 4 5 256"),
        ("1 2 3 4 5 -1", "colours must be whole"),
        ("1 2 3 4 5 6.5", "colours must be whole"),
        ("1 2 3 4 5 1e300", "colours must be whole"),
        ("185 187 182 22.350 6.692 3.048", "colours must be whole"),
        ("1 22350 3 4 5 6", "more than 1000 m away, found 1 22350 3 4 5 6"),
        ("", "is empty, but lines follow"),
    ],
)
def test_an_unknown_corruption_is_refused_with_file_line_and_content(line: str, reason: str, tmp_path: Path) -> None:
    room(tmp_path, ceiling_1=f"1 2 3 4 5 6\n{line}\n7 8 9 10 11 12\n")
    with pytest.raises(ValueError, match=f"ceiling_1.txt: line 2:? {reason}") as caught:
        read(tmp_path)
    assert str(caught.value).isprintable()


def test_copies_system_files_and_misnamed_room_files_are_left_out_and_reported(tmp_path: Path) -> None:
    folder = room(tmp_path, "Area_6/copyRoom_1")
    clean, labels, _ = read(tmp_path)
    (folder / "wall_3 (1).txt").write_bytes((folder / "wall_3.txt").read_bytes())
    (folder / "chair_1 (2).txt").write_text("1 2 3 4 5 6\n")
    (folder / ".DS_Store").write_bytes(b"\0\1")
    (folder / "Icon\r").write_bytes(b"")
    (folder / "Area_6_alignmentAngle.txt").write_text("## Global alignment angle\n")
    (folder.parent / "copy_Room_1.txt").write_text("1 2 3 4 5 6\n")
    (folder.parents[1] / "Area_6_alignmentAngle.txt").write_text("## Global alignment angle\n")
    (folder.parents[1] / ".hidden").mkdir()
    rows, same, repairs = read(tmp_path)
    np.testing.assert_array_equal(rows, clean)
    np.testing.assert_array_equal(same, labels)
    told = {repair.file.removeprefix("Area_6/copyRoom_1/"): (repair.found, repair.done) for repair in repairs}
    assert set(told) == {
        "copy_Room_1.txt",
        *(f"Annotations/{n}" for n in (".DS_Store", "Area_6_alignmentAngle.txt", "Icon")),
        *(f"Annotations/{n}" for n in ("chair_1 (2).txt", "wall_3 (1).txt")),
    }
    assert told["Annotations/wall_3 (1).txt"] == ("a copy of wall_3.txt by its name, with the same bytes", "skipped")
    assert "other bytes" in told["Annotations/chair_1 (2).txt"][0]
    assert "copyRoom_1.txt" in told["copy_Room_1.txt"][0]
    assert "wall_3 (1).txt" not in [path.name for path in S3DIS(tmp_path).scenes()[0].files]


def test_another_class_becomes_clutter_or_is_ignored_and_is_reported(tmp_path: Path) -> None:
    room(tmp_path, stairs_1="1 2 3 4 5 6\n", stairs_2="1 2 3 4 5 6\n")
    for others, label, word in (("clutter", 12, "taken as clutter"), ("ignore", -1, "ignored")):
        _, labels, repairs = read(tmp_path, others=others)
        assert labels.tolist() == [0, 0, 8, label, label, 2, 2]
        assert [(r.file.split("/")[-1], r.done) for r in repairs] == [("stairs_1.txt", word), ("stairs_2.txt", word)]
        assert all("'stairs'" in repair.found for repair in repairs)
    assert S3DIS(tmp_path).version != S3DIS(tmp_path, others="ignore").version
    with pytest.raises(ValueError, match="others 'stairs': choose from clutter, ignore"):
        S3DIS(tmp_path, others="stairs")


def test_a_last_line_without_an_end_is_kept_and_reported(tmp_path: Path) -> None:
    room(tmp_path, ceiling_1="1 2 3 4 5 6\n7 8 9 10 11 12")
    rows, _, repairs = read(tmp_path)
    assert len(rows) == 5
    assert [(repair.line, repair.found) for repair in repairs] == [(2, "the last line has no end")]


def test_parts_of_the_layout_that_are_missing_or_unknown_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        S3DIS(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no folder Area_1 to Area_6"):
        S3DIS(tmp_path)
    (tmp_path / "Area_1").mkdir()
    with pytest.raises(ValueError, match="no rooms"):
        S3DIS(tmp_path).scenes()
    (tmp_path / "Area_1" / "office_1").mkdir()
    with pytest.raises(FileNotFoundError, match=r"office_1/Annotations: no such folder; the points and labels"):
        S3DIS(tmp_path)
    (tmp_path / "Area_1" / "office_1" / "Annotations").mkdir()
    with pytest.raises(FileNotFoundError, match="Annotations: empty; expected one text file per object"):
        S3DIS(tmp_path)


@pytest.mark.parametrize("name", ["wall.txt", "wall_1.csv", "wall_9 (1).txt", "notes", "wall_1"])
def test_a_file_that_the_layout_has_no_place_for_is_refused(name: str, tmp_path: Path) -> None:
    (room(tmp_path) / name).write_text("1 2 3 4 5 6\n")
    with pytest.raises(ValueError, match="no place for it in the layout"):
        S3DIS(tmp_path)


@pytest.mark.parametrize("name", ["Area_7/office_1", "Area_5 (1)/office_1", "Area_5/office", "Area_5/office_1 copy"])
def test_a_misnamed_room_is_not_lost_unseen(name: str, tmp_path: Path) -> None:
    room(tmp_path)
    room(tmp_path, name)
    with pytest.raises(ValueError, match="not the name of"):
        S3DIS(tmp_path)


def test_an_empty_object_and_an_unknown_scene_are_refused(tmp_path: Path) -> None:
    room(tmp_path, ceiling_1="")
    with pytest.raises(ValueError, match=r"ceiling_1\.txt: no points"):
        read(tmp_path)
    room(tmp_path / "other", "Area_1/office_1")
    (stranger,) = S3DIS(tmp_path / "other").scenes()
    with pytest.raises(ValueError, match="no room 'Area_1_office_1'"):
        list(S3DIS(tmp_path).read(stranger, print))


def test_a_bit_is_restored_in_one_byte_only() -> None:
    for good in b" .0123456789":
        lost, kept = (b"1 2" + bytes([byte]) + b"4" for byte in (good & ~0x20, good))
        assert lost != kept and restore_bit(lost) == kept
    assert restore_bit(b"\x10\x10") == b"\x10\x10"
    assert restore_bit(b"plain") == b"plain"


def damage(text: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """One damage of a kind that disks, editors and downloads do."""
    kind = str(rng.choice(["bit", "byte", "cut", "insert", "swap", "hole"]))
    at = int(rng.integers(len(text)))
    if kind == "bit":
        return text[:at] + bytes([text[at] ^ 1 << int(rng.integers(8))]) + text[at + 1 :], kind
    if kind == "byte":
        return text[:at] + bytes([int(rng.integers(256))]) + text[at + 1 :], kind
    if kind == "cut":
        return text[:at], kind
    if kind == "insert":
        return text[:at] + bytes(rng.integers(0, 256, int(rng.integers(1, 5)), np.uint8)) + text[at:], kind
    if kind == "hole":
        size = int(rng.integers(2, 40))
        return text[:at] + bytes(min(size, len(text) - at)) + text[at + size :], kind
    lines = text.splitlines()
    row = int(rng.integers(len(lines)))
    words = lines[row].split()
    i, j = rng.choice(6, 2, replace=False)
    words[i], words[j] = words[j], words[i]
    return b"\n".join([*lines[:row], b" ".join(words), *lines[row + 1 :]]) + b"\n", kind


def test_500_damaged_files_give_a_clear_error_or_the_other_rows_unchanged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = np.c_[rng.uniform(-30, 30, (20, 3)).round(3), rng.integers(0, 256, (20, 3))]
    text = "".join("{:.3f} {:.3f} {:.3f} {:.0f} {:.0f} {:.0f}\n".format(*row) for row in table).encode()
    folder = room(tmp_path, "Area_1/office_1")
    for path in folder.iterdir():
        path.unlink()
    path = folder / "wall_1.txt"
    path.write_bytes(text)
    dataset = S3DIS(tmp_path)
    (scene,) = dataset.scenes()
    outcomes = {"refused": 0, "read": 0, "mended": 0, "cut": 0}
    for _ in range(500):
        damaged, kind = damage(text, rng)
        path.write_bytes(damaged)
        repairs: list[Repair] = []
        try:
            chunks = list(dataset.read(scene, repairs.append, int(rng.integers(1, 30))))
        except ValueError as error:
            assert "wall_1.txt: " in str(error) and ("line " in str(error) or "no points" in str(error))
            assert str(error).isprintable()
            outcomes["refused"] += 1
            continue
        rows = np.concatenate([np.c_[chunk.xyz, chunk.features["rgb"]] for chunk in chunks])
        if len(rows) < 20:
            # What is left of a file that was cut at the end of a line looks whole; elsewhere it is reported.
            assert kind == "cut" and (damaged.endswith(b"\n") or repairs)
            outcomes["cut"] += 1
        else:
            assert len(rows) == 20
        changed = np.flatnonzero((rows != table[: len(rows)]).any(axis=1))
        assert len(changed) <= 1
        for row in changed:  # a valid number in place of another: what stands in the line, or what the report says
            line = damaged.split(b"\n")[row]
            meant = next((r.done for r in repairs if r.line == row + 1 and "bit" in r.done), None)
            words = line.decode("latin-1").split() if meant is None else meant.split("'")[1].split()
            assert rows[row].tolist() == [float(word) for word in words]
        outcomes["mended"] += bool(repairs)
        outcomes["read"] += 1
    assert min(outcomes.values()) > 3 and outcomes["read"] > 50


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no S3DIS sample at {SAMPLE}; set MINK_DECOUPLE_SAMPLES")
def test_hallway_3_has_the_golden_numbers() -> None:
    dataset = S3DIS(SAMPLE)
    (scene,) = dataset.scenes()
    assert (scene.name, scene.split, scene.group) == ("Area_3_hallway_3", "train", "Area_3")
    repairs: list[Repair] = []
    chunks = list(dataset.read(scene, repairs.append))
    sizes = dict(zip((path.stem for path in scene.files), (len(chunk.xyz) for chunk in chunks)))
    assert sizes == GOLDEN
    assert repairs == []
    xyz, labels = (np.concatenate([getattr(chunk, key) for chunk in chunks]) for key in ("xyz", "labels"))
    assert xyz[0].tolist() == [-0.870, -0.039, 2.674]
    assert chunks[0].features["rgb"][0].tolist() == [221, 211, 175]
    assert xyz.min(0).tolist() == [-1.513, -1.304, -0.009] and xyz.max(0).tolist() == [0.793, 0.751, 2.709]
    grid = subsample(from_world(scene.name, xyz, labels=labels), 0.04)
    assert grid.labels is not None
    counts = dict(zip(dataset.classes.names, np.bincount(grid.labels, minlength=13).tolist()))
    known = {"ceiling": 2318, "floor": 2205, "wall": 3738, "door": 2492, "clutter": 978}
    assert {name: count for name, count in counts.items() if count} == known


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no S3DIS sample at {SAMPLE}; set MINK_DECOUPLE_SAMPLES")
def test_hallway_3_equals_numpys_own_reading() -> None:
    dataset = S3DIS(SAMPLE)
    (scene,) = dataset.scenes()
    for path, chunk in zip(scene.files, dataset.read(scene, print)):
        if path.stem in ("ceiling_2", "clutter_1"):
            table = np.loadtxt(path)
            np.testing.assert_array_equal(np.c_[chunk.xyz, chunk.features["rgb"]], table)
