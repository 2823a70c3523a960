"""Quantise points to a grid of cubes: unique cells and the inverse map.

The kernels release the GIL: loader threads call them side by side, and the main thread shares a call among its threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from mink_decouple.data.groups import group_mean, majority
from mink_decouple.jit import njit
from mink_decouple.threads import share_from_main

__all__ = ["AXIS_BITS", "Voxels", "cell_keys", "group_mean", "majority", "unique_keys", "voxelise"]

AXIS_BITS = 21
"""Bits per axis of a packed cell key: cells -2**20 .. 2**20 - 1 fit (about 41 km each way at 4 cm)."""

_BITMAP_CELLS = 256
"""Up to this many cells of the bounding box for each point, a bit for each costs less than hashing and sorting."""
_HALF = 1 << (AXIS_BITS - 1)
_MASK = (1 << AXIS_BITS) - 1


@dataclass(frozen=True, eq=False)
class Voxels:
    """The occupied cells of a cloud, ordered by (x, y, z).

    Attributes:
        index: (V, 3) int32 cell coordinates, ``floor((coords - origin) / size)``, lexicographically sorted.
        inverse: (N,) int64 row of ``index`` of every point.
        first: (V,) int64 lowest point index of every cell.
    """

    index: np.ndarray
    inverse: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


@njit(cache=True, nogil=True)
def _pack(coords: np.ndarray, origin: np.ndarray, size: np.floating, keys: np.ndarray, first: int, last: int) -> int:
    for i in range(first, last):
        key = np.int64(0)
        for axis in range(3):
            cell = np.floor((coords[i, axis] - origin[axis]) / size)
            # The negated form also catches NaN, which fails every comparison.
            if not (-_HALF <= cell < _HALF):
                return i
            key = (key << AXIS_BITS) | (np.int64(cell) + _HALF)
        keys[i] = key
    return -1


@njit(cache=True, nogil=True)
def _slot(key: np.int64, shift: np.uint64) -> np.int64:
    # Fibonacci hashing: only the top bits of the product depend on all bits of the key, x included.
    return np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> shift)


@njit(cache=True, nogil=True)
def _insert(
    keys: np.ndarray,
    begin: int,
    count: int,
    shift: np.uint64,
    slots: np.ndarray,
    ids: np.ndarray,
    first: np.ndarray,
    inverse: np.ndarray,
) -> tuple[int, int]:
    """Number keys in order of appearance until all are done or the table is half full: (next position, count)."""
    mask = len(slots) - 1
    previous, number = np.int64(-1), np.int64(-1)
    for i in range(begin, len(keys)):
        key = keys[i]
        # Scans are spatially coherent: the last cell is the likeliest one.
        if key != previous:
            at = _slot(key, shift)
            while slots[at] >= 0 and slots[at] != key:
                at = (at + 1) & mask
            if slots[at] < 0:
                if count == len(first):
                    return i, count
                slots[at], ids[at], first[count] = key, count, i
                count += 1
            previous, number = key, ids[at]
        inverse[i] = number
    return len(keys), count


@njit(cache=True, nogil=True)
def _rehash(found: np.ndarray, shift: np.uint64, slots: np.ndarray, ids: np.ndarray) -> None:
    mask = len(slots) - 1
    for number in range(len(found)):
        at = _slot(found[number], shift)
        while slots[at] >= 0:
            at = (at + 1) & mask
        slots[at], ids[at] = found[number], number


def unique_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unique keys in order of appearance, their first positions, and the number of every key."""
    inverse = np.empty(len(keys), np.int64)
    first = np.empty(0, np.int64)
    bits, position, count = 12, 0, 0
    while True:
        slots, ids = np.full(1 << bits, -1, np.int64), np.empty(1 << bits, np.int32)
        shift = np.uint64(64 - bits)
        _rehash(keys[first], shift, slots, ids)
        # Growing outside the kernel lets its arrays be loop invariants, which makes it five times faster.
        first = np.concatenate([first, np.empty((1 << bits - 1) - len(first), np.int64)])
        position, count = _insert(keys, position, count, shift, slots, ids, first, inverse)
        if position == len(keys):
            return keys[first[:count]], first[:count], inverse
        bits += 2


def cell_keys(coords: np.ndarray, size: float, origin: np.ndarray | None = None) -> np.ndarray:
    """(N,) int64 packed cell of every point; ascending keys are cells sorted by (x, y, z). See `voxelise`."""
    if not (np.isfinite(size) and size > 0):
        raise ValueError(f"voxel size: {size}; must be a positive number of metres")
    if coords.ndim != 2 or coords.shape[1] != 3:
        raise ValueError(f"coords: shape {coords.shape}; must be (N, 3)")
    if coords.dtype not in (np.float32, np.float64):
        raise ValueError(f"coords: {coords.dtype}; must be float32 or float64")
    real = coords.dtype.type
    corner = np.zeros(3, real) if origin is None else np.asarray(origin, real)
    keys = np.empty(len(coords), np.int64)
    rows = np.ascontiguousarray(coords)
    refused: list[int] = []

    def pack(first: int, last: int) -> None:
        at = _pack(rows, corner, real(size), keys, first, last)
        if at >= 0:
            refused.append(at)

    share_from_main(pack, len(coords), 20 * len(coords))
    if refused:
        bad = min(refused)
        raise ValueError(
            f"point {bad} at {coords[bad].tolist()}: not finite or beyond {_HALF * size:g} m from the grid's origin, "
            f"the reach of {size:g} m cells; subtract an offset, bring millimetres to metres, or use larger cells"
        )
    return keys


def voxelise(coords: np.ndarray, size: float, origin: np.ndarray | None = None) -> Voxels:
    """Assign every point to its cube of a regular grid, ``floor((coords - origin) / size)``.

    Args:
        coords: (N, 3) float32 or float64 metres. The arithmetic is in this type, so a point on a cell border falls
            where ``numpy.floor`` of the same expression puts it.
        size: edge length of a cell, metres.
        origin: (3,) a cell corner, metres; zero by default.

    Returns:
        The occupied cells in sorted order; equal input gives equal output bit for bit.

    Raises:
        ValueError: ``size`` is not positive, the shape or type is wrong, or a coordinate is not finite or too far for
            the packed key.
    """
    keys = cell_keys(coords, size, origin)
    low, extent = _box(keys)
    cells = int(extent[0]) * int(extent[1]) * int(extent[2])
    if cells <= _BITMAP_CELLS * len(keys):
        found, first, inverse = _unique_in_box(keys, low, extent, cells)
    else:
        found, first, inverse = unique_keys(keys)
        order = np.argsort(found)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        found, first, inverse = found[order], first[order], rank[inverse]
    return Voxels(_unpack(found), inverse, first)


@njit(cache=True, nogil=True)
def _unpack(keys: np.ndarray) -> np.ndarray:
    index = np.empty((len(keys), 3), np.int32)
    for i in range(len(keys)):
        for axis in range(3):
            index[i, axis] = (keys[i] >> (2 - axis) * AXIS_BITS & _MASK) - _HALF
    return index


def _box(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest cell and number of cells (3,) of each axis."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    share_from_main(lambda a, b: parts.append(_bounds(keys[a:b])), len(keys), 10 * len(keys))
    low, high = np.min([low for low, _ in parts], axis=0), np.max([high for _, high in parts], axis=0)
    return low, np.maximum(high - low + 1, 0)


@njit(cache=True, nogil=True)
def _bounds(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest cell (3,) of each axis."""
    low, high = np.full(3, _MASK, np.int64), np.zeros(3, np.int64)
    for key in keys:
        for axis in range(3):
            cell = (key >> (2 - axis) * AXIS_BITS) & _MASK
            low[axis], high[axis] = min(low[axis], cell), max(high[axis], cell)
    return low, high


@intrinsic
def _ones(typingctx: Any, word: Any = None) -> Any:
    """Number of bits that are set in a uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


def _unique_in_box(
    keys: np.ndarray, low: np.ndarray, extent: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unique keys in ascending order, first positions and the number of every key, by a bit for every cell of the box.

    The rank of a cell is the number of bits before its own, so that nothing is hashed or sorted.
    """
    words = np.zeros((cells >> 6) + 1, np.uint64)
    seen = _mark(keys, low, extent, words)
    before = _count_before(words)
    inverse, first = np.empty(len(keys), np.int64), np.empty(len(seen), np.int64)
    share_from_main(lambda a, b: _rank(keys, low, extent, words, before, inverse, a, b), len(keys), 20 * len(keys))
    first[inverse[seen]] = seen
    return keys[first], first, inverse


@njit(cache=True, nogil=True, inline="always")
def _place(key: int, low: np.ndarray, extent: np.ndarray) -> int:
    x, y, z = (key >> 2 * AXIS_BITS) - low[0], (key >> AXIS_BITS & _MASK) - low[1], (key & _MASK) - low[2]
    return (x * extent[1] + y) * extent[2] + z


@njit(cache=True, nogil=True)
def _mark(keys: np.ndarray, low: np.ndarray, extent: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Set the bits of the occupied cells; the positions of the first key of each, ascending."""
    seen = np.empty(len(keys), np.int64)
    count = 0
    for i in range(len(keys)):
        place = _place(keys[i], low, extent)
        bit = np.uint64(1) << np.uint64(place & 63)
        word = words[place >> 6]
        if word & bit == 0:
            words[place >> 6] = word | bit
            seen[count] = i
            count += 1
    return seen[:count].copy()


@njit(cache=True, nogil=True)
def _count_before(words: np.ndarray) -> np.ndarray:
    before = np.empty(len(words), np.int64)
    count = np.int64(0)
    for word in range(len(words)):
        before[word] = count
        count += np.int64(_ones(words[word]))
    return before


@njit(cache=True, nogil=True)
def _rank(
    keys: np.ndarray,
    low: np.ndarray,
    extent: np.ndarray,
    words: np.ndarray,
    before: np.ndarray,
    inverse: np.ndarray,
    begin: int,
    end: int,
) -> None:
    for i in range(begin, end):
        place = _place(keys[i], low, extent)
        below = (np.uint64(1) << np.uint64(place & 63)) - np.uint64(1)
        inverse[i] = before[place >> 6] + np.int64(_ones(words[place >> 6] & below))
