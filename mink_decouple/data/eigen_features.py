"""The shape of a point's neighbourhood from the eigenvalues of its covariance, as classic point classifiers use it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mink_decouple.threads import share

Array = NDArray[np.float32]
CHUNK = 16_384
"""Points that a thread describes together: about 100 MB of neighbours."""

SHAPE_NAMES = (
    "linearity",
    "planarity",
    "sphericity",
    "omnivariance",
    "anisotropy",
    "eigenentropy",
    "surface_variation",
    "eigenvalue_sum",
    "verticality",
    "axis_verticality",
    "neighbors",
    "distance_to_mean",
    "z_range",
    "z_above_min",
    "z_below_max",
    "z_std",
    "z_to_mean",
)
"""Columns of `Spheres`, in order; means and deviations of the attributes follow them."""


OPERATIONS = 20_000
"""Arithmetic operations that a sphere takes, roughly."""
THINNING = 5.0
"""Neighbours are taken from a cloud thinned to cells of the radius over this."""


def thin(coords: NDArray[np.floating], cell: float) -> NDArray[np.int64]:
    """Index of one point per occupied cell of a grid of ``cell`` metres, in ascending order."""
    cells = np.floor((coords - coords.min(axis=0)) / cell).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    return np.sort(first)


class Spheres:
    """Describes the spheres around points by the eigenvalues of their covariance and by their heights.

    With eigenvalues ``a >= b >= c``: linearity ``(a-b)/a``, planarity ``(b-c)/a``, sphericity ``c/a``, omnivariance
    ``(abc)^(1/3)``, anisotropy ``(a-c)/a``, eigenentropy ``-sum p ln p`` and surface variation ``c/(a+b+c)`` with ``p``
    the eigenvalues over their sum (Weinmann et al. 2015); verticality ``1 - |n_z|`` of the normal. A sphere of fewer
    than three points has no shape: its shape columns are zero.

    Args:
        coords: (N, 3) metres, the cloud whose points are the neighbours.
        radius: metres.
        max_neighbors: only the nearest this many points of a sphere are used.
        attributes: (N, A) per point; their neighbourhood means and standard deviations are appended.

    Raises:
        ValueError: the cloud is empty or the radius is not positive.
    """

    def __init__(
        self,
        coords: NDArray[np.floating],
        radius: float,
        max_neighbors: int = 64,
        attributes: NDArray[np.floating] | None = None,
    ) -> None:
        if len(coords) == 0:
            raise ValueError("eigen-features: the cloud has no point")
        if radius <= 0:
            raise ValueError(f"radius: {radius} is not positive")
        self._points = coords
        self._values = np.zeros((len(coords), 0), np.float32) if attributes is None else attributes
        self._tree, self._radius, self._k = cKDTree(coords), radius, min(max_neighbors, len(coords))

    @property
    def width(self) -> int:
        """Columns of a row: ``len(SHAPE_NAMES) + 2 A``."""
        return len(SHAPE_NAMES) + 2 * self._values.shape[1]

    def describe(self, queries: NDArray[np.floating]) -> Array:
        """(Q, width) float32 rows of (Q, 3) places, metres; on the calling thread."""
        centres = np.asarray(queries, dtype=np.float64)
        _, index = self._tree.query(centres, k=[*range(1, self._k + 1)], distance_upper_bound=self._radius)
        return _describe(self._points, self._values, centres, index).astype(np.float32)


class Surroundings:
    """What a classic classifier sees of the points of a cloud: their features, and spheres of several radii.

    The neighbours of a sphere are those of the cloud thinned to a fifth of its radius (Thomas et al. 2018), so that
    their number stays bounded at every scale.

    Args:
        coords: (N, 3) metres.
        table: (N, A) float32 features of the points.
        radii: metres.
        max_neighbors: of a sphere.

    Raises:
        ValueError: see `Spheres`.
    """

    def __init__(
        self, coords: NDArray[np.floating], table: Array, radii: Sequence[float], max_neighbors: int = 64
    ) -> None:
        self._coords, self._table, self._spheres = coords, table, []
        for radius in radii:
            kept = thin(coords, radius / THINNING)
            self._spheres.append(Spheres(coords[kept], radius, max_neighbors, table[kept]))

    def __len__(self) -> int:
        return len(self._coords)

    def rows(self, points: NDArray[np.int64]) -> Array:
        """(n, F) float32 rows of (n,) points, on the calling thread, so keep them few (`CHUNK`)."""
        around = [sphere.describe(self._coords[points]) for sphere in self._spheres]
        return np.concatenate([self._table[points], *around], axis=1)

    def all_rows(self, points: NDArray[np.int64]) -> Array:
        """The same of any number of points, shared among threads."""
        width = self._table.shape[1] + sum(sphere.width for sphere in self._spheres)
        out = np.empty((len(points), width), np.float32)

        def work(first: int, last: int) -> None:
            for start in range(first, last, CHUNK):
                rows = slice(start, min(start + CHUNK, last))
                out[rows] = self.rows(points[rows])

        share(work, len(points), OPERATIONS * len(points))
        return out


def _describe(
    points: NDArray[np.floating], values: NDArray[np.floating], centres: NDArray[np.float64], index: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Columns of `Spheres.describe`; ``index`` (Q, k) holds ``len(points)`` where a neighbour is missing."""
    valid = index < len(points)
    index = np.where(valid, index, 0)
    count = valid.sum(axis=1)
    n = np.maximum(count, 1)[:, None]
    # Offsets from the query keep the covariance accurate far from the origin.
    offsets = (points[index].astype(np.float64) - centres[:, None]) * valid[..., None]
    mean = offsets.sum(axis=1) / n
    centred = (offsets - mean[:, None]) * valid[..., None]
    covariance = np.einsum("qki,qkj->qij", centred, centred) / n[..., None]
    eigenvalues, vectors = np.linalg.eigh(covariance)
    c, b, a = np.clip(eigenvalues, 0.0, None).T
    shaped = (count >= 3) & (a > 0)
    top = np.where(shaped, a, 1.0)
    total = np.where(shaped, a + b + c, 1.0)
    p = np.stack([a, b, c], axis=1) / total[:, None]
    entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1)
    shape = np.stack(
        [
            (a - b) / top,
            (b - c) / top,
            c / top,
            np.cbrt(a * b * c),
            (a - c) / top,
            entropy,
            c / total,
            a + b + c,
            1.0 - np.abs(vectors[:, 2, 0]),
            np.abs(vectors[:, 2, 2]),
        ],
        axis=1,
    )
    shape[~shaped] = 0.0
    z = offsets[..., 2]
    empty = count == 0
    low = np.where(empty, 0.0, np.where(valid, z, np.inf).min(axis=1))
    high = np.where(empty, 0.0, np.where(valid, z, -np.inf).max(axis=1))
    z_std = np.sqrt(np.clip(covariance[:, 2, 2], 0.0, None))
    heights = np.stack([high - low, -low, high, z_std, mean[:, 2]], axis=1)
    columns = [shape, count[:, None], np.linalg.norm(mean, axis=1)[:, None], heights]
    if values.shape[1]:
        near = values[index].astype(np.float64) * valid[..., None]
        average = near.sum(axis=1) / n
        spread = ((near - average[:, None]) * valid[..., None]) ** 2
        columns += [average, np.sqrt(spread.sum(axis=1) / n)]
    return np.concatenate(columns, axis=1)
