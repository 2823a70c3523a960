"""Quantise points to a grid of cubes: unique cells, the inverse map, and per-cell majority and mean.

The kernels are serial and release the GIL, so they are safe in forked and in threaded loader workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

AXIS_BITS = 21
"""Bits per axis of a packed cell key: cells -2**20 .. 2**20 - 1 fit (about 41 km each way at 4 cm)."""

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
def _pack(coords: np.ndarray, origin: np.ndarray, size: np.floating, keys: np.ndarray) -> int:
    for i in range(coords.shape[0]):
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
    bad = _pack(np.ascontiguousarray(coords), corner, real(size), keys)
    if bad >= 0:
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
    found, first, inverse = unique_keys(keys)
    order = np.argsort(found)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    found = found[order]
    index = np.stack([(found >> shift & _MASK) - _HALF for shift in (2 * AXIS_BITS, AXIS_BITS, 0)], axis=1)
    return Voxels(index.astype(np.int32), rank[inverse], first[order])


@njit(cache=True, nogil=True)
def _majority(values: np.ndarray, inverse: np.ndarray, size: int, classes: int, ignore_ties: bool) -> np.ndarray:
    # Bucket the labelled entries by group: memory stays O(N + size), never size x classes.
    start = np.zeros(size + 1, np.int64)
    for i in range(values.shape[0]):
        if values[i] >= 0:
            start[inverse[i] + 1] += 1
    for g in range(size):
        start[g + 1] += start[g]
    fill = start[:size].copy()
    bucket = np.empty(start[size], np.int64)
    for i in range(values.shape[0]):
        if values[i] >= 0:
            bucket[fill[inverse[i]]] = values[i]
            fill[inverse[i]] += 1
    counts = np.zeros(classes, np.int64)
    result = np.full(size, -1, np.int64)
    for g in range(size):
        best, tied = np.int64(-1), False
        for j in range(start[g], start[g + 1]):
            counts[bucket[j]] += 1
        for j in range(start[g], start[g + 1]):
            value = bucket[j]
            if best < 0 or counts[value] > counts[best]:
                best, tied = value, False
            elif value != best and counts[value] == counts[best]:
                tied = True
                best = min(best, value)
        for j in range(start[g], start[g + 1]):
            counts[bucket[j]] = 0
        if not (tied and ignore_ties):
            result[g] = best
    return result


def majority(values: np.ndarray, inverse: np.ndarray, size: int, classes: int, ties: str = "lowest") -> np.ndarray:
    """The commonest label of every group, counting labelled entries only.

    So a single labelled point decides its voxel however many unlabelled points share it.

    Args:
        values: (N,) integer class ids; negative means unlabelled.
        inverse: (N,) integer group of every entry, in 0..size-1.
        size: number of groups V.
        classes: number of classes C.
        ties: ``lowest`` gives the lowest tied id, ``ignore`` gives -1.

    Returns:
        (V,) int64; -1 where nothing is labelled.

    Raises:
        ValueError: unknown ``ties``, unequal lengths, a group outside 0..V-1 or a class id outside -1..C-1.
    """
    if ties not in ("lowest", "ignore"):
        raise ValueError(f"ties: {ties!r}; choose 'lowest' or 'ignore'")
    _check_groups(values, inverse, size)
    if len(values) and values.max() >= classes:
        raise ValueError(f"class id {values.max()} is outside 0..{classes - 1}")
    return _majority(values.astype(np.int64, copy=False), inverse, size, classes, ties == "ignore")


@njit(cache=True, nogil=True)
def _group_mean(array: np.ndarray, inverse: np.ndarray, size: int) -> np.ndarray:
    width = array.shape[1]
    total = np.zeros((size, width), np.float64)
    count = np.zeros(size, np.int64)
    for i in range(array.shape[0]):
        g = inverse[i]
        count[g] += 1
        for k in range(width):
            total[g, k] += array[i, k]
    result = np.empty((size, width), np.float32)
    for g in range(size):
        for k in range(width):
            result[g, k] = total[g, k] / max(count[g], 1)
    return result


def group_mean(array: np.ndarray, inverse: np.ndarray, size: int) -> np.ndarray:
    """Mean of every group, summed in float64.

    Args:
        array: (N,) or (N, k) numbers.
        inverse: (N,) integer group of every row.
        size: number of groups V.

    Returns:
        (V,) or (V, k) float32; 0 for an empty group.

    Raises:
        ValueError: unequal lengths or a group outside 0..V-1.
    """
    _check_groups(array, inverse, size)
    rows = np.ascontiguousarray(array if array.ndim == 2 else array[:, None])
    if rows.dtype == bool or rows.dtype == np.float16:
        rows = rows.astype(np.float32)  # numba sums neither
    mean = _group_mean(rows, inverse, size)
    return mean if array.ndim == 2 else mean[:, 0]


def _check_groups(array: np.ndarray, inverse: np.ndarray, size: int) -> None:
    if len(array) != len(inverse):
        raise ValueError(f"{len(array)} values but {len(inverse)} entries in the inverse map; lengths must agree")
    # A kernel without bounds checks would write outside its buffers.
    if len(inverse) and not (inverse.min() >= 0 and inverse.max() < size):
        raise ValueError(f"inverse map spans {inverse.min()}..{inverse.max()}; must lie in 0..{size - 1}")
