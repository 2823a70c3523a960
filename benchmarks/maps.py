"""Kernel maps and voxels: ours against MinkowskiEngine, spconv, torch, numpy and open3d, and how their cost grows.

    python benchmarks/maps.py --voxels 10000 100000 500000 2000000 --points 1000000

A library that makes its map within a convolution is timed twice, on fresh coordinates and with the map made, with 8
channels; the map is the difference. So are ours, beside the map alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case, agree, growth, parser, race, run
from peers import peer
from point_scenes import building
from torch import Tensor
from voxel_scenes import Voxels, count_pairs, rooms, scan

from mink_decouple.data.voxels import unique_keys, voxelise
from mink_decouple.sparse.layers import Conv3d
from mink_decouple.sparse.tensor import MapCache, SparseTensor

CHANNELS = 8
ALONE = "ours, the map alone"
SHUFFLED = "ours, the map alone, rows shuffled"
EDGE = 0.03
Pair = tuple[Callable[[], Any], Callable[[], Any]]
Voxeliser = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def fresh_and_again(scene: Voxels) -> dict[str, Pair]:
    """For each library: a convolution on fresh coordinates, and one whose map is there."""
    feats = scene.feats(CHANNELS)
    made: dict[str, Pair] = {"ours": _ours(scene, feats)}
    for name, build in (("MinkowskiEngine", _minkowski), ("spconv", _spconv)):
        module = peer(name)
        if module is not None:
            made[name] = build(module, scene, feats)
    return made


def _ours(scene: Voxels, feats: Tensor) -> Pair:
    layer = Conv3d(CHANNELS, CHANNELS)
    x = SparseTensor(scene.coords, feats)
    return lambda: layer(SparseTensor(scene.coords.clone(), feats)).feats, lambda: layer(x).feats


def _minkowski(ME: Any, scene: Voxels, feats: Tensor) -> Pair:
    layer = ME.MinkowskiConvolution(CHANNELS, CHANNELS, kernel_size=3, dimension=3)
    x = ME.SparseTensor(feats, scene.coords)
    return lambda: layer(ME.SparseTensor(feats, scene.coords)).F, lambda: layer(x).F


def _spconv(sp: Any, scene: Voxels, feats: Tensor) -> Pair:
    layer = sp.SubMConv3d(CHANNELS, CHANNELS, 3, bias=False, indice_key="same", algo=sp.ConvAlgo.Native)
    # the pairs go into what the layer returns, not into what it is given
    again = layer(sp.SparseConvTensor(feats, scene.coords, scene.shape, 1)).replace_feature(feats)
    return (
        lambda: layer(sp.SparseConvTensor(feats, scene.coords.clone(), scene.shape, 1)).features,
        lambda: layer(again).features,
    )


def maps_case(scene: Voxels, size: int, args: argparse.Namespace) -> Case:
    """Seconds of the kernel map of a 3x3x3 convolution."""
    pairs = count_pairs(scene.coords, 3)
    case = Case(f"kernel map 3x3x3, {scene.name}", f"{len(scene):,} voxels, {pairs:,} pairs", (ALONE, "ours"), size)
    shuffled = scene.coords[torch.randperm(len(scene), generator=torch.Generator().manual_seed(0))]
    runs: dict[str, Callable[[], Any]] = {
        ALONE: lambda: MapCache(scene.coords.clone()).submanifold(1, 3),
        SHUFFLED: lambda: MapCache(shuffled.clone()).submanifold(1, 3),
    }
    entrants = fresh_and_again(scene)
    for name, (fresh, again) in entrants.items():
        runs |= {f"{name}: fresh": fresh, f"{name}: again": again}
    with torch.no_grad():
        race(case, runs, args)
    for seconds in (case.wall, case.cpu):
        roof = seconds.popitem()
        for name in entrants:
            fresh_times, again_times = seconds.pop(f"{name}: fresh"), seconds.pop(f"{name}: again")
            seconds[name] = [a - b for a, b in zip(fresh_times, again_times, strict=True)]
        seconds.update([roof])
    return case


def cells_of(points: np.ndarray) -> np.ndarray:
    """(N, 3) int64 cells, the oracle."""
    return np.floor(points / np.float32(EDGE)).astype(np.int64)


def with_ours(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (V, 3) and the voxel of each point (N,)."""
    found = voxelise(points, EDGE)
    return found.index, found.inverse


def with_torch(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `with_ours`, by torch.unique of packed int64 keys."""
    cells = torch.floor(torch.from_numpy(points) / EDGE).long() + (1 << 20)
    keys = cells[:, 0] << 42 | cells[:, 1] << 21 | cells[:, 2]
    found, inverse = torch.unique(keys, return_inverse=True)
    columns = [(found >> shift & 0x1FFFFF) - (1 << 20) for shift in (42, 21, 0)]
    return torch.stack(columns, dim=1).numpy(), inverse.numpy()


def with_torch_rows(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `with_ours`, by torch.unique over rows."""
    cells = torch.floor(torch.from_numpy(points) / EDGE).int()
    found, inverse = torch.unique(cells, dim=0, return_inverse=True)
    return found.numpy(), inverse.numpy()


def with_numpy(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `with_ours`, by numpy.unique of packed int64 keys."""
    cells = cells_of(points) + (1 << 20)
    keys = cells[:, 0] << 42 | cells[:, 1] << 21 | cells[:, 2]
    found, inverse = np.unique(keys, return_inverse=True)
    return np.stack([(found >> shift & 0x1FFFFF) - (1 << 20) for shift in (42, 21, 0)], axis=1), inverse


def with_open3d(o3d: Any) -> Voxeliser:
    """As `with_ours`, by open3d's hash set of cells; its voxels are in no order."""

    def unique(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cells = np.floor(points / np.float32(EDGE)).astype(np.int32)
        keys = o3d.core.Tensor.from_numpy(cells)
        table = o3d.core.HashSet(len(points), o3d.core.int32, (3,))
        table.insert(keys)
        rows, _ = table.find(keys)
        return table.key_tensor().numpy(), rows.numpy()

    return unique


def voxels_case(count: int, args: argparse.Namespace) -> Case:
    """Seconds from float32 coordinates to voxels and the voxel of each point."""
    points = building(count, rays=1_000_000).coords
    ways: dict[str, Voxeliser] = {
        "ours": with_ours,
        "torch.unique, packed": with_torch,
        "torch.unique, rows": with_torch_rows,
        "numpy.unique, packed": with_numpy,
    }
    o3d = peer("open3d")
    if o3d is not None:
        ways["open3d HashSet"] = with_open3d(o3d)
    wanted = cells_of(points)
    case = Case(
        f"voxels and inverse of {count:,} points", f"{len(np.unique(wanted, axis=0)):,} voxels", ("ours",), count
    )
    for name, way in ways.items():
        index, inverse = way(points)
        agree(case, name, torch.from_numpy(index[inverse]), torch.from_numpy(wanted), 0.0)
    return race(case, {name: partial(way, points) for name, way in ways.items()}, args)


def keys_case(count: int, args: argparse.Namespace) -> Case:
    """Seconds of the distinct keys and their inverse, the packed keys being given."""
    cells = cells_of(building(count, rays=1_000_000).coords) + (1 << 20)
    keys = cells[:, 0] << 42 | cells[:, 1] << 21 | cells[:, 2]
    tensor = torch.from_numpy(keys)
    case = Case(f"distinct keys and inverse of {count:,} packed keys", "", ("ours",))
    found, _, inverse = unique_keys(keys)
    agree(case, "ours", torch.from_numpy(found[inverse]), tensor, 0.0)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: unique_keys(keys),
        "torch.unique": lambda: torch.unique(tensor, return_inverse=True),
        "torch.sort": lambda: torch.sort(tensor),
        "numpy.unique": lambda: np.unique(keys, return_inverse=True),
    }
    return race(case, runs, args)


def measure(args: argparse.Namespace) -> Iterator[Case]:
    """Maps by size, the real scan's, then voxels by number of points."""
    for size in [500, 1000] if args.quick else args.voxels:
        yield maps_case(rooms(size), size, args)
    real = None if args.quick else scan(args.samples)
    if real is not None:
        yield maps_case(real, 0, args)
    for count in [1000, 2000] if args.quick else args.points:
        yield voxels_case(count, args)
        yield keys_case(count, args)


def summary(cases: Sequence[Case]) -> Iterator[str]:
    """Growth of maps and of voxels."""
    yield from growth([case for case in cases if case.title.startswith("kernel map")], "voxel of a kernel map")
    yield from growth([case for case in cases if case.title.startswith("voxels")], "point of a voxelisation")


def main() -> int:
    """Measure and print the tables."""
    made = parser(__doc__)
    made.add_argument("--voxels", type=int, nargs="+", default=[10_000, 100_000, 500_000, 2_000_000])
    made.add_argument("--points", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000])
    return run(made, measure, summary)


if __name__ == "__main__":
    sys.exit(main())
