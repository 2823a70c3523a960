"""Nearest neighbours, RandLA-Net's pyramid and grid sub-sampling: ours against scipy, pykdtree, open3d and torch.

    python benchmarks/knn.py --points 40960 1000000

A search is building the index and 16 neighbours of every point. scipy gets as many threads as torch; pykdtree and
open3d take the cores that the process is kept to. Distances are compared with scipy's before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from conv2d_randla import prepare
from harness import Case, agree, growth, parser, race, run
from peers import peer
from point_scenes import building
from scipy.spatial import cKDTree
from voxel_scenes import SCAN

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.grid import grid_origin, subsample
from mink_decouple.data.neighbors import knn, pyramid
from mink_decouple.models.randlanet import VARIANTS

K = 16
GRID = 0.04
RATIOS = VARIANTS["5"]["ratios"]
Search = Callable[[], np.ndarray]


def searches(points: np.ndarray) -> dict[str, Search]:
    """Each library's search: rows (n, K) of the nearest points."""
    threads = torch.get_num_threads()
    made: dict[str, Search] = {
        "ours": lambda: knn(points, points, K),
        "scipy cKDTree": lambda: np.asarray(cKDTree(points).query(points, K, workers=threads)[1]),
    }
    tree = peer("pykdtree.kdtree")
    if tree is not None:
        made["pykdtree"] = lambda: np.asarray(tree.KDTree(points).query(points, K)[1])
    o3d = peer("open3d")
    if o3d is not None:
        tensor = o3d.core.Tensor.from_numpy(points)

        def search() -> np.ndarray:
            index = o3d.core.nns.NearestNeighborSearch(tensor)
            index.knn_index()
            return np.asarray(index.knn_search(tensor, K)[0].numpy())

        made["open3d"] = search
    return made


def knn_case(name: str, points: np.ndarray, size: int, args: argparse.Namespace) -> Case:
    """Seconds of a search."""
    case = Case(f"{K} nearest neighbours of {name}", f"{len(points):,} points", ("ours",), size)
    runs = searches(points)
    wanted = torch.from_numpy(distances(points, runs["scipy cKDTree"]()))
    for entrant, search in runs.items():
        agree(case, entrant, torch.from_numpy(distances(points, search())), wanted, 1e-6)
    return race(case, runs, args)


def distances(points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n, K) float64 from each point to its neighbours, metres: equal distances may be in any order."""
    wide = points.astype(np.float64)
    found = np.empty(rows.shape)
    for column in range(rows.shape[1]):
        found[:, column] = np.sqrt(np.square(wide - wide[rows[:, column]]).sum(1))
    return found


def pyramid_case(points: np.ndarray, args: argparse.Namespace) -> Case:
    """Seconds of all neighbours that RandLA-Net reads of one crop."""
    shuffled = points[np.random.default_rng(0).permutation(len(points))]
    ratios = RATIOS[:3] if args.quick else RATIOS
    title = f"RandLA-Net's pyramid of a crop, ratios {', '.join(map(str, ratios))}"
    case = Case(title, f"{len(points):,} points", ("ours",))
    scipy = partial(prepare, [shuffled], ratios, K, torch.get_num_threads())
    for ours, theirs in zip(pyramid(shuffled, ratios, K), scipy(), strict=True):
        rows = ours.coords.numpy()
        wanted = torch.from_numpy(distances(rows, theirs.neighbors[0].numpy()))
        agree(case, "ours", torch.from_numpy(distances(rows, ours.neighbors.numpy())), wanted, 1e-6)
    return race(case, {"ours": lambda: pyramid(shuffled, ratios, K), "scipy cKDTree": scipy}, args)


def grid_with_torch(cloud: PointCloud, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means of coordinates and colours (V, 6), majority labels (V,) and the cell of each point (N,)."""
    coords, origin = torch.from_numpy(cloud.coords), grid_origin(cloud.coords.min(axis=0), GRID)
    cells = torch.floor((coords - torch.from_numpy(np.asarray(origin, np.float32))) / GRID).long()
    found, inverse = torch.unique(cells[:, 0] << 42 | cells[:, 1] << 21 | cells[:, 2], return_inverse=True)
    rows = torch.cat([coords, torch.from_numpy(cloud.features["rgb"])], dim=1)
    total = torch.zeros(len(found), 6).index_add_(0, inverse, rows)
    labels = torch.from_numpy(cloud.labels)
    votes = torch.bincount(inverse * classes + labels, minlength=len(found) * classes).view(-1, classes)
    return total / votes.sum(1, keepdim=True), votes.argmax(1), inverse


def grid_case(cloud: PointCloud, args: argparse.Namespace) -> Case:
    """Seconds of sub-sampling to a grid: mean coordinates and colours, majority labels, inverse."""
    assert cloud.labels is not None
    classes = int(cloud.labels.max()) + 1
    found = subsample(cloud, GRID)
    case = Case(f"grid sub-sampling of {cloud.name}", f"{len(found):,} cells of {100 * GRID:.0f} cm", ("ours",))
    means, labels, inverse = grid_with_torch(cloud, classes)
    assert found.labels is not None
    agree(case, "ours", torch.from_numpy(np.concatenate([found.coords, found.features["rgb"]], axis=1)), means, 1e-4)
    agree(case, "ours", torch.from_numpy(found.labels), labels, 0.0)
    agree(case, "ours", torch.from_numpy(found.inverse), inverse, 0.0)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: subsample(cloud, GRID),
        "torch.unique, index_add, bincount": lambda: grid_with_torch(cloud, classes),
        **_open3d_grids(cloud),
    }
    return race(case, runs, args)


def _open3d_grids(cloud: PointCloud) -> dict[str, Callable[[], Any]]:
    o3d = peer("open3d")
    if o3d is None:
        return {}
    legacy = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(cloud.coords.astype(np.float64)))
    legacy.colors = o3d.utility.Vector3dVector(cloud.features["rgb"].astype(np.float64))
    tensor = o3d.t.geometry.PointCloud(o3d.core.Tensor.from_numpy(cloud.coords))
    tensor.point.colors = o3d.core.Tensor.from_numpy(np.ascontiguousarray(cloud.features["rgb"]))
    low, high = legacy.get_min_bound(), legacy.get_max_bound()
    return {
        "open3d voxel_down_sample, no labels, no inverse": lambda: legacy.voxel_down_sample(GRID),
        "open3d tensor voxel_down_sample, no labels, no inverse": lambda: tensor.voxel_down_sample(GRID),
        "open3d voxel_down_sample_and_trace, no labels": lambda: legacy.voxel_down_sample_and_trace(GRID, low, high),
    }


def measure(args: argparse.Namespace) -> Iterator[Case]:
    """Searches by size and on the real scan, the pyramid, the grid."""
    sizes = [1000, 2000] if args.quick else args.points
    cloud = building(max(sizes) if args.quick else 2_000_000)
    grid = subsample(cloud, GRID).coords
    crop = grid[cKDTree(grid).query(grid[len(grid) // 2], k=min(len(grid), args.crop))[1]].astype(np.float32)
    yield knn_case(f"a crop at {100 * GRID:.0f} cm", crop, 0, args)
    for size in sizes:
        yield knn_case(f"{size:,} points of rooms", building(size).coords, size, args)
    if not args.quick and (args.samples / SCAN).is_file():
        scan = np.fromfile(args.samples / SCAN, np.float32).reshape(-1, 4)[:, :3]
        yield knn_case("SemanticKITTI 00/000000", np.ascontiguousarray(scan), 0, args)
    elif not args.quick:
        print(f"real scan: left out, {args.samples / SCAN} is not there", file=sys.stderr)
    yield pyramid_case(crop, args)
    yield grid_case(building(sizes[-1]), args)


def main() -> int:
    """Measure and print the tables."""
    made = parser(__doc__, rounds=7)
    made.add_argument("--points", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    made.add_argument("--crop", type=int, default=40_960)
    return run(made, measure, lambda cases: growth(cases, "point and its neighbours"))


if __name__ == "__main__":
    sys.exit(main())
