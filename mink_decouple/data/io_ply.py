"""PLY files through plyfile: any scalar vertex column, ASCII or binary."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io_columns import cloud_from_columns, columns_from_cloud, one_line, portable

_HEADER_BYTES = 1 << 16


def read_ply(path: Path) -> PointCloud:
    """Read the `vertex` element; list properties and other elements (faces) are left out."""
    from plyfile import PlyData, PlyListProperty, PlyParseError

    try:
        source = _ascii_header(path)
        try:
            # plyfile reads lists of unknown length row by row, a hundred times slower; most faces are triangles.
            data = PlyData.read(source, known_list_len={"face": {"vertex_indices": 3, "vertex_index": 3}})
        except PlyParseError:
            data = PlyData.read(_ascii_header(path))
    except (PlyParseError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged or truncated PLY file: {one_line(error)}") from error
    if "vertex" not in data:
        raise ValueError(f"{path}: no element 'vertex'; found: {', '.join(e.name for e in data.elements) or 'none'}")
    vertex = data["vertex"]
    names = [item.name for item in vertex.properties if not isinstance(item, PlyListProperty)]
    # plyfile keeps the file's byte order; the rest of the package works in native order.
    native = {name: np.asarray(vertex[name]).astype(vertex[name].dtype.newbyteorder("="), copy=False) for name in names}
    return cloud_from_columns(path, native)


def _ascii_header(path: Path) -> str | BytesIO:
    """The path; of a file whose header holds other text than ASCII, as comments may, its content with `?` for that."""
    with path.open("rb") as file:
        header = b""
        while len(header) < _HEADER_BYTES and (line := file.readline(_HEADER_BYTES)):
            header += line
            if line.strip() == b"end_header":
                break
        if header.isascii() or not header.endswith((b"end_header\n", b"end_header\r\n")):
            return str(path)
        return BytesIO(bytes(byte if byte < 128 else 63 for byte in header) + file.read())


def write_ply(path: Path, cloud: PointCloud) -> None:
    """Write every column, binary little endian."""
    from plyfile import PlyData, PlyElement

    columns = portable(path, columns_from_cloud(cloud))
    table = np.empty(len(cloud), dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    PlyData([PlyElement.describe(table, "vertex")], byte_order="<").write(str(path))
