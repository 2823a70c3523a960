"""The pairs of a neighbour table in the order in which the CPU kernels work on them."""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from mink_decouple.jit import njit
from mink_decouple.sparse.cpu_tiles import LOOKAHEAD
from mink_decouple.sparse.kernel_map import NeighborTable
from mink_decouple.threads import share

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
        count, volume = -(-rows.shape[1] // BLOCK_ROWS), len(rows)
        splits = np.zeros((count, volume + 1), np.int64)
        share(lambda first, last: _count_pairs(rows, splits, first, last), count, rows.size)
        ends = np.cumsum(splits[:, 1:].reshape(-1))
        splits[:, 1:] = ends.reshape(count, volume)
        splits[1:, 0] = splits[:-1, volume]
        pairs = int(ends[-1]) if count else 0
        # a tile looks ahead
        source, target = np.zeros(pairs + LOOKAHEAD, np.int32), np.zeros(pairs + LOOKAHEAD, np.int32)
        share(lambda first, last: _list_pairs(rows, source, target, splits, first, last), count, 2 * rows.size)
        _BLOCKS[table] = Blocks(source, target, splits, pairs)
    return _BLOCKS[table]


@njit(cache=True, nogil=True)
def _count_pairs(rows, splits, first, last):
    """Write the number of pairs of every group behind its place in ``splits``."""
    volume, n = rows.shape
    for block in range(first, last):
        for k in range(volume):
            row = rows[k, block * BLOCK_ROWS : min(n, (block + 1) * BLOCK_ROWS)]
            total = 0
            for u in range(len(row)):
                total += np.int64(row[u] >= 0)
            splits[block, k + 1] = total


@njit(cache=True, nogil=True)
def _list_pairs(rows, source, target, splits, first, last):
    volume, n = rows.shape
    for block in range(first, last):
        start, p, stop = block * BLOCK_ROWS, splits[block, 0], splits[block, volume]
        for k in range(volume):
            row = rows[k, start : min(n, start + BLOCK_ROWS)]
            for u in range(len(row)):
                # Written always and counted if present: the processor cannot foresee which neighbours are there. Beyond
                # the last pair begins what belongs to another thread.
                if p < stop:
                    source[p] = row[u]
                    target[p] = u
                    p += np.int64(row[u] >= 0)
