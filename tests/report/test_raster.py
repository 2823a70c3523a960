from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.report import raster


def test_projection_keeps_distances():
    points = np.random.default_rng(1).normal(size=(20, 3))
    view = raster.project(points, 33.0, 55.0)
    np.testing.assert_allclose(np.linalg.norm(view, axis=1), np.linalg.norm(points, axis=1))


def test_projection_looks_down_from_where_the_camera_stands():
    # Camera towards +x, 45 degrees up: what is towards +x or higher is nearer; higher is further up in the picture.
    view = raster.project(np.array([[0.0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]), 0.0, 45.0)
    assert view[1, 2] < view[0, 2] and view[2, 2] < view[0, 2]
    assert view[2, 1] > view[0, 1] > view[1, 1]
    assert view[3, 0] > view[0, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 5))
def test_each_pixel_shows_the_nearest_of_the_points_that_cover_it(seed: int, count: int, largest: int):
    rng = np.random.default_rng(seed)
    view, size = rng.uniform(-1, 1, (count, 3)), rng.integers(1, largest + 1, count)
    index, distance = raster.visible_points(view, 16, 12, size, 5.0)
    middle = (view[:, :2].min(0) + view[:, :2].max(0)) / 2
    left = np.floor((view[:, 0] - middle[0]) * 5 + 8).astype(int) - size // 2
    top = np.floor((middle[1] - view[:, 1]) * 5 + 6).astype(int) - size // 2
    for row in range(12):
        for column in range(16):
            covers = (left <= column) & (column < left + size) & (top <= row) & (row < top + size)
            if covers.any():
                assert distance[row, column] == view[covers, 2].min()
                assert view[index[row, column], 2] == distance[row, column]
            else:
                assert index[row, column] == -1 and np.isinf(distance[row, column])


def test_shading_leaves_a_plane_facing_the_camera_bright_and_darkens_behind_an_edge():
    distance = np.full((8, 8), 2.0)
    assert (raster.shade(distance, 1.0, 1) == 1).all()
    distance[:, :4] = 1.0
    light = raster.shade(distance, 1.0, 1)
    assert (light[:, 4] < 0.9).all() and (light[:, :4] == 1).all() and (light[:, 5:] == 1).all()


def box(turn: float = 0.0) -> np.ndarray:
    """Floor and four walls of a room of 4 x 6 x 3 m turned about the vertical, 10 cm between points."""
    x, y, z = (np.arange(0, side, 0.1) for side in (4, 6, 3))
    floor = np.stack(np.meshgrid(x, y, [0.0]), -1).reshape(-1, 3)
    walls = [np.stack(np.meshgrid([at], y, z), -1).reshape(-1, 3) for at in (0.0, 4.0)]
    walls += [np.stack(np.meshgrid(x, [at], z), -1).reshape(-1, 3) for at in (0.0, 6.0)]
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return np.vstack([floor, *walls]) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def test_wall_direction_is_found_in_a_turned_room():
    for turn in (0, 30, 75):
        difference = abs(raster.wall_direction(box(turn)) - turn) % 90
        assert min(difference, 90 - difference) <= 3


def test_the_walls_towards_the_camera_are_cut_and_nothing_else():
    room = box()
    kept = raster.open_side(room, azimuth=30.0)
    low = room[:, 2] < raster.STUMP_METRES - 0.05
    assert kept[low].all()
    near_wall = (room[:, 0] > 3.95) | (room[:, 1] > 5.95)
    assert not kept[near_wall & (room[:, 2] > 0.5)].any()
    assert kept[(room[:, 0] < 3.6) & (room[:, 1] < 5.6)].all()


def test_points_are_drawn_larger_where_they_are_sparse_but_not_without_limit():
    rng = np.random.default_rng(0)
    dense, sparse = rng.uniform(0, 1, (4000, 3)), rng.uniform(2, 3, (500, 3))
    sizes = raster.point_sizes(np.vstack([dense, sparse, [[90.0, 90, 90]]]), 60.0)
    assert sizes[:4000].mean() < sizes[4000:-1].mean()
    assert sizes.min() >= raster.MIN_PIXELS and sizes.max() <= raster.MAX_PIXELS
    assert raster.point_sizes(np.zeros((1, 3)), 1.0).tolist() == [raster.MAX_PIXELS]


def test_every_colouring_shows_the_same_points_on_white():
    room = box(20)
    red, blue = (np.tile(np.array([color], np.uint8), (len(room), 1)) for color in ((255, 0, 0), (0, 0, 255)))
    first, second = raster.draw_panels(room, [red, blue], 120)
    assert first.shape == second.shape and first.shape[1:] == (120, 3)
    np.testing.assert_allclose(first[..., [0, 1, 2]], second[..., [2, 1, 0]], atol=1e-6)
    assert (first[0, 0] == 1).all() and first.min() == 0
