"""Five hundred damaged files of each kind that a ScanNet scan is made of: a clear error, or the scan as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scannet_scans import NAME, NYU40, download, expected_rows, train_ids, vertices

from mink_decouple.data.raw import Repair
from mink_decouple.data.scannet import ScanNet

KINDS = ("bit", "byte", "cut", "insert", "remove", "swap")


def damage(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """One damage of a kind that disks and downloads do."""
    kind, at = str(rng.choice(KINDS)), int(rng.integers(len(content)))
    size = int(rng.integers(1, 5))
    if kind == "bit":
        return content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :], kind
    if kind == "byte":
        return content[:at] + bytes([int(rng.integers(256))]) + content[at + 1 :], kind
    if kind == "cut":
        return content[:at], kind
    if kind == "insert":
        return content[:at] + bytes(rng.integers(0, 256, size, np.uint8)) + content[at:], kind
    if kind == "remove":
        return content[:at] + content[at + size :], kind
    other = int(rng.integers(len(content)))
    swapped = bytearray(content)
    swapped[at], swapped[other] = swapped[other], swapped[at]
    return bytes(swapped), kind


@pytest.mark.parametrize(
    ("suffix", "ids", "reads"),
    [
        ("_vh_clean_2.ply", NYU40, 50),
        ("_vh_clean_2.labels.ply", NYU40, 50),
        ("_vh_clean_2.0.010000.segs.json", None, 20),
        (".aggregation.json", None, 20),
    ],
)
def test_500_damaged_files_give_a_clear_error_or_the_points_unchanged(
    suffix: str, ids: list[int] | None, reads: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    folder = download(tmp_path, ids)
    path = folder / f"{NAME}{suffix}"
    content = path.read_bytes()
    clean, labels = expected_rows(vertices()), np.array(train_ids(NYU40))
    read = refused = 0
    for _ in range(500):
        damaged, kind = damage(content, rng)
        path.write_bytes(damaged)
        repairs: list[Repair] = []
        dataset = ScanNet(tmp_path)
        try:
            chunks = list(dataset.read(dataset.scenes()[0], repairs.append, int(rng.integers(1, 20))))
        except ValueError as error:
            assert NAME in str(error) and "\n" not in str(error)
            refused += 1
            continue
        read += 1
        rows = np.concatenate([np.c_[chunk.xyz, chunk.features["rgb"]] for chunk in chunks])
        found = np.concatenate([chunk.labels for chunk in chunks if chunk.labels is not None])
        assert len(rows) == len(found) == 12, kind
        # Coordinates stand in two files where there are labels as a mesh, so a changed one is seen.
        within = 1e-3 if ids is not None else 0.0
        assert np.abs(rows[:, :3] - clean[:, :3]).max() <= within
        # A byte, or two that were swapped, may be another valid colour or label; names of colours may be swapped too.
        if suffix != "_vh_clean_2.ply":
            np.testing.assert_array_equal(rows, clean)
        elif damaged[: content.index(b"end_header")] == content[: content.index(b"end_header")]:
            assert (rows != clean).any(axis=1).sum() <= 2
        if suffix == "_vh_clean_2.ply":
            np.testing.assert_array_equal(found, labels)
        elif suffix == "_vh_clean_2.labels.ply":
            assert (found != labels).sum() <= 2
    assert read > reads and refused > 50
