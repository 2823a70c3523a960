"""Over-segmentation: one partition whatever the order of points, pure on the synthetic rooms; labels spread safely."""

import numpy as np
import pytest

from mink_decouple.config import SegmentsConfig
from mink_decouple.data.grid import GridCloud, subsample
from mink_decouple.data.segments import over_segment, pool, smooth, spread_labels
from mink_decouple.data.synthetic import make_room


def cloud(coords, rgb=None):
    features = {} if rgb is None else {"rgb": rgb.astype(np.float32)}
    return GridCloud("g", coords.astype(np.float32), features, None, np.arange(len(coords)), 0.05)


def corner(seed=0):
    """A floor and a wall, the floor in two colours; grid points 5 cm apart with some noise, and the piece of each."""
    rng = np.random.default_rng(seed)
    u, v = (axis.ravel() for axis in np.meshgrid(np.arange(0.025, 1, 0.05), np.arange(0.025, 1, 0.05)))
    floor, wall = np.c_[u, v, 0 * u], np.c_[0 * u - 0.05, v, u + 0.05]
    coords = np.r_[floor, wall] + rng.normal(0, 0.003, (2 * len(u), 3))
    piece = np.r_[np.where(u < 0.5, 0, 1), np.full(len(u), 2)]
    rgb = np.array([[0.8, 0.2, 0.2], [0.2, 0.2, 0.8], [0.8, 0.2, 0.2]])[piece] + rng.normal(0, 0.01, (len(coords), 3))
    return coords, rgb, piece


def purity(segments, truth):
    """Share of the points of known truth that are of the commonest class of their segment."""
    known = truth >= 0
    table = np.zeros((segments.max() + 1, truth.max() + 1), int)
    np.add.at(table, (segments[known], truth[known]), 1)
    return table.max(1).sum() / known.sum()


def test_pieces_of_another_direction_or_colour_are_other_segments():
    coords, rgb, piece = corner()
    found = over_segment(cloud(coords, rgb), SegmentsConfig())
    assert purity(found, piece) > 0.97
    largest = np.bincount(found).max()
    assert largest > 100  # and a piece is not a heap of crumbs
    grey = over_segment(cloud(coords), SegmentsConfig())  # without colour only the edge of floor and wall is seen
    assert purity(grey, np.where(piece == 2, 1, 0)) > 0.97
    assert purity(grey, piece) < purity(found, piece)


def test_the_partition_does_not_depend_on_the_order_of_the_points():
    coords, rgb, _ = corner()
    order = np.random.default_rng(5).permutation(len(coords))
    found = over_segment(cloud(coords, rgb), SegmentsConfig())
    np.testing.assert_array_equal(over_segment(cloud(coords[order], rgb[order]), SegmentsConfig()), found[order])
    np.testing.assert_array_equal(over_segment(cloud(coords, rgb), SegmentsConfig()), found)


@pytest.mark.parametrize("most", [1, 7, 50])
def test_no_segment_is_larger_than_asked_for(most):
    coords, rgb, _ = corner()
    sizes = np.bincount(over_segment(cloud(coords, rgb), SegmentsConfig(most=most)))
    assert sizes.min() >= 1 and sizes.max() <= most and sizes.sum() == len(coords)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_few_points_are_segmented_too(count):
    found = over_segment(cloud(np.random.default_rng(0).random((count, 3))), SegmentsConfig())
    assert found.shape == (count,) and found.dtype == np.int32


def room(area, index, points=20_000):
    return subsample(make_room(area, index, points=points), 0.05)


@pytest.mark.slow
def test_segments_of_the_synthetic_rooms_hardly_cross_classes_and_labels_spread_rightly():
    for area, index in ((1, 0), (2, 1), (3, 2), (5, 0)):
        grid = room(area, index)
        found = over_segment(grid, SegmentsConfig())
        assert purity(found, grid.labels) > 0.97
        assert len(grid) > 3 * (found.max() + 1)
        count = np.zeros((found.max() + 1, 13))
        np.add.at(count, (found, grid.labels), 1)
        mixed = count.max(1) < 0.9 * count.sum(1)  # segments in which no class has nine tenths
        assert count[mixed].sum() < 0.08 * count.sum()
        rng, given = np.random.default_rng(0), np.full(len(grid), -1)
        for c in np.unique(grid.labels):
            given[rng.choice(np.flatnonzero(grid.labels == c))] = c
        reached = spread_labels(given, found)
        told = (reached >= 0) & (given < 0)
        assert told.sum() > 20 * (given >= 0).sum()
        assert (reached[told] == grid.labels[told]).mean() > 0.95


def test_the_mean_of_a_segment_is_given_to_its_points():
    probs = np.array([[0.2, 0.8], [0.6, 0.4], [1.0, 0.0], [0.3, 0.7]], np.float32)
    found = smooth(probs, np.array([1, 1, 0, 1]))
    np.testing.assert_allclose(found[[0, 1, 3]], np.tile(probs[[0, 1, 3]].mean(0), (3, 1)), atol=1e-6)
    np.testing.assert_array_equal(found[2], probs[2])
    assert found.dtype == np.float32


def test_pooled_probabilities_are_bayes_rule_for_points_of_one_class():
    """Of even priors and independent points; two of three points are sure of class 1, the third says class 0."""
    probs = np.array([[0.2, 0.8], [0.3, 0.7], [0.9, 0.1], [0.6, 0.4]], np.float32)
    pooled = pool(probs, np.array([0, 0, 0, 1]))
    odds = (0.2 * 0.3 * 0.9) / (0.8 * 0.7 * 0.1)
    np.testing.assert_allclose(pooled[0, 0] / pooled[0, 1], odds ** (1 / 3), rtol=1e-5)
    np.testing.assert_allclose(pooled.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(pooled[3], probs[3], rtol=1e-6)
    assert (pooled[:3] == pooled[0]).all()


def test_no_point_alone_rules_a_class_out():
    pooled = pool(np.array([[0.0, 1.0], *9 * [[0.99, 0.01]]], np.float32), np.zeros(10, np.int32))
    assert np.isfinite(pooled).all() and pooled[0].argmax() == 0


def test_segments_of_one_point_leave_probabilities_as_they_are():
    probs = np.random.default_rng(0).random((20, 3)).astype(np.float32)
    np.testing.assert_array_equal(smooth(probs, np.random.default_rng(1).permutation(20)), probs)


def test_a_label_reaches_its_segment_unless_another_contradicts_it():
    segments = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3])
    visible = np.array([4, -1, 4, 1, 2, -1, -1, -1, 0])
    assert spread_labels(visible, segments).tolist() == [4, 4, 4, -1, -1, -1, -1, -1, 0]
    assert spread_labels(np.full(9, -1), segments).tolist() == [-1] * 9
