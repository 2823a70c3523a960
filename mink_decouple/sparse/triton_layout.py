"""Rows of a neighbour table in the order that suits a GPU, and the lists that its kernels walk.

A tile of output rows multiplies by every kernel offset that any of its rows has, so rows with equal sets of neighbours
belong together. Rows are sorted by the bit mask of their neighbours, rare offsets most significant; equal masks stay in
row order, which keeps the input rows they gather close in memory. Where few neighbours are present even sorted tiles
waste much work: then the offsets are split in groups, each with an order of its own (TorchSparse++, MICRO 2023).

All of this is made once per table and kept as long as the table lives. It waits for the device where the numbers of
pairs decide: over the groups of a large 3x3x3 table, and over the list of pairs that the weight gradient walks.
"""

# mypy: allow-untyped-defs
# Triton infers the types of the functions it compiles.

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mink_decouple.sparse.kernel_map import NeighborTable
from mink_decouple.sparse.triton_runtime import jit, tl

_BLOCK = 256
_FULL = 0.45
"""Share of neighbours present above which one group of 27 offsets wastes little."""
_FEW_ROWS = 16_384
"""Rows below which launches cost more than wasted products."""
_SPLIT = 3
_LONGEST = 27
_WIDTH = 32
"""Lanes for the offsets of a group, a power of two."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """Kernel offsets that each tile of H output rows needs, and the input rows they meet there, group by group.

    Attributes:
        counts: (G, T) int32, how many offsets.
        lists: (G, T, V_g) int32, these offsets (numbered within the group), then anything.
        rows: (G, T, V_g, H) int32, input rows or -1 for each of these offsets, then anything.
    """

    counts: Tensor
    lists: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Chunks:
    """Pairs cut into pieces of one offset each, so that programs have equal work.

    Attributes:
        bounds: (number, 2) int32, first pair of each piece and the one after its last.
        splits: (V + 1,) int32; offset ``k`` owns the pieces ``splits[k]:splits[k + 1]``.
        number: of pieces.
    """

    bounds: Tensor
    splits: Tensor
    number: int


@dataclass(frozen=True, eq=False)
class Layout:
    """What the kernels need of one table.

    Attributes:
        table: (V, n_out) int32.
        counts: (V,) int64, pairs of each offset.
    """

    table: Tensor
    counts: Tensor
    _chunks: dict[int, Chunks] = field(default_factory=dict)
    _tiles: dict[int, Tiles] = field(default_factory=dict)

    @cached_property
    def present(self) -> tuple[int, ...]:
        """Pairs of each offset, on the host."""
        return tuple(self.counts.tolist())

    @cached_property
    def groups(self) -> int:
        """How many groups of consecutive offsets, G."""
        volume, n = self.table.shape
        if volume == _LONGEST and n >= _FEW_ROWS and sum(self.present) < _FULL * volume * n:
            return _SPLIT
        return -(-volume // _LONGEST)

    @property
    def size(self) -> int:
        """Offsets of each group but the last, which may have fewer, V_g."""
        return -(-self.table.shape[0] // self.groups)

    @cached_property
    def order(self) -> Tensor:
        """(G, n_out) int64, the output row of each place of each group."""
        return sorted_rows(self.table, self.counts, self.groups, self.size)

    def tiles(self, height: int) -> Tiles:
        """The places in tiles of ``height``."""
        if height not in self._tiles:
            (volume, n), device = self.table.shape, self.table.device
            number = -(-n // height)
            counts = torch.empty(self.groups, number, dtype=torch.int32, device=device)
            lists = torch.empty(self.groups, number, self.size, dtype=torch.int32, device=device)
            rows = torch.empty(self.groups, number, self.size, height, dtype=torch.int32, device=device)
            if number:
                _list_offsets[(number, self.groups)](
                    self.table, self.order, counts, lists, rows, n, volume, self.size, HEIGHT=height
                )
            self._tiles[height] = Tiles(counts, lists, rows)
        return self._tiles[height]

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """(P,) int32 input rows and (P,) int32 output rows of all pairs, offset by offset."""
        flat = self.table.reshape(-1)
        place = (flat >= 0).nonzero().squeeze(1)
        return flat.index_select(0, place), (place % max(self.table.shape[1], 1)).int()

    def chunks(self, length: int) -> Chunks:
        """The pairs in pieces of at most ``length``."""
        if length not in self._chunks:
            ends = np.cumsum(self.present)
            pieces = [np.arange(end - count, end, length) for count, end in zip(self.present, ends)]
            stops = [np.minimum(piece + length, end) for piece, end in zip(pieces, ends)]
            bounds = np.stack([np.concatenate(pieces), np.concatenate(stops)], axis=1).astype(np.int32)
            splits = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int32)
            device = self.table.device
            self._chunks[length] = Chunks(
                torch.from_numpy(bounds).to(device), torch.from_numpy(splits).to(device), len(bounds)
            )
        return self._chunks[length]


_LAYOUTS: WeakKeyDictionary[NeighborTable, Layout] = WeakKeyDictionary()


def layout(table: NeighborTable) -> Layout:
    """The layout of a table, made on first use and kept as long as the table."""
    if table not in _LAYOUTS:
        rows = table.rows.contiguous()
        _LAYOUTS[table] = Layout(rows, (rows >= 0).sum(1))
    return _LAYOUTS[table]


def sorted_rows(table: Tensor, counts: Tensor, groups: int, size: int) -> Tensor:
    """(G, n) int64: for each group the output rows by falling neighbour mask, so that the longest tiles start first.

    Args:
        table: (V, n) int32.
        counts: (V,) pairs of each offset; the bit of an offset is the higher the rarer it is within its group.
        groups: number of groups, G.
        size: offsets of each group but the last, at most 32.
    """
    volume, n = table.shape
    # Few bits make a short radix sort. All groups are sorted at once: theirs are the highest bits.
    bits = size + (groups - 1).bit_length()
    dtype = torch.int16 if bits < 15 else torch.int32 if bits < 31 else torch.int64
    masks = torch.empty(groups, n, dtype=dtype, device=table.device)
    if n:
        _fill_masks[(-(-n // _BLOCK), groups)](table, counts, masks, n, volume, size, BLOCK=_BLOCK, WIDTH=_WIDTH)
    order = torch.sort(masks.view(-1), stable=True, descending=True).indices
    return (order if groups == 1 or not n else order.remainder_(n)).view(groups, n)


@jit("n", "volume", "size")
def _fill_masks(table, counts, masks, n, volume, size, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    group = tl.program_id(1)
    first = group * size
    here = tl.minimum(size, volume - first)
    lane = tl.arange(0, WIDTH)
    all_counts = tl.load(counts + first + lane, mask=lane < here, other=-1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    mask = tl.zeros((BLOCK,), tl.int64)
    for k in range(here):
        own = tl.load(counts + first + k)
        bit = tl.sum(((all_counts > own) | ((all_counts == own) & (lane < k))).to(tl.int32), axis=0)
        found = tl.load(table + tl.cast(first + k, tl.int64) * n + place, mask=inside, other=-1) >= 0
        mask |= found.to(tl.int64) << bit
    mask |= (tl.num_programs(1) - 1 - group).to(tl.int64) << size
    tl.store(masks + tl.cast(group, tl.int64) * n + place, mask.to(masks.dtype.element_ty), mask=inside)


@jit("n", "volume", "size")
def _list_offsets(table, order, counts, lists, rows, n, volume, size, HEIGHT: tl.constexpr):
    group = tl.program_id(1)
    first = group * size
    tile = tl.cast(group, tl.int64) * tl.num_programs(0) + tl.program_id(0)
    within = tl.arange(0, HEIGHT)
    place = tl.program_id(0) * HEIGHT + within
    inside = place < n
    target = tl.load(order + tl.cast(group, tl.int64) * n + place, mask=inside, other=0)
    count = 0
    for k in range(tl.minimum(size, volume - first)):
        found = tl.load(table + tl.cast(first + k, tl.int64) * n + target, mask=inside, other=-1)
        needed = (tl.max(found, axis=0) >= 0).to(tl.int32)
        here = tile * size + count
        tl.store(lists + here, k, mask=needed > 0)
        tl.store(rows + here * HEIGHT + within, found, mask=within < needed * HEIGHT)
        count += needed
    tl.store(counts + tile, count)
