"""SparseTensor: features on voxels, and the coordinate levels and kernel maps shared by all tensors of one input."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mink_decouple.sparse import kernel_map as km


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution of the coordinate pyramid.

    Attributes:
        coords: (n, 4) int32 ``[batch, x, y, z]`` in row order, absolute units.
        keys: (n,) int64 sorted packed coordinates.
        order: (n,) int64 row of each key, None where rows are sorted already.
    """

    coords: Tensor
    keys: Tensor
    order: Tensor | None


class MapCache:
    """Coordinate levels and kernel maps of one input, built on first use.

    Strided levels hold their voxels sorted by ``(batch, x, y, z)``; the level given keeps its row order.

    Args:
        coords: (n, 4) int32 ``[batch, x, y, z]``.
        stride: spacing of the given coordinates, a power of two.

    Raises:
        ValueError: wrong shape or dtype, a duplicate voxel, a coordinate out of range or off the stride's grid.
    """

    def __init__(self, coords: Tensor, stride: int = 1) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4 or coords.dtype != torch.int32:
            raise ValueError(f"coords must be (N, 4) int32 [batch, x, y, z], got {tuple(coords.shape)} {coords.dtype}")
        km.check_stride(stride)
        if stride > 1 and bool((coords[:, 1:] % stride != 0).any()):
            raise ValueError(f"coords hold a voxel that is no multiple of the tensor stride {stride}")
        keys, order = km.sort_keys(km.pack(coords))
        self._levels = {stride: Level(coords, keys, order)}
        self._submanifold: dict[tuple[int, int], km.KernelMap] = {}
        self._strided: dict[int, km.KernelMap] = {}

    def in_key_order(self) -> MapCache:
        """A cache of the given coordinates with sorted rows: itself where they are sorted; no maps are shared."""
        (stride, given), *_ = self._levels.items()
        if given.order is None:
            return self
        other = copy(self)
        other._levels = {stride: Level(given.coords.index_select(0, given.order), given.keys, None)}
        other._submanifold, other._strided = {}, {}
        return other

    def level(self, stride: int) -> Level:
        """The coordinates at ``stride``.

        Raises:
            ValueError: nothing has been convolved down to that stride.
        """
        if stride not in self._levels:
            raise ValueError(f"no coordinates at tensor stride {stride}; known strides: {sorted(self._levels)}")
        return self._levels[stride]

    def submanifold(self, stride: int, kernel_size: int) -> km.KernelMap:
        """The map of an odd kernel of stride 1 on the level ``stride``."""
        key = (stride, kernel_size)
        if key not in self._submanifold:
            level = self.level(stride)
            self._submanifold[key] = km.submanifold_map(level.keys, level.order, kernel_size, stride)
        return self._submanifold[key]

    def strided(self, stride: int) -> km.KernelMap:
        """The map of kernel 2, stride 2 from the level ``stride`` to ``2 * stride``, which is made if it is new."""
        if stride not in self._strided:
            fine = self.level(stride)
            coarse_keys, parent = km.strided_keys(fine.keys, stride)
            if 2 * stride not in self._levels:
                self._levels[2 * stride] = Level(km.unpack(coarse_keys), coarse_keys, None)
            self._strided[stride] = km.strided_map(fine.keys, fine.order, parent, len(coarse_keys), stride)
        return self._strided[stride]


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features on a set of voxels.

    Attributes:
        coords: (N, 4) int32 ``[batch, x, y, z]``, unique rows, multiples of ``stride``.
        feats: (N, C) floating point, row i belongs to ``coords[i]``.
        stride: spacing of the voxels in units of the finest grid.
        maps: cache shared by every tensor derived from one input; made where it is not given.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or ``coords`` repeats a voxel.
    """

    coords: Tensor
    feats: Tensor
    stride: int = 1
    maps: MapCache = field(default=None, repr=False)  # type: ignore[assignment] # filled in __post_init__

    def __post_init__(self) -> None:
        if self.feats.ndim != 2 or len(self.feats) != len(self.coords):
            raise ValueError(f"feats must be (N, C) with N = {len(self.coords)} voxels, got {tuple(self.feats.shape)}")
        if not self.feats.is_floating_point():
            raise ValueError(f"feats must be floating point, got {self.feats.dtype}")
        if self.feats.device != self.coords.device:
            raise ValueError(f"coords are on {self.coords.device} but feats on {self.feats.device}")
        if self.maps is None:
            object.__setattr__(self, "maps", MapCache(self.coords, self.stride))
        elif self.maps.level(self.stride).coords is not self.coords:
            raise ValueError("coords are not those of the given map cache; leave `maps` out for new coordinates")

    def replace(self, feats: Tensor) -> SparseTensor:
        """The same voxels with other features (N, C')."""
        return replace(self, feats=feats)

    def __len__(self) -> int:
        return len(self.coords)
