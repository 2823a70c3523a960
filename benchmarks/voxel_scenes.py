"""Voxels to convolve over: furnished rooms of the synthetic buildings, and a real LiDAR scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mink_decouple.data.synthetic import make_room
from mink_decouple.data.voxels import voxelise
from mink_decouple.models.minkunet import Variant

ROOMS = 4
ROOM_POINTS = 1_000_000
VOXEL = 0.03
"""Metres: a room of a million points is then 110,000 voxels or more, closed surfaces with 13 to 15 pairs a voxel."""
GAP = 8
SCAN = Path("semantickitti") / "sequences" / "00" / "velodyne" / "000000.bin"
SCAN_VOXEL = 0.05


@dataclass(frozen=True, eq=False)
class Voxels:
    """A scene as rows.

    Attributes:
        name: of the scene.
        coords: (n, 4) int32 ``[0, x, y, z]``, distinct, sorted, none negative; least x, y and z are multiples of 16.
    """

    name: str
    coords: Tensor

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def shape(self) -> list[int]:
        """Extent along x, y, z, rounded up to multiples of 16."""
        return [(int(high) // 16 + 1) * 16 for high in self.coords[:, 1:].amax(0)]

    def feats(self, channels: int) -> Tensor:
        """(n, channels) float32 drawn from a normal distribution, the same for the same scene."""
        return torch.randn(len(self), channels, generator=torch.Generator().manual_seed(0))


@cache
def _room(index: int, points: int) -> np.ndarray:
    cloud = make_room(1 + index, 1, points=points)
    cells = voxelise(cloud.coords, VOXEL).index
    return cells - cells.min(0)


def rooms(count: int) -> Voxels:
    """Exactly `count` voxels of furnished rooms: four of them in rows, as often as needed, cut to a square column."""
    points = ROOM_POINTS if count > 5_000 else ROOM_POINTS // 10
    placed: list[np.ndarray] = []
    total, corner, depth = 0, 0, 0
    while total < count:
        cells = _room(len(placed) % ROOMS, points)
        if len(placed) % 8 == 0 and placed:
            corner, depth = 0, int(max(part[:, 1].max() for part in placed)) + GAP
        placed.append(cells + np.array([corner, depth, 0], np.int32))
        corner, total = int(placed[-1][:, 0].max()) + GAP, total + len(cells)
    cells = np.concatenate(placed)
    middle = (cells.min(0) + cells.max(0)) / 2
    away = np.abs(cells - middle)[:, :2].max(1)
    return _voxels(f"rooms, {count:,} voxels", cells[np.argsort(away, kind="stable")[:count]])


def scan(samples: Path) -> Voxels | None:
    """The first scan of SemanticKITTI's sequence 00 at 5 cm; None, with one line, where the sample is not there."""
    file = samples / SCAN
    if not file.is_file():
        print(f"real scan: left out, {file} is not there", flush=True)
        return None
    points = np.fromfile(file, np.float32).reshape(-1, 4)[:, :3]
    return _voxels("SemanticKITTI 00/000000 at 5 cm", voxelise(points, SCAN_VOXEL).index)


def _voxels(name: str, cells: np.ndarray) -> Voxels:
    # a multiple of 16: a strided convolution floors to the same coarse voxels wherever the scene lies
    cells = cells - cells.min(0) // 16 * 16
    cells = cells[np.lexsort(cells.T[::-1])]
    coords = np.concatenate([np.zeros((len(cells), 1)), cells], axis=1).astype(np.int32)
    return Voxels(name, torch.from_numpy(coords))


def neighbors(coords: Tensor, kernel_size: int, stride: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Output and input rows that meet under each offset of a submanifold convolution, x fastest, by binary search.

    Independent of any engine.

    Args:
        coords: (n, 4) int32 ``[batch, x, y, z]``, sorted, none negative.
        kernel_size: odd.
        stride: spacing of the coordinates.

    Yields:
        Two (p,) int64 lists of rows for each of the kernel_size ** 3 offsets.
    """
    wide = coords.long() // torch.tensor([1, stride, stride, stride]) + 8  # clear of the borders for any offset
    keys = _pack(wide)
    reach = range(-(kernel_size // 2), kernel_size // 2 + 1)
    for z in reach:
        for y in reach:
            for x in reach:
                wanted = keys + ((x << 40) + (y << 20) + z)
                place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
                outputs = (keys[place] == wanted).nonzero().squeeze(1)
                yield outputs, place[outputs]


def count_pairs(coords: Tensor, kernel_size: int, stride: int = 1) -> int:
    """Number of pairs of rows that meet in all, as :func:`neighbors` finds them."""
    return sum(len(outputs) for outputs, _ in neighbors(coords, kernel_size, stride))


def coarser(coords: Tensor, stride: int) -> Tensor:
    """The distinct voxels of `coords` (n, 4) on the grid of a stride: (m, 4) int32."""
    keys = torch.unique(_pack(coords.long() // torch.tensor([1, stride, stride, stride])))
    columns = [keys >> 60, *((keys >> shift & 0xFFFFF) * stride for shift in (40, 20, 0))]
    return torch.stack(columns, dim=1).int()


def _pack(wide: Tensor) -> Tensor:
    return wide[:, 0] << 60 | wide[:, 1] << 40 | wide[:, 2] << 20 | wide[:, 3]


def network_work(coords: Tensor, variant: Variant, in_channels: int, classes: int) -> float:
    """Floating-point operations of a MinkUNet's inference: its convolutions and its linear classifier."""
    levels = [coords] + [coarser(coords, 2**level) for level in range(1, 5)]
    sizes = [len(level) for level in levels]
    pairs = [count_pairs(level, 3, 2**number) for number, level in enumerate(levels)]
    total = float(count_pairs(coords, variant.stem_kernel) * in_channels * variant.stem)
    for level, blocks, entry, width in _stages(variant):
        for block in range(blocks):
            inside = entry if block == 0 else width
            total += pairs[level] * (inside + width) * width
            total += sizes[level] * inside * width if inside != width else 0
    planes = [variant.stem, *variant.planes]
    for number in range(4):
        fine, strided = sizes[number], planes[number]
        total += fine * strided * strided  # every fine voxel meets one coarse one
        total += fine * planes[7 - number] * planes[8 - number]
    return 2 * (total + sizes[0] * variant.planes[7] * classes)


def _stages(variant: Variant) -> Iterator[tuple[int, int, int, int]]:
    """Level, residual blocks, input and output channels of each stage."""
    skips = [variant.stem, *variant.planes[:3]]
    for number in range(4):
        yield number + 1, variant.layers[number], skips[number], variant.planes[number]
    for number in range(4, 8):
        width = variant.planes[number]
        yield 7 - number, variant.layers[number], width + skips[7 - number], width
