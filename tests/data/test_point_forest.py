import numpy as np
import pytest
import torch

from mink_decouple.config import ForestConfig
from mink_decouple.data import eigen_features, point_forest
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.eigen_features import SHAPE_NAMES, Spheres, thin
from mink_decouple.data.grid import subsample
from mink_decouple.data.point_forest import fit, surroundings_of, vote

SMALL = ForestConfig(trees=7, radii=[3.0, 6.0], neighbors=20)


def made_grid(count=900, seed=0, name="scene"):
    """Points on a floor and on a wall, with a feature of one column and one of three."""
    rng = np.random.default_rng(seed)
    coords = rng.uniform(0, 2, (count, 3)).astype(np.float32)
    wall = np.arange(count) % 2
    coords[wall == 0, 2] = rng.normal(0, 0.01, (wall == 0).sum())
    coords[wall == 1, 0] = rng.normal(0, 0.01, (wall == 1).sum())
    features = {"rgb": rng.random((count, 3), dtype=np.float32), "height": coords[:, 2].copy()}
    return subsample(PointCloud(name, coords, features=features, labels=wall.astype(np.int64)), 0.05)


def most_certain(votes, part, possible, seed=0):
    return point_forest.most_certain(votes, part, possible, np.random.default_rng(seed))


def test_a_row_is_the_points_features_and_the_spheres_around_it():
    grid = made_grid()
    points = np.array([5, 3, 200])
    rows = surroundings_of(grid, SMALL).rows(points)
    own = np.column_stack([grid.features["height"], grid.features["rgb"]])
    np.testing.assert_array_equal(rows[:, :4], own[points])
    width = len(SHAPE_NAMES) + 2 * 4
    assert rows.shape == (3, 4 + 2 * width) and rows.dtype == np.float32
    for number, radius in enumerate((0.15, 0.3)):
        kept = thin(grid.coords, radius / 5)
        expected = Spheres(grid.coords[kept], radius, 20, own[kept]).describe(grid.coords[points])
        np.testing.assert_allclose(rows[:, 4 + number * width :][:, :width], expected, rtol=1e-5, atol=1e-6)


def test_rows_by_threads_are_the_same(monkeypatch):
    around = surroundings_of(made_grid(), SMALL)
    points = np.arange(len(around))[::-1]
    expected = around.rows(points)
    monkeypatch.setattr(eigen_features, "CHUNK", 100)
    np.testing.assert_array_equal(around.all_rows(points), expected)


def test_a_cloud_without_features_is_described_by_its_shape():
    grid = made_grid()
    bare = surroundings_of(subsample(PointCloud("bare", grid.coords), 0.05), SMALL)
    assert bare.rows(np.arange(4)).shape == (4, 2 * len(SHAPE_NAMES))


def test_a_forest_tells_a_wall_from_a_floor_by_a_few_labels():
    grid = made_grid()
    visible = np.full(len(grid), -1)
    for label in (0, 1):
        some = np.random.default_rng(label).choice(np.flatnonzero(grid.labels == label), 10, replace=False)
        visible[some] = 3 * label  # ids need not be next to each other
    around = surroundings_of(grid, SMALL)
    forest = fit({"a": around}, {"a": visible}, SMALL, seed=0)
    votes = vote(forest, around, 5)
    assert votes.shape == (len(grid), 5) and votes.dtype == np.float32
    np.testing.assert_allclose(votes.sum(1), 1, atol=1e-6)
    assert (votes[:, [1, 2, 4]] == 0).all()
    assert (votes.argmax(1) == 3 * grid.labels).mean() > 0.9


def test_votes_are_those_of_scikit_learn_and_the_same_on_any_number_of_threads(monkeypatch):
    grid = made_grid()
    monkeypatch.setattr(point_forest, "CHUNK", 100)
    visible, around = np.where(np.arange(len(grid)) % 9 == 0, grid.labels, -1), surroundings_of(grid, SMALL)
    found, threads = [], torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            forest = fit({"a": around}, {"a": visible}, SMALL, seed=1)
            found.append(vote(forest, around, 2))
        finally:
            torch.set_num_threads(threads)
    np.testing.assert_array_equal(*found)
    expected = forest.set_params(n_jobs=1).predict_proba(around.rows(np.arange(len(grid))))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


class Alike:
    """Points that nothing tells apart, which count how many of them were asked for."""

    asked = 0

    def __len__(self):
        return 1000

    def rows(self, points):
        self.asked += len(points)
        return np.zeros((len(points), 2), np.float32)

    all_rows = rows


def test_no_more_labels_than_asked_for_take_part_and_scenes_without_any_are_not_looked_at():
    around = {name: Alike() for name in "abc"}
    visible = {"a": np.repeat([0, 1], 500), "b": np.full(1000, -1), "c": np.repeat([-1, 0, 1], [600, 200, 200])}
    fit(around, visible, ForestConfig(trees=3, most=40), seed=0)
    assert around["a"].asked + around["c"].asked == 40 and min(around["a"].asked, around["c"].asked) > 5
    assert around["b"].asked == 0


def test_a_rare_class_keeps_all_of_its_labels():
    visible = np.repeat([4, 2, 0], [9_000, 3, 997])
    kept = point_forest._evenly(visible, 100, np.random.default_rng(0))
    assert len(np.unique(kept)) == len(kept)
    assert np.bincount(visible[kept]).tolist() == [48, 0, 3, 0, 49]
    assert len(point_forest._evenly(visible, 20_000, np.random.default_rng(0))) == len(visible)
    assert np.bincount(visible[point_forest._evenly(visible, 1, np.random.default_rng(0))]).tolist() == [1, 0, 1, 0, 1]


def test_classes_that_nothing_tells_apart_share_the_votes_whatever_their_frequency():
    visible = np.repeat([0, 1], [900, 100])
    votes = vote(fit({"a": Alike()}, {"a": visible}, SMALL, seed=0), Alike(), 2)
    np.testing.assert_allclose(votes, 0.5, atol=0.05)


def test_no_label_is_refused():
    grid = made_grid(50)
    with pytest.raises(ValueError, match=r"labels\.spread forest: no labelled point to learn from"):
        fit({"a": surroundings_of(grid, SMALL)}, {"a": np.full(len(grid), -1)}, SMALL, seed=0)


def test_of_each_class_the_clearest_points_are_kept():
    votes = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.7, 0.3, 0], [0.2, 0.8, 0], [0.1, 0.1, 0.8]], np.float32)
    everything = [True, True, True]
    assert most_certain(votes, 1.0, everything).tolist() == [0, 0, 0, 1, 2]
    assert most_certain(votes, 0.5, everything).tolist() == [0, -1, 0, 1, 2]
    assert most_certain(votes, 0.1, everything).tolist() == [0, -1, -1, 1, 2]
    assert most_certain(votes, 0.0, everything).tolist() == [-1] * 5


def test_a_class_that_a_scene_lacks_is_never_told():
    votes = np.array([[0.9, 0.1, 0], [0.5, 0.3, 0.2], [1, 0, 0], [0.6, 0.2, 0.2]], np.float32)
    # of the last two rows one votes for nothing that occurs, and one is even between two classes
    assert most_certain(votes, 1.0, [False, True, True]).tolist() == [1, 1, -1, 1]
    # shares count among the classes that occur: 0.1 of 0.1 is surer than 0.3 of 0.5
    assert most_certain(votes, 0.3, [False, True, True]).tolist() == [1, -1, -1, -1]


def test_points_that_are_equally_sure_are_drawn_from_everywhere():
    votes = np.full((1000, 1), 1, np.float32)
    kept = np.flatnonzero(most_certain(votes, 0.3, [True]) == 0)
    assert len(kept) == 300 and 100 < (kept < 500).sum() < 200
    assert kept.tolist() == np.flatnonzero(most_certain(votes, 0.3, [True]) == 0).tolist()
    assert kept.tolist() != np.flatnonzero(most_certain(votes, 0.3, [True], seed=1) == 0).tolist()
    assert most_certain(np.zeros((0, 2), np.float32), 0.5, [True, True]).tolist() == []
