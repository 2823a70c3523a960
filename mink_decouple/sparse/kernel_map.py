"""Which input row meets which output row under which kernel offset: pure functions on packed, sorted coordinates.

A voxel ``(batch, x, y, z)`` becomes one int64 key with the batch in the top bits and z in the lowest, so that sorting
keys sorts voxels and a neighbour is ``key + constant``. Coordinates keep their absolute units at every stride, and
strided coordinates are ``floor(c / s) * s`` (true floor), as in MinkowskiEngine. Offsets run x fastest: for odd K
offset ``i`` is ``(i % K - K // 2, i // K % K - K // 2, i // K**2 - K // 2)`` times the stride; for K = 2 it is
``(i % 2, i // 2 % 2, i // 4)``.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mink_decouple.jit import njit
from mink_decouple.threads import share

AXIS_BITS = 18
BATCH_LIMIT = 2 ** (63 - 3 * AXIS_BITS)
GUARD = 2048
"""Free coordinates kept at both ends of an axis, so that ``key + offset`` never runs into the next axis."""
_BIAS = 2 ** (AXIS_BITS - 1)
AXIS_LIMIT = _BIAS - GUARD
_AXIS_MASK = 2**AXIS_BITS - 1
_SHIFTS = (3 * AXIS_BITS, 2 * AXIS_BITS, AXIS_BITS, 0)


@dataclass(frozen=True, eq=False)
class Pairs:
    """The present entries of a neighbour table as lists, grouped by kernel offset.

    Attributes:
        source: (P,) int64, input row of each pair.
        target: (P,) int64, output row of each pair, ascending within one offset.
        splits: V + 1 pair numbers; offset ``k`` owns the pairs ``splits[k]:splits[k + 1]``.
        order: (P,) int64, the pair numbers regrouped by output row, offsets ascending.
        starts: (n_out,) int64, where each output row's group begins in ``order``.
    """

    source: Tensor
    target: Tensor
    splits: tuple[int, ...]
    order: Tensor
    starts: Tensor


@dataclass(frozen=True, eq=False)
class NeighborTable:
    """For every kernel offset and output row the input row that lies there.

    Attributes:
        rows: (V, n_out) int32, input row or -1.
        n_source: number of input rows.
    """

    rows: Tensor
    n_source: int

    @cached_property
    def pairs(self) -> Pairs:
        """The table as pair lists, for the engine of plain torch operations."""
        present = self.rows >= 0
        offset, target = present.nonzero(as_tuple=True)
        counts = present.sum(0)
        splits = [0, *present.sum(1).cumsum(0).tolist()]
        return Pairs(
            source=self.rows[offset, target].long(),
            target=target,
            splits=tuple(splits),
            order=torch.sort(target, stable=True).indices,
            starts=counts.cumsum(0) - counts,
        )


@dataclass(frozen=True, eq=False)
class KernelMap:
    """A neighbour table and the table of the opposite direction, which the input gradient needs.

    ``reverse`` is None for a map of a coordinate set onto itself: there the opposite of offset ``k`` is offset ``V -
    1 - k``.
    """

    table: NeighborTable
    reverse: NeighborTable | None = None

    @property
    def n_in(self) -> int:
        """Number of input rows."""
        return self.table.n_source

    @property
    def n_out(self) -> int:
        """Number of output rows."""
        return self.table.rows.shape[1]

    def swapped(self) -> KernelMap:
        """The map from outputs to inputs: that of the transposed convolution."""
        if self.reverse is None:
            raise ValueError("a map of a coordinate set onto itself has no separate transposed map")
        return KernelMap(self.reverse, self.table)


def _fused(keys: Tensor) -> Any:
    """The module whose kernels take ``keys`` on a GPU; None: plain torch, or numba on a CPU."""
    from mink_decouple.sparse import triton_maps, triton_runtime

    return triton_maps if triton_runtime.works(keys.device) else None


def pack(coords: Tensor) -> Tensor:
    """Pack integer voxel coordinates into keys whose order is the order of ``(batch, x, y, z)``.

    Args:
        coords: (N, 4) integers ``[batch, x, y, z]``.

    Returns:
        (N,) int64 keys, one per row and in row order.

    Raises:
        ValueError: a coordinate lies outside +-AXIS_LIMIT or a batch index outside 0..BATCH_LIMIT - 1.
    """
    if len(coords):
        low, high = torch.stack([coords.amin(0), coords.amax(0)]).tolist()
        if low[0] < 0 or high[0] >= BATCH_LIMIT:
            raise ValueError(f"batch index {low[0] if low[0] < 0 else high[0]} is outside 0..{BATCH_LIMIT - 1}")
        extreme = max(high[1:] + [-value for value in low[1:]])
        if extreme > AXIS_LIMIT:
            raise ValueError(
                f"voxel coordinate of magnitude {extreme} exceeds {AXIS_LIMIT}: "
                "centre the cloud or take a larger voxel size"
            )
    if coords.device.type == "cpu" and coords.dtype == torch.int32:
        keys = torch.empty(len(coords), dtype=torch.int64)
        _pack(coords.contiguous().numpy(), keys.numpy())
        return keys
    wide = coords.long()
    keys = wide[:, 0] << _SHIFTS[0]
    for axis in (1, 2, 3):
        keys = keys | ((wide[:, axis] + _BIAS) << _SHIFTS[axis])
    return keys


def unpack(keys: Tensor) -> Tensor:
    """The (N, 4) int32 coordinates ``[batch, x, y, z]`` of (N,) int64 keys; the inverse of :func:`pack`."""
    return (fused.unpack if (fused := _fused(keys)) else unpack_torch)(keys)


def unpack_torch(keys: Tensor) -> Tensor:
    """:func:`unpack` in plain torch operations: any device; oracle of the tests."""
    columns = [keys >> _SHIFTS[0]] + [((keys >> shift) & _AXIS_MASK) - _BIAS for shift in _SHIFTS[1:]]
    return torch.stack(columns, dim=1).int()


def sort_keys(keys: Tensor) -> tuple[Tensor, Tensor | None]:
    """Sort keys.

    Returns:
        The sorted keys and the (N,) int64 row of each of them, or None where the keys were sorted already.

    Raises:
        ValueError: two rows hold the same voxel.
    """
    # One question where the keys are sorted and unique already, since each answer waits for a GPU.
    if bool((keys[1:] > keys[:-1]).all()):
        return keys, None
    keys, order = torch.sort(keys)
    repeated = keys[1:] == keys[:-1]
    if bool(repeated.any()):
        voxel = unpack(keys[1:][repeated][:1])[0].tolist()
        raise ValueError(f"voxel [batch, x, y, z] = {voxel} occurs more than once: quantise the points first")
    return keys, order


def kernel_offsets(kernel_size: int) -> list[tuple[int, int, int]]:
    """The (x, y, z) offsets of a cubic kernel in units of the stride, x fastest; centred for an odd size."""
    first = -(kernel_size // 2) if kernel_size % 2 else 0
    span = range(first, first + kernel_size)
    return [(x, y, z) for z in span for y in span for x in span]


def check_stride(stride: int) -> None:
    """Refuse strides the packed keys cannot express.

    Raises:
        ValueError: ``stride`` is no power of two or too large.
    """
    if stride < 1 or stride & (stride - 1) or stride > GUARD // 2:
        raise ValueError(f"tensor stride {stride} is not a power of two in 1..{GUARD // 2}")


def submanifold_map(keys: Tensor, order: Tensor | None, kernel_size: int, stride: int = 1) -> KernelMap:
    """The map of a stride-1 convolution, whose outputs are exactly its inputs.

    Args:
        keys: (n,) int64 sorted unique keys.
        order: (n,) int64 row of each key, None for the identity.
        kernel_size: odd.
        stride: spacing of the coordinates, a power of two.

    Returns:
        A symmetric map with a (K^3, n) table.

    Raises:
        ValueError: even kernel size, or a reach beyond the guard band.
    """
    check_stride(stride)
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise ValueError(f"kernel size {kernel_size} of a stride-1 convolution must be odd")
    if kernel_size // 2 * stride > GUARD // 2:
        raise ValueError(f"kernel size {kernel_size} at tensor stride {stride} reaches beyond {GUARD // 2} voxels")
    if keys.device.type == "cpu":
        rows = np.arange(len(keys), dtype=np.int32) if order is None else order.numpy().astype(np.int32)
        table = torch.empty(kernel_size**3, len(keys), dtype=torch.int32)
        arrays = (keys.numpy(), rows, kernel_size, stride, table.numpy())
        columns = kernel_size**2 // 2 + 1
        share(lambda first, last: _merge_submanifold(*arrays, first, last), columns, 10 * table.numel())
        return KernelMap(NeighborTable(table, len(keys)))
    fill = fused.submanifold_table if (fused := _fused(keys)) else submanifold_table_torch
    return KernelMap(NeighborTable(fill(keys, order, kernel_size, stride), len(keys)))


def submanifold_table_torch(keys: Tensor, order: Tensor | None, kernel_size: int, stride: int = 1) -> Tensor:
    """The (K^3, n) int32 table of :func:`submanifold_map` by binary search: any device; oracle of the tests."""
    n = len(keys)
    offsets = kernel_offsets(kernel_size)
    table = torch.full((len(offsets), n), -1, dtype=torch.int32, device=keys.device)
    rows = torch.arange(n, device=keys.device) if order is None else order
    table[len(offsets) // 2, rows] = rows.int()
    for index in range(len(offsets) // 2 if n else 0):
        x, y, z = (component * stride for component in offsets[index])
        wanted = keys + ((x << _SHIFTS[1]) + (y << _SHIFTS[2]) + z)
        found = torch.searchsorted(keys, wanted).clamp_(max=n - 1)
        here = (keys[found] == wanted).nonzero().squeeze(1)
        there = found[here]
        table[index, rows[here]] = rows[there].int()
        table[len(offsets) - 1 - index, rows[there]] = rows[here].int()
    return table


def strided_keys(keys: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Floor coordinates onto the next coarser grid, from ``stride`` to ``2 * stride``.

    Args:
        keys: (n,) int64 unique keys at ``stride``.
        stride: power of two.

    Returns:
        The (m,) int64 sorted unique coarse keys and the (n,) int64 coarse row of each fine key.
    """
    check_stride(2 * stride)
    # The axis bias is a multiple of every stride, so clearing low bits is a floor also for negative coordinates.
    low = 2 * stride - 1
    clear = sum(low << shift for shift in _SHIFTS[1:])
    coarse, order = torch.sort(keys & ~clear)
    if keys.device.type != "cpu":
        return number_runs_torch(coarse, order)
    unique, parent = torch.empty_like(coarse), torch.empty_like(order)
    count = _number_runs(coarse.numpy(), order.numpy(), unique.numpy(), parent.numpy())
    return unique[:count].clone(), parent


def number_runs_torch(coarse: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The end of :func:`strided_keys` in plain torch operations: any device; oracle of the tests.

    Args:
        coarse: (n,) int64 sorted coarse keys, repeated.
        order: (n,) int64 fine row of each of them.

    Returns:
        As :func:`strided_keys`.
    """
    first = torch.ones_like(coarse, dtype=torch.bool)
    torch.ne(coarse[1:], coarse[:-1], out=first[1:])
    parent = torch.empty_like(order)
    parent[order] = first.cumsum(0) - 1
    return coarse[first], parent


def strided_map(keys: Tensor, order: Tensor | None, parent: Tensor, n_coarse: int, stride: int) -> KernelMap:
    """The map of a convolution with kernel 2 and stride 2, from the grid at ``stride`` to that at ``2 * stride``.

    Args:
        keys: (n,) int64 sorted unique keys of the fine grid.
        order: (n,) int64 row of each key, None for the identity.
        parent: (n,) int64 coarse row of each key, as :func:`strided_keys` gives it.
        n_coarse: number of coarse rows.
        stride: of the fine grid.

    Returns:
        A map with an (8, m) table and an (8, n) reverse table; its ``swapped()`` is the transposed convolution's.
    """
    n = len(keys)
    bit = stride.bit_length() - 1
    rows = torch.arange(n, device=keys.device) if order is None else order
    if fused := _fused(keys):
        down, up = fused.strided_tables(keys, order, parent, n_coarse, bit)
    elif keys.device.type == "cpu":
        down, up = torch.empty(8, n_coarse, dtype=torch.int32), torch.empty(8, n, dtype=torch.int32)
        _fill_strided(keys.numpy(), rows.numpy(), parent.numpy(), bit, down.numpy(), up.numpy())
    else:
        down, up = strided_tables_torch(keys, rows, parent, n_coarse, bit)
    return KernelMap(NeighborTable(down, n), NeighborTable(up, n_coarse))


def strided_tables_torch(keys: Tensor, rows: Tensor, parent: Tensor, n_coarse: int, bit: int) -> tuple[Tensor, Tensor]:
    """The (8, m) and (8, n) int32 tables of :func:`strided_map` in plain torch operations: oracle of the tests.

    ``rows`` (n,) int64 is the row of each key, and the stride of the fine grid is ``2**bit``.
    """
    n = len(keys)
    x, y, z = (((keys >> (shift + bit)) & 1) for shift in _SHIFTS[1:])
    offset = x + 2 * y + 4 * z
    down = torch.full((8, n_coarse), -1, dtype=torch.int32, device=keys.device)
    down[offset, parent] = rows.int()
    up = torch.full((8, n), -1, dtype=torch.int32, device=keys.device)
    up[offset, rows] = parent.int()
    return down, up


@njit(cache=True, nogil=True)
def _pack(coords, keys):
    for i in range(len(keys)):
        key = np.int64(coords[i, 0])
        for axis in range(1, 4):
            key = (key << AXIS_BITS) | (np.int64(coords[i, axis]) + _BIAS)
        keys[i] = key


@njit(cache=True, nogil=True)
def _number_runs(values, order, unique, number):
    """The distinct ones of sorted values, and for each row in ``order`` the number of its value; returns the count."""
    count = 0
    for i in range(len(values)):
        if i == 0 or values[i] != values[i - 1]:
            unique[count] = values[i]
            count += 1
        number[order[i]] = count - 1
    return count


@njit(cache=True, nogil=True)
def _fill_strided(keys, rows, parent, bit, down, up):
    down[:] = -1
    up[:] = -1
    for i in range(len(keys)):
        key, row, coarse = keys[i] >> bit, rows[i], parent[i]
        offset = (key >> (2 * AXIS_BITS) & 1) + 2 * (key >> AXIS_BITS & 1) + 4 * (key & 1)
        down[offset, coarse] = row
        up[offset, row] = coarse


@njit(cache=True, nogil=True)
def _merge_submanifold(keys, rows, kernel_size, stride, table, first, last):
    """Fill ``table`` by walking the sorted keys against themselves, one (dx, dy) column of neighbours at a time.

    A shifted sorted list is still sorted, so a pointer that only moves forward finds every neighbour. Half of the
    columns are enough: each pair found is written in both directions, so columns write to different rows of the table.
    """
    n, square, radius = len(keys), kernel_size * kernel_size, kernel_size // 2
    centre, volume = square // 2, table.shape[0]
    reach = 2 * radius * stride
    bit = 0
    while (1 << bit) < stride:
        bit += 1
    for half in range(first, last):
        column = centre + half
        dy, dx = column // kernel_size - radius, column % kernel_size - radius
        for z in range(kernel_size):
            table[z * square + column] = -1
            table[volume - 1 - z * square - column] = -1
        if half == 0:
            for i in range(n):
                row, j = rows[i], i + 1
                table[volume // 2, row] = row
                while j < n and keys[j] - keys[i] <= radius * stride:
                    index = volume // 2 + ((keys[j] - keys[i]) >> bit) * square
                    table[index, row] = rows[j]
                    table[volume - 1 - index, rows[j]] = row
                    j += 1
            continue
        shift = ((dx * stride) << (2 * AXIS_BITS)) + ((dy * stride) << AXIS_BITS) - radius * stride
        p = 0
        for i in range(n):
            wanted = keys[i] + shift
            while p < n and keys[p] < wanted:
                p += 1
            j = p
            while j < n and keys[j] - wanted <= reach:
                index = ((keys[j] - wanted) >> bit) * square + column
                table[index, rows[i]] = rows[j]
                table[volume - 1 - index, rows[j]] = rows[i]
                j += 1
