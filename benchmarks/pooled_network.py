"""The network of spconv's own benchmark: 14 submanifold convolutions in 7 pairs with a max-pooling between two pairs.

Widths, kernel sizes and the sharing of maps are those of its `docs/BENCHMARK.md`: one map for each level.
"""

from __future__ import annotations

from typing import Any

import torch
from spconv_minkunet import algorithm, spconv_weight
from torch import Tensor, nn
from voxel_scenes import Voxels, coarser, count_pairs

from mink_decouple.sparse.layers import Conv3d
from mink_decouple.sparse.tensor import SparseTensor

WIDTHS = (64, 96, 128, 160, 192, 224, 256)
ENTRY = 3


def work(scene: Voxels) -> float:
    """Floating-point operations of a forward."""
    total, entry = 0.0, ENTRY
    for level, width in enumerate(WIDTHS):
        pairs = count_pairs(coarser(scene.coords, 2**level), 3, 2**level)
        total += 2.0 * pairs * (entry + width) * width
        entry = width
    return total


class PooledNetwork(nn.Module):
    """Ours: (n, 3) features on n voxels -> (m, 256) on those of stride 64."""

    def __init__(self) -> None:
        super().__init__()
        entries = (ENTRY, *WIDTHS)
        pairs = [(Conv3d(entry, width), Conv3d(width, width)) for entry, width in zip(entries, WIDTHS, strict=False)]
        self.pairs = nn.ModuleList(nn.Sequential(*pair) for pair in pairs)

    def forward(self, coords: Tensor, feats: Tensor) -> SparseTensor:
        """Coordinates (n, 4) int32 and features (n, 3)."""
        x = SparseTensor(coords, feats)
        for number, pair in enumerate(self.pairs):
            x = pair(x if number == 0 else max_pool(x))
        return x


def max_pool(x: SparseTensor) -> SparseTensor:
    """Largest value of each channel in every voxel of twice the size."""
    down = x.maps.strided(x.stride)
    coarse = x.maps.level(2 * x.stride)
    assert down.reverse is not None
    # under exactly one offset a fine voxel meets its coarse one
    parent = down.reverse.rows.amax(0).long()
    # spconv's pooling on a CPU starts from zero, so it never gives less
    least = 0.0 if x.feats.device.type == "cpu" else -torch.inf
    pooled = x.feats.new_full((len(coarse.coords), x.feats.shape[1]), least)
    rows = pooled.scatter_reduce(0, parent.unsqueeze(1).expand_as(x.feats), x.feats, "amax")
    return SparseTensor(coarse.coords, rows, 2 * x.stride, x.maps)


class SpconvPooledNetwork(nn.Module):
    """The same over spconv, with our weights."""

    def __init__(self, sp: Any, ours: PooledNetwork) -> None:
        super().__init__()
        self.sp = sp
        layers: list[nn.Module] = []
        for level, pair in enumerate(ours.pairs):
            layers += [sp.SparseMaxPool3d(2, 2, algo=algorithm(sp))] if level else []
            for conv in pair.children():
                assert isinstance(conv, Conv3d)
                made = sp.SubMConv3d(
                    conv.in_channels,
                    conv.out_channels,
                    3,
                    bias=False,
                    indice_key=f"level{level}",
                    algo=algorithm(sp),
                )
                made.weight.data.copy_(spconv_weight(conv.kernel.detach()))
                layers.append(made)
        self.layers = sp.SparseSequential(*layers)

    def forward(self, coords: Tensor, feats: Tensor, shape: list[int]) -> Any:
        """As ours; `shape` is the extent along x, y, z, multiples of 64."""
        return self.layers(self.sp.SparseConvTensor(feats, coords, shape, 1))
