"""Points in the order of a space-filling curve, and the cells of any size that are runs of that order.

A cell's key interleaves the bits of its x, y and z (Morton 1966). The eight cells of a cube twice as large are
neighbours in the order of keys, so one sort serves every level of cell sizes.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

import numpy as np

from mink_decouple.jit import njit

MAX_BITS = 21
"""Bits per axis of a key at most."""
_DIGIT = 11


@njit(cache=True, nogil=True, inline="always")
def spread(value):
    """The bits of a number below 2**21 at every third place, int64."""
    v = np.int64(value)
    v = (v | v << 32) & 0x1F00000000FFFF
    v = (v | v << 16) & 0x1F0000FF0000FF
    v = (v | v << 8) & 0x100F00F00F00F00F
    v = (v | v << 4) & 0x10C30C30C30C30C3
    return (v | v << 2) & 0x1249249249249249


@njit(cache=True, nogil=True, inline="always")
def gather_bits(key):
    """Every third bit of a key, the inverse of `spread`."""
    v = np.int64(key) & 0x1249249249249249
    v = (v | v >> 2) & 0x10C30C30C30C30C3
    v = (v | v >> 4) & 0x100F00F00F00F00F
    v = (v | v >> 8) & 0x1F0000FF0000FF
    v = (v | v >> 16) & 0x1F00000000FFFF
    return (v | v >> 32) & 0x1FFFFF


@njit(cache=True, nogil=True)
def cell_keys(points, low, size, bits):
    """Keys (n,) int64 of the cells of `size` metres, counted from `low`; points outside take a border cell."""
    keys = np.empty(len(points), np.int64)
    top = np.float64((1 << bits) - 1)
    for i in range(len(points)):
        key = np.int64(0)
        for axis in range(3):
            cell = np.floor((np.float64(points[i, axis]) - low[axis]) / size)
            key |= spread(min(max(cell, 0.0), top)) << axis
        keys[i] = key
    return keys


@njit(cache=True, nogil=True)
def sort_keys(keys, bits):
    """Keys below 2**bits in ascending order, and the rows they came from, (n,) int64 each; stable."""
    n, width = len(keys), 1 << _DIGIT
    order, spare_order = np.arange(n), np.empty(n, np.int64)
    keys, spare = keys.copy(), np.empty(n, np.int64)
    for shift in range(0, bits, _DIGIT):
        begins = np.zeros(width + 1, np.int64)
        for i in range(n):
            begins[(keys[i] >> shift & (width - 1)) + 1] += 1
        if begins.max() == n:
            continue
        for digit in range(width):
            begins[digit + 1] += begins[digit]
        for i in range(n):
            digit = keys[i] >> shift & (width - 1)
            at = begins[digit]
            begins[digit] = at + 1
            spare[at], spare_order[at] = keys[i], order[i]
        keys, spare = spare, keys
        order, spare_order = spare_order, order
    return keys, order


@njit(cache=True, nogil=True)
def crowding(keys, shift):
    """Points in the cell of an average point, cells being the runs of equal `keys >> shift` of sorted keys."""
    n, begin, total = len(keys), 0, 0.0
    for i in range(1, n + 1):
        if i == n or keys[i] >> shift != keys[begin] >> shift:
            total += np.float64(i - begin) ** 2
            begin = i
    return total / n


@njit(cache=True, nogil=True, inline="always")
def slot_of(cell, bits):
    """Where the search for a cell in a table of 2**bits slots begins (Fibonacci hashing)."""
    return np.int64((np.uint64(cell) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))


@njit(cache=True, nogil=True)
def build_table(keys, shift):
    """Open-addressing table of the cells `keys >> shift`: (slots, 3) int64 of [cell or -1, begin, end) in the keys."""
    n, cells = len(keys), 1
    for i in range(1, n):
        if keys[i] >> shift != keys[i - 1] >> shift:
            cells += 1
    bits = 4
    while (1 << bits) < 2 * cells:
        bits += 1
    table = np.full((1 << bits, 3), -1, np.int64)
    mask, begin = (1 << bits) - 1, 0
    for i in range(1, n + 1):
        if i == n or keys[i] >> shift != keys[begin] >> shift:
            slot = slot_of(keys[begin] >> shift, bits)
            while table[slot, 0] >= 0:
                slot = (slot + 1) & mask
            table[slot, 0], table[slot, 1], table[slot, 2] = keys[begin] >> shift, begin, i
            begin = i
    return table, bits
