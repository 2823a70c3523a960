"""RandLA-Net as its public PyTorch ports are written, for comparison: 1x1 convolutions over (B, C, N, K), torch.gather.

Layers, order of channels and weights are those of ours, so both give the same logits on the same indices. Neighbours
come from scipy's cKDTree, in the process that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional as F

from mink_decouple.data.collate import Batch
from mink_decouple.models.segmenter import Segmenter

SLOPE = 0.2


@dataclass(frozen=True, eq=False)
class DenseLevel:
    """One resolution of B crops of equal size.

    Attributes:
        coords: (B, N, 3) float32.
        neighbors: (B, N, K) int64, rows of the same crop.
        pool: (B, M, K) int64, the neighbours of the rows that live on.
        up: (B, N, 1) int64, nearest row of the next level.
    """

    coords: Tensor
    neighbors: Tensor
    pool: Tensor
    up: Tensor

    def to(self, device: str) -> DenseLevel:
        """The same level on another device."""
        return DenseLevel(*(tensor.to(device) for tensor in (self.coords, self.neighbors, self.pool, self.up)))


def prepare(crops: Sequence[np.ndarray], ratios: Sequence[int], k: int, workers: int) -> list[DenseLevel]:
    """The levels of shuffled crops (N, 3), by cKDTree.

    Args:
        crops: float32, metres, all of one length.
        ratios: down-sampling factor of each layer.
        k: neighbours; every level but the last must have as many points.
        workers: threads of a query.
    """
    levels = []
    fine = list(crops)
    for ratio in ratios:
        kept = len(fine[0]) // ratio
        neighbors, up = [], []
        for points in fine:
            neighbors.append(cKDTree(points).query(points, k=k, workers=workers)[1])
            up.append(cKDTree(points[:kept]).query(points, k=1, workers=workers)[1])
        near = torch.from_numpy(np.stack(neighbors))
        rows = torch.from_numpy(np.stack(fine))
        levels.append(DenseLevel(rows, near, near[:, :kept], torch.from_numpy(np.stack(up)).unsqueeze(2)))
        fine = [points[:kept] for points in fine]
    return levels


def levels_of(batch: Batch) -> list[DenseLevel]:
    """The levels of our batch of crops of equal size."""
    crops = len(batch.names)
    assert batch.pyramid is not None
    levels = []
    for level in batch.pyramid:
        n, m = len(level.coords) // crops, len(level.pool) // crops
        here = torch.arange(crops, device=level.coords.device).view(-1, 1, 1)
        near = level.neighbors.view(crops, n, -1) - here * n
        up = level.up.view(crops, n, 1) - here * m
        levels.append(DenseLevel(level.coords.view(crops, n, 3), near, near[:, :m], up))
    return levels


def gather(table: Tensor, index: Tensor) -> Tensor:
    """Rows of `table` (B, C, N, 1) at `index` (B, M, K): (B, C, M, K)."""
    batch, channels = table.shape[:2]
    flat = index.reshape(batch, 1, -1).expand(-1, channels, -1)
    return table.squeeze(3).gather(2, flat).view(batch, channels, *index.shape[1:])


class ConvNorm(nn.Module):
    """1x1 convolution, batch norm and LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, activation: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-6, momentum=0.01)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, N, K) -> (B, C_out, N, K)."""
        x = self.norm(self.conv(x))
        return F.leaky_relu(x, SLOPE) if self.activation else x


class AttentivePooling(nn.Module):
    """Softmax scores over the neighbours, then a dense layer."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, channels, 1, bias=False)
        self.mlp = ConvNorm(channels, out_channels)

    def forward(self, near: Tensor) -> Tensor:
        """(B, C, N, K) -> (B, C_out, N, 1)."""
        scores = torch.softmax(self.score(near), dim=3)
        pooled: Tensor = self.mlp((near * scores).sum(dim=3, keepdim=True))
        return pooled


class DilatedResidualBlock(nn.Module):
    """Local spatial encoding and attentive pooling, twice, beside a shortcut."""

    def __init__(self, in_channels: int, d: int) -> None:
        super().__init__()
        half = d // 2
        self.mlp1 = ConvNorm(in_channels, half)
        self.locse1, self.pool1 = ConvNorm(10, half), AttentivePooling(d, half)
        self.locse2, self.pool2 = ConvNorm(half, half), AttentivePooling(d, d)
        self.mlp2 = ConvNorm(d, 2 * d, activation=False)
        self.shortcut = ConvNorm(in_channels, 2 * d, activation=False)

    def forward(self, x: Tensor, level: DenseLevel) -> Tensor:
        """(B, C_in, N, 1) -> (B, 2 d, N, 1)."""
        f_xyz = self.locse1(positions(level))
        y = self.pool1(torch.cat([gather(self.mlp1(x), level.neighbors), f_xyz], dim=1))
        f_xyz = self.locse2(f_xyz)
        y = self.pool2(torch.cat([gather(y, level.neighbors), f_xyz], dim=1))
        return F.leaky_relu(self.mlp2(y) + self.shortcut(x), SLOPE)


def positions(level: DenseLevel) -> Tensor:
    """Distance, difference, centre and neighbour: (B, 10, N, K)."""
    points = level.coords.transpose(1, 2).unsqueeze(3)
    near = gather(points, level.neighbors)
    centre = points.expand_as(near)
    difference = centre - near
    distance = difference.square().sum(dim=1, keepdim=True).sqrt()
    return torch.cat([distance, difference, centre, near], dim=1)


class Conv2dRandLANet(nn.Module):
    """Encoder, decoder and classifier.

    Args:
        in_channels: F.
        d_out: d of each encoder layer.
        classes: C.
    """

    def __init__(self, in_channels: int, d_out: Sequence[int], classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(in_channels, 8)
        widths = [8, *(2 * d for d in d_out)]
        self.encoder = nn.ModuleList(DilatedResidualBlock(c, d) for c, d in zip(widths, d_out, strict=False))
        self.bottleneck = ConvNorm(widths[-1], widths[-1])
        skips = [widths[1], *widths[1:-1]]
        self.decoder = nn.ModuleList(ConvNorm(s + c, s) for s, c in zip(skips, [*skips[1:], widths[-1]], strict=True))
        self.fc1, self.fc2 = ConvNorm(skips[0], 64), ConvNorm(64, 32)
        self.dropout = nn.Dropout(0.5)
        self.fc3 = nn.Conv2d(32, classes, 1)

    def forward(self, feats: Tensor, levels: Sequence[DenseLevel]) -> Tensor:
        """Features (B, N, F) and levels, finest first -> logits (B, C, N)."""
        x = self.stem(feats.transpose(1, 2).unsqueeze(3))
        skips: list[Tensor] = []
        for layer, level in zip(self.encoder, levels, strict=True):
            x = layer(x, level)
            skips = skips or [x]
            x = gather(x, level.pool).amax(dim=3, keepdim=True)
            skips.append(x)
        x = self.bottleneck(skips.pop())
        for layer, level in zip(reversed(self.decoder), reversed(levels), strict=True):
            x = layer(torch.cat([skips.pop(), gather(x, level.up)], dim=1))
        logits: Tensor = self.fc3(self.dropout(self.fc2(self.fc1(x))))
        return logits.squeeze(3)

    def load(self, model: Segmenter) -> Conv2dRandLANet:
        """Take the weights of our network with an MLP head."""
        own = self.state_dict()
        theirs = {**model.backbone.state_dict(), **model.classifier.state_dict()}
        for name, value in theirs.items():
            stem, _, leaf = name.rpartition(".")
            names = (name, f"{stem}.conv.{leaf}", f"{name}.weight")
            target = own[next(found for found in names if found in own)]
            target.copy_(value.view(target.shape))
        return self
