"""Exact nearest neighbours and the down-sampling pyramid of RandLA-Net (Hu et al., CVPR 2020, Sec. 3.2).

The search is a uniform grid: points are sorted by cell, and a query looks at rings of cells around its own until no
unseen cell can hold a closer point. All kernels are serial and release the GIL, so loader threads may call them side by
side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from torch import Tensor

_WIDEN = 3.0  # factor of the cell edge for queries that found too little nearby
_PER_CELL = 0.7  # points per cell aimed at, for each neighbour wanted
_FAR = 2.0**40
_MAX_CELLS = 2**20  # per axis, so that a packed key fits in 63 bits


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

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Level:
        """The same level on another device."""
        return Level(*(t.to(device, non_blocking=non_blocking) for t in self._tensors()))

    def pin_memory(self) -> Level:
        """The same level in page-locked memory."""
        return Level(*(t.pin_memory() for t in self._tensors()))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.coords, self.neighbors, self.pool, self.up


@njit(cache=True, nogil=True)
def _cell_keys(points: np.ndarray, low: np.ndarray, size: float) -> np.ndarray:
    """Packed cell number (n,) int64 of each point; points must lie at or above `low`."""
    keys = np.empty(len(points), np.int64)
    for i in range(len(points)):
        x = np.int64(np.floor((points[i, 0] - low[0]) / size))
        y = np.int64(np.floor((points[i, 1] - low[1]) / size))
        z = np.int64(np.floor((points[i, 2] - low[2]) / size))
        keys[i] = (x << 42) | (y << 21) | z
    return keys


@njit(cache=True, nogil=True, inline="always")
def _slot(key: int, bits: int) -> int:
    """Fibonacci hash of a cell key."""
    return np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))


@njit(cache=True, nogil=True)
def _build_table(sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Open-addressing table cell key -> [start, end) in the sorted points."""
    n = len(sorted_keys)
    cells = 1
    for i in range(1, n):
        if sorted_keys[i] != sorted_keys[i - 1]:
            cells += 1
    bits = 4
    while (1 << bits) < 2 * cells:
        bits += 1
    table = np.full(1 << bits, -1, np.int64)
    start = np.zeros(1 << bits, np.int64)
    end = np.zeros(1 << bits, np.int64)
    mask = (1 << bits) - 1
    i = 0
    while i < n:
        j = i
        while j < n and sorted_keys[j] == sorted_keys[i]:
            j += 1
        slot = _slot(sorted_keys[i], bits)
        while table[slot] >= 0:
            slot = (slot + 1) & mask
        table[slot] = sorted_keys[i]
        start[slot] = i
        end[slot] = j
        i = j
    return table, start, end, bits


@njit(cache=True, nogil=True)
def _search(
    query: np.ndarray,
    todo: np.ndarray,
    support: np.ndarray,
    order: np.ndarray,
    low: np.ndarray,
    extent: np.ndarray,
    size: float,
    table: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    bits: int,
    rings: int,
    found: np.ndarray,
) -> np.ndarray:
    """Fill `found` (m, k) for the queries `todo`; return the queries that need wider cells.

    `support` is in cell order and `order` gives the original row of each of its points; `extent` is the last cell of
    each axis.
    """
    k = found.shape[1]
    mask = (1 << bits) - 1
    near = np.empty(k, np.float64)
    rows = np.empty(k, np.int64)
    left = np.empty(len(todo), np.int64)
    n_left = 0
    for t in range(len(todo)):
        q = todo[t]
        px, py, pz = np.float64(query[q, 0]), np.float64(query[q, 1]), np.float64(query[q, 2])
        # a query beyond any sensible distance must not overflow its cell number
        fx = min(max((px - low[0]) / size, -_FAR), _FAR)
        fy = min(max((py - low[1]) / size, -_FAR), _FAR)
        fz = min(max((pz - low[2]) / size, -_FAR), _FAR)
        cx, cy, cz = np.int64(np.floor(fx)), np.int64(np.floor(fy)), np.int64(np.floor(fz))
        # distance from the query to the nearest wall of its own cell, in cells
        wall = min(min(min(fx - cx, cx + 1 - fx), min(fy - cy, cy + 1 - fy)), min(fz - cz, cz + 1 - fz))
        away = max(max(max(-cx, cx - extent[0]), max(-cy, cy - extent[1])), max(-cz, cz - extent[2]))
        first = max(away, 0)
        if first > rings:
            # a slab of far cells could be as wide as the whole grid
            left[n_left] = q
            n_left += 1
            continue
        last = max(
            max(max(cx, extent[0] - cx), max(cy, extent[1] - cy)),
            max(cz, extent[2] - cz),
        )
        count = 0
        done = False
        for ring in range(first, min(last - first, rings) + first + 1):
            for x in range(max(cx - ring, 0), min(cx + ring, extent[0]) + 1):
                shell_x = x == cx - ring or x == cx + ring
                for y in range(max(cy - ring, 0), min(cy + ring, extent[1]) + 1):
                    shell = shell_x or y == cy - ring or y == cy + ring
                    if shell or ring == 0:
                        bottom, top, step = max(cz - ring, 0), min(cz + ring, extent[2]), 1
                    else:
                        bottom, top, step = cz - ring, cz + ring, 2 * ring
                    for z in range(bottom, top + 1, step):
                        if z < 0 or z > extent[2]:
                            continue
                        key = (x << 42) | (y << 21) | z
                        slot = _slot(key, bits)
                        while table[slot] != key and table[slot] >= 0:
                            slot = (slot + 1) & mask
                        if table[slot] < 0:
                            continue
                        for s in range(start[slot], end[slot]):
                            dx = px - support[s, 0]
                            dy = py - support[s, 1]
                            dz = pz - support[s, 2]
                            d = dx * dx + dy * dy + dz * dz
                            row = order[s]
                            if count == k and not (d < near[k - 1] or (d == near[k - 1] and row < rows[k - 1])):
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
            reach = (ring + wall) * size
            # the margin covers rounding of a point's cell; a tie at the border must still be seen
            if ring >= last or (count == k and near[k - 1] < reach * reach * (1 - 1e-9)):
                done = True
                break
        if done:
            for j in range(k):
                found[q, j] = rows[j]
        else:
            left[n_left] = q
            n_left += 1
    return left[:n_left]


def _first_cell_size(support: np.ndarray, span: float, per_cell: float) -> float:
    """Cell edge at which the cell of an average point holds about `per_cell` points."""
    n = len(support)
    low = support.min(axis=0).astype(np.float64)
    finest = span / _MAX_CELLS
    size = max(span / max(np.sqrt(n / per_cell), 1.0), finest)
    for _ in range(12):
        keys = np.sort(_cell_keys(support, low, size))
        ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], True))
        counts = np.diff(ends, prepend=-1)
        # scanned surfaces fill cells with the square of the edge
        factor = float(np.clip(np.sqrt(per_cell * n / np.square(counts, dtype=np.float64).sum()), 0.1, 2.0))
        size = max(size * factor, finest)
        if 0.8 < factor < 1.25 or size == finest:
            break
    return size


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
    """Fill `found` (m, k), widening the cells for the queries that sit in thin air."""
    wanted = found.shape[1]
    size = _first_cell_size(support, span, per_cell=max(2.0, _PER_CELL * wanted))
    todo: np.ndarray | None = None
    while True:
        keys = _cell_keys(support, low, size)
        order = np.argsort(keys, kind="stable")
        extent = np.floor((support.max(axis=0).astype(np.float64) - low) / size).astype(np.int64)
        if todo is None:
            # cell order keeps the cells of one query warm for the next
            todo = order if query is support else np.argsort(_cell_keys(np.maximum(query, low), low, size))
        table, start, end, bits = _build_table(keys[order])
        rings = 1 if wanted == 1 else 2
        if extent.max() <= 1:
            rings = 2**62
        todo = _search(query, todo, support[order], order, low, extent, size, table, start, end, bits, rings, found)
        if len(todo) == 0:
            return
        size *= _WIDEN


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
