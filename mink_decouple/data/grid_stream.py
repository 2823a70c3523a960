"""Grid sub-sampling of a scene that passes in chunks: the grid cloud of `grid.subsample` in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from mink_decouple.data.grid import grid_origin
from mink_decouple.data.voxels import cell_keys, unique_keys
from mink_decouple.jit import njit

COORDS, LABELS, FEATURE = "coords", "labels", "features."
"""Names of the columns of a grid cloud; that of a feature is behind the last."""
HELD_BYTES = 1 << 30
"""Sums that are held together; where all columns need more, they are summed in as many passes as it takes."""
_MERGE_KEYS = 1 << 22
_BLOCK_CELLS = 1 << 20


@dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive points of a scene.

    Attributes:
        coords: (n, 3) float32 metres.
        features: name -> (n,) or (n, k) numbers; those that were asked for.
        labels: (n,) int64 train ids, -1 ignored; None for an unlabelled scene.
    """

    coords: np.ndarray
    features: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None


Read = Callable[[Collection[str]], Iterable[Rows]]
"""Begins a pass over the chunks of a scene, with these of its features. Every pass gives the same points."""


def stream_columns(
    name: str,
    read: Read,
    features: Mapping[str, tuple[int, ...]],
    size: float,
    put_inverse: Callable[[np.ndarray], None],
) -> Iterator[tuple[str, np.ndarray]]:
    """The columns of what `grid.subsample` makes of the whole cloud, bit for bit, from passes over its chunks.

    The first pass finds the lowest corner, the second the occupied cells, the others their sums, label counts and the
    way back. Memory grows with the cells, not with the points: 12 bytes each, 4 for each class where there are labels,
    and the sums of `HELD_BYTES` or of one column.

    Args:
        name: scene name.
        read: of the scene, which has at least one chunk.
        features: name -> shape of a point's value: () or (k,).
        size: edge length of a cell, metres.
        put_inverse: gets the (n,) int64 grid points of each chunk's points, in order.

    Yields:
        `COORDS` and (V, 3) float32, `FEATURE` + name and (V,) or (V, k) float32 of every feature, and, where the scene
        is labelled, `LABELS` and (V,) int64.

    Raises:
        ValueError: `size` is not positive or a coordinate is not finite or too far.
    """
    try:
        origin = grid_origin(_lowest(read(())), size)
        keys = _cells(cell_keys(rows.coords, size, origin) for rows in read(()))
        shapes = {COORDS: (3,), **{FEATURE + key: shape for key, shape in features.items()}}
        counts: np.ndarray | None = None
        labels: np.ndarray | None = None
        for group in _groups(shapes, len(keys)):
            first, votes = counts is None, None
            sums = {key: np.zeros((len(keys), *(shapes[key] or (1,)))) for key in group}
            counts = np.zeros(len(keys), np.uint32) if counts is None else counts
            for rows in read([key.removeprefix(FEATURE) for key in group if key != COORDS]):
                inverse = _number(keys, cell_keys(rows.coords, size, origin))
                for key, total in sums.items():
                    column = rows.coords if key == COORDS else rows.features[key.removeprefix(FEATURE)]
                    _add(_summable(column if column.ndim == 2 else column[:, None]), inverse, total)
                if first:
                    put_inverse(inverse)
                    _count(inverse, counts)
                    votes = votes if rows.labels is None else _vote(rows.labels, inverse, votes, len(keys))
            if votes is not None:
                labels = _majority(votes)
            for key in group:
                yield key, _means(sums.pop(key), counts).reshape(-1, *shapes[key])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if labels is not None:
        yield LABELS, labels


def _groups(shapes: Mapping[str, tuple[int, ...]], cells: int) -> Iterator[list[str]]:
    """Columns to sum together."""
    group: list[str] = []
    held = 0
    for key, shape in shapes.items():
        taken = 8 * cells * (shape[0] if shape else 1)
        if group and held + taken > HELD_BYTES:
            yield group
            group, held = [], 0
        group.append(key)
        held += taken
    yield group


def _means(total: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(V, k) float32 of (V, k) float64 sums, whose memory they take over: half of it, from its beginning."""
    means = total.reshape(-1).view(np.float32)[: total.size].reshape(total.shape)
    for begin in range(0, len(total), _BLOCK_CELLS):
        rows = slice(begin, begin + _BLOCK_CELLS)
        means[rows] = total[rows] / np.maximum(counts[rows], 1)[:, None]  # never beyond the sums that are read already
    return means


def _majority(votes: np.ndarray) -> np.ndarray:
    """(V,) int64 most frequent label of each cell, -1 without any."""
    labels = np.full(len(votes), -1, np.int64)
    if votes.shape[1]:
        known = votes.any(axis=1)
        labels[known] = votes[known].argmax(axis=1)
    return labels


def _lowest(chunks: Iterable[Rows]) -> np.ndarray:
    lowest = np.full(3, np.inf, np.float32)
    for rows in chunks:
        lowest = np.minimum(lowest, rows.coords.min(axis=0, initial=np.inf))
    return lowest if np.isfinite(lowest).all() else np.zeros(3, np.float32)


def _cells(chunks: Iterator[np.ndarray]) -> np.ndarray:
    """The different keys of all chunks, ascending."""
    known = np.empty(0, np.int64)
    waiting: list[np.ndarray] = []
    held = 0
    for keys in chunks:
        waiting.append(unique_keys(keys)[0])
        held += len(waiting[-1])
        # Merging whenever as many keys wait as are known costs each key a logarithmic number of merges.
        if held >= max(_MERGE_KEYS, len(known)):
            known, waiting, held = np.unique(np.concatenate([known, *waiting])), [], 0
    return np.unique(np.concatenate([known, *waiting]))


def _number(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n,) int64 position of every wanted key, looking each up once."""
    found, _, inverse = unique_keys(wanted)
    return np.searchsorted(keys, found)[inverse]


def _vote(labels: np.ndarray, inverse: np.ndarray, votes: np.ndarray | None, cells: int) -> np.ndarray:
    """Label counts (V, C) with those of a chunk added; C grows to the highest id."""
    classes = int(labels.max(initial=-1)) + 1
    if votes is None:
        votes = np.zeros((cells, 0), np.int32)
    if votes.shape[1] < classes:
        votes = np.concatenate([votes, np.zeros((cells, classes - votes.shape[1]), np.int32)], axis=1)
    _tally(labels, inverse, votes)
    return votes


def _summable(rows: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(rows)
    return rows.astype(np.float32) if rows.dtype in (np.bool_, np.float16) else rows  # numba sums neither


@njit(cache=True, nogil=True)
def _count(inverse: np.ndarray, counts: np.ndarray) -> None:
    for cell in inverse:
        counts[cell] += 1


@njit(cache=True, nogil=True)
def _add(rows: np.ndarray, inverse: np.ndarray, total: np.ndarray) -> None:
    # In the order of the points, as `voxels.group_mean` adds: sums of floats depend on it.
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            total[inverse[i], k] += rows[i, k]


@njit(cache=True, nogil=True)
def _tally(labels: np.ndarray, inverse: np.ndarray, votes: np.ndarray) -> None:
    for i in range(labels.shape[0]):
        if labels[i] >= 0:
            votes[inverse[i], labels[i]] += 1
