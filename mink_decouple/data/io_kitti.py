"""KITTI scans: `.bin` with float32 x y z remission, `.label` with one uint32 per point.

The low 16 bits of a label are the class, the high 16 bits the instance (semantic-kitti-api).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io_columns import cloud_from_columns, single, unnamed_columns

COLUMNS = ("x", "y", "z", "remission")
LABELS, CONFIDENCE = ".label", ".confidence.npy"
"""What follows the stem of a scan in the names of its labels and of the confidences of predicted ones."""
_MAX_FLOAT32_METRES = 2.0**14


def read_bin(path: Path, columns: Sequence[str] | None = None) -> PointCloud:
    """Read a scan of the columns of `scan_columns`, with labels where `label_path` exists."""
    names = scan_columns(path, columns)
    table = read_points(path, len(names))
    cloud = cloud_from_columns(path, {name: table[:, index] for index, name in enumerate(names)})
    if label_path(path).is_file():
        cloud = replace(cloud, labels=read_label(label_path(path), len(table)))
    return cloud


def scan_columns(path: Path, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the float32 numbers of a point: `given`, or x y z remission.

    Raises:
        ValueError: a repeated name, or none for a scan that by its name `*.pcd.bin` is one of nuScenes.
    """
    if given is not None:
        return unnamed_columns(path, len(given), given)
    if path.name.lower().endswith(".pcd.bin"):
        raise ValueError(
            f"{path}: a scan of nuScenes has other columns than x y z remission; name them "
            "(--columns x,y,z,intensity,ring, or `columns` in the classes file)"
        )
    return COLUMNS


def count_points(path: Path, width: int = len(COLUMNS)) -> int:
    """Points of `width` numbers by the size of a scan. Raises ValueError for an empty file or a fraction of a point."""
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path}: no points")
    if size % (4 * width):
        raise ValueError(
            f"{path}: {size} bytes is not a whole number of {4 * width}-byte points; the file is truncated"
            ", or has other columns"
        )
    return size // (4 * width)


def read_points(path: Path, width: int = len(COLUMNS)) -> np.ndarray:
    """(N, width) float32, as in the file; x y z remission. Raises ValueError as `count_points`."""
    count = count_points(path, width)
    return np.fromfile(path, dtype="<f4", count=width * count).reshape(-1, width).astype(np.float32, copy=False)


def read_label(path: Path, count: int) -> np.ndarray:
    """Class ids of `count` points, (count,) int64: the low 16 bits. Raises ValueError for another number of labels."""
    size = path.stat().st_size
    if size != 4 * count:
        raise ValueError(f"{path}: {size / 4:g} labels for {count} points")
    return (np.fromfile(path, dtype="<u4") & 0xFFFF).astype(np.int64)


def label_path(path: Path) -> Path:
    """Where the labels of a scan lie: `labels/` beside a folder `velodyne/`, otherwise beside the scan."""
    folder = path.parent.parent / "labels" if path.parent.name == "velodyne" else path.parent
    return folder / f"{path.stem}.label"


def write_bin(path: Path, cloud: PointCloud) -> None:
    """Write x y z remission; `intensity` stands in for a missing remission, then 0. Other features do not fit."""
    xyz = cloud.world()
    furthest = float(np.abs(xyz).max())
    if furthest >= _MAX_FLOAT32_METRES:
        raise ValueError(
            f"{path}: float32 cannot keep coordinates up to {furthest:,.0f} m to 1 mm; write .ply, .las or .npz instead"
        )
    table = np.zeros((len(cloud), 4), dtype="<f4")
    table[:, :3] = xyz
    for key in ("remission", "intensity"):
        if key in cloud.features:
            table[:, 3] = single(path, key, cloud.features[key])
            break
    table.tofile(path)


def write_label(path: Path, cloud: PointCloud) -> None:
    """Write the labels as uint32 with instance 0."""
    if cloud.labels is None:
        raise ValueError(f"{path}: cloud '{cloud.name}' has no labels to write")
    if cloud.labels.min() < 0 or cloud.labels.max() > 0xFFFF:
        raise ValueError(
            f"{path}: KITTI labels are 0..65535, found {int(cloud.labels.min())}..{int(cloud.labels.max())}"
        )
    cloud.labels.astype("<u4").tofile(path)
