"""Semantic3D's raw files: read to the last digit, in any chunks, and every oddity mended or named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_semantic3d import make_semantic3d

from mink_decouple.data.cloud import from_world
from mink_decouple.data.raw import Chunk, Repair
from mink_decouple.data.semantic3d import REDUCED, SEMANTIC3D, TEST_PLACES, TRAINING, VALIDATION, Semantic3D, place

STATION = "bildstein_station1_xyz_intensity_rgb"


def read(root: Path, name: str | None = None, rows: int = 2_000_000) -> tuple[Chunk, list[Repair]]:
    """One scene, its chunks joined, and what was repaired."""
    dataset, repairs = Semantic3D(root), []
    scene = next(s for s in dataset.scenes() if name in (None, s.name))
    chunks = list(dataset.read(scene, repairs.append, rows))
    assert all(0 < len(c.xyz) <= rows for c in chunks)
    labels = None if chunks[0].labels is None else np.concatenate([c.labels for c in chunks])
    features = {key: np.concatenate([c.features[key] for c in chunks]) for key in chunks[0].features}
    return Chunk(np.concatenate([c.xyz for c in chunks]), features, labels), repairs


def put(folder: Path, text: str, labels: str | None, name: str = STATION) -> Path:
    (folder / f"{name}.txt").write_text(text)
    if labels is not None:
        (folder / f"{name}.labels").write_text(labels)
    return folder


GOOD = "1.5 -2.25 0.001 -1200 10 20 255\n3 4 5 600 0 0 0\n"


def test_columns_keep_their_values_and_types(tmp_path: Path) -> None:
    chunk, repairs = read(put(tmp_path, GOOD, "0\n8\n"))
    assert chunk.xyz.dtype == np.float64 and chunk.xyz.tolist() == [[1.5, -2.25, 0.001], [3, 4, 5]]
    assert chunk.features["intensity"].dtype == np.float32 and chunk.features["intensity"].tolist() == [-1200, 600]
    assert chunk.features["rgb"].dtype == np.uint8 and chunk.features["rgb"].tolist() == [[10, 20, 255], [0, 0, 0]]
    assert chunk.labels is not None and chunk.labels.dtype == np.int64 and chunk.labels.tolist() == [-1, 7]
    assert repairs == []


def test_what_the_generator_wrote_comes_back(tmp_path: Path) -> None:
    make_semantic3d.write(tmp_path, STATION, 3000, seed=4)
    xyz, intensity, rgb, label = make_semantic3d.station(STATION, 3000, seed=4)
    chunk, _ = read(tmp_path)
    np.testing.assert_array_equal(chunk.xyz, xyz)
    np.testing.assert_array_equal(chunk.features["intensity"], intensity)
    np.testing.assert_array_equal(chunk.features["rgb"], rgb)
    np.testing.assert_array_equal(chunk.labels, label - 1)
    assert np.unique(label).tolist() == list(range(9))


@pytest.mark.parametrize("rows", [1, 7, 1000, 2999])
def test_the_size_of_a_chunk_changes_nothing(tmp_path: Path, rows: int) -> None:
    make_semantic3d.write(tmp_path, STATION, 2000, seed=1)
    whole, parts = read(tmp_path)[0], read(tmp_path, rows=rows)[0]
    np.testing.assert_array_equal(parts.xyz, whole.xyz)
    np.testing.assert_array_equal(parts.labels, whole.labels)
    for key in whole.features:
        np.testing.assert_array_equal(parts.features[key], whole.features[key])


def test_a_millimetre_survives_500_km_from_the_origin(tmp_path: Path) -> None:
    make_semantic3d.write(tmp_path, STATION, 2000, seed=2)
    chunk, _ = read(tmp_path)
    assert np.abs(chunk.xyz).max(axis=0).min() > 300 and np.abs(chunk.xyz).max() > 5e6
    cloud = from_world("far", chunk.xyz)
    assert cloud.coords.dtype == np.float32
    np.testing.assert_array_equal(np.round(cloud.world(), 3), np.round(chunk.xyz, 3))
    assert np.abs(cloud.world() - chunk.xyz).max() < 1e-4


def test_stations_fall_into_the_splits_by_name(tmp_path: Path) -> None:
    for name in (*make_semantic3d.STATIONS, "my_own_cloud"):
        put(tmp_path, GOOD, "1\n2\n", name)
    for name in (*make_semantic3d.TESTS, "birdfountain_station1_xyz_intensity_rgb", "courtyard_station2"):
        put(tmp_path, GOOD, None, name)
    (tmp_path / "readme.txt").write_text("not a station")
    split = {s.name: (s.split, s.labelled) for s in Semantic3D(tmp_path).scenes()}
    assert list(split) == sorted(split) and "readme" not in split
    assert {n for n, s in split.items() if s == ("val", True)} == {
        "bildstein_station3_xyz_intensity_rgb",
        "sg27_station2_intensity_rgb",
    }
    assert {n for n, s in split.items() if s == ("test", False)} == {
        *make_semantic3d.TESTS,
        "birdfountain_station1_xyz_intensity_rgb",
        "courtyard_station2",
    }
    assert sum(s == ("train", True) for s in split.values()) == 4


def test_the_lists_of_stations_are_those_of_the_benchmark() -> None:
    assert len(TRAINING) + len(VALIDATION) == len(TEST_PLACES) == 15
    assert len({*TRAINING, *VALIDATION, *TEST_PLACES}) == 30
    # RandLA-Net's split vector over the sorted training stations.
    vector = [0, 1, 4, 5, 3, 4, 3, 0, 1, 2, 3, 4, 2, 0, 5]
    ordered = sorted((*TRAINING, *VALIDATION))
    assert tuple(name for name, part in zip(ordered, vector, strict=True) if part == 1) == VALIDATION
    assert place("sg27_station10_rgb_intensity-reduced") == "sg27_station10"
    assert place("MarketplaceFeldkirch_Station4_rgb_intensity-reduced") == "marketplacefeldkirch_station4"
    assert place("station1_xyz_intensity_rgb") == place("readme") == place("sg27_stationary") == ""


def test_stations_that_a_download_lacks_are_counted(tmp_path: Path) -> None:
    for name in (*TRAINING, *VALIDATION[1:]):
        put(tmp_path, GOOD, "1\n2\n", f"{name}_intensity_rgb")
    assert Semantic3D(tmp_path).lacking() == [
        f"val: 1 of its 2 stations; not there: {VALIDATION[0]}",
        "nothing of test",
    ]
    put(tmp_path, GOOD, "1\n2\n", f"{VALIDATION[0]}_intensity_rgb")
    assert {place(name) for name in make_semantic3d.TESTS} == REDUCED
    for name in make_semantic3d.TESTS:
        put(tmp_path, GOOD, None, name)
    assert Semantic3D(tmp_path).lacking() == []
    next(tmp_path.glob("StGallen*")).unlink()
    assert Semantic3D(tmp_path).lacking() == ["test: 3 of its 4 stations; not there: stgallencathedral_station6"]


def test_the_same_four_stations_of_semantic_8_are_not_the_whole_of_it(tmp_path: Path) -> None:
    for name in (*TRAINING, *VALIDATION):
        put(tmp_path, GOOD, "1\n2\n", f"{name}_intensity_rgb")
    for name in REDUCED:
        put(tmp_path, GOOD, None, f"{name}_intensity_rgb")
    first = "birdfountain_station1, castleblatten_station1, castleblatten_station5"
    assert Semantic3D(tmp_path).lacking() == [f"test: 4 of its 15 stations; not there: {first}, ..."]


def test_ids_are_one_more_than_train_ids() -> None:
    np.testing.assert_array_equal(SEMANTIC3D.decode(np.arange(8)), np.arange(1, 9))
    assert SEMANTIC3D.names[0] == "man-made terrain" and SEMANTIC3D.names[7] == "cars"


def test_the_misnamed_station_gets_its_place_back(tmp_path: Path) -> None:
    put(tmp_path, GOOD, None, "station1_xyz_intensity_rgb")
    (tmp_path / "neugasse_station1_xyz_intensity_rgb.labels").write_text("5\n0\n")
    chunk, repairs = read(tmp_path, "neugasse_station1_xyz_intensity_rgb")
    assert chunk.labels is not None and chunk.labels.tolist() == [4, -1]
    assert [(r.file, r.line) for r in repairs] == [("station1_xyz_intensity_rgb.txt", None)]
    assert "neugasse" in repairs[0].done
    assert Semantic3D(tmp_path).scenes()[0].split == "train"


def test_windows_line_ends_tabs_and_a_missing_last_line_end_are_read(tmp_path: Path) -> None:
    plain, _ = read(put(tmp_path, GOOD, "0\n8\n"))
    odd, _ = read(put(tmp_path, GOOD.replace(" ", "\t").replace("\n", "\r\n").rstrip(), "0\r\n8"))
    np.testing.assert_array_equal(odd.xyz, plain.xyz)
    np.testing.assert_array_equal(odd.labels, plain.labels)


@pytest.mark.parametrize(
    ("text", "labels", "words"),
    [
        (GOOD, "0\n", r"\.labels: 1 labels for the 2 points .*line 2"),
        (GOOD, "0\n1\n2\n", r"\.labels: 3 labels for the 2 points .*line 3"),
        (GOOD, "0\n9\n", r"\.labels: line 2: .*0\.\.8: '9'"),
        (GOOD, "-1\n1\n", r"\.labels: line 1: .*'-1'"),
        (GOOD, "1.5\n1\n", r"\.labels: line 1: .*'1.5'"),
        (GOOD, "1 1\n1\n", r"\.labels: line 1 .*'1 1'"),
        (GOOD, "\n1\n", r"\.labels: line 1 .*empty"),
        (GOOD, "", r"\.labels: no points|\.labels: 0 labels"),
        ("1 2 3 4 5 6\n", "1\n", r"\.txt: line 1 .*'1 2 3 4 5 6'"),
        ("1 2 3 4 5 6 7 8\n", "1\n", r"\.txt: line 1 .*'1 2 3 4 5 6 7 8'"),
        (GOOD + "nan 2 3 4 5 6 7\n", "1\n1\n1\n", r"\.txt: line 3 .*'nan 2 3 4 5 6 7'"),
        (GOOD + "1e999 2 3 4 5 6 7\n", "1\n1\n1\n", r"\.txt: line 3 .*'1e999 "),
        (GOOD + "1 2 3 4 5 6 256\n", "1\n1\n1\n", r"\.txt: line 3: a colour .*'1 2 3 4 5 6 256'"),
        (GOOD + "1 2 3 4 5 -6 7\n", "1\n1\n1\n", r"\.txt: line 3: a colour .*'1 2 3 4 5 -6 7'"),
        (GOOD + "1 2 99999 4 5 6 7\n", "1\n1\n1\n", r"\.txt: line 3: 32,768 m .*'1 2 99999 4 5 6 7'"),
        (GOOD.replace("4 5", "4\x005"), "1\n1\n", r"\.txt: line 2 .*'3 4\\x005 600 0 0 0'"),
        ("", "1\n", r"\.txt: no points"),
    ],
)
@pytest.mark.parametrize("rows", [1, 2_000_000])
def test_unknown_corruption_is_named_with_file_line_and_content(
    tmp_path: Path, text: str, labels: str, words: str, rows: int
) -> None:
    put(tmp_path, text, labels)
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path, rows=rows)
    assert STATION in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        Semantic3D(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no stations; looked for PLACE_stationN"):
        Semantic3D(tmp_path).scenes()
    put(tmp_path, GOOD, None)
    with pytest.raises(FileNotFoundError, match=rf"{STATION}\.labels: no such file"):
        Semantic3D(tmp_path)


def test_a_station_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for folder in (tmp_path, tmp_path / "more"):
        put(folder, GOOD, "1\n1\n")
    with pytest.raises(ValueError, match="the same station as"):
        Semantic3D(tmp_path)


def test_a_readme_in_every_folder_is_no_station(tmp_path: Path) -> None:
    for part in ("training", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "readme.txt").write_text("not a station")
    put(tmp_path / "training", GOOD, "1\n1\n")
    assert [scene.name for scene in Semantic3D(tmp_path).scenes()] == [STATION]
