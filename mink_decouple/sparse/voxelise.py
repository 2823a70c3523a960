"""Points to voxels and back on the device that holds them, in plain torch operations; no sum uses atomics.

The voxels, their order, means and labels are those of ``data.voxels``, which does the same on the CPU with numba: equal
input gives equal output on both, bit for bit, as long as the device adds float64 in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mink_decouple.sparse.kernel_map import AXIS_LIMIT, pack, unpack


@dataclass(frozen=True, eq=False)
class Voxels:
    """The occupied voxels of a batch of clouds, ordered by ``(batch, x, y, z)``: ready for a ``SparseTensor``.

    Attributes:
        coords: (V, 4) int32 ``[batch, x, y, z]``.
        inverse: (N,) int64, voxel of each point.
        order: (N,) int64, points regrouped by voxel, ascending within one.
        starts: (V,) int64, where each voxel's points begin in ``order``.
    """

    coords: Tensor
    inverse: Tensor
    order: Tensor
    starts: Tensor

    @property
    def first(self) -> Tensor:
        """(V,) int64, lowest point of each voxel."""
        return self.order.index_select(0, self.starts)

    def __len__(self) -> int:
        return len(self.coords)


def voxelise(points: Tensor, size: float, origin: Tensor | None = None, batch: Tensor | None = None) -> Voxels:
    """Assign every point to its cube of a regular grid, ``floor((points - origin) / size)``.

    Args:
        points: (N, 3) float32 or float64, metres. The arithmetic is in this type.
        size: edge length of a voxel, metres.
        origin: (3,) a voxel's corner, metres; zero by default.
        batch: (N,) integer cloud of each point, from 0; zero by default.

    Returns:
        The occupied voxels, on the device of ``points``. Waits for the device: their number decides shapes.

    Raises:
        ValueError: ``size`` is not positive, a shape or type is wrong, a point is not finite or lies more than
            ``AXIS_LIMIT`` voxels from the origin, or a batch index cannot be packed.
    """
    if not (math.isfinite(size) and size > 0):
        raise ValueError(f"voxel size: {size}; must be a positive number of metres")
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"points must be (N, 3) float32 or float64, got {tuple(points.shape)} {points.dtype}")
    # As a tensor, so that the quotient is rounded in the type of the points on every device.
    edge = torch.tensor(size, dtype=points.dtype, device=points.device)
    cells = ((points if origin is None else points - origin.to(points)) / edge).floor()
    # The negated form also catches NaN, which fails every comparison.
    bad = ~(cells.abs() <= AXIS_LIMIT).all(1)
    if bool(bad.any()):
        point = int(bad.nonzero()[0])
        raise ValueError(
            f"point {point} at {points[point].tolist()}: not finite or beyond {AXIS_LIMIT * size:g} m from the grid's "
            f"origin, the reach of {size:g} m voxels; subtract an offset or use larger voxels"
        )
    of = torch.zeros(len(points), dtype=torch.int64, device=points.device) if batch is None else batch.long()
    keys, order = torch.sort(pack(torch.cat([of.unsqueeze(1), cells.long()], 1)), stable=True)
    begins = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=begins[1:])
    inverse = torch.empty_like(order)
    inverse[order] = begins.cumsum(0) - 1
    starts = begins.nonzero().squeeze(1)
    return Voxels(unpack(keys.index_select(0, starts)), inverse, order, starts)


def voxel_mean(values: Tensor, voxels: Voxels) -> Tensor:
    """Mean over the points of every voxel, summed in float64 in the order of the points.

    Args:
        values: (N, k) numbers, one row per point.
        voxels: of N points.

    Returns:
        (V, k) float32.

    Raises:
        ValueError: ``values`` has another number of rows.
    """
    _check_points(values, voxels)
    if not len(values) or not values.shape[1]:
        return values.new_zeros(len(voxels), values.shape[1], dtype=torch.float32)
    total = F.embedding_bag(voxels.order, values.double(), voxels.starts, mode="sum")
    ends = F.pad(voxels.starts[1:], (0, 1), value=len(values))
    return (total / (ends - voxels.starts).unsqueeze(1)).float()


def voxel_label(labels: Tensor, voxels: Voxels, classes: int) -> Tensor:
    """The commonest label of every voxel, counting labelled points only.

    Args:
        labels: (N,) integer class of each point, below ``classes``; negative: unlabelled.
        voxels: of N points.
        classes: number of classes.

    Returns:
        (V,) int64; -1 where no point is labelled or two classes tie.

    Raises:
        ValueError: ``labels`` has another number of rows, or holds a class beyond ``classes``.
    """
    _check_points(labels, voxels)
    if bool((labels >= classes).any()):
        raise ValueError(f"class id {int(labels.max())} is outside 0..{classes - 1}")
    given = labels >= 0
    # One code per pair of voxel and class: memory follows the labels, not voxels x classes.
    codes, counts = torch.unique(voxels.inverse[given] * classes + labels[given].long(), return_counts=True)
    rows, found = codes // max(classes, 1), codes % max(classes, 1)
    most = torch.zeros(len(voxels), dtype=counts.dtype, device=labels.device).scatter_reduce_(0, rows, counts, "amax")
    best = counts == most[rows]
    out = torch.full((len(voxels),), -1, dtype=torch.int64, device=labels.device)
    out[rows[best]] = found[best]
    return out.masked_fill_(torch.bincount(rows[best], minlength=len(voxels)) > 1, -1)


def point_values(values: Tensor, voxels: Voxels) -> Tensor:
    """Carry labels, scores or features of voxels back to their points: (V, ...) -> (N, ...).

    Raises:
        ValueError: ``values`` has another number of rows than there are voxels.
    """
    if len(values) != len(voxels):
        raise ValueError(f"{len(values)} values for {len(voxels)} voxels; lengths must agree")
    return values.index_select(0, voxels.inverse)


def _check_points(values: Tensor, voxels: Voxels) -> None:
    if len(values) != len(voxels.inverse):
        raise ValueError(f"{len(values)} values for {len(voxels.inverse)} points; lengths must agree")
