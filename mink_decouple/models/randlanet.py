"""RandLA-Net (Hu et al., "RandLA-Net: Efficient Semantic Segmentation of Large-Scale Point Clouds", CVPR 2020).

Every tensor is rows by channels: (n, C) for points and (n * k, C) for their neighbours. Batch norm, slopes, the order
of the ten local channels, the attention without bias and the max-pooling after random sampling follow the authors'
network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mink_decouple.models import fused
from mink_decouple.models.products import linear
from mink_decouple.models.rows import SLOPE, Dense, Gather, attend, pool_max, truncated_normal_

VARIANTS: dict[str, dict[str, Any]] = {
    "5": {"d_out": (16, 64, 128, 256, 512), "ratios": (4, 4, 4, 4, 2)},
    "4": {"d_out": (16, 64, 128, 256), "ratios": (4, 4, 4, 4)},
}
_STEM = 8


class PyramidLevel(Protocol):
    """What the network reads of one level; rows of all samples of the batch are concatenated."""

    @property
    def coords(self) -> Tensor:
        """(n, 3) float, metres, centred on the sample."""

    @property
    def neighbors(self) -> Tensor:
        """(n, k) int64, rows of this level, the point itself first."""

    @property
    def pool(self) -> Tensor:
        """(m,) int64, rows of this level that form the next one."""

    @property
    def up(self) -> Tensor:
        """(n,) int64, nearest row of the next level."""


class PyramidBatch(Protocol):
    """What the network reads of a batch."""

    @property
    def feats(self) -> Tensor:
        """(n, F) float, one row per point."""

    @property
    def pyramid(self) -> Sequence[PyramidLevel] | None:
        """One level per encoder layer, finest first."""


def relative_positions(coords: Tensor, neighbors: Tensor) -> Tensor:
    """Local spatial encoding before its convolution (Eq. 1), in the authors' order of channels.

    Args:
        coords: (n, 3) float, metres.
        neighbors: (n, k) int64.

    Returns:
        (n * k, 10): distance (1), p_i - p_k (3), p_i (3), p_k (3).
    """
    n, k = neighbors.shape
    # a channel at a time, since a pass over rows of three is slow
    channels = coords.new_empty(10, n * k)
    distance, difference, centre, other = channels.split([1, 3, 3, 3])
    for axis, values in enumerate(coords.t().contiguous()):
        torch.index_select(values, 0, neighbors.reshape(-1), out=other[axis])
        centre[axis].view(n, k).copy_(values.unsqueeze(1))
    torch.sub(centre, other, out=difference)
    torch.mul(difference[:1], difference[:1], out=distance)
    distance.addcmul_(difference[1:2], difference[1:2]).addcmul_(difference[2:], difference[2:]).sqrt_()
    return channels.t().contiguous()


class AttentivePooling(nn.Module):
    """Attention over neighbours, then a dense layer: (n * k, d) -> (n, C_out)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.score = nn.Parameter(truncated_normal_(torch.empty(channels, channels)))
        self.mlp = Dense(channels, out_channels)

    def forward(self, near: Tensor, k: int) -> Tensor:
        """Neighbour features (n * k, d) -> (n, C_out)."""
        pooled: Tensor = self.mlp(attend(near, self.score, k))
        return pooled


class DilatedResidualBlock(nn.Module):
    """Two rounds of local spatial encoding and attentive pooling beside a shortcut (Fig. 3): (n, C_in) -> (n, 2 d)."""

    def __init__(self, in_channels: int, d: int) -> None:
        super().__init__()
        half = d // 2
        self.mlp1 = Dense(in_channels, half)
        self.locse1 = Dense(10, half)
        self.pool1 = AttentivePooling(d, half)
        self.locse2 = Dense(half, half)
        self.pool2 = AttentivePooling(d, d)
        self.mlp2 = Dense(d, 2 * d, activation=False)
        self.shortcut = Dense(in_channels, 2 * d, activation=False)

    def forward(self, x: Tensor, coords: Tensor, gather: Gather) -> Tensor:
        """Features (n, C_in), coords (n, 3) and the neighbours (n, k) -> (n, 2 d)."""
        if fused.usable(x, coords, self.mlp1.weight, channels=len(self.mlp1.weight)):
            return self._fused(x, coords, gather)
        k = gather.index.shape[1]
        with torch.autocast(coords.device.type, enabled=False):
            # 16-bit floats would lose centimetres a few metres from the centre
            f_xyz = self.locse1(relative_positions(coords, gather.index))
        y = self.pool1(_beside(gather(self.mlp1(x)), f_xyz), k)
        f_xyz = self.locse2(f_xyz)
        y = self.pool2(_beside(gather(y), f_xyz), k)
        return F.leaky_relu(self.mlp2(y) + self.shortcut(x), SLOPE, inplace=True)

    def _fused(self, x: Tensor, coords: Tensor, gather: Gather) -> Tensor:
        f_xyz, same = fused.encode(coords, gather.index, self.locse1, SLOPE)
        y = self.pool1.mlp(fused.attend(self.mlp1(x), f_xyz, gather, self.pool1.score))
        y = self.pool2.mlp(fused.attend(y, self.locse2(same), gather, self.pool2.score))
        return fused.normalize(linear(y, self.mlp2.weight), self.mlp2, residual=self.shortcut(x), slope=SLOPE)


def _beside(features: Tensor, f_xyz: Tensor) -> Tensor:
    return torch.cat([features, f_xyz.to(features.dtype)], dim=1)


class RandLANet(nn.Module):
    """Encoder and decoder of RandLA-Net; `out_channels` features per point, before the classifier.

    Args:
        in_channels: F of `batch.feats`.
        d_out: d of each encoder layer; the layer gives 2 d channels.
        ratios: down-sampling factor after each layer, for those who build the pyramid.
    """

    def __init__(self, in_channels: int, d_out: Sequence[int], ratios: Sequence[int]) -> None:
        super().__init__()
        if len(d_out) != len(ratios):
            raise ValueError(f"d_out has {len(d_out)} layers and ratios {len(ratios)}; they must agree")
        self.ratios = tuple(ratios)
        self.stem = Dense(in_channels, _STEM)
        widths = [_STEM, *(2 * d for d in d_out)]
        self.encoder = nn.ModuleList(DilatedResidualBlock(c, d) for c, d in zip(widths, d_out, strict=False))
        self.bottleneck = Dense(widths[-1], widths[-1])
        # level 0 gives two skips of the same width: before and after its sampling
        skips = [widths[1], *widths[1:-1]]
        self.decoder = nn.ModuleList(Dense(s + c, s) for s, c in zip(skips, [*skips[1:], widths[-1]], strict=True))
        self.out_channels = skips[0]

    def forward(self, batch: PyramidBatch) -> Tensor:
        """Features (n, out_channels) of the n rows of the batch.

        Raises:
            ValueError: the batch has no pyramid, or one with another number of levels.
        """
        levels = batch.pyramid
        if levels is None or len(levels) != len(self.encoder):
            found = "none" if levels is None else len(levels)
            raise ValueError(f"the batch has {found} pyramid levels; this RandLA-Net needs {len(self.encoder)}")
        x = self.stem(batch.feats)
        skips: list[Tensor] = []
        for layer, level in zip(self.encoder, levels, strict=True):
            gather = Gather(level.neighbors, x.shape[0])
            x = layer(x, level.coords, gather)
            skips = skips or [x]
            x = pool_max(x, level.neighbors.index_select(0, level.pool))
            skips.append(x)
        x = self.bottleneck(skips.pop())
        for layer, level in zip(reversed(self.decoder), reversed(levels), strict=True):
            x = layer(torch.cat([skips.pop(), Gather(level.up, x.shape[0])(x)], dim=1))
        return x
