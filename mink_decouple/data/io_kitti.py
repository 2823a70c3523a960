"""KITTI scans: `.bin` with float32 x y z remission, `.label` with one uint32 per point.

The low 16 bits of a label are the class, the high 16 bits the instance (semantic-kitti-api).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mink_decouple.data.cloud import PointCloud, from_world
from mink_decouple.data.io_columns import single

_MAX_FLOAT32_METRES = 2.0**14


def read_bin(path: Path) -> PointCloud:
    """Read a scan, with labels where `label_path` exists; the feature is `remission`."""
    table = read_points(path)
    labels = None
    if label_path(path).is_file():
        labels = read_label(label_path(path), len(table))
    cloud = from_world(str(path), table[:, :3], {"remission": table[:, 3].copy()}, labels)
    return replace(cloud, name=path.stem)


def count_points(path: Path) -> int:
    """Points of a scan by its size. Raises ValueError for an empty file or a fraction of a point."""
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path}: no points")
    if size % 16:
        raise ValueError(f"{path}: {size} bytes is not a whole number of 16-byte points; the file is truncated")
    return size // 16


def read_points(path: Path) -> np.ndarray:
    """(N, 4) float32 x y z remission, as in the file. Raises ValueError as `count_points`."""
    count = count_points(path)
    return np.fromfile(path, dtype="<f4", count=4 * count).reshape(-1, 4).astype(np.float32, copy=False)


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
