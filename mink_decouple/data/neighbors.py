"""Exact nearest neighbours on cells of a size that follows the density, and the down-sampling pyramid of RandLA-Net.

(Hu et al., CVPR 2020, Sec. 3.2.) Each query looks at the smallest cell around it that holds a few points and at the
cells beside it, nearest first; where an unseen cell might hold a closer point it tries again with cells twice as large.
The kernels release the GIL: loader threads call them side by side, and the main thread shares a call among its threads.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mink_decouple.data.cells import MAX_BITS, build_table, cell_keys, crowding, gather_bits, slot_of, sort_keys, spread
from mink_decouple.jit import njit
from mink_decouple.threads import share_from_main

_PER_CELL = 0.4  # points that a cell must hold, for each neighbour wanted
_LEAST = 3  # points that a cell must hold in any case
_FINER = 5  # levels of cells below the one that suits a flat scene of even density
_FEW = 7  # a smaller share of the queries than this power of a half waits a level for others to share a table with
_CROWDED = 4.0  # times the points that a cell must hold: more in the smallest cells call for smaller ones

# A cell and those beside it, nearest first.
_BESIDE = np.array(
    sorted(((x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)), key=lambda c: sum(map(abs, c))),
    np.int64,
)


@dataclass(frozen=True)
class Level:
    """One resolution of the pyramid. Row numbers refer to this level, except those of `up`.

    Attributes:
        coords: (n, 3) float32, metres.
        neighbors: (n, k) int64, rows of the k nearest points, the point itself first.
        pool: (m,) int64, the rows that live on in the next, coarser level, in its order.
        up: (n,) int64, for each point the row of the nearest point of the coarser level.
    """

    coords: Tensor
    neighbors: Tensor
    pool: Tensor
    up: Tensor

    def to(self, device: torch.device | str) -> Level:
        """The same level on another device."""
        return Level(*(t.to(device) for t in (self.coords, self.neighbors, self.pool, self.up)))


@njit(cache=True, nogil=True)
def _levels(query_keys, keys, least, bits, levels, first, last):
    """Smallest level at which the cell of each sorted query holds `least` points; at most `bits`."""
    n = len(keys)
    wanted = min(least, n)
    at = np.searchsorted(keys, query_keys[first]) if first < last else 0
    for q in range(first, last):
        key = query_keys[q]
        while at < n and keys[at] < key:
            at += 1
        best = np.int64(1) << 62
        # points that share a cell with the query stand around its place in the order of keys
        for begin in range(max(at - wanted, 0), min(at + wanted, n - wanted) + 1):
            best = min(best, max(keys[begin] ^ key, keys[begin + wanted - 1] ^ key))
        level = 0
        while best > 0:
            best >>= 3
            level += 1
        levels[q] = min(level, bits)


@njit(cache=True, nogil=True)
def _search(
    query,
    query_order,
    query_keys,
    active,
    levels,
    level,
    bits,
    low,
    size,
    points,
    order,
    table,
    slots,
    found,
    first,
    last,
):
    """Fill `found` (m, k) for the sorted queries `active[first:last]`; raise `levels` of those that need larger cells.

    `points` (n, 3) are in the order of keys and `order` gives their rows; `table` holds the cells of `level`, of edge
    `size`; `bits` is the highest level.
    """
    k = found.shape[1]
    mask = (1 << slots) - 1
    end = (1 << (bits - level)) - 1  # last cell of an axis
    near, rows = np.empty(k, np.float64), np.empty(k, np.int64)
    begins, ends, steps = np.empty(27, np.int64), np.empty(27, np.int64), np.empty((27, 3), np.int64)
    held, cell = 0, np.int64(-1)
    cx = cy = cz = np.int64(0)
    for t in range(first, last):
        q = active[t]
        row_of_query = query_order[q]
        if query_keys[q] >> 3 * level != cell:
            cell = query_keys[q] >> 3 * level
            cx, cy, cz = gather_bits(cell), gather_bits(cell >> 1), gather_bits(cell >> 2)
            held = 0
            for s in range(27):
                x, y, z = cx + _BESIDE[s, 0], cy + _BESIDE[s, 1], cz + _BESIDE[s, 2]
                if x < 0 or y < 0 or z < 0 or x > end or y > end or z > end:
                    continue
                beside = spread(x) | spread(y) << 1 | spread(z) << 2
                slot = slot_of(beside, slots)
                while table[slot, 0] != beside and table[slot, 0] >= 0:
                    slot = (slot + 1) & mask
                if table[slot, 0] >= 0:
                    begins[held], ends[held] = table[slot, 1], table[slot, 2]
                    steps[held] = _BESIDE[s]
                    held += 1
        px, py, pz = (
            np.float64(query[row_of_query, 0]),
            np.float64(query[row_of_query, 1]),
            np.float64(query[row_of_query, 2]),
        )
        # distance to the lower and the upper wall of the own cell, in metres
        lx, ly, lz = px - (low[0] + cx * size), py - (low[1] + cy * size), pz - (low[2] + cz * size)
        ux, uy, uz = size - lx, size - ly, size - lz
        count = 0
        for s in range(held):
            if count == k:
                gx = ux if steps[s, 0] > 0 else (lx if steps[s, 0] < 0 else 0.0)
                gy = uy if steps[s, 1] > 0 else (ly if steps[s, 1] < 0 else 0.0)
                gz = uz if steps[s, 2] > 0 else (lz if steps[s, 2] < 0 else 0.0)
                gx, gy, gz = max(gx, 0.0), max(gy, 0.0), max(gz, 0.0)
                # the margin covers rounding of a point's cell; a tie at the border must still be seen
                if (gx * gx + gy * gy + gz * gz) * (1 - 1e-9) > near[k - 1]:
                    continue
            for i in range(begins[s], ends[s]):
                dx, dy, dz = px - points[i, 0], py - points[i, 1], pz - points[i, 2]
                d = dx * dx + dy * dy + dz * dz
                if count == k and d > near[k - 1]:
                    continue
                row = order[i]
                if count == k and d == near[k - 1] and row > rows[k - 1]:
                    continue
                if count < k:
                    count += 1
                j = count - 1
                while j > 0 and (d < near[j - 1] or (d == near[j - 1] and row < rows[j - 1])):
                    near[j] = near[j - 1]
                    rows[j] = rows[j - 1]
                    j -= 1
                near[j] = d
                rows[j] = row
        # unseen points lie beyond a wall of the block of cells that is not the end of the grid
        reach = np.inf
        if cx > 1:
            reach = min(reach, lx)
        if cy > 1:
            reach = min(reach, ly)
        if cz > 1:
            reach = min(reach, lz)
        if cx < end - 1:
            reach = min(reach, ux)
        if cy < end - 1:
            reach = min(reach, uy)
        if cz < end - 1:
            reach = min(reach, uz)
        reach += size
        if reach == np.inf or (count == k and near[k - 1] < reach * reach * (1 - 1e-9)):
            for j in range(k):
                found[row_of_query, j] = rows[j]
            levels[q] = -1
        else:
            levels[q] = level + 1


def knn(query: np.ndarray, support: np.ndarray, k: int) -> np.ndarray:
    """Exact k nearest neighbours by Euclidean distance, nearest first; equal distances in row order.

    Args:
        query: (m, 3) float, metres.
        support: (n, 3) float, metres, n >= 1.
        k: neighbours wanted, >= 1.

    Returns:
        (m, k) int64 rows of `support`. Where n < k the nearest row fills the columns that are left.

    Raises:
        ValueError: `support` is empty, k < 1, a shape is wrong or a coordinate is not finite.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    for name, points in (("query", query), ("support", support)):
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"{name} has shape {points.shape}; expected (n, 3)")
        if not np.isfinite(points).all():
            raise ValueError(f"{name} holds coordinates that are not finite")
    if len(support) == 0:
        raise ValueError("support is empty; nearest neighbours need at least one point")
    if len(query) == 0:
        return np.zeros((0, k), np.int64)
    wanted = min(k, len(support))
    found = np.empty((len(query), wanted), np.int64)
    low = support.min(axis=0).astype(np.float64)
    span = float((support.max(axis=0) - low).max())
    if span == 0.0:
        found[:] = np.arange(wanted)
    else:
        _grid_search(np.ascontiguousarray(query), np.ascontiguousarray(support), low, span, found)
    if wanted < k:
        found = np.concatenate([found, np.repeat(found[:, :1], k - wanted, axis=1)], axis=1)
    return found


def _grid_search(query: np.ndarray, support: np.ndarray, low: np.ndarray, span: float, found: np.ndarray) -> None:
    """Fill `found` (m, k), level by level of cell sizes."""
    wanted = found.shape[1]
    least = max(_LEAST, round(_PER_CELL * wanted))
    bits = min(MAX_BITS, max(1, math.ceil(math.log2(max(len(support) / least, 1)) / 2) + _FINER))
    while True:
        # a little more than the span, so that the furthest point lies inside the last cell
        size = span * (1 + 1e-6) / 2**bits
        keys, order = sort_keys(cell_keys(support, low, size, bits), 3 * bits)
        if bits == MAX_BITS or crowding(keys, 0) <= _CROWDED * least:
            break
        bits = min(MAX_BITS, bits + 3)
    points = support[order]
    query_keys, query_order = keys, order
    if query is not support:
        query_keys, query_order = sort_keys(cell_keys(query, low, size, bits), 3 * bits)
    levels = np.empty(len(query), np.int8)
    work = 20 * wanted
    share_from_main(lambda a, b: _levels(query_keys, keys, least, bits, levels, a, b), len(query), work * len(query))
    waited = False
    for level in range(bits + 1):
        active = np.flatnonzero(levels == level)
        if len(active) == 0:
            continue
        if not waited and len(active) < len(query) >> _FEW and level < bits:
            levels[active] += 1
            waited = True
            continue
        waited = False
        table, slots = build_table(keys, 3 * level)
        queries = query, query_order, query_keys, active, levels, level, bits, low, size * 2**level
        cells = points, order, table, slots, found
        share_from_main(lambda a, b: _search(*queries, *cells, a, b), len(active), work * len(active))  # noqa: B023 # it has run when this returns


def pyramid(coords: np.ndarray, ratios: Sequence[int], k: int) -> list[Level]:
    """Index tables of one crop for every encoder layer of RandLA-Net.

    Random sampling keeps the first n // ratio rows of a level, which is random only because the crop's rows were
    shuffled before.

    Args:
        coords: (n, 3) float32 of ONE shuffled crop, metres, n >= 1.
        ratios: down-sampling factor of each layer, each >= 1.
        k: neighbours per point.

    Returns:
        One `Level` per ratio, finest first. No level has fewer than one point.

    Raises:
        ValueError: `coords` is empty or a ratio is below 1.
    """
    if len(coords) == 0:
        raise ValueError("the crop is empty; a pyramid needs at least one point")
    if any(ratio < 1 for ratio in ratios):
        raise ValueError(f"ratios are {list(ratios)}; each must be at least 1")
    levels = []
    fine = np.ascontiguousarray(coords, dtype=np.float32)
    for ratio in ratios:
        kept = max(len(fine) // ratio, 1)
        coarse = fine[:kept]
        arrays = (fine, knn(fine, fine, k), np.arange(kept), knn(fine, coarse, 1)[:, 0])
        levels.append(Level(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)))
        fine = coarse
    return levels
