"""PCD files through pypcd4: any field, ASCII, binary or compressed."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io_columns import cloud_from_columns, columns_from_cloud, one_line, portable


def read_pcd(path: Path) -> PointCloud:
    """Read every field; a packed `rgb` field of the Point Cloud Library is taken apart, padding (`_`) left out."""
    from pypcd4 import PointCloud as Pcd

    try:
        pcd = Pcd.from_path(path)
    except (ValueError, RuntimeError, KeyError, struct.error, EOFError) as error:
        raise ValueError(f"{path}: damaged or truncated PCD file: {one_line(error)}") from error
    data = np.atleast_1d(pcd.pc_data)
    if len(data) != pcd.metadata.points:
        raise ValueError(f"{path}: truncated PCD file: {len(data)} of {pcd.metadata.points} points")
    # pypcd4 gives padding fields this random name.
    columns = {name: data[name] for name in data.dtype.names or () if not name.startswith("#$%&~~")}
    for packed in ("rgb", "rgba"):
        if packed in columns and columns[packed].dtype.itemsize == 4:
            bits = np.ascontiguousarray(columns.pop(packed)).view(np.uint32)
            for channel, shift in (("red", 16), ("green", 8), ("blue", 0)):
                columns[channel] = (bits >> shift & 255).astype(np.uint8)
    return cloud_from_columns(path, columns)


def write_pcd(path: Path, cloud: PointCloud) -> None:
    """Write every column in binary; colours as one packed `rgb` field, which PCL's viewers expect."""
    from pypcd4 import Encoding
    from pypcd4 import PointCloud as Pcd

    columns = portable(path, columns_from_cloud(cloud))
    if "rgb" in cloud.features:
        red, green, blue = (columns.pop(channel).astype(np.uint32) for channel in ("red", "green", "blue"))
        columns["rgb"] = red << 16 | green << 8 | blue
    Pcd.from_points(list(columns.values()), list(columns), [column.dtype for column in columns.values()]).save(
        path, Encoding.BINARY
    )
