"""Kernel maps on a GPU: a Triton kernel fills each kind of neighbour table from sorted keys.

A column of neighbours ``(dx, dy)`` of a voxel is a run of consecutive keys, so one binary search finds where it begins
and at most K keys follow. Half of the columns are enough: each pair found is written in both directions.
"""

# mypy: allow-untyped-defs
# Triton infers the types of the functions it compiles.

from __future__ import annotations

import torch
from torch import Tensor

from mink_decouple.sparse.kernel_map import AXIS_BITS
from mink_decouple.sparse.triton_runtime import jit, tl

_BLOCK = 128


def submanifold_table(keys: Tensor, order: Tensor | None, kernel_size: int, stride: int = 1) -> Tensor:
    """The (K^3, n) int32 table of ``kernel_map.submanifold_map``, without waiting for the device.

    Args:
        keys: (n,) int64 sorted unique keys.
        order: (n,) int64 row of each key, None for the identity.
        kernel_size: K, odd.
        stride: spacing of the coordinates, a power of two.
    """
    n = len(keys)
    table = torch.full((kernel_size**3, n), -1, dtype=torch.int32, device=keys.device)
    if n:
        columns = kernel_size**2 // 2 + 1
        _fill_table[(-(-n // _BLOCK), columns)](
            keys, keys if order is None else order, table, n, kernel_size, stride, stride.bit_length() - 1,
            n.bit_length(), ORDERED=order is None, SHIFT=AXIS_BITS, BLOCK=_BLOCK,
        )  # fmt: skip
    return table


def strided_tables(
    keys: Tensor, order: Tensor | None, parent: Tensor, n_coarse: int, bit: int
) -> tuple[Tensor, Tensor]:
    """The (8, m) and (8, n) int32 tables of ``kernel_map.strided_map``.

    Args:
        keys: (n,) int64 sorted unique keys of the fine grid, whose stride is ``2**bit``.
        order: (n,) int64 row of each key, None for the identity.
        parent: (n,) int64 coarse row of each key.
        n_coarse: number of coarse rows, m.
        bit: binary logarithm of the fine stride.
    """
    n = len(keys)
    down = torch.full((8, n_coarse), -1, dtype=torch.int32, device=keys.device)
    up = torch.full((8, n), -1, dtype=torch.int32, device=keys.device)
    if n:
        _fill_strided[(-(-n // _BLOCK),)](
            keys, keys if order is None else order, parent, down, up, n, n_coarse, bit,
            ORDERED=order is None, SHIFT=AXIS_BITS, BLOCK=_BLOCK,
        )  # fmt: skip
    return down, up


def unpack(keys: Tensor) -> Tensor:
    """The (n, 4) int32 coordinates of (n,) int64 keys: ``kernel_map.unpack``."""
    coords = torch.empty(len(keys), 4, dtype=torch.int32, device=keys.device)
    if len(keys):
        _unpack[(-(-len(keys) // _BLOCK),)](keys, coords, len(keys), SHIFT=AXIS_BITS, BLOCK=_BLOCK)
    return coords


@jit("n")
def _unpack(keys, coords, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    key = tl.load(keys + place, mask=inside, other=0)
    here = coords + 4 * place.to(tl.int64)
    tl.store(here, (key >> (3 * SHIFT)).to(tl.int32), mask=inside)
    for axis in tl.static_range(1, 4):
        value = (key >> ((3 - axis) * SHIFT)) & ((1 << SHIFT) - 1)
        tl.store(here + axis, (value - (1 << (SHIFT - 1))).to(tl.int32), mask=inside)


@jit("n", "n_coarse", "bit")
def _fill_strided(
    keys, order, parent, down, up, n, n_coarse, bit, ORDERED: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    key = tl.load(keys + place, mask=inside, other=0) >> bit
    coarse = tl.load(parent + place, mask=inside, other=0)
    if ORDERED:
        row = place.to(tl.int64)
    else:
        row = tl.load(order + place, mask=inside, other=0)
    offset = ((key >> (2 * SHIFT)) & 1) + 2 * ((key >> SHIFT) & 1) + 4 * (key & 1)
    tl.store(down + offset * n_coarse + coarse, row.to(tl.int32), mask=inside)
    tl.store(up + offset * n + row, coarse.to(tl.int32), mask=inside)


@jit("n", "stride", "bit", "steps")
def _fill_table(
    keys, order, table, n, size, stride, bit, steps, ORDERED: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    key = tl.load(keys + place, mask=inside, other=0)
    if ORDERED:
        row = place
    else:
        row = tl.load(order + place, mask=inside, other=0).to(tl.int32)
    radius = size // 2
    middle = size * size // 2
    # Columns from (0, 0) on in the order of (dx, dy): the half-plane whose keys are larger.
    column = middle + tl.program_id(1)
    dx, dy = column // size - radius, column % size - radius
    first = (dx * stride).to(tl.int64) << (2 * SHIFT)
    first += ((dy * stride).to(tl.int64) << SHIFT) - radius * stride
    own = tl.program_id(1) == 0
    if own:  # the voxel itself and those above it
        first += (radius + 1) * stride
        tl.store(table + (middle * size + radius).to(tl.int64) * n + row, row, mask=inside)
    wanted = key + first
    low = place + 1
    high = tl.zeros((BLOCK,), tl.int32) + n
    for _ in range(steps):
        half = (low + high) // 2
        active = low < high
        less = active & (tl.load(keys + half, mask=active & inside, other=0) < wanted)
        low = tl.where(less, half + 1, low)
        high = tl.where(active & (less == 0), half, high)
    reach = (2 * radius - own * (radius + 1)).to(tl.int64) * stride
    volume = size * size * size
    for step in range(size):
        there = low + step
        present = inside & (there < n)
        gap = tl.load(keys + there, mask=present, other=0) - wanted
        present &= (gap >= 0) & (gap <= reach)
        if ORDERED:
            other = there
        else:
            other = tl.load(order + there, mask=present, other=0).to(tl.int32)
        layer = (gap >> bit) + own * (radius + 1)
        index = (layer * size + dy + radius) * size + dx + radius
        tl.store(table + index * n + row, other, mask=present)
        tl.store(table + (volume - 1 - index) * n + other, row, mask=present)
