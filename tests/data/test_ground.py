"""Height above ground sees objects on any hillside."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data import ground
from mink_decouple.data.ground import height_above_ground, planar_spacing
from mink_decouple.data.io import read_cloud

SAMPLES = Path(os.environ.get("MINK_DECOUPLE_SAMPLES", Path(__file__).resolve().parents[3] / "shared" / "data"))


def _hill(slope: float, count: int = 40000) -> tuple[np.ndarray, np.ndarray]:
    """120 x 120 m of terrain with two boxes of 6 m and 12 m, and the true heights."""
    rng = np.random.default_rng(1)
    xy = rng.random((count, 2)) * 120
    height = np.zeros(count)
    height[(np.abs(xy - (40, 50)) < (10, 7)).all(axis=1)] = 6
    height[(np.abs(xy - (85, 80)) < (15, 15)).all(axis=1)] = 12
    terrain = slope * xy[:, 0] + 3 * np.sin(xy[:, 1] / 25)
    noise = rng.normal(0, 0.02, count)
    return np.column_stack([xy, terrain + height + noise]), height


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_boxes_keep_their_height_on_any_slope(slope: float) -> None:
    coords, truth = _hill(slope)
    error = np.abs(height_above_ground(coords.astype(np.float32)) - truth)
    assert np.median(error) < 0.1
    assert np.percentile(error, 95) < 0.6
    for box in (6, 12):
        assert np.median(error[truth == box]) < 0.5


def test_points_below_the_ground_do_not_pull_it_down() -> None:
    coords, truth = _hill(0.2)
    clean = height_above_ground(coords)
    low = np.random.default_rng(2).choice(len(coords), 30, replace=False)
    coords[low, 2] -= 15
    height = height_above_ground(coords)
    kept = np.setdiff1d(np.arange(len(coords)), low)
    assert np.percentile(np.abs(height - clean)[kept], 99) < 0.2
    assert (height[low] < truth[low] - 13).all()


def test_height_does_not_depend_on_where_the_tile_lies() -> None:
    coords, _ = _hill(0.1, 5000)
    moved = height_above_ground(coords + np.array([512.0, -256.0, 1024.0]))
    np.testing.assert_allclose(moved, height_above_ground(coords), atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_tiny_clouds_are_finite(count: int) -> None:
    coords = np.random.default_rng(0).random((count, 3)).astype(np.float32)
    height = height_above_ground(coords)
    assert height.shape == (count,) and height.dtype == np.float32 and np.isfinite(height).all()


def test_a_single_line_of_cells_works() -> None:
    x = np.linspace(0, 100, 500)
    height = height_above_ground(np.column_stack([x, np.zeros(500), 0.5 * x]))
    assert np.abs(height).max() < 0.6


def test_a_stray_point_far_away_makes_the_cells_larger_no_more_than_it_has_to(monkeypatch) -> None:
    coords = np.concatenate([_hill(0.1, 5000)[0], [[1000.0, 1000, 0]]])
    near = coords[:-1]
    assert ground.default_cell(near) == 2 * planar_spacing(near) > 2
    assert ground.default_cell(near, 2.0) == 4 * planar_spacing(near)
    monkeypatch.setattr(ground, "_MAX_CELLS", 130**2)
    for times in (1.0, 2.0):
        cell = ground.default_cell(coords, times)
        assert 1000 // cell + 1 <= 130 < 1000 // (cell / 1.1) + 1
    np.testing.assert_array_equal(height_above_ground(coords), height_above_ground(coords, ground.default_cell(coords)))
    with pytest.raises(ValueError, match="choose a larger cell"):
        height_above_ground(coords, 2.0)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        height_above_ground(np.zeros((1, 3)), cell=0)
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        height_above_ground(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="choose a larger cell"):
        height_above_ground(np.array([[0.0, 0, 0], [1e5, 1e5, 0]]), cell=1.0)


@pytest.mark.parametrize(
    ("tile", "building"), [("lidar_hd_dense/bat.laz", 3.5), ("lidar_hd_sparse/semis_2023_0299_6802.laz", 3.0)]
)
def test_real_ground_lies_at_zero_and_buildings_stand(tile: str, building: float) -> None:
    path = SAMPLES / tile
    if not path.exists():
        pytest.skip(f"no real sample {tile}; set MINK_DECOUPLE_SAMPLES")
    cloud = read_cloud(path)
    assert cloud.labels is not None
    height = height_above_ground(cloud.coords)
    ground = np.abs(height[cloud.labels == 2])
    assert np.median(ground) < 0.05 and np.percentile(ground, 95) < 0.35
    assert np.median(height[cloud.labels == 6]) > building


def test_the_size_of_the_blocks_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    coords = (rng.random((5000, 3)) * [80, 60, 12]).astype(np.float32)
    coords[:4000, 2] = 0.05 * coords[:4000, 0]
    whole = height_above_ground(coords), planar_spacing(coords)
    monkeypatch.setattr(ground, "BLOCK_POINTS", 7)
    np.testing.assert_array_equal(height_above_ground(coords), whole[0])
    assert planar_spacing(coords) == whole[1]


def test_spacing_in_plan_of_a_grid_is_its_step():
    x, y = np.meshgrid(np.arange(0, 40, 2.0), np.arange(0, 40, 2.0))
    grid = np.column_stack([x.ravel(), y.ravel(), np.zeros(x.size)])
    assert planar_spacing(grid) == pytest.approx(2.0)
    assert planar_spacing(grid + 1e6) == pytest.approx(2.0)
