from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from mink_decouple.data.neighbors import knn, pyramid


def distances(query, support, rows):
    return np.linalg.norm(query[:, None].astype(np.float64) - support[rows].astype(np.float64), axis=2)


def brute(query, support, k):
    return np.sort(cdist(query.astype(np.float64), support.astype(np.float64)), axis=1)[:, :k]


def cloud(kind, n, rng):
    if kind == "uniform":
        points = rng.uniform(-1, 1, (n, 3))
    elif kind == "plane":
        points = rng.uniform(0, 5, (n, 3)) * [1, 1, 0]
    elif kind == "line":
        points = rng.uniform(0, 50, (n, 1)) * [1, 2, 0.5]
    elif kind == "lattice":
        points = rng.integers(0, 4, (n, 3)) * 0.25
    elif kind == "scan":
        reach, turn = np.exp(rng.uniform(0, 4.4, n)), rng.uniform(0, 6.28, n)
        points = np.stack([reach * np.cos(turn), reach * np.sin(turn), rng.normal(-1.7, 0.02, n)], axis=1)
    else:
        points = np.concatenate([rng.normal(0, 0.01, (n - 2, 3)), [[1e4, 0, 0], [0, -3e4, 5]]])
    return points.astype(np.float32)


@pytest.mark.parametrize("kind", ["uniform", "plane", "line", "lattice", "scan", "outliers"])
@pytest.mark.parametrize("k", [1, 16])
def test_distances_equal_brute_force(kind, k):
    rng = np.random.default_rng(7)
    support = cloud(kind, 700, rng)
    for query in (support, cloud("uniform", 60, rng), cloud("outliers", 20, rng) * 3):
        np.testing.assert_array_equal(distances(query, support, knn(query, support, k)), brute(query, support, k))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 20), st.floats(-4, 4))
def test_any_small_cloud_equals_brute_force(seed, n, k, decade):
    rng = np.random.default_rng(seed)
    support = (rng.normal(0, 1, (n, 3)) * 10**decade * 10 ** rng.uniform(-3, 0, 3)).astype(np.float32)
    found = knn(support, support, k)
    wanted = min(n, k)
    np.testing.assert_array_equal(distances(support, support, found[:, :wanted]), brute(support, support, wanted))
    assert (found[:, wanted:] == found[:, :1]).all()


def test_neighbours_are_distinct_and_the_point_itself_is_first():
    points = np.random.default_rng(1).uniform(0, 3, (500, 3)).astype(np.float32)
    found = knn(points, points, 16)
    np.testing.assert_array_equal(found[:, 0], np.arange(500))
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all()


def test_equal_distances_come_in_row_order():
    square = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], np.float32)
    np.testing.assert_array_equal(knn(np.zeros((1, 3), np.float32), square, 4), [[0, 1, 2, 3]])


def test_one_place_many_points():
    points = np.ones((40, 3), np.float32)
    np.testing.assert_array_equal(knn(points, points, 3), np.tile([0, 1, 2], (40, 1)))


def test_fewer_points_than_k_repeats_the_nearest():
    points = np.array([[0, 0, 0], [1, 0, 0], [3, 0, 0]], np.float32)
    np.testing.assert_array_equal(knn(points, points, 5), [[0, 1, 2, 0, 0], [1, 0, 2, 1, 1], [2, 1, 0, 2, 2]])


def test_far_coordinates_keep_their_neighbours():
    rng = np.random.default_rng(3)
    points = rng.uniform([4.5e5, 5.4e6, 100], [4.5e5 + 10, 5.4e6 + 10, 110], (300, 3))
    np.testing.assert_array_equal(distances(points, points, knn(points, points, 8)), brute(points, points, 8))


@pytest.mark.parametrize("away", [1e3, 1e12, 1e35])
def test_a_query_however_far_away_finds_its_neighbours(away):
    support = cloud("outliers", 200, np.random.default_rng(4)).astype(np.float64)
    query = np.array([[away, 0, 0], [0, -away, 3], [-away, away, away]])
    np.testing.assert_array_equal(distances(query, support, knn(query, support, 4)), brute(query, support, 4))


def test_loader_threads_agree_with_one_thread():
    rng = np.random.default_rng(5)
    clouds = [rng.uniform(0, 2, (400, 3)).astype(np.float32) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda c: knn(c, c, 8), clouds))
    for points, found in zip(clouds, together, strict=True):
        np.testing.assert_array_equal(found, knn(points, points, 8))


@pytest.mark.parametrize(
    ("query", "support", "k", "message"),
    [
        (np.zeros((1, 3)), np.zeros((0, 3)), 1, "empty"),
        (np.zeros((1, 3)), np.zeros((1, 3)), 0, "k is 0"),
        (np.zeros((1, 2)), np.zeros((1, 3)), 1, "query has shape"),
        (np.zeros((1, 3)), np.full((1, 3), np.nan), 1, "not finite"),
    ],
)
def test_bad_input_names_the_fault(query, support, k, message):
    with pytest.raises(ValueError, match=message):
        knn(query, support, k)


def test_no_query_gives_no_row():
    assert knn(np.zeros((0, 3), np.float32), np.zeros((4, 3), np.float32), 2).shape == (0, 2)


def test_pyramid_levels_nest():
    coords = np.random.default_rng(2).uniform(0, 4, (1000, 3)).astype(np.float32)
    levels = pyramid(coords, (4, 4, 2), 16)
    assert [len(level.coords) for level in levels] == [1000, 250, 62]
    assert [len(level.pool) for level in levels] == [250, 62, 31]
    np.testing.assert_array_equal(levels[0].coords.numpy(), coords)
    for fine, coarse in pairwise(levels):
        np.testing.assert_array_equal(fine.coords[fine.pool].numpy(), coarse.coords.numpy())
    for level in levels:
        kept = level.coords[level.pool].numpy()
        fine = level.coords.numpy()
        np.testing.assert_array_equal(distances(fine, fine, level.neighbors.numpy()), brute(fine, fine, 16))
        np.testing.assert_array_equal(distances(fine, kept, level.up.numpy()[:, None]), brute(fine, kept, 1))
        # a point that is kept is its own nearest
        np.testing.assert_array_equal(level.up[: len(kept)].numpy(), np.arange(len(kept)))


def test_pyramid_never_runs_out_of_points():
    levels = pyramid(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), (4, 4, 4, 4, 2), 16)
    assert [len(level.coords) for level in levels] == [5, 1, 1, 1, 1]
    assert all(len(level.pool) == 1 and level.neighbors.shape[1] == 16 for level in levels)


def test_pyramid_leaves_its_input_alone():
    coords = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    before = coords.copy()
    pyramid(coords, (4, 4), 4)
    np.testing.assert_array_equal(coords, before)


def test_pyramid_refuses_an_empty_crop_and_a_ratio_of_zero():
    with pytest.raises(ValueError, match="crop is empty"):
        pyramid(np.zeros((0, 3), np.float32), (4,), 16)
    with pytest.raises(ValueError, match="ratios are"):
        pyramid(np.zeros((3, 3), np.float32), (4, 0), 16)


def test_a_crowd_and_scattered_points_find_each_other():
    rng = np.random.default_rng(11)
    crowd, scattered = rng.normal(0, 0.01, (1500, 3)), rng.uniform(-50, 50, (500, 3))
    points = np.concatenate([crowd, scattered]).astype(np.float32)
    np.testing.assert_array_equal(distances(points, points, knn(points, points, 16)), brute(points, points, 16))
    np.testing.assert_array_equal(
        distances(points, points[1400:], knn(points, points[1400:], 1)), brute(points, points[1400:], 1)
    )


def test_threads_of_the_main_thread_change_no_row():
    points = np.random.default_rng(12).uniform(0, 3, (6000, 3)).astype(np.float32)
    threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(knn(points, points, 16))
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(*found)
