"""What a scene is made of, in numbers: one pass over its points, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from scipy.spatial import cKDTree

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.grid import grid_origin
from mink_decouple.data.hash_sample import Sample, Sampler, hash_rows, hash_values
from mink_decouple.data.prepared import StoredScene
from mink_decouple.data.voxels import cell_keys

BLOCK_POINTS = 1 << 20
EXACT_POINTS = 1 << 22
"""Up to so many different points duplicates are counted exactly, beyond it on a sample."""
EXACT_CELLS = 1 << 17
"""Up to so many occupied cells they are counted exactly, beyond it to within about half a percent."""
SHARED_POINTS = 1 << 8
"""Points of a scene that are compared with other scenes, or one in 1024 where that is more."""
LOOK_POINTS = 1 << 13
"""Points, evenly spread over the file, that spacing, height and steps are seen on."""

Column = Callable[[slice], np.ndarray]


@dataclass(frozen=True, eq=False)
class View:
    """A scene as `measure` reads it; nothing is read before it is asked for.

    Attributes:
        name: of the scene.
        coords: (N, 3) float32 metres relative to `offset`, may be mapped.
        offset: (3,) float64 metres.
        features: name -> function of a slice to its (n,) or (n, k) values.
        labels: function of a slice to its (n,) int64 train ids; None for an unlabelled scene.
    """

    name: str
    coords: np.ndarray
    offset: np.ndarray
    features: Mapping[str, Column] = field(default_factory=dict)
    labels: Column | None = None


@dataclass(frozen=True)
class ColumnStats:
    """A feature: values per point, its finite range (0 and 0 where there is none), and entries that are NaN or inf."""

    width: int
    low: float
    high: float
    bad: int


@dataclass(frozen=True, eq=False)
class SceneStats:
    """A scene in numbers. Points with NaN or infinite coordinates count in `points` and `bad` and nowhere else.

    Attributes:
        name: of the scene.
        points: N.
        bad: points whose coordinates are not all finite.
        low: (3,) float64 lowest world corner, metres; NaN for a scene without points.
        high: (3,) float64 highest world corner.
        columns: feature -> what its values are.
        labelled: (C,) int64 points per class; None for an unlabelled scene.
        ignored: points with label -1.
        strange: points with a label outside -1..C-1.
        duplicates: share of the points whose coordinates, bit by bit, were there before.
        duplicates_seen: the share is of one point in so many; 1: of all.
        cells: occupied cells of the grid.
        world: sample of the world coordinates in whole millimetres, for points that two scenes share.
        content: text that is equal for two scenes of the same points, in whatever order.
        spacing: metres from a point to its nearest neighbour, the median; estimated in scenes beyond `LOOK_POINTS`.
        height: metres between the 1st and the 99th percentile of z.
        step: metres between neighbouring values of x and y where most of the values repeat, else 0.
    """

    name: str
    points: int
    bad: int
    low: np.ndarray
    high: np.ndarray
    columns: Mapping[str, ColumnStats]
    labelled: np.ndarray | None
    ignored: int
    strange: int
    duplicates: float
    duplicates_seen: int
    cells: int
    world: Sample
    content: str
    spacing: float
    height: float
    step: float

    @property
    def extent(self) -> np.ndarray:
        """(3,) float64 sides of the bounding box, metres."""
        return self.high - self.low


def view_of(scene: PointCloud | StoredScene) -> View:
    """A cloud in memory or a stored scene, as `measure` reads it."""
    if isinstance(scene, StoredScene):
        columns: dict[str, Column] = {key: partial(scene.feature, key) for key in scene.features}
        return View(scene.name, scene.coords, scene.offset, columns, scene.labels if scene.labelled else None)
    columns = {key: column.__getitem__ for key, column in scene.features.items()}
    labels = None if scene.labels is None else scene.labels.__getitem__
    return View(scene.name, scene.coords, scene.offset, columns, labels)


def measure(view: View, grid: float, classes: int, lowest: np.ndarray | None = None) -> SceneStats:
    """Look once at every point of a scene.

    Args:
        view: the scene.
        grid: edge length of the cells to count, metres.
        classes: C.
        lowest: (3,) float32 lowest corner in the frame of the coordinates where it is known; else they are read once
            more to find it.

    Raises:
        ValueError: a coordinate is out of reach of the grid.
    """
    count = len(view.coords)
    exact, cells, world = Sampler(EXACT_POINTS), Sampler(EXACT_CELLS), Sampler(max(SHARED_POINTS, count >> 10))
    origin = grid_origin(_lowest(view.coords) if lowest is None else lowest, grid)
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    columns: dict[str, _Column] = {key: _Column() for key in view.features}
    tally = np.zeros(classes + 2, np.int64)
    bad, total = 0, 0
    for rows in _slices(count):
        coords = _finite(view.coords[rows])
        bad += rows.stop - rows.start - len(coords)
        if len(coords):
            low = np.minimum(low, [column.min() for column in coords.T])
            high = np.maximum(high, [column.max() for column in coords.T])
            exact.add(_exact(coords))
            cells.add(hash_values(cell_keys(coords, grid, origin)))
            keys = hash_rows(np.rint((coords + view.offset) * 1000.0).astype(np.int64))
            world.add(keys)
            total = (total + int(keys.sum(dtype=np.uint64))) % (1 << 64)
        for key, column in view.features.items():
            columns[key].add(column(rows))
        if view.labels is not None:
            labels = view.labels(rows)
            known = (labels >= -1) & (labels < classes)
            tally += np.bincount(np.where(known, labels + 1, classes + 1), minlength=classes + 2)
    different = exact.sample()
    look = _finite(view.coords[:: max(-(-count // LOOK_POINTS), 1)])
    return SceneStats(
        name=view.name,
        points=count,
        bad=bad,
        low=np.where(np.isfinite(low), low + view.offset, np.nan),
        high=np.where(np.isfinite(high), high + view.offset, np.nan),
        columns={key: column.stats() for key, column in columns.items()},
        labelled=None if view.labels is None else tally[1:-1],
        ignored=int(tally[0]),
        strange=int(tally[-1]),
        duplicates=different.repeated_share,
        duplicates_seen=1 << different.shift,
        cells=cells.sample().distinct,
        world=world.sample(),
        content=f"{count}:{total:016x}",
        spacing=_spacing(look, count - bad),
        height=float(np.diff(np.percentile(look[:, 2], (1, 99)))[0]) if len(look) else 0.0,
        step=min(_step(look[:, axis] + view.offset[axis]) for axis in (0, 1)),
    )


class _Column:
    """Range of a feature while its blocks pass."""

    def __init__(self) -> None:
        self.width, self.low, self.high, self.bad = 1, np.inf, -np.inf, 0

    def add(self, values: np.ndarray) -> None:
        self.width = values.shape[1] if values.ndim == 2 else 1
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            self.bad += int(values.size - finite.sum())
            values = values[finite]
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def stats(self) -> ColumnStats:
        empty = self.low > self.high
        return ColumnStats(self.width, 0.0 if empty else self.low, 0.0 if empty else self.high, self.bad)


def _finite(coords: np.ndarray) -> np.ndarray:
    """The rows of (n, 3) float32 without NaN or infinite entries."""
    # The sum of finite float32 values is finite in float64, so the common case needs no mask.
    with np.errstate(invalid="ignore"):
        if np.isfinite(coords.sum(dtype=np.float64)):
            return coords
    return coords[np.isfinite(coords).all(axis=1)]


def _exact(coords: np.ndarray) -> np.ndarray:
    """(n,) uint64 hashes of the bits of (n, 3) float32; -0 counts as 0."""
    return hash_rows((coords + np.float32(0)).view(np.int32))


def distinct(coords: np.ndarray) -> np.ndarray:
    """The rows of (n, 3) float32 without those that were there before, bit by bit, in their order."""
    return coords[np.sort(np.unique(_exact(coords), return_index=True)[1])]


def _slices(count: int) -> Iterator[slice]:
    for begin in range(0, count, BLOCK_POINTS):
        yield slice(begin, min(begin + BLOCK_POINTS, count))


def _lowest(coords: np.ndarray) -> np.ndarray:
    """(3,) float32 corner of the finite coordinates; zero where there are none."""
    lowest = np.full(3, np.inf, np.float32)
    for rows in _slices(len(coords)):
        lowest = np.minimum(lowest, [column.min(initial=np.inf) for column in _finite(coords[rows]).T])
    return lowest if np.isfinite(lowest).all() else np.zeros(3, np.float32)


def _spacing(look: np.ndarray, count: int) -> float:
    """Median distance to the nearest other point; 0 for fewer than two.

    Of `count` points on surfaces only those of `look` are searched, and the distances shrink by the root of the share.
    """
    different = distinct(look)
    if len(different) < 2:
        return 0.0
    distance = cKDTree(different).query(different, k=2)[0][:, 1]
    return float(np.median(distance) * np.sqrt(min(len(look) / count, 1.0)))


def _step(values: np.ndarray) -> float:
    """Smallest gap between different values of the outer half of the range, where values repeat; 0 where they do not.

    float16 and float32 are coarsest far from zero, so that is where lost digits show.
    """
    if len(values) == 0:
        return 0.0
    outer = values[np.abs(values) >= 0.5 * np.abs(values).max()]
    different = np.unique(np.rint(outer * 1e6)) / 1e6
    if len(different) < 2 or 2 * len(different) > len(outer):
        return 0.0
    return float(np.diff(different).min())
