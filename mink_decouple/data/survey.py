"""What a folder of point clouds holds: columns, labels, extent and spacing of each file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import SUFFIXES, clouds_of, read_cloud
from mink_decouple.data.neighbors import knn
from mink_decouple.data.scene_stats import distinct

SAMPLE = 4000
"""Points whose nearest neighbour is looked for."""


@dataclass(frozen=True)
class Look:
    """One file.

    Attributes:
        path: the file.
        points: how many.
        columns: names of its features, sorted.
        labels: raw id -> points; None where the file has no labels.
        extent: (3,) metres along x, y, z, between the 0.1 and the 99.9 percentile: stray points do not count.
        spacing: median distance of a point to its nearest neighbour, metres.
        constant: the columns among them that hold one value throughout, NaN apart.
    """

    path: Path
    points: int
    columns: tuple[str, ...]
    labels: dict[int, int] | None
    extent: tuple[float, float, float]
    spacing: float
    constant: tuple[str, ...] = ()


def survey(folder: Path, columns: Sequence[str] | None = None) -> list[Look]:
    """Look at every cloud of a folder, not at its sub-folders.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no clouds in it, two files of one stem, or one that cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    files = clouds_of(folder)
    if not files:
        inside = sorted(p.name for p in folder.iterdir() if p.is_dir())
        hint = f"; its sub-folders {', '.join(inside[:5])} are not looked into" if inside else ""
        raise ValueError(f"{folder}: no point clouds; known suffixes: {', '.join(SUFFIXES)}{hint}")
    stems = [path.stem for path in files]
    repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
    if repeated:
        raise ValueError(f"{folder}: several files are named '{repeated[0]}'; a scene is named by its file's stem")
    return [look(path, read_cloud(path, columns)) for path in files]


def look(path: Path, cloud: PointCloud) -> Look:
    """What there is to know of a cloud."""
    labels = None
    if cloud.labels is not None:
        ids, counts = np.unique(cloud.labels, return_counts=True)
        labels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    low, high = np.percentile(cloud.coords, (0.1, 99.9), axis=0)
    x, y, z = (float(side) for side in high - low)
    columns = tuple(sorted(cloud.features))
    constant = tuple(name for name in columns if not _varies(cloud.features[name]))
    return Look(path, len(cloud), columns, labels, (x, y, z), spacing(cloud.coords), constant)


def _varies(column: np.ndarray) -> bool:
    """Whether a (N,) or (N, k) column holds more than one value, NaN apart."""
    return bool(np.any(np.fmin.reduce(column) < np.fmax.reduce(column)))


def spacing(coords: np.ndarray) -> float:
    """Median distance (metres) of (N, 3) points to the nearest at another place, over an even sample; 0 for one."""
    coords = distinct(coords)
    if len(coords) < 2:
        return 0.0
    sample = coords[:: max(1, len(coords) // SAMPLE)]
    near = coords[knn(sample, coords, 2)]
    return float(np.median(np.linalg.norm(near - sample[:, None], axis=2).max(axis=1)))


def common(looks: Iterable[Look]) -> tuple[str, ...]:
    """Columns that every file has and that are not constant in all of them, sorted."""
    looks = list(looks)
    if not looks:
        return ()
    empty = set.intersection(*(set(one.constant) for one in looks))
    return tuple(sorted(set.intersection(*(set(one.columns) for one in looks)) - empty))


def describe(looks: Sequence[Look]) -> str:
    """A table for people."""
    width = max(len("file"), *(len(one.path.name) for one in looks))
    lines = [f"{'file':<{width}} {'points':>12} {'x':>8} {'y':>8} {'z':>7} {'spacing':>8}  labels"]
    for one in looks:
        x, y, z = one.extent
        ids = "none" if one.labels is None else " ".join(map(str, one.labels))
        lines.append(
            f"{one.path.name:<{width}} {one.points:>12,} {x:>8.1f} {y:>8.1f} {z:>7.1f} {one.spacing:>8.3g}  {ids}"
        )
    return "\n".join(lines)
