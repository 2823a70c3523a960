"""A cloud cut into tiles of bounded size along x and y, each with a margin of its surroundings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tile:
    """Points that are predicted together.

    Attributes:
        points: (n,) int64 ascending, those of the tile and of its margin.
        core: (n,) bool, those of the tile. Every point of the cloud is in the core of one tile.
    """

    points: np.ndarray
    core: np.ndarray


def tiles(coords: np.ndarray, most: int, margin: float) -> Iterator[Tile]:
    """Halve the cloud at the median of its longer side until no part has more than `most` points.

    Args:
        coords: (V, 3) float32 metres.
        most: points in the core of a tile, at least 1; those of one place in x and y stay together all the same.
        margin: metres around the box of the core, from which points are added.

    Raises:
        ValueError: `most` below 1 or a negative margin.
    """
    if most < 1 or margin < 0:
        raise ValueError(f"tiles of {most} points with a margin of {margin}: need at least 1 point and 0 metres")
    for core in _parts(coords, np.arange(len(coords)), most):
        low, high = _box(coords, core)
        inside = np.ones(len(coords), bool)
        for axis in (0, 1):
            inside &= (coords[:, axis] >= low[axis] - margin) & (coords[:, axis] <= high[axis] + margin)
        points = np.flatnonzero(inside)
        is_core = np.zeros(len(coords), bool)
        is_core[core] = True
        yield Tile(points, is_core[points])


def _parts(coords: np.ndarray, index: np.ndarray, most: int) -> Iterator[np.ndarray]:
    if len(index) == 0:
        return
    low, high = _box(coords, index)
    axis = int((high - low).argmax())
    if len(index) <= most or high[axis] == low[axis]:
        yield index
        return
    along = coords[index, axis]
    middle = np.median(along)
    below = along < middle if (along < middle).any() else along <= middle  # a heap at the lowest place is one part
    yield from _parts(coords, index[below], most)
    yield from _parts(coords, index[~below], most)


def _box(coords: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x and y, (2,) float64 each; an axis at a time, since the parts of a large cloud are large."""
    sides = [coords[index, axis] for axis in (0, 1)]
    low, high = (np.array([find(side) for side in sides], np.float64) for find in (np.min, np.max))
    return low, high
