"""Voxels on which both engines are compared."""

from collections.abc import Callable

import torch
from torch import Tensor


def surface(items: int, generator: torch.Generator) -> Tensor:
    """Wavy surfaces in the positive octant: the neighbourhoods of scanned rooms."""
    grid = torch.cartesian_prod(torch.arange(24), torch.arange(24))
    parts = []
    for item in range(items):
        phase = torch.rand(2, generator=generator) * 6
        z = (6 + 3 * torch.sin(grid[:, 0] / 5 + phase[0]) + 3 * torch.cos(grid[:, 1] / 4 + phase[1])).round().long()
        parts.append(torch.cat([torch.full((len(grid), 1), item), grid, z.unsqueeze(1)], 1))
    return torch.cat(parts)


def scattered(items: int, generator: torch.Generator, low: int = 0) -> Tensor:
    """A sixth of the cells of a block, at random."""
    side, parts = 16, []
    for item in range(items):
        cell = torch.randperm(side**3, generator=generator)[: side**3 // 6]
        xyz = torch.stack([cell // side**2, cell // side % side, cell % side], 1) + low
        parts.append(torch.cat([torch.full((len(xyz), 1), item), xyz], 1))
    return torch.cat(parts)


KINDS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "surface": surface,
    "random": scattered,
    "negative": lambda items, generator: scattered(items, generator, low=-11),
}
CASES = [(kind, items) for kind in KINDS for items in (1, 2, 3, 4)]


def draw_voxels(kind: str, items: int) -> Tensor:
    generator = torch.Generator().manual_seed(items)
    found = KINDS[kind](items, generator).int()
    return found[torch.randperm(len(found), generator=generator)]
