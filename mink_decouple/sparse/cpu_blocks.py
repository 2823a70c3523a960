"""The pairs of a neighbour table in the order in which the CPU kernels work on them."""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numba
import numpy as np

from mink_decouple.sparse.cpu_tiles import LOOKAHEAD
from mink_decouple.sparse.kernel_map import NeighborTable

BLOCK_ROWS = 256
"""Output rows whose sums stay in cache while all kernel offsets are worked on."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Pairs of a table by block of output rows, then kernel offset; ``splits[b, k]:splits[b, k + 1]`` are one group.

    ``target`` counts from the first row of the block.
    """

    source: np.ndarray
    target: np.ndarray
    splits: np.ndarray
    pairs: int


_BLOCKS: WeakKeyDictionary[NeighborTable, Blocks] = WeakKeyDictionary()


def blocks_of(table: NeighborTable) -> Blocks:
    """The pairs of a table, listed once and kept as long as the table."""
    if table not in _BLOCKS:
        rows = table.rows.numpy()
        count, pairs = -(-rows.shape[1] // BLOCK_ROWS), int(np.count_nonzero(rows >= 0))
        # a tile looks ahead, and the listing writes one entry beyond a block before it knows
        source, target = np.zeros(pairs + LOOKAHEAD, np.int32), np.zeros(pairs + LOOKAHEAD, np.int32)
        splits = np.zeros((count, len(rows) + 1), np.int64)
        _list_pairs(rows, source, target, splits)
        _BLOCKS[table] = Blocks(source, target, splits, pairs)
    return _BLOCKS[table]


@numba.njit(cache=True, nogil=True)
def _list_pairs(rows, source, target, splits):
    volume, n = rows.shape
    p = 0
    for block in range(splits.shape[0]):
        first, last = block * BLOCK_ROWS, min(n, (block + 1) * BLOCK_ROWS)
        splits[block, 0] = p
        for k in range(volume):
            row = rows[k]
            for u in range(first, last):
                # Written always and counted if present: the processor cannot foresee which neighbours are there.
                source[p] = row[u]
                target[p] = u - first
                p += np.int64(row[u] >= 0)
            splits[block, k + 1] = p
    source[p:] = 0
    target[p:] = 0
