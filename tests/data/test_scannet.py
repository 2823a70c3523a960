"""ScanNet: the real scans, labels by both ways, every known corruption, and five hundred damaged files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scannet_scans import (
    IDS,
    LABELS,
    NAME,
    NYU40,
    SEGMENTS,
    download,
    expected_rows,
    labelled,
    lists,
    train_ids,
    vertices,
    write_ply,
    write_segments,
)

from mink_decouple.data.raw import Repair
from mink_decouple.data.scannet import ScanNet
from mink_decouple.data.scannet_labels import read_label_map

SAMPLES = Path(os.environ.get("MINK_DECOUPLE_SAMPLES", Path(__file__).resolve().parents[3] / "shared" / "data"))
SAMPLE = SAMPLES / "scannet"
needs_sample = pytest.mark.skipif(
    not SAMPLE.is_dir(), reason=f"no ScanNet sample at {SAMPLE}; set MINK_DECOUPLE_SAMPLES"
)


def read(root: Path, chunk_points: int = 10**6, **options: bool) -> tuple[np.ndarray, np.ndarray | None, list[Repair]]:
    """(n, 6) coordinates and colours, labels and repairs of the only scan."""
    dataset = ScanNet(root, **options)
    (scene,) = dataset.scenes()
    repairs: list[Repair] = []
    chunks = list(dataset.read(scene, repairs.append, chunk_points))
    assert all(0 < len(chunk.xyz) <= chunk_points and chunk.xyz.dtype == np.float64 for chunk in chunks)
    rows = np.concatenate([np.c_[chunk.xyz, chunk.features["rgb"]] for chunk in chunks])
    labels = [chunk.labels for chunk in chunks if chunk.labels is not None]
    return rows, np.concatenate(labels) if labels else None, repairs


def test_classes_are_the_benchmarks_by_nyu40_id() -> None:
    classes = ScanNet.classes
    assert classes.names == tuple(LABELS.split(", "))
    assert classes.decode(np.arange(20)).tolist() == IDS and classes.decode(np.array([-1])).tolist() == [0]
    assert classes.encode(np.arange(41)).tolist() == train_ids(list(range(41)))
    assert classes.colors[[0, 19]].tolist() == [[174, 199, 232], [82, 84, 163]]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_scan_is_the_vertices_of_its_mesh_in_order(order: str, tmp_path: Path) -> None:
    folder = download(tmp_path)
    write_ply(folder / f"{NAME}_vh_clean_2.ply", vertices(), order=order)
    rows, labels, repairs = read(tmp_path)
    np.testing.assert_array_equal(rows, expected_rows(vertices()))
    assert labels is not None and labels.tolist() == train_ids(NYU40)
    assert repairs == []


def test_labels_of_segments_are_those_of_labels_ply(tmp_path: Path) -> None:
    download(tmp_path / "a", NYU40)
    download(tmp_path / "b", None)
    for one, other in zip(read(tmp_path / "a"), read(tmp_path / "b")):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("chunk_points", [1, 5, 12])
def test_the_size_of_chunks_changes_neither_points_nor_repairs(chunk_points: int, tmp_path: Path) -> None:
    download(tmp_path, [*NYU40[:-1], 50])
    for whole, part in zip(read(tmp_path), read(tmp_path, chunk_points)):
        np.testing.assert_array_equal(whole, part)


def test_values_outside_nyu40_are_unannotated_and_reported(tmp_path: Path) -> None:
    download(tmp_path, [1, 50, 2, 149, 50, 41, 40, 0, 1, 1, 1, 1])
    _, labels, repairs = read(tmp_path)
    assert labels is not None and labels.tolist() == [0, -1, 1, -1, -1, -1, -1, -1, 0, 0, 0, 0]
    file = f"scans/{NAME}/{NAME}_vh_clean_2.labels.ply"
    assert [(r.file, r.line, r.found.split(",")[0], r.done) for r in repairs] == [
        (file, line, f"label {value}", "taken as 0, unannotated") for value, line in ((41, 6), (50, 2), (149, 4))
    ]
    assert "at 2 vertices" in repairs[1].found


def test_a_segment_of_two_categories_is_the_laters_and_reported(tmp_path: Path) -> None:
    folder = download(tmp_path, None)
    # By category in order of first mention: wall 7 9; floor 3 7.
    groups = [("wall", [7]), ("floor", [3, 7]), ("wall", [90])]
    write_segments(folder, [{"label": raw, "segments": listed} for raw, listed in groups])
    _, labels, repairs = read(tmp_path)
    expected = [{7: 2, 3: 2, 90: 1}.get(segment, 0) for segment in SEGMENTS]
    assert labels is not None and labels.tolist() == train_ids(expected)
    assert [r.found for r in repairs] == ["segment 7 is of 'wall' and 'floor'"]


def test_test_scans_have_no_labels_and_lists_may_lie_in_tasks_benchmark(tmp_path: Path) -> None:
    folder = tmp_path / "scans_test" / "scene0707_00"
    folder.mkdir(parents=True)
    lists(tmp_path / "Tasks" / "Benchmark", test="scene0707_00")
    write_ply(folder / "scene0707_00_vh_clean_2.ply", vertices())
    (scene,) = ScanNet(tmp_path).scenes()
    assert (scene.name, scene.split, scene.group, scene.labelled) == ("scene0707_00", "test", "", False)
    rows, labels, _ = read(tmp_path)
    assert labels is None and len(rows) == 12


def test_scans_of_the_lists_that_a_download_lacks_are_counted(tmp_path: Path) -> None:
    download(tmp_path)
    assert ScanNet(tmp_path).lacking() == []
    lists(tmp_path, train=f"{NAME}\nscene0002_00\nscene0002_01", test="scene0707_00")
    assert ScanNet(tmp_path).lacking() == [
        "train: 1 of its 3 scans; not there: scene0002_00, scene0002_01",
        "nothing of test",
    ]


def test_axis_alignment_is_applied_only_when_asked_for(tmp_path: Path) -> None:
    folder = download(tmp_path)
    turn, shift = 0.3, np.array([1.5, -2.25, 0.125])
    matrix = [np.cos(turn), -np.sin(turn), 0, shift[0], np.sin(turn), np.cos(turn), 0, shift[1], 0, 0, 1, shift[2]]
    text = " ".join(f"{value:.6f}" for value in [*matrix, 0, 0, 0, 1])
    (folder / f"{NAME}.txt").write_text(f"appVersionId = 10\naxisAlignment = {text} \ncolorHeight = 968\n")
    raw, _, _ = read(tmp_path)
    aligned, labels, _ = read(tmp_path, axis_align=True)
    z = complex(np.cos(turn), np.sin(turn))
    for before, after in zip(raw, aligned):
        plane = complex(before[0], before[1]) * z + complex(*shift[:2])
        assert after[:3] == pytest.approx([plane.real, plane.imag, before[2] + shift[2]], abs=1e-5)
        assert after[3:].tolist() == before[3:].tolist()
    assert labels is not None and labels.tolist() == train_ids(NYU40)
    assert ScanNet(tmp_path).version != ScanNet(tmp_path, axis_align=True).version
    for wrong, message in [
        ("axisAlignment = 1 2 3", "line 1: axisAlignment must be 16 numbers, found ' 1 2 3'"),
        ("axisAlignment = " + text.replace("1.500000", "nan"), "no rigid motion"),
        ("axisAlignment = " + text.replace("0.955336", "9.955336", 1), "no rigid motion"),
        ("sceneType = Bedroom", "no line 'axisAlignment"),
    ]:
        (folder / f"{NAME}.txt").write_text(wrong + "\n")
        with pytest.raises(ValueError, match=message):
            read(tmp_path, axis_align=True)


def test_a_test_scan_without_alignment_is_left_as_it_is_and_reported(tmp_path: Path) -> None:
    download(tmp_path)
    lists(tmp_path, test=NAME)
    rows, _, repairs = read(tmp_path, axis_align=True)
    np.testing.assert_array_equal(rows, expected_rows(vertices()))
    assert [repair.found for repair in repairs] == ["no axisAlignment, as in every test scan"]


def remove(suffix: str) -> Callable[[Path], None]:
    return lambda folder: (folder / f"{NAME}{suffix}").unlink()


@pytest.mark.parametrize(
    ("ids", "spoil", "error", "message"),
    [
        (NYU40, remove("_vh_clean_2.ply"), FileNotFoundError, f"no mesh {NAME}_vh_clean_2.ply"),
        (
            NYU40,
            remove("_vh_clean_2.labels.ply"),
            FileNotFoundError,
            "no labels: neither .* nor .*segs.json and .*aggr",
        ),
        (None, remove(".aggregation.json"), FileNotFoundError, "no labels: neither .* nor .*aggregation.json"),
        (
            None,
            lambda f: (f.parents[1] / "scannetv2-labels.combined.tsv").unlink(),
            FileNotFoundError,
            "no file scannet",
        ),
        (
            NYU40,
            lambda f: (f.parents[1] / "scannetv2_val.txt").unlink(),
            FileNotFoundError,
            "no file scannetv2_val.txt",
        ),
        (NYU40, lambda f: lists(f.parents[1]), ValueError, f"{NAME} is in none of the lists"),
        (NYU40, lambda f: lists(f.parents[1], train=NAME, val=NAME), ValueError, "line 1: .* the list of train too"),
        (
            NYU40,
            lambda f: lists(f.parents[1], train="scene1"),
            ValueError,
            "line 1 is not the name of a scan: 'scene1'",
        ),
        (NYU40, lambda f: f.rename(f.with_name("scene1_0")), ValueError, "not the name of a scan"),
        (NYU40, lambda f: (f.parents[1] / "scans_test" / NAME).mkdir(parents=True), ValueError, "remove one of them"),
    ],
)
def test_parts_that_are_missing_or_unknown_are_named(
    ids: list[int] | None, spoil: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    spoil(download(tmp_path, ids))
    with pytest.raises(error, match=message):
        ScanNet(tmp_path)


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ScanNet(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no folder scans or scans_test"):
        ScanNet(tmp_path)
    lists(tmp_path)
    (tmp_path / "scans").mkdir()
    with pytest.raises(ValueError, match="no scans; expected"):
        ScanNet(tmp_path).scenes()


def changed(**columns: float) -> np.ndarray:
    table = vertices()
    for name, value in columns.items():
        table[name][3] = value
    return table


@pytest.mark.parametrize(
    ("mesh", "labels", "message"),
    [
        (changed(x=np.nan), None, r"vh_clean_2.ply: vertex 3 is at \[nan, .*not finite"),
        (changed(z=2000), None, "vertex 3 is at .*more than 1000 m away"),
        (changed(y=1), None, "labels.ply: vertex 3 is at .* damaged, or of another mesh"),
        (vertices(11), None, "labels of 12 vertices, but .* has 11"),
        (vertices(0), None, "no vertices"),
        (
            vertices()[["x", "y", "z"]].astype([(a, "f4") for a in "xyz"]),
            None,
            "no property red, green, blue; found: x, y, z",
        ),
        (vertices().astype([(n, "f4") for n in vertices().dtype.names or ()]), None, "property red must be uchar"),
        (vertices(), vertices(), "labels.ply: no property label"),
        (vertices(), labelled(vertices(), NYU40, "f4"), "label must hold whole numbers"),
    ],
)
def test_impossible_vertices_are_refused(
    mesh: np.ndarray, labels: np.ndarray | None, message: str, tmp_path: Path
) -> None:
    folder = download(tmp_path)
    write_ply(folder / f"{NAME}_vh_clean_2.ply", mesh)
    if labels is not None:
        write_ply(folder / f"{NAME}_vh_clean_2.labels.ply", labels)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"label": "spaceship", "segments": [7]}], "object 0: the label map has no category 'spaceship'"),
        ([{"segments": [7]}], "object 0: the label map has no category None"),
        ([{"label": "wall", "segments": [7, 1]}], "object 0: no vertex has segment 1 in"),
        (
            [{"label": "wall", "segments": [7, None]}],
            "segments of object 0 must be a list of whole numbers, found None",
        ),
        ([{"label": "wall", "segments": [10**30]}], "is no id of a segment"),
        ([{"label": "wall"}], "must be a list of whole numbers, found None"),
    ],
)
def test_impossible_objects_are_refused(groups: list[dict], message: str, tmp_path: Path) -> None:
    write_segments(download(tmp_path, None), groups)
    with pytest.raises(ValueError, match=rf"{NAME}\.aggregation\.json.*{message}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\traw_category\tnyu40\n1\twall\t1\n", "no column 'nyu40id'; found: id, raw_category, nyu40"),
        ("", "no column 'raw_category'; found: none"),
        ("raw_category\tnyu40id\nwall\t1\nfloor\ttwo\n", "line 3: raw_category 'floor' with nyu40id 'two'"),
        ("raw_category\tnyu40id\nwall\n", "line 2: raw_category 'wall' with nyu40id None"),
        ("raw_category\tnyu40id\nwall\t1\nwall\t2\n", "line 3: raw_category 'wall' has two ids, 1 and 2"),
    ],
)
def test_a_label_map_is_read_by_the_names_of_its_columns(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "map.tsv"
    path.write_text("nyu40id\tmore\traw_category\n7\t1\ttable\n")
    assert read_label_map(path) == {"table": 7}
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_label_map(path)


@needs_sample
def test_scene0000_has_the_golden_numbers() -> None:
    dataset = ScanNet(SAMPLE)
    scenes = {scene.name: scene for scene in dataset.scenes()}
    assert {name: scene.split for name, scene in scenes.items()} == {"scene0000_00": "train", "scene0000_01": "train"}
    repairs: list[Repair] = []
    (chunk,) = dataset.read(scenes["scene0000_00"], repairs.append)
    assert chunk.labels is not None and repairs == []
    assert len(chunk.labels) == 81_369 and int((chunk.labels < 0).sum()) == 21_917
    counts = dict(zip(dataset.classes.names, np.bincount(chunk.labels[chunk.labels >= 0], minlength=20).tolist()))
    text = (
        "wall 13899, floor 10234, cabinet 9809, bed 2954, sofa 5099, table 4479, door 1414, window 824, counter 462, "
        "desk 1897, curtain 5519, refrigerator 1404, toilet 454, sink 362, otherfurniture 642"
    )
    assert ", ".join(f"{name} {count}" for name, count in counts.items() if count) == text
    (chunk,) = dataset.read(scenes["scene0000_01"], repairs.append)
    assert len(chunk.xyz) == 80_583


@needs_sample
def test_the_official_label_map_has_its_607_categories() -> None:
    table = read_label_map(SAMPLE / "scannetv2-labels.combined.tsv")
    assert len(table) == 607 and table["wall"] == 1 and table["office chair"] == 5


@needs_sample
def test_scene0000_00_equals_plyfiles_own_reading() -> None:
    from plyfile import PlyData

    dataset = ScanNet(SAMPLE)
    scene = dataset.scenes()[0]
    (chunk,) = dataset.read(scene, print)
    table = PlyData.read(str(scene.files[0]))["vertex"].data
    np.testing.assert_array_equal(np.c_[chunk.xyz, chunk.features["rgb"]], expected_rows(table))
