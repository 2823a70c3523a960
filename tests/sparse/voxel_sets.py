"""Small voxel sets for the tests of the sparse engine."""

import torch
from torch import Tensor


def random_voxels(
    seed: int, sizes: tuple[int, ...] = (60, 25), side: int = 6, low: int = -7, shuffle: bool = True
) -> Tensor:
    """(N, 4) int32 distinct voxels of ``len(sizes)`` batch items, negative ones included, in random row order."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index, size in enumerate(sizes):
        cell = torch.randperm(side**3, generator=generator)[:size]
        xyz = torch.stack([cell // side**2, cell // side % side, cell % side], 1) + low
        items.append(torch.cat([torch.full((len(xyz), 1), index), xyz], 1))
    voxels = torch.cat(items).int()
    if shuffle:
        return voxels[torch.randperm(len(voxels), generator=generator)]
    return voxels


def surface_voxels(seed: int, items: int = 2, side: int = 40) -> Tensor:
    """(N, 4) int32 voxels of wavy surfaces, about ``side**2`` per item: the neighbourhoods of scanned rooms."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    parts = []
    for item in range(items):
        phase = torch.rand(2, generator=generator) * 6
        z = (5 * torch.sin(grid[:, 0] / 7 + phase[0]) + 5 * torch.cos(grid[:, 1] / 5 + phase[1])).round().long()
        parts.append(torch.cat([torch.full((len(grid), 1), item), grid - side // 2, z.unsqueeze(1)], 1))
    return torch.cat(parts).int()
