"""Damaged raw files of Semantic3D and SemanticKITTI: a clear error or what the file says, never anything else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_semantic3d import make_semantic3d

from mink_decouple.data.raw import RawDataset
from mink_decouple.data.semantic3d import Semantic3D
from mink_decouple.data.semantickitti import SEMANTICKITTI, SemanticKITTI

CASES = 500
STATION = "bildstein_station1_xyz_intensity_rgb"


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three random damages: bytes changed, lost, put in, doubled, cut off, zeroed, or lines swapped."""
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(data) + 1))
        length = int(rng.choice([1, 1, 2, 4, 16, 64]))
        kind = rng.integers(0, 8)
        stray = bytes(rng.choice(np.frombuffer(b"0123456789.-+eE \t\n\r\0\x16nanif,#\xff", np.uint8), length))
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << int(rng.integers(0, 8))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + length :]
        elif kind == 2:
            data = data[:at] + stray + data[at:]
        elif kind == 3:
            data = data[:at] + stray + data[at + length :]
        elif kind == 4:
            data = data[:at] + data[max(0, at - length) :]
        elif kind == 5:
            data = data[:at]
        elif kind == 6:
            data = data[:at] + bytes(length) + data[at + length :]
        else:
            lines = data.split(b"\n")
            first, second = rng.integers(0, len(lines), 2)
            lines[first], lines[second] = lines[second], lines[first]
            data = b"\n".join(lines)
    return data


def outcome(make: Callable[[], RawDataset], rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | str:
    """(xyz, last feature, labels) of the first scene, or the error's message."""
    try:
        dataset = make()
        chunks = list(dataset.read(dataset.scenes()[0], lambda repair: None, rows))
    except ValueError as error:
        return str(error)
    labels = None if chunks[0].labels is None else np.concatenate([c.labels for c in chunks])
    feature = np.concatenate([list(c.features.values())[-1] for c in chunks])
    return np.concatenate([c.xyz for c in chunks]), feature, labels


def plain_text(data: bytes, columns: int) -> list[list[float]]:
    """Numbers line by line in the plainest way; empty lines at the end are none."""
    lines = data.split(b"\n")
    while lines and not lines[-1].strip(b" \t\r"):
        lines.pop()
    rows = [[float(word) for word in line.strip(b"\r").replace(b"\t", b" ").split(b" ") if word] for line in lines]
    assert all(len(row) == columns for row in rows)
    return rows


@pytest.mark.parametrize("damaged", [".txt", ".labels"])
def test_damaged_semantic3d_stations(tmp_path: Path, damaged: str) -> None:
    rng = np.random.default_rng(1)
    make_semantic3d.write(tmp_path, STATION, 10, seed=0)
    path = tmp_path / f"{STATION}{damaged}"
    # Some forty lines: a damage has no room to hide.
    for suffix in (".txt", ".labels"):
        file = tmp_path / f"{STATION}{suffix}"
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:40]))
    whole, errors = path.read_bytes(), 0
    for case in range(CASES):
        data = mutate(whole, rng)
        path.write_bytes(data)
        rows = (3, 1000)[case % 2]
        found = outcome(lambda: Semantic3D(tmp_path), rows)
        if isinstance(found, str):
            errors += 1
            assert STATION in found and len(found.splitlines()) == 1 and found.isprintable(), found
            continue
        xyz, rgb, labels = found
        table = np.array(plain_text((tmp_path / f"{STATION}.txt").read_bytes(), 7))
        ids = np.array(plain_text((tmp_path / f"{STATION}.labels").read_bytes(), 1))[:, 0]
        np.testing.assert_array_equal(xyz, table[:, :3])
        np.testing.assert_array_equal(rgb, table[:, 4:])
        np.testing.assert_array_equal(labels, ids - 1)
    assert CASES / 4 < errors < CASES


@pytest.mark.parametrize("damaged", ["velodyne/000000.bin", "labels/000000.label"])
def test_damaged_semantickitti_scans(tmp_path: Path, damaged: str) -> None:
    rng = np.random.default_rng(2)
    folder = tmp_path / "sequences" / "00"
    bin_path, label_path = folder / "velodyne" / "000000.bin", folder / "labels" / "000000.label"
    for path in (bin_path, label_path):
        path.parent.mkdir(parents=True)
    np.c_[rng.normal(0, 20, (40, 3)), rng.random(40)].astype("<f4").tofile(bin_path)
    (rng.choice(list(SEMANTICKITTI.raw_ids), 40) | rng.integers(0, 9, 40) << 16).astype("<u4").tofile(label_path)
    path = folder / damaged
    whole, errors = path.read_bytes(), 0
    for case in range(CASES):
        path.write_bytes(mutate(whole, rng))
        found = outcome(lambda: SemanticKITTI(tmp_path), (3, 1000)[case % 2])
        if isinstance(found, str):
            errors += 1
            assert "000000." in found and len(found.splitlines()) == 1 and found.isprintable(), found
            continue
        xyz, remission, labels = found
        points = list(struct.iter_unpack("<4f", bin_path.read_bytes()))
        ids = [value % 65536 for (value,) in struct.iter_unpack("<I", label_path.read_bytes())]
        np.testing.assert_array_equal(np.c_[xyz, remission], points)
        np.testing.assert_array_equal(labels, [SEMANTICKITTI.raw_ids.get(i, -1) for i in ids])
        assert np.isfinite(points).all() and set(ids) <= {*SEMANTICKITTI.raw_ids, *SEMANTICKITTI.ignored}
    assert CASES / 4 < errors < CASES
