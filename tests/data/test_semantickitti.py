"""SemanticKITTI's raw files: golden numbers of a real scan, the official tables, and every oddity named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from mink_decouple.data.classes import Classes
from mink_decouple.data.cloud import from_world
from mink_decouple.data.grid import subsample
from mink_decouple.data.raw import Chunk, Repair
from mink_decouple.data.semantickitti import SCANS, SEMANTICKITTI, SPLITS, SemanticKITTI

SAMPLES = Path(os.environ.get("MINK_DECOUPLE_SAMPLES", Path(__file__).resolve().parents[3] / "shared" / "data"))
KITTI = SAMPLES / "semantickitti"
real = pytest.mark.skipif(not KITTI.is_dir(), reason=f"no SemanticKITTI sample at {KITTI}; set MINK_DECOUPLE_SAMPLES")


def put(root: Path, sequence: str, number: int, raw: list[int] | None, xyz: np.ndarray | None = None) -> Path:
    """A scan of three points, or of `xyz`; labels with an instance in the high half."""
    folder = root / "sequences" / sequence
    points = np.arange(9, dtype="<f4").reshape(3, 3) if xyz is None else xyz
    (folder / "velodyne").mkdir(parents=True, exist_ok=True)
    table = np.c_[points, np.linspace(0, 1, len(points))].astype("<f4")
    table.tofile(folder / "velodyne" / f"{number:06d}.bin")
    if raw is not None:
        (folder / "labels").mkdir(exist_ok=True)
        (np.array(raw, "<u4") | 7 << 16).astype("<u4").tofile(folder / "labels" / f"{number:06d}.label")
    return folder


def read(root: Path, name: str | None = None, rows: int = 2_000_000) -> tuple[Chunk, list[Repair]]:
    dataset, repairs = SemanticKITTI(root), []
    scene = next(s for s in dataset.scenes() if name in (None, s.name))
    chunks = list(dataset.read(scene, repairs.append, rows))
    assert all(0 < len(c.xyz) <= rows for c in chunks)
    labels = None if chunks[0].labels is None else np.concatenate([c.labels for c in chunks])
    remission = np.concatenate([c.features["remission"] for c in chunks])
    return Chunk(np.concatenate([c.xyz for c in chunks]), {"remission": remission}, labels), repairs


@real
def test_the_real_scan_has_its_golden_numbers() -> None:
    chunk, repairs = read(KITTI, "00_000000")
    assert len(chunk.xyz) == 124_668 and chunk.xyz.dtype == np.float64 and repairs == []
    first = [*chunk.xyz[0], chunk.features["remission"][0]]
    np.testing.assert_allclose(first, [52.897942, 0.022990, 1.997995, 0.08], atol=1e-6)
    assert chunk.labels is not None
    ids, counts = np.unique(chunk.labels + 1, return_counts=True)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {
        0: 4886,
        1: 4234,
        8: 88,
        9: 35281,
        10: 3268,
        11: 26360,
        13: 18268,
        14: 370,
        15: 27123,
        16: 1192,
        17: 2964,
        18: 532,
        19: 102,
    }
    assert len(subsample(from_world("scan", chunk.xyz), 0.06)) == 83_891


@real
def test_the_real_scans_without_labels_are_reported_once() -> None:
    dataset, repairs = SemanticKITTI(KITTI), []
    for scene in dataset.scenes():
        assert all((c.labels is not None) == scene.labelled for c in dataset.read(scene, repairs.append))
    assert [s.labelled for s in dataset.scenes()] == [True, False, False, False]
    assert [(r.file, r.line) for r in repairs] == [("sequences/00/labels", None)]
    assert "3 scans" in repairs[0].found and "000001" in repairs[0].found


@real
def test_ids_colours_and_splits_are_those_of_the_official_file(tmp_path: Path) -> None:
    official = yaml.safe_load((KITTI / "semantic-kitti.yaml").read_text())
    ids = np.array(list(official["learning_map"]))
    np.testing.assert_array_equal(SEMANTICKITTI.encode(ids) + 1, [official["learning_map"][i] for i in ids.tolist()])
    inverse = official["learning_map_inv"]
    np.testing.assert_array_equal(SEMANTICKITTI.decode(np.arange(-1, 19)), [inverse[i] for i in range(20)])
    bgr = [official["color_map"][inverse[i]] for i in range(1, 20)]
    np.testing.assert_array_equal(SEMANTICKITTI.colors[:, ::-1], bgr)
    assert list(SEMANTICKITTI.names) == [official["labels"][inverse[i]] for i in range(1, 20)]
    for number in range(22):
        put(tmp_path, f"{number:02d}", 0, None)
    found = {(s.group, s.split) for s in SemanticKITTI(tmp_path).scenes()}
    wanted = {"train": "train", "valid": "val", "test": "test"}
    assert found == {(f"{n:02d}", wanted[split]) for split, numbers in official["split"].items() for n in numbers}


def test_34_raw_ids_become_19_classes_and_instances_are_dropped(tmp_path: Path) -> None:
    assert isinstance(SEMANTICKITTI, Classes) and len(SEMANTICKITTI) == 19
    assert len(SEMANTICKITTI.raw_ids) + len(SEMANTICKITTI.ignored) == 34
    put(tmp_path, "03", 5, [252, 0, 99])
    chunk, repairs = read(tmp_path, "03_000005")
    assert chunk.labels is not None and chunk.labels.tolist() == [0, -1, -1] and repairs == []
    assert chunk.features["remission"].dtype == np.float32 and chunk.features["remission"].tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("rows", [1, 2, 3, 50])
def test_the_size_of_a_chunk_changes_nothing(tmp_path: Path, rows: int) -> None:
    xyz = np.random.default_rng(0).normal(0, 30, (101, 3))
    put(tmp_path, "08", 0, [10] * 50 + [40] * 51, xyz)
    whole, parts = read(tmp_path)[0], read(tmp_path, rows=rows)[0]
    np.testing.assert_array_equal(whole.xyz, xyz.astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(parts.xyz, whole.xyz)
    np.testing.assert_array_equal(parts.labels, whole.labels)


def test_the_root_may_hold_dataset(tmp_path: Path) -> None:
    put(tmp_path / "dataset", "00", 0, [10, 10, 10])
    scene = SemanticKITTI(tmp_path).scenes()[0]
    assert (scene.name, scene.group, scene.labelled) == ("00_000000", "00", True)
    assert [path.name for path in scene.files] == ["000000.bin", "000000.label"]


def test_every_nth_scan_thins_the_training_sequences_alone(tmp_path: Path) -> None:
    for sequence in ("00", "08", "11"):
        for number in range(5):
            put(tmp_path, sequence, number, None if sequence == "11" else [10, 10, 10])
    names = [s.name for s in SemanticKITTI(tmp_path, every=3).scenes()]
    assert [n for n in names if n.startswith("00")] == ["00_000000", "00_000003"]
    assert len(names) == 2 + 5 + 5
    with pytest.raises(ValueError, match="every: 0"):
        SemanticKITTI(tmp_path, every=0)


def test_scans_that_a_download_lacks_are_counted_before_thinning(tmp_path: Path, monkeypatch) -> None:
    assert [sum(SCANS[number] for number in SPLITS[split]) for split in SPLITS] == [19_130, 4_071, 20_351]
    for number in (0, 2, 3):
        put(tmp_path, "04", number, [10, 10, 10])
    line = "04: 3 of its 271 scans; not there: 000001, 000004, 000005, ..."
    expected = [line, f"nothing of {', '.join(number for number in SCANS if number != '04')}"]
    assert SemanticKITTI(tmp_path, every=2).lacking() == expected
    put(tmp_path, "04", 1, [10, 10, 10])
    monkeypatch.setitem(SCANS, "04", 4)
    assert SemanticKITTI(tmp_path, every=2).lacking() == expected[1:]


def test_missing_labels_are_told_once_a_sequence_and_never_of_test_scans(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path, "02", number, [40, 40, 40] if number == 1 else None)
        put(tmp_path, "12", number, None)
    dataset, repairs = SemanticKITTI(tmp_path), []
    for scene in dataset.scenes():
        for chunk in dataset.read(scene, repairs.append):
            assert (chunk.labels is not None) == (scene.name == "02_000001")
    assert len(repairs) == 1 and "3 scans of sequence 02, first 000000" in repairs[0].found


def damage_size(folder: Path) -> None:
    path = folder / "velodyne" / "000000.bin"
    path.write_bytes(path.read_bytes()[:-5])


def damage_label_size(folder: Path) -> None:
    path = folder / "labels" / "000000.label"
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


def set_value(folder: Path, value: float, column: int) -> None:
    path = folder / "velodyne" / "000000.bin"
    table = np.fromfile(path, "<f4").reshape(-1, 4)
    table[1, column] = value
    table.tofile(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_size, r"000000\.bin: 43 bytes is not a whole number of 16-byte points"),
        (lambda f: (f / "velodyne" / "000000.bin").write_bytes(b""), r"000000\.bin: no points"),
        (damage_label_size, r"000000\.label: 4 labels for 3 points"),
        (lambda f: set_value(f, np.nan, 0), r"000000\.bin: point 2: .*nan"),
        (lambda f: set_value(f, np.inf, 3), r"000000\.bin: point 2: .*inf"),
        (lambda f: set_value(f, 5e4, 2), r"000000\.bin: point 2: .*beyond 1,000 m"),
        (lambda f: np.array([10, 40, 33], "<u4").tofile(f / "labels" / "000000.label"), r"label: point 3: raw id 33 "),
    ],
)
def test_corruption_is_named_with_its_file_and_point(tmp_path: Path, damage, words: str) -> None:
    damage(put(tmp_path, "00", 0, [10, 40, 0]))
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        SemanticKITTI(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds neither sequences nor dataset/sequences"):
        SemanticKITTI(tmp_path)
    (tmp_path / "sequences" / "00").mkdir(parents=True)
    with pytest.raises(ValueError, match="no scans; looked for XX/velodyne"):
        SemanticKITTI(tmp_path).scenes()
    folder = put(tmp_path, "00", 0, [10, 10, 10])
    (folder / "labels" / "000001.label").write_bytes(b"\0" * 12)
    with pytest.raises(FileNotFoundError, match=r"velodyne/000001\.bin: no such file, but 000001\.label"):
        SemanticKITTI(tmp_path)


def test_names_that_are_none_are_refused(tmp_path: Path) -> None:
    folder = put(tmp_path, "00", 0, None)
    (folder / "velodyne" / "17.bin").write_bytes(b"\0" * 16)
    with pytest.raises(ValueError, match=r"17\.bin: a scan is named by six digits"):
        SemanticKITTI(tmp_path)
    (folder / "velodyne" / "17.bin").unlink()
    put(tmp_path, "22", 0, None)
    with pytest.raises(ValueError, match="22: unknown sequence; choose from 00 to 21"):
        SemanticKITTI(tmp_path)
