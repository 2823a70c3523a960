"""The vertices of a binary PLY mesh exactly as stored, refused where the file is not as long as its header says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mink_decouple.data.text_rows import printable

_HEADER_BYTES = 1 << 16
_OLD_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
_NEW_TYPES = {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
_TYPES = {**_OLD_TYPES, **_NEW_TYPES, "float": "f4", "float32": "f4", "double": "f8", "float64": "f8"}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_CORNERS = 3


@dataclass
class _Element:
    name: str
    count: int
    columns: list[tuple] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.columns)


def read_vertices(path: Path) -> np.ndarray:
    """Read the element `vertex` of a triangle mesh or a point cloud.

    Args:
        path: a binary PLY file. Lists, as those of faces, are taken to be of three entries.

    Returns:
        (V,) structured array in native byte order, one field per property, names and dtypes of the file.

    Raises:
        ValueError: not a binary PLY file, a header line that is not understood, no vertices first, a repeated property,
            lists of another length, or a file that is longer or shorter than its header says.
    """
    content = path.read_bytes()
    elements, start = _header(path, content)
    if not elements or elements[0].name != "vertex" or elements[0].lists or not elements[0].columns:
        names = ", ".join(element.name for element in elements) or "none"
        raise ValueError(f"{path}: the first element must be 'vertex' with numbers only; found: {names}")
    size = sum(element.count * element.dtype.itemsize for element in elements)
    if size != len(content) - start:
        what = ", ".join(f"{element.count} {element.name}" for element in elements)
        raise ValueError(
            f"{path}: {len(content) - start} bytes after the header, but {what} take {size}; the file is damaged or cut"
        )
    at = start
    for element in elements:
        rows = np.frombuffer(content, element.dtype, element.count, at)
        for name in element.lists:
            wrong = rows[f"{name} length"] != _CORNERS
            if wrong.any():
                row = int(np.argmax(wrong))
                raise ValueError(
                    f"{path}: {element.name} {row}: {name} has {rows[f'{name} length'][row]} entries instead of "
                    f"{_CORNERS}; the file is damaged, or no triangle mesh"
                )
        at += element.count * element.dtype.itemsize
    vertices = np.frombuffer(content, elements[0].dtype, elements[0].count, start)
    return vertices.astype(vertices.dtype.newbyteorder("="))


def _header(path: Path, content: bytes) -> tuple[list[_Element], int]:
    """The elements of a header and the first byte after it."""
    end = re.search(rb"\nend_header[ \t]*\r?\n", content[:_HEADER_BYTES])
    if not content.startswith((b"ply\n", b"ply\r\n")) or end is None:
        raise ValueError(f"{path}: not a PLY file: it begins with {printable(content[:40])}")
    order, elements = "", []
    for number, line in enumerate(content[: end.start()].split(b"\n")[1:], start=2):
        words = line.decode("latin-1").split()
        match words:
            case ["comment" | "obj_info", *_]:
                pass
            case ["format", kind, "1.0"] if kind in _ORDERS and not order:
                order = _ORDERS[kind]
            case ["element", name, count] if order and re.fullmatch(r"[0-9]{1,15}", count):
                elements.append(_Element(name, int(count)))
            case ["property", kind, name] if elements and kind in _TYPES:
                _add(path, elements[-1], (name, order + _TYPES[kind]))
            case ["property", "list", length, kind, name] if elements and length in _TYPES and kind in _TYPES:
                _add(path, elements[-1], (f"{name} length", order + _TYPES[length]))
                _add(path, elements[-1], (name, order + _TYPES[kind], (_CORNERS,)))
                elements[-1].lists.append(name)
            case _:
                raise ValueError(f"{path}: header line {number} is not that of a binary PLY file: {printable(line)}")
    return elements, end.end()


def _add(path: Path, element: _Element, column: tuple) -> None:
    if any(column[0] == other[0] for other in element.columns):
        raise ValueError(f"{path}: element {element.name} repeats the property {column[0]!r}")
    element.columns.append(column)
