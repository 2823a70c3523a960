"""Exact nearest neighbours on a GPU: a Triton program per few queries, over points sorted along a Morton curve.

In Morton order the points of every cell of every power-of-two grid are consecutive, so one sorted list serves all cell
sizes and binary search finds a cell. A query starts at the cell size that suits the density around it, looks at the 27
cells around its own and goes on to cells of twice the edge until no unseen cell can hold a closer point. Nothing waits
for the device. Distances are float64 differences of float32 coordinates and equal ones go in row order, as in
``data.neighbors.knn``, so both give the same rows.
"""

# mypy: allow-untyped-defs
# Triton infers the types of the functions it compiles.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mink_decouple.sparse.triton_runtime import INTERPRETED, inline, jit, tl

AXIS_BITS = 18
BATCH_LIMIT = 2 ** (63 - 3 * AXIS_BITS) - 1
"""Samples of one search; one fewer than fit, so that the end of the last is a key too."""
_TILE = 64
_QUERIES = 64 if INTERPRETED else 1
"""Queries of one program: a GPU runs them apart, since they look at different numbers of points."""


@dataclass(frozen=True, eq=False)
class Index:
    """Points in the order of (sample, Morton code).

    Attributes:
        points: (n, 3) float32, sorted, metres.
        keys: (n,) int64, sorted; the sample in the top bits.
        rows: (n,) int64 original row of each sorted point.
        frame: (4,) float64: the lowest corner and the edge of the finest cell.
    """

    points: Tensor
    keys: Tensor
    rows: Tensor
    frame: Tensor


def build(support: Tensor, batch: Tensor | None = None) -> Index:
    """Sort points for :func:`search`.

    Args:
        support: (n, 3) float32, metres, finite, n >= 1.
        batch: (n,) int64 sample of each point, 0..BATCH_LIMIT - 1; None: all of one sample.
    """
    low, high = support.amin(0).double(), support.amax(0).double()
    span = (high - low).amax()
    edge = torch.where(span > 0, span, torch.ones_like(span)) / (2**AXIS_BITS - 2)
    frame = torch.cat([low, edge.reshape(1)])
    cells = ((support.double() - low) / edge).floor().long()
    keys = _interleave(cells[:, 0], cells[:, 1], cells[:, 2])
    if batch is not None:
        keys = keys | (batch.long() << 3 * AXIS_BITS)
    keys, rows = torch.sort(keys)
    return Index(support.float().index_select(0, rows), keys, rows, frame)


def search(index: Index, query: Tensor, k: int, batch: Tensor | None = None, order: Tensor | None = None) -> Tensor:
    """Rows of the k nearest points of the same sample, nearest first; equal distances in row order.

    Args:
        index: of the points searched.
        query: (m, 3) float32, metres, finite.
        k: neighbours wanted, >= 1.
        batch: (m,) int64 sample of each query, each with at least one point; None: all of sample 0.
        order: (m,) int64 queries in an order in which neighbours follow each other; saves memory traffic.

    Returns:
        (m, k) int64. Where a sample has fewer than k points, the nearest fills the columns that are left.
    """
    m, n = len(query), len(index.keys)
    found = torch.empty(m, k, dtype=torch.int64, device=query.device)
    if m:
        width = max(2, 1 << (k - 1).bit_length())
        _nearest[(-(-m // _QUERIES),)](
            index.points, index.keys, index.rows, index.frame, query.float().contiguous(),
            found if batch is None else batch, found if order is None else order, found,
            m, n, n.bit_length(), k, max(1, k // 3), BATCHED=batch is not None, ORDERED=order is not None,
            BITS=AXIS_BITS, QUERIES=_QUERIES, WIDTH=width, TILE=_TILE, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return found


def _interleave(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Morton code of cells of AXIS_BITS bits an axis."""
    codes = []
    for value in (x, y, z):
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            value = (value | (value << shift)) & mask
        codes.append(value)
    return codes[0] | (codes[1] << 1) | (codes[2] << 2)


@inline
def _spread(value):
    value = (value | (value << 32)) & 0x1F00000000FFFF
    value = (value | (value << 16)) & 0x1F0000FF0000FF
    value = (value | (value << 8)) & 0x100F00F00F00F00F
    value = (value | (value << 4)) & 0x10C30C30C30C30C3
    return (value | (value << 2)) & 0x1249249249249249


@inline
def _lower_bound(keys, wanted, n, steps):
    """First place whose key is not below ``wanted``."""
    low = (wanted * 0).to(tl.int32)
    high = low + n
    for _ in range(steps):
        active = low < high
        half = (low + high) // 2
        less = active & (tl.load(keys + half, mask=active, other=0) < wanted)
        low = tl.where(less, half + 1, low)
        high = tl.where(active & (less == 0), half, high)
    return low


@jit("m", "n", "steps", "k", "enough")
def _nearest(
    points, keys, rows, frame, query, batch, order, found, m, n, steps, k, enough,
    BATCHED: tl.constexpr, ORDERED: tl.constexpr, BITS: tl.constexpr,
    QUERIES: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # Axis 0 of every tensor is the query; the others are cells, candidates or neighbours.
    q = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)[:, None]
    asked = q < m
    if ORDERED:
        q = tl.load(order + q, mask=asked, other=0)
    sample = q * 0
    if BATCHED:
        sample = tl.load(batch + q, mask=asked, other=0) << (3 * BITS)
    px = tl.load(query + 3 * q, mask=asked, other=0.0).to(tl.float64)
    py = tl.load(query + 3 * q + 1, mask=asked, other=0.0).to(tl.float64)
    pz = tl.load(query + 3 * q + 2, mask=asked, other=0.0).to(tl.float64)
    edge = tl.load(frame + 3)
    # A query beyond any sensible distance must not overflow its cell number.
    far = 1073741824.0
    fx = tl.minimum(tl.maximum((px - tl.load(frame)) / edge, -far), far)
    fy = tl.minimum(tl.maximum((py - tl.load(frame + 1)) / edge, -far), far)
    fz = tl.minimum(tl.maximum((pz - tl.load(frame + 2)) / edge, -far), far)
    x, y, z = tl.floor(fx).to(tl.int64), tl.floor(fy).to(tl.int64), tl.floor(fz).to(tl.int64)

    # Points in the query's own cell at every cell size, one size per lane.
    lane = tl.arange(0, 32)[None, :]
    one = tl.full((1, 32), 1, tl.int64)
    limit = 1 << BITS
    inside = (x >= 0) & (y >= 0) & (z >= 0) & (x < limit) & (y < limit) & (z < limit)
    code = tl.where(inside, _spread(x) | (_spread(y) << 1) | (_spread(z) << 2), 0)
    size = 3 * tl.minimum(lane, BITS).to(tl.int64)
    first = sample + ((code >> size) << size)
    own = _lower_bound(keys, first + (one << size), n, steps) - _lower_bound(keys, first, n, steps)
    level = tl.min(tl.where((own >= enough) | (lane >= BITS), lane, 32), axis=1)[:, None].to(tl.int64)

    nothing = float("inf")
    none = 0x7FFFFFFFFFFFFFFF
    slot = tl.arange(0, WIDTH)[None, :]
    kept = tl.full((QUERIES, WIDTH), none, tl.int64)
    open_queries = asked
    while tl.max(tl.max(open_queries.to(tl.int32), axis=1), axis=0) > 0:
        cx, cy, cz = x >> level, y >> level, z >> level
        last = level >= BITS  # everything is one cell
        ux, uy, uz = cx + lane % 3 - 1, cy + lane // 3 % 3 - 1, cz + lane // 9 - 1
        cells = one << (BITS - level)
        valid = (lane < 27) & (ux >= 0) & (uy >= 0) & (uz >= 0) & (ux < cells) & (uy < cells) & (uz < cells)
        ux, uy, uz = tl.where(valid, ux, 0), tl.where(valid, uy, 0), tl.where(valid, uz, 0)
        valid = ((last & (lane == 0)) | ((last == 0) & valid)) & open_queries
        corner = (_spread(ux) | (_spread(uy) << 1) | (_spread(uz) << 2)) << (3 * level)
        corner = sample + tl.where(last, 0, corner)
        start = _lower_bound(keys, corner, n, steps)
        count = tl.where(valid, _lower_bound(keys, corner + (one << (3 * level)), n, steps) - start, 0)
        before = tl.cumsum(count, axis=1) - count
        total = tl.sum(count, axis=1)[:, None]

        near = tl.full((QUERIES, WIDTH), nothing, tl.float64)
        near_row = tl.full((QUERIES, WIDTH), none, tl.int64)
        for begin in range(0, tl.max(tl.max(total, axis=1), axis=0), TILE):
            # Candidate j lies in the cell that the counts before it point to.
            j = begin + tl.arange(0, TILE)[None, :]
            here = (j[:, :, None] >= before[:, None, :]) & (j[:, :, None] < (before + count)[:, None, :])
            place = j + tl.sum(tl.where(here, (start - before)[:, None, :], 0), axis=2)
            real = j < total
            point = points + 3 * place.to(tl.int64)
            gx = px - tl.load(point, mask=real, other=0.0).to(tl.float64)
            gy = py - tl.load(point + 1, mask=real, other=0.0).to(tl.float64)
            gz = pz - tl.load(point + 2, mask=real, other=0.0).to(tl.float64)
            distance = tl.where(real, gx * gx + gy * gy + gz * gz, nothing)
            row = tl.where(real, tl.load(rows + place, mask=real, other=0), none)
            nearer = real & (distance <= tl.max(tl.where(slot < k, near, 0.0), axis=1)[:, None])
            if tl.max(tl.max(nearer.to(tl.int32), axis=1), axis=0) > 0:
                merged = tl.full((QUERIES, WIDTH), nothing, tl.float64)
                merged_row = tl.full((QUERIES, WIDTH), none, tl.int64)
                for rank in range(k):
                    best = tl.minimum(tl.min(distance, axis=1), tl.min(near, axis=1))[:, None]
                    best_row = tl.minimum(
                        tl.min(tl.where(distance == best, row, none), axis=1),
                        tl.min(tl.where(near == best, near_row, none), axis=1),
                    )[:, None]
                    merged = tl.where(slot == rank, best, merged)
                    merged_row = tl.where(slot == rank, best_row, merged_row)
                    taken = (distance == best) & (row == best_row)
                    distance = tl.where(taken, nothing, distance)
                    row = tl.where(taken, none, row)
                    taken = (near == best) & (near_row == best_row)
                    near = tl.where(taken, nothing, near)
                    near_row = tl.where(taken, none, near_row)
                near = merged
                near_row = merged_row

        kept = tl.where(open_queries, near_row, kept)
        # Distance from the query to the nearest wall of its own cell, in cells.
        width = ((level * 0 + 1) << level).to(tl.float64)
        wx, wy, wz = fx / width - cx.to(tl.float64), fy / width - cy.to(tl.float64), fz / width - cz.to(tl.float64)
        wall = tl.minimum(tl.minimum(tl.minimum(wx, 1.0 - wx), tl.minimum(wy, 1.0 - wy)), tl.minimum(wz, 1.0 - wz))
        # The margin covers the rounding of a point's cell; a tie at the border must still be seen.
        reach = (1.0 + wall) * width * edge
        worst = tl.max(tl.where(slot < k, near, 0.0), axis=1)[:, None]
        open_queries = open_queries & (last == 0) & (worst >= reach * reach * (1.0 - 1e-9))
        level += open_queries.to(tl.int64)
    nearest = tl.min(tl.where(slot == 0, kept, none), axis=1)[:, None]
    tl.store(found + q * k + slot, tl.where(kept == none, nearest, kept), mask=asked & (slot < k))
