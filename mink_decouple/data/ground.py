"""Height above the local ground from geometry alone, for aerial and mobile LiDAR.

The ground is found as in SMRF (Pingel, Clarke, McBride, "An improved simple morphological filter for the terrain
classification of airborne LIDAR data", ISPRS J. 2013): grey openings of a minimum grid at growing windows, with a
threshold that grows with the window. A second pass on the grid minus its own large-scale trend keeps the threshold
tight on hillsides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

BLOCK_POINTS = 1 << 20
"""Points looked at together: beside the cells, memory is of so many points only."""
_MAX_CELLS = 50_000_000
_LOW_NOISE_METRES = 2.0
_STEP_METRES = 0.5
_BAND_METRES = 0.3
_TREND_METRES = 25.0
_TREND_SLOPE = 0.5


@dataclass(frozen=True, eq=False)
class Ground:
    """The ground below a scene.

    Attributes:
        surface: (nx, ny) float64 metres, at the middles of the cells.
        corner: (2,) float64 metres, lowest x and y of the cells.
        cell: side of a cell, metres.
    """

    surface: np.ndarray
    corner: np.ndarray
    cell: float

    def heights(self, coords: np.ndarray) -> np.ndarray:
        """(n,) float32 metres of (n, 3) points above the ground; negative below it."""
        result = np.empty(len(coords), np.float32)
        for rows, xy, z in _blocks(coords, self.corner):
            result[rows] = z - _interpolate(self.surface, xy, self.cell)
        return result


def planar_spacing(coords: np.ndarray, cell: float = 10.0) -> float:
    """Metres between (N, 3) points in plan: the root of the area per point, over occupied cells of `cell` metres."""
    if len(coords) == 0:
        return 0.0
    occupied = np.empty(0, np.int64)
    for _, xy, _ in _blocks(coords, _corner(coords)):
        occupied = np.union1d(occupied, _flat(xy, cell, 1 << 32))
    return cell * float(np.sqrt(len(occupied) / len(coords)))


def default_cell(coords: np.ndarray, times: float = 1.0) -> float:
    """Side of a ground cell, metres: `times` twice the spacing of the points and at least 2 m.

    More where the extent, often that of one stray point, would take too many cells.
    """
    cell = times * max(2.0, 2.0 * planar_spacing(coords))
    x, y = _extent(coords) if len(coords) else (0.0, 0.0)
    while (x // cell + 1) * (y // cell + 1) > _MAX_CELLS:
        cell *= 1.1
    return cell


def fit_ground(coords: np.ndarray, cell: float | None = None, slope: float = 0.12, window: float = 40.0) -> Ground:
    """The ground of a scene, in a few passes over blocks of its points, which may be mapped from a file.

    Args:
        coords: (N, 3) coordinates, metres, z up.
        cell: side of a ground cell, metres; a few ground points should fall into most cells. None takes
            `default_cell`.
        slope: rise over run, against the trend of the hillside, up to which bumps count as ground; larger keeps
            rougher terrain, smaller removes lower objects.
        window: radius of the largest opening, metres; roofs up to about twice as wide are seen as objects.

    Raises:
        ValueError: wrong shape, no points, settings that are not positive, or a cell too small for the extent.
    """
    if coords.ndim != 2 or coords.shape[1] != 3 or len(coords) == 0:
        raise ValueError(f"coords must be (N, 3), found {coords.shape}")
    if cell is None:
        cell = default_cell(coords)
    if cell <= 0 or slope <= 0 or window <= 0:
        raise ValueError(f"cell, slope and window must be positive, found {cell}, {slope}, {window}")
    corner = _corner(coords)
    nx, ny = (int(side // cell + 1) for side in _extent(coords))
    if nx * ny > _MAX_CELLS:
        raise ValueError(f"cell {cell} m makes {nx} x {ny} cells, more than {_MAX_CELLS:,}; choose a larger cell")
    lowest = np.full((nx, ny), np.inf)
    for _, xy, z in _blocks(coords, corner):
        np.minimum.at(lowest.reshape(-1), _flat(xy, cell, ny), z)
    lowest[np.isinf(lowest)] = np.nan
    lowest[_low_noise(lowest, cell)] = np.nan
    surface = _terrain(lowest, cell, max(slope, _TREND_SLOPE), window)
    trend = _blur(surface, _TREND_METRES / cell)
    surface = trend + _terrain(lowest - trend, cell, slope, window)

    # A cell's minimum lies at its lower edge, half a cell's rise below its middle. Residuals against the surface,
    # which has the terrain's slope, do not: they move the surface to the middle of the ground points.
    surface += _correction(Ground(surface, corner, cell), coords)
    return Ground(surface, corner, cell)


def height_above_ground(
    coords: np.ndarray, cell: float | None = None, slope: float = 0.12, window: float = 40.0
) -> np.ndarray:
    """Height of each point above the ground below it: (N,) float32, metres; arguments and errors of `fit_ground`."""
    if coords.shape == (0, 3):
        return np.zeros(0, dtype=np.float32)
    return fit_ground(coords, cell, slope, window).heights(coords)


def _extent(coords: np.ndarray) -> tuple[float, float]:
    """Metres along x and y."""
    x, y = coords[:, :2].max(axis=0).astype(np.float64) - _corner(coords)
    return float(x), float(y)


def _corner(coords: np.ndarray) -> np.ndarray:
    corner: np.ndarray = coords[:, :2].min(axis=0).astype(np.float64)
    return corner


def _blocks(coords: np.ndarray, corner: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows, (n, 2) float64 places from the corner and (n,) float64 z of some points at a time."""
    for begin in range(0, len(coords), BLOCK_POINTS):
        rows = slice(begin, min(begin + BLOCK_POINTS, len(coords)))
        block = coords[rows].astype(np.float64)
        yield rows, block[:, :2] - corner, block[:, 2]


def _flat(xy: np.ndarray, cell: float, columns: int) -> np.ndarray:
    """(n,) int64 cells of places, row by row."""
    index: np.ndarray = (xy[:, 0] // cell).astype(np.int64) * columns + (xy[:, 1] // cell).astype(np.int64)
    return index


def _low_noise(lowest: np.ndarray, cell: float) -> np.ndarray:
    """Cells far below their surroundings: multipath points under the ground, in patches of up to 2 x 2 cells."""
    filled = _fill(lowest)
    # A closing with 3 x 3 cells fills pits of up to 2 x 2 cells to the height of their rim; slopes stay as they are.
    return ndimage.grey_closing(filled, size=3, mode="nearest") - filled > _LOW_NOISE_METRES + cell


def _terrain(lowest: np.ndarray, cell: float, slope: float, window: float) -> np.ndarray:
    """Surface through the cells that no opening of radius r lowers by more than a step plus `slope` times r."""
    ground = np.isfinite(lowest)
    previous, radius = _fill(lowest), 1
    while radius == 1 or radius * cell <= window:
        opened = ndimage.grey_opening(previous, size=2 * radius + 1, mode="nearest")
        ground &= previous - opened <= _STEP_METRES + slope * radius * cell
        previous = opened
        radius = max(radius + 1, int(radius * 1.4))
    return _fill(np.where(ground, lowest, np.nan))


def _correction(ground: Ground, coords: np.ndarray) -> np.ndarray:
    """Mean residual of each cell's ground points, median-filtered; cells without ground take it from around."""
    shape, cell = ground.surface.shape, ground.cell
    limit = _STEP_METRES + cell / 2
    lowest = np.full(shape[0] * shape[1], np.inf)
    count, total = np.zeros(lowest.size, np.int64), np.zeros(lowest.size)
    for _, xy, z in _blocks(coords, ground.corner):
        np.minimum.at(lowest, _flat(xy, cell, shape[1]), z - _interpolate(ground.surface, xy, cell))
    for _, xy, z in _blocks(coords, ground.corner):
        flat, residual = _flat(xy, cell, shape[1]), z - _interpolate(ground.surface, xy, cell)
        kept = (residual <= lowest[flat] + _BAND_METRES) & (np.abs(residual) <= limit)
        np.add.at(count, flat[kept], 1)
        np.add.at(total, flat[kept], residual[kept])
    mean = np.full(lowest.size, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return ndimage.median_filter(_fill(mean.reshape(shape)), size=3, mode="nearest")


def _fill(grid: np.ndarray) -> np.ndarray:
    """Fill NaN cells smoothly from their rims: coarse to fine, relaxed towards a harmonic surface at each level.

    A harmonic surface continues a plane across a hole.
    """
    empty = np.isnan(grid)
    if not empty.any():
        return grid
    if empty.all():
        return np.zeros_like(grid)
    rows, columns = grid.shape
    even = np.pad(grid, ((0, rows % 2), (0, columns % 2)), constant_values=np.nan)
    blocks = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2)
    count = np.isfinite(blocks).sum(axis=(1, 3))
    mean = np.full(count.shape, np.nan)
    np.divide(np.nansum(blocks, axis=(1, 3)), count, out=mean, where=count > 0)
    coarse = _fill(mean)
    places = np.argwhere(empty).T
    filled = grid.copy()
    filled[empty] = _sample(coarse, (places + 0.5) / 2 - 0.5)
    for _ in range(10):
        padded = _pad(filled)
        around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        filled[empty] = around[empty] / 4
    return filled


def _blur(grid: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian filter that keeps planes up to the border."""
    width = [min(int(3 * sigma), side - 1) for side in grid.shape]
    padded = np.pad(grid, [(w, w) for w in width], mode="reflect", reflect_type="odd")
    blurred = ndimage.gaussian_filter(padded, sigma, truncate=3.0, mode="nearest")
    return blurred[width[0] : width[0] + grid.shape[0], width[1] : width[1] + grid.shape[1]]


def _interpolate(grid: np.ndarray, xy: np.ndarray, cell: float) -> np.ndarray:
    return _sample(grid, (xy / cell - 0.5).T)


def _sample(grid: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bilinear values at (2, M) places in cells, whole at cell middles; slopes go on beyond the outer middles."""
    return ndimage.map_coordinates(_pad(grid), places + 1, order=1, mode="nearest")


def _pad(grid: np.ndarray) -> np.ndarray:
    """One more cell on each side, continuing the slope."""
    for axis in (0, 1):
        width = [(1, 1) if axis == other else (0, 0) for other in (0, 1)]
        if grid.shape[axis] > 1:
            grid = np.pad(grid, width, mode="reflect", reflect_type="odd")
        else:
            grid = np.pad(grid, width, mode="edge")
    return grid
