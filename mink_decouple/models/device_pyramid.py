"""The down-sampling pyramid of RandLA-Net on the device that its batch lives on.

The rows equal those of ``data.neighbors.pyramid`` and ``data.collate``; what changes is that a whole batch is searched
at once, where Triton works, instead of one crop after another on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from mink_decouple.models import triton_knn
from mink_decouple.sparse import triton_runtime

_CHUNK = 2**22


class Level(NamedTuple):
    """One resolution of a batch: what ``randlanet.PyramidLevel`` asks for.

    Attributes:
        coords: (n, 3) float32, metres.
        neighbors: (n, k) int64, rows of the k nearest points of the same sample, the point itself first.
        pool: (m,) int64, the rows that live on in the next, coarser level, in its order.
        up: (n,) int64, for each point the row of the nearest point of the coarser level.
    """

    coords: Tensor
    neighbors: Tensor
    pool: Tensor
    up: Tensor


def usable(device: torch.device) -> bool:
    """Whether :func:`pyramid_on` is fast there; elsewhere the CPU's search is the better one."""
    return triton_runtime.works(device)


def pyramid_on(coords: Tensor, sizes: Sequence[int], ratios: Sequence[int], k: int) -> list[Level]:
    """Index tables of a batch of shuffled crops for every encoder layer of RandLA-Net.

    Args:
        coords: (n, 3) float32, metres, finite; rows of all samples concatenated. The tables are made on its device.
        sizes: rows of each sample, on the host; they sum to n.
        ratios: down-sampling factor of each layer, each >= 1.
        k: neighbours per point.

    Returns:
        One ``Level`` per ratio, finest first. No sample has fewer than one point in any.

    Raises:
        ValueError: ``sizes`` do not sum to n or hold an empty sample, a ratio or k is below 1, or there are more than
            ``triton_knn.BATCH_LIMIT`` samples.
    """
    if sum(sizes) != len(coords) or any(size < 1 for size in sizes):
        raise ValueError(f"sizes {list(sizes)} must be positive and sum to {len(coords)} rows")
    if any(ratio < 1 for ratio in ratios):
        raise ValueError(f"ratios are {list(ratios)}; each must be at least 1")
    levels = []
    fine = coords.float().contiguous()
    batch = _batch(sizes, fine.device)
    index = _index(fine, batch, len(sizes))
    for ratio in ratios:
        kept = [max(size // ratio, 1) for size in sizes]
        pool = torch.cat(
            [
                torch.arange(start, start + count, device=fine.device)
                for start, count in zip(accumulate([0, *sizes]), kept)
            ]
        )
        coarse = fine.index_select(0, pool)
        coarse_batch = _batch(kept, fine.device)
        coarse_index = _index(coarse, coarse_batch, len(sizes))
        order = None if index is None else index.rows
        neighbors = _search(index, fine, batch, fine, batch, k, order)
        up = _search(coarse_index, coarse, coarse_batch, fine, batch, 1, order)[:, 0]
        levels.append(Level(fine, neighbors, pool, up))
        fine, batch, index, sizes = coarse, coarse_batch, coarse_index, kept
    return levels


def knn(
    query: Tensor, support: Tensor, k: int, query_batch: Tensor | None = None, batch: Tensor | None = None
) -> Tensor:
    """Exact k nearest neighbours of the same sample, nearest first; equal distances in row order.

    Args:
        query: (m, 3) float32, metres, finite.
        support: (n, 3) float32, metres, finite, n >= 1, on the same device.
        k: neighbours wanted, >= 1.
        query_batch: (m,) int64 sample of each query; None with ``batch`` None: one sample.
        batch: (n,) int64 sample of each support point, below ``triton_knn.BATCH_LIMIT``; each sample that is asked for
            has at least one.

    Returns:
        (m, k) int64 rows of ``support``. Where a sample has fewer than k points, the nearest fills the columns that are
        left.

    Raises:
        ValueError: ``support`` is empty, k < 1, or only one of the batches is given.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if len(support) == 0:
        raise ValueError("support is empty; nearest neighbours need at least one point")
    if (query_batch is None) != (batch is None):
        raise ValueError("give the samples of both query and support, or of neither")
    index = _index(support, batch, 1)
    return _search(index, support, batch, query, query_batch, k, None)


def _batch(sizes: Sequence[int], device: torch.device) -> Tensor:
    samples = torch.arange(len(sizes), device=device)
    return torch.repeat_interleave(samples, torch.tensor(sizes, device=device), output_size=sum(sizes))


def _index(support: Tensor, batch: Tensor | None, samples: int) -> triton_knn.Index | None:
    if samples > triton_knn.BATCH_LIMIT:
        raise ValueError(f"{samples} samples in a batch; at most {triton_knn.BATCH_LIMIT}")
    return triton_knn.build(support, batch) if usable(support.device) else None


def _search(
    index: triton_knn.Index | None,
    support: Tensor,
    batch: Tensor | None,
    query: Tensor,
    query_batch: Tensor | None,
    k: int,
    order: Tensor | None,
) -> Tensor:
    if index is not None:
        return triton_knn.search(index, query, k, query_batch, order)
    return _search_all(support, batch, query, query_batch, k)


def _search_all(support: Tensor, batch: Tensor | None, query: Tensor, query_batch: Tensor | None, k: int) -> Tensor:
    """Every distance, a chunk of queries at a time: for devices without Triton."""
    found = torch.empty(len(query), k, dtype=torch.int64, device=query.device)
    points = support.double()
    step = max(1, _CHUNK // len(support))
    for start in range(0, len(query), step):
        asked = query[start : start + step].double()
        distance = sum((asked[:, i, None] - points[None, :, i]).square() for i in range(3))
        assert isinstance(distance, Tensor)
        if batch is not None and query_batch is not None:
            other = query_batch[start : start + step, None] != batch[None, :]
            distance = distance.masked_fill(other, float("inf"))
        # a stable sort leaves equal distances in row order
        near, rows = torch.sort(distance, dim=1, stable=True)
        near, rows = near[:, :k], rows[:, :k]
        rows = torch.where(near.isinf(), rows[:, :1], rows)
        found[start : start + step, : rows.shape[1]] = rows
        found[start : start + step, rows.shape[1] :] = rows[:, :1]
    return found
