"""Tables with two more columns, `prediction` and `confidence`: PLY, PCD, NumPy and text files; see `annotate`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mink_decouple.data.blocks import Supply
from mink_decouple.data.io_columns import first_of
from mink_decouple.data.io_numpy import COORD_NAMES
from mink_decouple.data.io_pcd import loaded
from mink_decouple.data.io_text import head

CHUNK_ROWS = 1 << 18
NAMES = ("prediction", "confidence")
_HEADER_BYTES = 1 << 16
_PLY_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}
_PLY_TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
_PLY_TYPES |= {"float32": "f4", "double": "f8", "float64": "f8"}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}


def annotate_ply(source: Path, target: Path, supply: Supply) -> None:
    """Two more properties of the element `vertex`, which must come first and hold numbers only; faces and all stay.

    Raises:
        ValueError: another layout, or vertices missing from the file.
    """
    with source.open("rb") as old, target.open("wb") as new:
        lines = _ply_header(source, old)
        order, count, last, fields = _ply_vertices(source, lines)
        kept = _without_ours(source, [name for name, _ in fields])
        end = b"\r\n" if lines[last].endswith(b"\r\n") else b"\n"  # readers want one kind throughout
        ours = [b"property int prediction" + end, b"property float confidence" + end]
        removed = len(fields) - len(kept)
        new.writelines([*lines[: last + 1 - removed], *ours, *lines[last + 1 :]])
        if order == "=":
            _text_rows(source, old, new, supply, count, b" ", len(kept))
        else:
            dtype = np.dtype([(name, order + kind) for name, kind in fields])
            _rows(source, old, new, supply, count, dtype, len(kept), order)
        shutil.copyfileobj(old, new, 1 << 24)


def annotate_pcd(source: Path, target: Path, supply: Supply) -> None:
    """Two more fields. A compressed file is written in binary, not compressed.

    Raises:
        ValueError: not a PCD file, or points missing from it.
    """
    with source.open("rb") as old, target.open("wb") as new:
        lines, words = _pcd_header(source, old)
        names = words["FIELDS"]
        counts = [int(c) for c in words.get("COUNT", ["1"] * len(names))]
        kept, count, kind = _without_ours(source, names), int(words["POINTS"][0]), words["DATA"][0]
        added = {"FIELDS": [*NAMES], "SIZE": ["4", "4"], "TYPE": ["I", "F"], "COUNT": ["1", "1"]}
        for line in lines:
            key = line.split()[0].decode("ascii", "replace") if line.split() else ""
            if key in added:
                line = " ".join([key, *words[key][: len(kept)], *added[key]]).encode() + b"\n"
            elif key == "DATA" and kind == "binary_compressed":
                line = b"DATA binary\n"
            new.write(line)
        if kind == "ascii":
            _text_rows(source, old, new, supply, count, b" ", sum(counts[: len(kept)]))
            return
        letters = {"I": "i", "U": "u", "F": "f"}
        parts = zip(words["TYPE"], words["SIZE"], counts, strict=True)
        dtype = np.dtype([(f"{i}", f"<{letters[t]}{s}", (c,)) for i, (t, s, c) in enumerate(parts)])
        if kind == "binary":
            _rows(source, old, new, supply, count, dtype, len(kept), "<")
            return
        table = _decompressed(source, dtype)
        for begin in range(0, count, CHUNK_ROWS):
            _widened(table[begin : begin + CHUNK_ROWS], supply, len(kept), "<").tofile(new)


def annotate_npy(source: Path, target: Path, supply: Supply) -> None:
    """Two more fields of a structured array; two more columns of a plain one, in a type that holds both.

    Raises:
        ValueError: not a plain NumPy file, or objects in it.
    """
    old = np.load(source, mmap_mode="r", allow_pickle=False)
    if not isinstance(old, np.ndarray) or old.dtype.hasobject:
        raise ValueError(f"{source}: not one array of numbers")
    if old.dtype.names:
        names = list(old.dtype.names)
        kept = len(_without_ours(source, names))
        dtype = np.dtype([*((name, old.dtype[name]) for name in names[:kept]), *_our_fields("<")])
        new = np.lib.format.open_memmap(target, "w+", dtype, old.shape)
    else:
        if old.ndim != 2:
            raise ValueError(f"{source}: needs a row of numbers per point, found an array of {old.shape}")
        kept = old.shape[1]
        new = np.lib.format.open_memmap(
            target, "w+", np.result_type(old.dtype, np.float32), (len(old), old.shape[1] + 2)
        )
    for begin in range(0, len(old), CHUNK_ROWS):
        rows = np.asarray(old[begin : begin + CHUNK_ROWS])
        if old.dtype.names:
            new[begin : begin + len(rows)] = _widened(rows, supply, kept, "<")
        else:
            block = supply.take(len(rows))
            new[begin : begin + len(rows)] = np.column_stack([rows, block.ids, block.confidence])
    new.flush()


def annotate_npz(source: Path, target: Path, supply: Supply) -> None:
    """Two more arrays."""
    with np.load(source, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name not in NAMES}
    key = first_of(arrays, COORD_NAMES)
    count = max(len(array) for array in arrays.values() if array.ndim) if key is None else len(arrays[key])
    block = supply.take(count)
    ours = {"prediction": block.ids.astype(np.int32), "confidence": block.confidence}
    with target.open("wb") as stream:
        np.savez_compressed(stream, **arrays, **ours)  # type: ignore[arg-type] # mypy takes them for `allow_pickle`


def annotate_text(source: Path, target: Path, supply: Supply) -> None:
    """Two more columns; names, comments and empty lines stay, the numbers of a line as they were written."""
    names, delimiter, skip, at = head(source)
    separator = (delimiter or " ").encode()
    with source.open("rb") as old, target.open("wb") as new:
        kept = None if names is None else len(_without_ours(source, names))
        for number in range(skip):
            line = old.readline()
            if number == at and names is not None and kept == len(names):
                line = line.rstrip(b"\r\n") + separator + separator.join(name.encode() for name in NAMES) + b"\n"
            new.write(line)
        _text_rows(source, old, new, supply, None, separator, kept)


def _text_rows(
    source: Path, old: BinaryIO, new: BinaryIO, supply: Supply, count: int | None, separator: bytes, kept: int | None
) -> None:
    """Lines of numbers, each with two numbers more in place of what follows its first `kept`; None keeps all.

    `count` None: to the end of the file, lines without numbers as they are.
    """
    left = count
    while left is None or left > 0:
        lines: list[bytes] = []
        while len(lines) < CHUNK_ROWS and (left is None or len(lines) < left) and (line := old.readline()):
            lines.append(line)
        if not lines:
            if left:
                raise ValueError(f"{source}: ends {left} points early")
            return
        numbers = [left is not None or bool(line.split(b"#", 1)[0].strip()) for line in lines]
        block = supply.take(sum(numbers))
        said = iter(zip(block.ids.tolist(), block.confidence.tolist(), strict=True))
        for line, is_point in zip(lines, numbers, strict=True):
            if is_point:
                text = line.split(b"#", 1)[0].strip() if left is None else line.strip()
                if kept is not None:
                    blank = separator.strip() or None
                    text = separator.join(text.split(blank)[:kept])
                label, sure = next(said)
                line = b"%s%s%d%s%.6g\n" % (text, separator, label, separator, sure)
            new.write(line)
        left = None if left is None else left - len(lines)


def _rows(
    source: Path, old: BinaryIO, new: BinaryIO, supply: Supply, count: int, dtype: np.dtype, kept: int, order: str
) -> None:
    for begin in range(0, count, CHUNK_ROWS):
        want = min(CHUNK_ROWS, count - begin)
        content = old.read(want * dtype.itemsize)
        if len(content) != want * dtype.itemsize:
            raise ValueError(f"{source}: ends {count - begin - len(content) // dtype.itemsize} points early")
        new.write(_widened(np.frombuffer(content, dtype), supply, kept, order).tobytes())


def _widened(rows: np.ndarray, supply: Supply, kept: int, order: str) -> np.ndarray:
    """Rows of the first `kept` fields, and ours."""
    block, names = supply.take(len(rows)), list(rows.dtype.names or ())[:kept]
    wide = np.empty(len(rows), [*((name, rows.dtype[name]) for name in names), *_our_fields(order)])
    for name in names:
        wide[name] = rows[name]
    wide["prediction"], wide["confidence"] = block.ids, block.confidence
    return wide


def _our_fields(order: str) -> list[tuple[str, str]]:
    return [("prediction", f"{order}i4"), ("confidence", f"{order}f4")]


def _without_ours(source: Path, names: Sequence[str]) -> list[str]:
    """The columns but those of an earlier prediction, which must be the last two."""
    kept = list(names[:-2]) if tuple(names[-2:]) == NAMES else list(names)
    if set(kept) & set(NAMES):
        raise ValueError(f"{source}: has a column of its own named {' or '.join(sorted(set(kept) & set(NAMES)))}")
    return kept


def _ply_header(source: Path, file: BinaryIO) -> list[bytes]:
    lines: list[bytes] = []
    while not lines or lines[-1].strip() != b"end_header":
        line = file.readline(_HEADER_BYTES)
        if not line or (not lines and line.strip() != b"ply") or sum(map(len, lines)) > _HEADER_BYTES:
            raise ValueError(f"{source}: not a PLY file")
        lines.append(line)
    return lines


def _ply_vertices(source: Path, lines: list[bytes]) -> tuple[str, int, int, list[tuple[str, str]]]:
    """Byte order, number of vertices, line of their last property, and their properties with NumPy types."""
    order, count, last = "", -1, -1
    fields: list[tuple[str, str]] = []
    for number, line in enumerate(lines):
        words = line.decode("latin-1").split()
        if words[:1] == ["format"] and len(words) > 1:
            order = _ORDERS.get(words[1], "")
        elif words[:1] == ["element"]:
            if count >= 0:
                break
            if len(words) != 3 or words[1] != "vertex":
                raise ValueError(f"{source}: the first element must be 'vertex', found {' '.join(words[1:])!r}")
            count = int(words[2])
        elif words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in _PLY_TYPES:
                raise ValueError(f"{source}: a vertex must hold numbers only, found {' '.join(words[1:])!r}")
            fields.append((words[2], _PLY_TYPES[words[1]]))
            last = number
    if not order or last < 0:
        raise ValueError(f"{source}: not a PLY file with vertices")
    return order, count, last, fields


def _pcd_header(source: Path, file: BinaryIO) -> tuple[list[bytes], dict[str, list[str]]]:
    lines: list[bytes] = []
    words: dict[str, list[str]] = {}
    while "DATA" not in words:
        line = file.readline(_HEADER_BYTES)
        if not line or sum(map(len, lines)) > _HEADER_BYTES:
            raise ValueError(f"{source}: not a PCD file")
        lines.append(line)
        key, *rest = line.decode("latin-1").split() or [""]
        words[key] = rest
    if not {"FIELDS", "SIZE", "TYPE", "POINTS"} <= set(words):
        raise ValueError(f"{source}: not a PCD file")
    return lines, words


def _decompressed(source: Path, dtype: np.dtype) -> np.ndarray:
    packed = np.ascontiguousarray(loaded(source).pc_data)
    if packed.dtype.itemsize != dtype.itemsize:
        raise ValueError(f"{source}: fields of an unusual layout; save it as DATA binary")
    return packed.view(dtype).reshape(-1)
