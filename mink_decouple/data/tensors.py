"""Files of named arrays in the safetensors format: written column by column, read as memory maps.

A file is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte range behind the header; text
under `__metadata__`) and the arrays one behind the other, little-endian. Wider types come first, so each is aligned.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

SUFFIX = ".safetensors"
PART = ".part"
"""Suffix of unfinished files; they begin with a dot."""

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F16": np.dtype("<f2"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000
_BLOCK = 1 << 24


@dataclass
class _Column:
    path: Path
    file: BinaryIO
    dtype: np.dtype
    width: tuple[int, ...]
    rows: int = 0
    crc: int = 0

    @property
    def bytes(self) -> int:
        return self.rows * math.prod(self.width) * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """A finished file: its SHA-256 in hexadecimal and its size in bytes."""

    checksum: str
    bytes: int


class TensorWriter:
    """Write arrays that come in pieces; `finish` joins them under the final name, or nothing is left.

    Memory does not grow with the arrays: every column has a temporary file beside the target.

    Args:
        path: the file to write; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: dict[str, _Column] = {}
        self._parts = 0
        self._own = secrets.token_hex(4)  # process ids repeat in containers that share a folder

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for column in self._columns.values():
            column.file.close()
            column.path.unlink(missing_ok=True)
        self._temporary("file").unlink(missing_ok=True)

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add rows to a column, making it first.

        Args:
            name: of the column.
            rows: (n,) or (n, k) numbers; dtype and k as in the first call.

        Raises:
            ValueError: another dtype or shape than before, or a dtype that the format lacks.
        """
        dtype = rows.dtype.newbyteorder("<") if rows.dtype.itemsize > 1 else rows.dtype
        if name not in self._columns:
            if dtype not in _CODES:
                choices = ", ".join(str(known) for known in _CODES)
                raise ValueError(f"{self.path.name}: column '{name}' is {rows.dtype}; choose from {choices}")
            path = self._temporary(str(self._parts))
            self._parts += 1
            self._columns[name] = _Column(path, path.open("w+b"), dtype, rows.shape[1:])
        column = self._columns[name]
        if (dtype, rows.shape[1:]) != (column.dtype, column.width):
            raise ValueError(
                f"{self.path.name}: column '{name}' was {column.dtype} with rows of shape {column.width}, "
                f"then {rows.dtype} with {rows.shape[1:]}"
            )
        data = np.ascontiguousarray(rows, dtype).reshape(-1).view(np.uint8).data
        column.file.write(data)
        column.rows += len(rows)
        column.crc = zlib.crc32(data, column.crc)

    def crc(self, name: str) -> int:
        """CRC-32 of the bytes of a column so far."""
        return self._columns[name].crc

    def convert(self, name: str, change: Callable[[np.ndarray], np.ndarray], rows: int = 1 << 20) -> None:
        """Replace a whole column by `change` of it, block by block of `rows` rows."""
        old = self._columns.pop(name)
        old.file.seek(0)
        size = max(math.prod(old.width) * old.dtype.itemsize * rows, 1)
        target = f"{name}'"
        while block := old.file.read(size):
            self.append(target, change(np.frombuffer(block, old.dtype).reshape(-1, *old.width)))
        old.file.close()
        old.path.unlink()
        self._columns[name] = self._columns.pop(target)

    def finish(self, metadata: Mapping[str, str]) -> Written:
        """Join the columns into the file, in one step for every reader; equal content gives equal bytes."""
        order = sorted(self._columns, key=lambda name: (-self._columns[name].dtype.itemsize, name))
        header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))}
        end = 0
        for name in order:
            column = self._columns[name]
            begin, end = end, end + column.bytes
            shape = [column.rows, *column.width]
            header[name] = {"dtype": _CODES[column.dtype], "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        digest = hashlib.sha256()
        temporary = self._temporary("file")
        with temporary.open("wb") as file:

            def put(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            put(len(text).to_bytes(8, "little") + text)
            for name in order:
                source = self._columns[name].file
                source.seek(0)
                while block := source.read(_BLOCK):
                    put(block)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(temporary, self.path)
        return Written(digest.hexdigest(), size)

    def _temporary(self, part: str) -> Path:
        return self.path.with_name(f".{self.path.stem}.{self._own}.{part}{PART}")


@dataclass(frozen=True, eq=False)
class TensorFile:
    """The arrays of a file.

    Attributes:
        arrays: name -> array in the file's memory map; read when touched.
        metadata: the text of the header.
    """

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]


def open_tensors(path: Path) -> TensorFile:
    """Map the arrays of a file after its header is found to agree with its size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not this format, truncated, or ranges that overlap, leave gaps or contradict their shapes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise ValueError(f"{path}: header of {length} bytes in a file of {size}; truncated or not a tensor file")
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop(_METADATA, {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata other than text")
        entries = {str(name): _entry(entry, size) for name, entry in header.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged header ({type(error).__name__}: {' '.join(str(error).split())})") from None
    end = 0
    for name, (dtype, shape, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        wanted = math.prod(shape) * dtype.itemsize
        if begin != end or stop - begin != wanted:
            raise ValueError(
                f"{path}: tensor '{name}' lies at bytes {begin}..{stop}; expected {wanted} bytes from byte {end}"
            )
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"{path}: {size} bytes, its header says {8 + length + end}; truncated or damaged")
    if end == 0:
        return TensorFile({name: np.empty(entry[1], entry[0]) for name, entry in entries.items()}, metadata)
    # Copy-on-write looks writable: kernels need no second compilation for read-only arrays, and torch does not warn.
    data = np.memmap(path, np.uint8, "c", offset=8 + length, shape=(end,)).view(np.ndarray)
    arrays = {
        name: data[begin:stop].view(dtype).reshape(shape) for name, (dtype, shape, begin, stop) in entries.items()
    }
    return TensorFile(arrays, metadata)


def _entry(entry: Any, size: int) -> tuple[np.dtype, tuple[int, ...], int, int]:
    dtype: np.dtype = _DTYPES[entry["dtype"]]
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    for number in (*shape, begin, end):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= size:
            raise ValueError(f"{number!r} is not a size in a file of {size} bytes")
    if len(shape) > 8:
        raise ValueError(f"{len(shape)} dimensions")
    return dtype, tuple(shape), begin, end


def checksum(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
