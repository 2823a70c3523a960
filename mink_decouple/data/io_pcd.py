"""PCD files through pypcd4: any field, ASCII, binary or compressed."""

from __future__ import annotations

import struct
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io_columns import NORMALS, cloud_from_columns, columns_from_cloud, one_line, portable

_HEADER_LINES, _LINE_BYTES = 100, 1 << 16


def read_pcd(path: Path) -> PointCloud:
    """Read every field; a packed `rgb` field of the Point Cloud Library is taken apart, padding (`_`) left out."""
    try:
        pcd = loaded(path)
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


def loaded(path: Path) -> Any:
    """The file as pypcd4 reads it, also without the line COUNT, which it asks for and which may be left out."""
    from pypcd4 import PointCloud as Pcd

    with path.open("rb") as file:
        lines: list[bytes] = []
        while not lines or (lines[-1] and not lines[-1].startswith(b"DATA") and len(lines) < _HEADER_LINES):
            lines.append(file.readline(_LINE_BYTES))
        words = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
        if b"COUNT" in words or b"DATA" not in words:
            file.seek(0)
            return Pcd.from_fileobj(file)
        counts = b" ".join([b"COUNT", *(b"1" for _ in words.get(b"FIELDS", []))]) + b"\n"
        content = b"".join([*lines[:-1], counts, lines[-1], file.read()])
        return Pcd.from_fileobj(BufferedReader(BytesIO(content)))


def write_pcd(path: Path, cloud: PointCloud) -> None:
    """Write every column in binary; colours as one packed `rgb` field and normals by the names that PCL expects."""
    from pypcd4 import Encoding
    from pypcd4 import PointCloud as Pcd

    columns = portable(path, columns_from_cloud(cloud))
    if "rgb" in cloud.features:
        red, green, blue = (columns.pop(channel).astype(np.uint32) for channel in ("red", "green", "blue"))
        columns["rgb"] = red << 16 | green << 8 | blue
    if "normal" in cloud.features:
        names = dict(zip(*NORMALS, strict=True))
        columns = {names.get(name, name): column for name, column in columns.items()}
    Pcd.from_points(list(columns.values()), list(columns), [column.dtype for column in columns.values()]).save(
        path, Encoding.BINARY
    )
