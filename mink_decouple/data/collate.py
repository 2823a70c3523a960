"""Views of a sample (voxels or shuffled points) and the batch that a network sees.

A view has one row per thing the network classifies. Rows of all samples of a batch are concatenated, every row number
is global, and nothing is padded, so samples may have different sizes and give the same features as they would alone in
evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mink_decouple.data.groups import Groups
from mink_decouple.data.neighbors import Level, pyramid
from mink_decouple.data.voxels import voxelise


@dataclass(frozen=True)
class View:
    """One sample as a backbone sees it, before batching.

    Attributes:
        name: of the scene.
        coords: (n, 3) float32, metres, centred.
        feats: (n, F) float32.
        target: (n,) int64, -1 where no label is visible.
        inverse: (r,) int64, row of each sample point.
        voxels: (n, 3) int32 cells, or None.
        pyramid: levels, or None.
    """

    name: str
    coords: Tensor
    feats: Tensor
    target: Tensor
    inverse: Tensor
    voxels: Tensor | None = None
    pyramid: list[Level] | None = None


@dataclass(frozen=True)
class Batch:
    """What a network sees.

    Attributes:
        coords: (n, 3) float32, metres, centred on each sample.
        feats: (n, F) float32.
        target: (n,) int64, -1 where no label is visible.
        batch: (n,) int64, sample of each row.
        names: scene of each of the b samples.
        inverse: (r,) int64, row of each sample point, samples one after another.
        sizes: (b,) int64, sample points of each sample; they sum to r.
        voxels: (n, 4) int32 [batch, x, y, z] for MinkUNet, or None.
        pyramid: levels for RandLA-Net, or None.
    """

    coords: Tensor
    feats: Tensor
    target: Tensor
    batch: Tensor
    names: tuple[str, ...]
    inverse: Tensor
    sizes: Tensor
    voxels: Tensor | None = None
    pyramid: list[Level] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        levels = None if self.pyramid is None else [level.to(device) for level in self.pyramid]
        moved: dict[str, Any] = {name: t.to(device) for name, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, pyramid=levels, **moved)


def _check(name: str, coords: np.ndarray, feats: np.ndarray, target: np.ndarray) -> None:
    if len(coords) == 0:
        raise ValueError(f"sample of {name}: no points")
    if not (len(coords) == len(feats) == len(target) and feats.ndim == 2):
        shapes = f"coords {coords.shape}, feats {feats.shape}, target {target.shape}"
        raise ValueError(f"sample of {name}: {shapes}; expected (n, 3), (n, F) and (n,)")


def _tensor(array: np.ndarray, dtype: type) -> Tensor:
    # a sample's arrays may be shared or read-only, and a tensor is writable: never a view of them
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def voxel_view(name: str, coords: np.ndarray, feats: np.ndarray, target: np.ndarray, size: float | np.ndarray) -> View:
    """Occupied voxels of a sample, for MinkUNet.

    Args:
        name: of the scene.
        coords: (n, 3) float32, metres, centred and augmented.
        feats: (n, F) float.
        target: (n,) int64, -1 where no label is visible.
        size: edge of a voxel, metres: one for a cube, or (3,) along x, y, z.

    Returns:
        A row per occupied voxel: floor(coords / size), mean coordinates and features, and the majority of its labelled
        points (-1 where two classes tie).

    Raises:
        ValueError: no points, unequal lengths, edges that are not three positive lengths, or a coordinate that does not
            fit the grid.
    """
    _check(name, coords, feats, target)
    edges = np.asarray(size, np.float32)
    if edges.shape not in ((), (3,)) or not (edges > 0).all():
        raise ValueError(f"voxel: {edges.tolist()}; must be one positive length or three, along x, y and z")
    # cubes of one metre after scaling: an edge may differ by axis
    cells = voxelise((coords / edges).astype(np.float32), 1.0)
    n = len(cells.index)
    groups = Groups(cells.inverse, n)
    labels = groups.majority(target, int(target.max(initial=-1)) + 1, ties="ignore")
    return View(
        name,
        _tensor(groups.mean(coords), np.float32),
        _tensor(groups.mean(feats), np.float32),
        _tensor(labels, np.int64),
        _tensor(cells.inverse, np.int64),
        voxels=_tensor(cells.index, np.int32),
    )


def point_view(
    name: str,
    coords: np.ndarray,
    feats: np.ndarray,
    target: np.ndarray,
    ratios: Sequence[int],
    k: int,
    rng: np.random.Generator,
) -> View:
    """Shuffled points of a sample with their pyramid, for RandLA-Net.

    Args:
        name: of the scene.
        coords: (n, 3) float32, metres, centred and augmented.
        feats: (n, F) float.
        target: (n,) int64, -1 where no label is visible.
        ratios: down-sampling factor of each encoder layer.
        k: neighbours per point.
        rng: of the shuffle, which decides what random sampling keeps.

    Raises:
        ValueError: no points, unequal lengths, or a coordinate that is not finite.
    """
    _check(name, coords, feats, target)
    order = rng.permutation(len(coords))
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order))
    rows = coords[order]
    return View(
        name,
        _tensor(rows, np.float32),
        _tensor(feats[order], np.float32),
        _tensor(target[order], np.int64),
        torch.from_numpy(inverse),
        pyramid=pyramid(rows, ratios, k),
    )


def _join_levels(levels: Sequence[Level], coarse_sizes: Sequence[int]) -> Level:
    """One level of all samples: rows concatenated, row numbers moved by what lies before."""
    here, there = 0, 0
    neighbors, pool, up = [], [], []
    for level, coarse in zip(levels, coarse_sizes, strict=True):
        neighbors.append(level.neighbors + here)
        pool.append(level.pool + here)
        up.append(level.up + there)
        here += len(level.coords)
        there += coarse
    return Level(torch.cat([level.coords for level in levels]), torch.cat(neighbors), torch.cat(pool), torch.cat(up))


def collate(views: Sequence[View]) -> Batch:
    """Views of one kind, in order, as one batch.

    Raises:
        ValueError: no views, or views of different kinds.
    """
    if not views:
        raise ValueError("no views to collate; a batch needs at least one sample")
    kinds = {(v.voxels is None, None if v.pyramid is None else len(v.pyramid), v.feats.shape[1]) for v in views}
    if len(kinds) > 1:
        raise ValueError("views differ in kind, number of levels or features; a batch needs views made the same way")
    rows = [len(v.coords) for v in views]
    before = np.concatenate([[0], np.cumsum(rows)[:-1]]).tolist()
    batch = torch.repeat_interleave(torch.arange(len(views)), torch.tensor(rows))
    voxels = None
    if views[0].voxels is not None:
        cells = torch.cat([v.voxels for v in views if v.voxels is not None])
        voxels = torch.cat([batch.to(torch.int32).unsqueeze(1), cells], dim=1)
    levels = None
    if views[0].pyramid is not None:
        by_level = list(zip(*(v.pyramid for v in views if v.pyramid is not None), strict=True))
        levels = [_join_levels(same, [len(level.pool) for level in same]) for same in by_level]
    return Batch(
        coords=torch.cat([v.coords for v in views]),
        feats=torch.cat([v.feats for v in views]),
        target=torch.cat([v.target for v in views]),
        batch=batch,
        names=tuple(v.name for v in views),
        inverse=torch.cat([v.inverse + start for v, start in zip(views, before, strict=True)]),
        sizes=torch.tensor([len(v.inverse) for v in views]),
        voxels=voxels,
        pyramid=levels,
    )


def rows_from_points(values: Tensor, batch: Batch, num_classes: int) -> Tensor:
    """Carry classes of sample points to the rows of a batch.

    Args:
        values: (r,) int64 class of each sample point, negative for none.
        batch: whose `inverse` is used.
        num_classes: C.

    Returns:
        (n,) int64 commonest class of the row's points that have one; -1 where none has, or two classes tie.

    Raises:
        ValueError: `values` is not one per sample point, or holds a class beyond C.
    """
    if values.shape != batch.inverse.shape:
        raise ValueError(
            f"values has shape {tuple(values.shape)}; expected {tuple(batch.inverse.shape)}, one per sample point"
        )
    if bool((values >= num_classes).any()):
        raise ValueError(f"values holds class {int(values.max())}; expected classes below {num_classes}")
    given = values >= 0
    # one code per pair of row and class: memory follows the labels, not rows x classes
    codes, counts = torch.unique(batch.inverse[given] * num_classes + values[given], return_counts=True)
    rows, classes = codes // num_classes, codes % num_classes
    n = len(batch.coords)
    most = torch.zeros(n, dtype=counts.dtype, device=values.device).scatter_reduce_(0, rows, counts, "amax")
    best = counts == most[rows]
    out = torch.full((n,), -1, dtype=torch.int64, device=values.device)
    out[rows[best]] = classes[best]
    ties = torch.bincount(rows[best], minlength=n) > 1
    return out.masked_fill_(ties, -1)
