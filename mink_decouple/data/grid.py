"""Sub-sample a cloud once to a regular grid: the unit of sampling, pseudo-labels and voting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.groups import Groups
from mink_decouple.data.voxels import voxelise
from mink_decouple.jit import njit


@dataclass(frozen=True, eq=False)
class GridCloud:
    """A cloud reduced to one point per occupied cell, with the way back to every raw point.

    Attributes:
        name: scene name.
        coords: (V, 3) float32 barycentres, metres, in the raw cloud's frame.
        features: name -> (V,) or (V, k) float32 means.
        labels: (V,) int64 majority train ids (-1 where no raw point has one), or None.
        inverse: (N,) int64 grid point of every raw point: ``prediction[inverse]`` is per raw point.
        size: edge length of a cell, metres.
    """

    name: str
    coords: np.ndarray
    features: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    inverse: np.ndarray
    size: float

    def __len__(self) -> int:
        return len(self.coords)


def grid_origin(lowest: np.ndarray, size: float) -> np.ndarray | None:
    """The corner that cells are counted from, (3,) float32; None for a size that is none."""
    # Cells are counted from the lowest corner, as RandLA-Net does: scanner coordinates are whole millimetres, so many
    # lie on a cell border, and published counts come from this rounding. It keeps far clouds within reach too.
    return np.floor(lowest / size) * size if size > 0 else None


@njit(cache=True, nogil=True)
def _lowest(coords: np.ndarray) -> np.ndarray:
    """`coords.min(axis=0)`, which NumPy does slowly over rows of three."""
    lowest = coords[0].copy()
    for i in range(1, len(coords)):
        for axis in range(3):
            value = coords[i, axis]
            # the second comparison is for NaN, which must reach the lowest to be refused
            if value < lowest[axis] or value != value:
                lowest[axis] = value
    return lowest


def subsample(cloud: PointCloud, size: float) -> GridCloud:
    """Grid sub-sampling of RandLA-Net's preparation: barycentre, mean features, majority label.

    A cell is ``floor((coords - origin) / size)`` with ``origin = floor(min / size) * size``; grid points are ordered by
    cell, so the result depends on nothing but the cloud.

    Args:
        cloud: N points; labels are train ids with -1 ignored, or None.
        size: edge length of a cell, metres.

    Returns:
        V <= N grid points. Ignored raw points do not vote; ties go to the lowest id.

    Raises:
        ValueError: ``size`` is not positive or a coordinate is not finite or too far.
    """
    try:
        lowest = _lowest(cloud.coords) if len(cloud) else np.zeros(3, np.float32)
        voxels = voxelise(cloud.coords, size, origin=grid_origin(lowest, size))
    except ValueError as error:
        raise ValueError(f"{cloud.name}: {error}") from None
    count = len(voxels)
    groups = Groups(voxels.inverse, count)
    labels = None
    if cloud.labels is not None:
        classes = int(cloud.labels.max(initial=-1)) + 1
        labels = groups.majority(cloud.labels, classes)
    return GridCloud(
        name=cloud.name,
        coords=groups.mean(cloud.coords),
        features={key: groups.mean(column) for key, column in cloud.features.items()},
        labels=labels,
        inverse=voxels.inverse,
        size=float(size),
    )
