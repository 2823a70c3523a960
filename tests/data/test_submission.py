"""Submissions: an independent reader finds the predictions point for point; what a server rejects is rejected here."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data.classes import Classes, default_palette
from mink_decouple.data.semantic3d import SEMANTIC3D
from mink_decouple.data.semantickitti import SEMANTICKITTI
from mink_decouple.data.submission import check_submission, write_submission
from mink_decouple.data.submission_servers import SERVERS, find_server

NYU40 = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39]
SCANNET = Classes(tuple(map(str, NYU40)), default_palette(20), {raw: i for i, raw in enumerate(NYU40)}, frozenset({0}))
REDUCED = {
    "MarketplaceFeldkirch_Station4_rgb_intensity-reduced": "marketsquarefeldkirch4-reduced.labels",
    "sg27_station10_rgb_intensity-reduced": "sg27_10-reduced.labels",
    "sg28_Station2_rgb_intensity-reduced": "sg28_2-reduced.labels",
    "StGallenCathedral_station6_rgb_intensity-reduced": "stgallencathedral6-reduced.labels",
}
SEMANTIC8 = {
    "birdfountain_station1_xyz_intensity_rgb": "birdfountain1.labels",
    "castleblatten_station1_intensity_rgb": "castleblatten1.labels",
    "castleblatten_station5_xyz_intensity_rgb": "castleblatten5.labels",
    **{f"marketplacefeldkirch_station{i}_intensity_rgb": f"marketsquarefeldkirch{i}.labels" for i in (1, 4, 7)},
    **{f"sg27_station{i}_intensity_rgb": f"sg27_{i}.labels" for i in (3, 6, 8, 10)},
    "sg28_station2_intensity_rgb": "sg28_2.labels",
    "sg28_station5_xyz_intensity_rgb": "sg28_5.labels",
    **{f"stgallencathedral_station{i}_intensity_rgb": f"stgallencathedral{i}.labels" for i in (1, 3, 6)},
}
SCANS = {11: 921, 12: 1061, 13: 3281, 14: 631, 15: 1901, 16: 1731, 17: 491, 18: 1801, 19: 4981, 20: 831, 21: 2721}
CASES = {
    "scannet": ({f"scene{n:04d}_00": f"scene{n:04d}_00.txt" for n in range(707, 807)}, SCANNET),
    "reduced-8": (REDUCED, SEMANTIC3D),
    "semantic-8": (SEMANTIC8, SEMANTIC3D),
    "semantickitti": (
        {
            f"{s}_{n:06d}": f"sequences/{s}/predictions/{n:06d}.label"
            for s, count in SCANS.items()
            for n in range(count)
        },
        SEMANTICKITTI,
    ),
}


def draw(case: str, size: int = 3) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, str], Classes]:
    """(predictions, points, files, classes): scenes of 1 to `size` points."""
    files, classes = CASES[case]
    rng = np.random.default_rng(0)
    predictions = {name: rng.integers(0, len(classes), rng.integers(1, size + 1)) for name in files}
    return predictions, {name: len(ids) for name, ids in predictions.items()}, files, classes


@pytest.fixture
def short_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scans a sequence: the names of all 20,351 are tried once, in the test that follows."""
    files = {name: file for name, file in CASES["semantickitti"][0].items() if int(name[3:]) < 2}
    monkeypatch.setitem(CASES, "semantickitti", (files, SEMANTICKITTI))
    short = replace(SERVERS["semantickitti"], entries=frozenset(files.values()))
    monkeypatch.setitem(SERVERS, "semantickitti", short)


@pytest.mark.parametrize("case", CASES)
def test_an_independent_reader_finds_every_prediction(tmp_path: Path, case: str) -> None:
    predictions, points, files, classes = draw(case)
    dataset = "semantic3d" if classes is SEMANTIC3D else case
    path = tmp_path / "out" / "submission.zip"
    write_submission(dataset, predictions.items(), points, path, classes)
    inverse = [next(raw for raw, train in classes.raw_ids.items() if train == i) for i in range(len(classes))]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        for scene, file in files.items():
            content = archive.read(file)
            if case == "semantickitti":
                found = [value for (value,) in struct.iter_unpack("<I", content)]
            else:
                assert content.endswith(b"\n")
                found = [int(line) for line in content.decode("ascii").splitlines()]
            assert found == [inverse[i] for i in predictions[scene]]
    folders = [name for name in names if name.endswith("/")]
    assert sorted(set(names) - set(folders)) == sorted(files.values()) and len(names) == len(set(names))
    if case == "semantickitti":
        wanted = [f"sequences/{s}/{part}" for s in range(11, 22) for part in ("", "predictions/")]
        assert folders == ["sequences/", *wanted] and len(files) == 20351
    else:
        assert folders == []
    check_submission(dataset, points, path)
    assert [item.name for item in path.parent.iterdir()] == ["submission.zip"]


@pytest.mark.usefixtures("short_sequences")
def test_scenes_longer_than_a_block_and_a_description_come_back(tmp_path: Path) -> None:
    predictions, points, _, classes = draw("reduced-8")
    scene = next(iter(REDUCED))
    predictions[scene] = np.random.default_rng(1).integers(0, 8, 3_000_001).astype(np.uint8)
    points[scene] = 3_000_001
    write_submission("reduced-8", predictions.items(), points, tmp_path / "a.zip", classes)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        lines = np.array(archive.read(REDUCED[scene]).split(), dtype=int)
    np.testing.assert_array_equal(lines, predictions[scene] + 1)
    with pytest.raises(ValueError, match=r"takes no description\.txt"):
        write_submission("reduced-8", [], points, tmp_path / "b.zip", classes, "text")
    predictions, points, _, classes = draw("semantickitti", 1)
    write_submission("semantickitti", predictions.items(), points, tmp_path / "b.zip", classes, "method: ours")
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert archive.read("description.txt") == b"method: ours"


def test_one_scene_is_in_memory_at_a_time_and_equal_predictions_are_equal_files(tmp_path: Path) -> None:
    predictions, points, _, classes = draw("reduced-8")
    asked = []

    def stream():
        for name, ids in predictions.items():
            asked.append(name)
            yield name, ids

    bad = dict(points)
    del bad[next(iter(bad))]
    with pytest.raises(ValueError, match="test scenes are missing"):
        write_submission("reduced-8", stream(), bad, tmp_path / "a.zip", classes)
    assert asked == []  # refused before the first hour of prediction
    for name in "ab":
        write_submission("reduced-8", stream(), points, tmp_path / f"{name}.zip", classes)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


FIRST = next(iter(REDUCED))


@pytest.mark.usefixtures("short_sequences")
@pytest.mark.parametrize("case", CASES)
def test_blocks_give_the_file_of_the_whole_array(tmp_path: Path, case: str) -> None:
    predictions, points, _, classes = draw(case)
    write_submission(case, predictions.items(), points, tmp_path / "whole.zip", classes)
    blocks = ((scene, iter([train[:2], train[2:2], train[2:]])) for scene, train in predictions.items())
    write_submission(case, blocks, points, tmp_path / "blocks.zip", classes)
    assert (tmp_path / "whole.zip").read_bytes() == (tmp_path / "blocks.zip").read_bytes()


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda t: [t, t[:1]], r"whole numbers, found \(1,\) \w+ after \d+ others"),
        (lambda t: [t[:-1]], r"whole numbers, found \(\d+,\)$"),
        (lambda t: [t[:1], t[1:] + 8], r"needs a class 0\.\.7 for every point"),
        (lambda t: [], r"whole numbers, found \(0,\)"),
    ],
)
def test_wrong_blocks_are_refused_and_leave_nothing(tmp_path: Path, cut: Callable, words: str) -> None:
    predictions, points, _, classes = draw("reduced-8")
    blocks = [(scene, cut(train) if scene == FIRST else [train]) for scene, train in predictions.items()]
    with pytest.raises(ValueError, match=words):
        write_submission("reduced-8", blocks, points, tmp_path / "a.zip", classes)
    assert list(tmp_path.iterdir()) == []


def change(mapping: dict, key: str, value: object = None) -> dict:
    return {k: v for k, v in {**mapping, key: value}.items() if v is not None}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda p: change(p, FIRST), f"1 scenes have no prediction, first {FIRST}"),
        (lambda p: change(p, "sg27_station1", np.array([1])), "'sg27_station1' is not among the test scenes"),
        (lambda p: [*p.items(), (FIRST, p[FIRST])], f"{FIRST}' is given twice"),
        (lambda p: change(p, FIRST, np.append(p[FIRST], 0)), rf"{FIRST}' needs \(\d,\) whole numbers"),
        (lambda p: change(p, FIRST, p[FIRST][:, None]), rf"{FIRST}' needs \(\d,\) whole numbers"),
        (lambda p: change(p, FIRST, p[FIRST].astype(float)), "whole numbers, found .* float64"),
        (
            lambda p: change(p, FIRST, np.full_like(p[FIRST], -1)),
            r"needs a class 0\.\.7 for every point, found -1\.\.-1",
        ),
        (lambda p: change(p, FIRST, np.full_like(p[FIRST], 8)), r"needs a class 0\.\.7 for every point, found 8\.\.8"),
    ],
)
def test_wrong_predictions_are_refused_and_leave_nothing(tmp_path: Path, edit: Callable, words: str) -> None:
    predictions, points, _, classes = draw("reduced-8")
    edited = edit(predictions)
    pairs = edited.items() if isinstance(edited, dict) else edited
    with pytest.raises(ValueError, match=words) as caught:
        write_submission("semantic3d", pairs, points, tmp_path / "a.zip", classes)
    assert len(str(caught.value).splitlines()) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("short_sequences")
@pytest.mark.parametrize("case", CASES)
def test_missing_and_surplus_scenes_are_refused(tmp_path: Path, case: str) -> None:
    _, points, files, classes = draw(case, 1)
    first = next(iter(points))
    for edited, words in (
        (change(points, first), f"1 of {len(files)} test scenes are missing, first {files[first]}"),
        ({**points, "scene0000_00": 1}, f"'scene0000_00' is not one of its {len(files)} test scenes"),
    ):
        with pytest.raises(ValueError, match=words):
            write_submission(case, [], edited, tmp_path / "a.zip", classes)
    assert list(tmp_path.iterdir()) == []


def test_ids_that_the_benchmark_lacks_are_refused(tmp_path: Path) -> None:
    predictions, points, _, classes = draw("scannet")
    wrong = Classes(classes.names, classes.colors, {raw + 1: i for raw, i in classes.raw_ids.items()})
    predictions["scene0707_00"] = np.array([11])  # picture, counter: nyu40 13 is none of the 20
    points["scene0707_00"] = 1
    with pytest.raises(ValueError, match="'scene0707_00' has the id 13; choose from"):
        write_submission("scannet", predictions.items(), points, tmp_path / "a.zip", wrong)


def test_the_two_benchmarks_of_semantic3d_are_kept_apart(tmp_path: Path) -> None:
    both = dict.fromkeys((*REDUCED, *SEMANTIC8), 1)
    with pytest.raises(ValueError, match="two benchmarks; choose one: reduced-8 or semantic-8"):
        write_submission("semantic3d", [], both, tmp_path / "a.zip", SEMANTIC3D)
    assert find_server("semantic3d", REDUCED).name == "reduced-8"
    assert find_server("semantic3d", SEMANTIC8).name == "semantic-8"
    with pytest.raises(ValueError, match="'s3dis': unknown; choose from scannet, semantic-8, reduced-8, semantickitti"):
        write_submission("s3dis", [], both, tmp_path / "a.zip", SEMANTIC3D)
    with pytest.raises(ValueError, match=r"must end in \.zip"):
        write_submission("reduced-8", [], dict.fromkeys(REDUCED, 1), tmp_path / "a.tar", SEMANTIC3D)


def rewrite(path: Path, edit: Callable[[dict[str, bytes]], None]) -> None:
    """The zip with its entries edited, by means of the standard library alone."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    edit(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


KITTI_FILE = "sequences/11/predictions/000000.label"
TEXT_FILE = "sg27_10-reduced.labels"


@pytest.mark.parametrize(
    ("case", "edit", "words"),
    [
        ("reduced-8", lambda e: e.pop(TEXT_FILE), f"{TEXT_FILE} is missing"),
        ("reduced-8", lambda e: e.update({TEXT_FILE.upper(): e.pop(TEXT_FILE)}), f"{TEXT_FILE} is missing"),
        ("reduced-8", lambda e: e.update({f"out/{TEXT_FILE}": e.pop(TEXT_FILE)}), f"{TEXT_FILE} is missing"),
        ("reduced-8", lambda e: e.update({"notes.txt": b""}), r"notes\.txt is none of the files of reduced-8"),
        ("reduced-8", lambda e: e.update({TEXT_FILE: e[TEXT_FILE] + b"1\n"}), rf"{TEXT_FILE} has \d ids for \d points"),
        ("reduced-8", lambda e: e.update({TEXT_FILE: e[TEXT_FILE][2:]}), rf"{TEXT_FILE} has \d ids for \d points"),
        ("reduced-8", lambda e: e.update({TEXT_FILE: b"0\n" * 2}), f"{TEXT_FILE}: id 1 is '0'"),
        ("reduced-8", lambda e: e.update({TEXT_FILE: b"1\n9\n"}), f"{TEXT_FILE}: id 2 is '9'"),
        ("reduced-8", lambda e: e.update({TEXT_FILE: b"1 2\n"}), f"{TEXT_FILE}: id 1 is '1 2'"),
        ("reduced-8", lambda e: e.update({TEXT_FILE: b"1\n\n"}), f"{TEXT_FILE}: id 2 is ''"),
        ("reduced-8", lambda e: e.update({TEXT_FILE: b"1\r\n"}), rf"{TEXT_FILE}: id 1 is '1\\r'"),
        ("scannet", lambda e: e.update({"scene0707_00.txt": b"13\n"}), r"scene0707_00\.txt: id 1 is '13'"),
        ("semantickitti", lambda e: e.pop("sequences/"), "sequences/ is missing"),
        ("semantickitti", lambda e: e.pop("sequences/17/predictions/"), "sequences/17/predictions/ is missing"),
        ("semantickitti", lambda e: e.pop(KITTI_FILE), f"{KITTI_FILE} is missing"),
        ("semantickitti", lambda e: e.update({KITTI_FILE: e[KITTI_FILE] + b"\n"}), "5 bytes are not whole ids"),
        ("semantickitti", lambda e: e.update({KITTI_FILE: e[KITTI_FILE] * 2}), "2 ids for 1 points"),
        ("semantickitti", lambda e: e.update({KITTI_FILE: struct.pack("<I", 9)}), "id 1 is 9"),
        ("semantickitti", lambda e: e.update({KITTI_FILE: struct.pack("<I", 10 | 1 << 16)}), "id 1 is 65546"),
        ("semantickitti", lambda e: e.update({"sequences/08/predictions/000000.label": b""}), "none of the files"),
    ],
)
@pytest.mark.usefixtures("short_sequences")
def test_what_a_server_would_reject_is_rejected(tmp_path: Path, case: str, edit: Callable, words: str) -> None:
    predictions, points, _, classes = draw(case, 1)
    path = tmp_path / "a.zip"
    write_submission(case, predictions.items(), points, path, classes)
    rewrite(path, edit)
    with pytest.raises(ValueError, match=words) as caught:
        check_submission(case, points, path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_last_line_without_its_end_still_counts(tmp_path: Path) -> None:
    predictions, points, _, classes = draw("reduced-8")
    write_submission("reduced-8", predictions.items(), points, tmp_path / "a.zip", classes)
    rewrite(tmp_path / "a.zip", lambda e: e.update({TEXT_FILE: e[TEXT_FILE].rstrip()}))
    check_submission("reduced-8", points, tmp_path / "a.zip")


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    predictions, points, _, classes = draw("reduced-8", 400)
    path = tmp_path / "a.zip"
    with pytest.raises(FileNotFoundError, match=r"a\.zip: no such file"):
        check_submission("reduced-8", points, path)
    write_submission("reduced-8", predictions.items(), points, path, classes)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data[: rng.integers(0, len(data))] if rng.random() < 0.2 else data)
        try:
            check_submission("reduced-8", points, path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
        else:  # the damage lies where nothing is said: dates, attributes
            with zipfile.ZipFile(path) as archive:
                for scene, file in REDUCED.items():
                    assert [int(line) - 1 for line in archive.read(file).split()] == predictions[scene].tolist()
    assert refused > 100
