"""Grid sub-sampling of a scene that passes in chunks: the grid cloud of `grid.subsample` in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numba import njit

from mink_decouple.data.grid import GridCloud, grid_origin
from mink_decouple.data.voxels import cell_keys, unique_keys

_MERGE_KEYS = 1 << 22
_NO_INVERSE = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive points of a scene.

    Attributes:
        coords: (n, 3) float32 metres.
        features: name -> (n,) or (n, k) numbers.
        labels: (n,) int64 train ids, -1 ignored; None for an unlabelled scene.
    """

    coords: np.ndarray
    features: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None


def stream_subsample(
    name: str,
    read: Callable[[], Iterable[Rows]],
    size: float,
    put_inverse: Callable[[np.ndarray], None],
) -> GridCloud:
    """What `grid.subsample` makes of the whole cloud, bit for bit, from three passes over its chunks.

    The first finds the lowest corner, the second the occupied cells, the third their sums, label counts and the way
    back. Memory grows with the cells (8 bytes for each key, sum and class), not with the points.

    Args:
        name: scene name.
        read: begins a pass over the chunks, of which there is at least one; every pass gives the same.
        size: edge length of a cell, metres.
        put_inverse: gets the (n,) int64 grid points of each chunk's points, in order.

    Returns:
        The grid cloud, its `inverse` empty.

    Raises:
        ValueError: `size` is not positive or a coordinate is not finite or too far.
    """
    try:
        origin = grid_origin(_lowest(read()), size)
        keys = _cells(cell_keys(rows.coords, size, origin) for rows in read())
        sums: dict[str, np.ndarray] = {}
        counts = np.zeros(len(keys), np.int64)
        votes: np.ndarray | None = None
        for rows in read():
            inverse = _number(keys, cell_keys(rows.coords, size, origin))
            put_inverse(inverse)
            _count(inverse, counts)
            for key, column in {"": rows.coords, **rows.features}.items():
                flat = column if column.ndim == 2 else column[:, None]
                if key not in sums:
                    sums[key] = np.zeros((len(keys), flat.shape[1]))
                _add(_summable(flat), inverse, sums[key])
            if rows.labels is not None:
                votes = _vote(rows.labels, inverse, votes, len(keys))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    means = {key: (total / np.maximum(counts, 1)[:, None]).astype(np.float32) for key, total in sums.items()}
    single = {key for key, column in rows.features.items() if column.ndim == 1}
    features = {key: mean[:, 0] if key in single else mean for key, mean in means.items() if key}
    labels = None
    if votes is not None:
        labels = np.where(votes.any(axis=1), votes.argmax(axis=1), -1) if votes.shape[1] else np.full(len(keys), -1)
    return GridCloud(name, means[""], features, labels, _NO_INVERSE, float(size))


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
