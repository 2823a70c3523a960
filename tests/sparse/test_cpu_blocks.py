"""Pairs by block of output rows, against a search of the table."""

import numpy as np
import pytest
import torch

from mink_decouple import threads
from mink_decouple.sparse.cpu_blocks import BLOCK_ROWS, blocks_of
from mink_decouple.sparse.kernel_map import NeighborTable


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("n", [0, 1, BLOCK_ROWS, 3 * BLOCK_ROWS + 17])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_every_pair_stands_in_its_group_in_row_order(count, n, share, monkeypatch):
    monkeypatch.setattr(threads, "MIN_PARALLEL_OPERATIONS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    rng = np.random.default_rng(n)
    rows = np.where(rng.random((8, n)) < share, rng.integers(0, 50, (8, n)), -1).astype(np.int32)
    blocks = blocks_of(NeighborTable(torch.from_numpy(rows), 50))
    assert blocks.pairs == (rows >= 0).sum() and blocks.splits.shape == (-(-n // BLOCK_ROWS), 9)
    for number, splits in enumerate(blocks.splits):
        part = rows[:, number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
        for k in range(8):
            there = np.nonzero(part[k] >= 0)[0]
            group = slice(splits[k], splits[k + 1])
            np.testing.assert_array_equal(blocks.target[group], there)
            np.testing.assert_array_equal(blocks.source[group], part[k][there])
    assert not blocks.source[blocks.pairs :].any()  # what a tile reads ahead names a row that exists
