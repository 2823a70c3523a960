"""Tiny batches and a RandLA-Net written out point by point in float64."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mink_decouple.models.rows import Dense


@dataclass(frozen=True)
class Level:
    coords: Tensor
    neighbors: Tensor
    pool: Tensor
    up: Tensor


@dataclass(frozen=True)
class Batch:
    feats: Tensor
    pyramid: list[Level] | None


def nearest(query, support, k):
    order = torch.cdist(query.double(), support.double(), compute_mode="donot_use_mm_for_euclid_dist").argsort(dim=1)
    order = order[:, :k]
    return torch.cat([order, order[:, :1].expand(-1, k - order.shape[1])], dim=1)


def draw(n, seed, channels=3, ratios=(4, 2), k=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    fine = torch.rand(n, 3, generator=generator, dtype=dtype) * 4
    levels = []
    for ratio in ratios:
        kept = torch.arange(max(len(fine) // ratio, 1))
        levels.append(Level(fine, nearest(fine, fine, k), kept, nearest(fine, fine[kept], 1)[:, 0]))
        fine = fine[kept]
    return Batch(torch.randn(n, channels, generator=generator, dtype=dtype), levels)


def join(batches):
    """Samples one after another at every level, row numbers moved accordingly."""
    levels = []
    for same in zip(*(b.pyramid for b in batches), strict=True):
        here = np.cumsum([0, *(len(level.coords) for level in same)])
        there = np.cumsum([0, *(len(level.pool) for level in same)])
        levels.append(
            Level(
                torch.cat([level.coords for level in same]),
                torch.cat([level.neighbors + int(a) for level, a in zip(same, here, strict=False)]),
                torch.cat([level.pool + int(a) for level, a in zip(same, here, strict=False)]),
                torch.cat([level.up + int(a) for level, a in zip(same, there, strict=False)]),
            )
        )
    return Batch(torch.cat([b.feats for b in batches]), levels)


def scramble(model: nn.Module, seed: int) -> nn.Module:
    """Non-trivial biases, scales and running statistics, so that an omitted one shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Dense):
            with torch.no_grad():
                for tensor in (module.bias, module.norm.bias, module.norm.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
                for tensor in (module.norm.weight, module.norm.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def naive_dense(layer: Dense, x):
    """Linear with bias, batch norm and LeakyReLU of one row or of rows whose batch statistics are `x`'s own."""
    y = x @ layer.weight.T + layer.bias
    norm = layer.norm
    if norm.training:
        mean, var = y.mean(dim=0), y.var(dim=0, unbiased=False)
    else:
        mean, var = norm.running_mean, norm.running_var
    y = (y - mean) / torch.sqrt(var + 1e-6) * norm.weight + norm.bias
    return torch.where(y > 0, y, 0.2 * y) if layer.activation else y


def naive_pooling(pooling, x, f_xyz, neighbors):
    """Gather, attend and sum, one point and one channel at a time."""
    rows = []
    for i, near in enumerate(neighbors):
        together = torch.stack([torch.cat([x[j], f_xyz[i, place]]) for place, j in enumerate(near)])
        scores = together @ pooling.score.T
        total = torch.zeros(together.shape[1], dtype=x.dtype)
        for c in range(together.shape[1]):
            weights = torch.exp(scores[:, c] - scores[:, c].max())
            total[c] = (weights / weights.sum() * together[:, c]).sum()
        rows.append(total)
    return naive_dense(pooling.mlp, torch.stack(rows))


def naive_encoding(coords, neighbors):
    out = torch.zeros(*neighbors.shape, 10, dtype=coords.dtype)
    for i, near in enumerate(neighbors):
        for place, j in enumerate(near):
            apart = coords[i] - coords[j]
            out[i, place] = torch.cat([(apart**2).sum().sqrt().reshape(1), apart, coords[i], coords[j]])
    return out


def naive_block(block, x, coords, neighbors):
    n, k = neighbors.shape
    f_xyz = naive_dense(block.locse1, naive_encoding(coords, neighbors).reshape(n * k, 10))
    y = naive_pooling(block.pool1, naive_dense(block.mlp1, x), f_xyz.reshape(n, k, -1), neighbors)
    f_xyz = naive_dense(block.locse2, f_xyz)
    y = naive_pooling(block.pool2, y, f_xyz.reshape(n, k, -1), neighbors)
    z = naive_dense(block.mlp2, y) + naive_dense(block.shortcut, x)
    return torch.where(z > 0, z, 0.2 * z)


def naive_network(net, batch):
    """The whole network as its paper and its authors' code lay it out."""
    x = naive_dense(net.stem, batch.feats)
    maps = []
    for block, level in zip(net.encoder, batch.pyramid, strict=True):
        x = naive_block(block, x, level.coords, level.neighbors)
        if not maps:
            maps.append(x)
        x = torch.stack([torch.stack([x[j] for j in level.neighbors[i]]).amax(dim=0) for i in level.pool])
        maps.append(x)
    x = naive_dense(net.bottleneck, maps[-1])
    for step in range(len(net.encoder)):
        level = batch.pyramid[-1 - step]
        skip = maps[-2 - step]
        x = naive_dense(
            net.decoder[-1 - step], torch.stack([torch.cat([skip[i], x[j]]) for i, j in enumerate(level.up)])
        )
    return x
