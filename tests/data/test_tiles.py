"""Tiles: every point is in one core, cores are small, and margins hold all that is near."""

import numpy as np
import pytest

from mink_decouple.data.tiles import tiles


def cloud(count=2000, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random((count, 3)) * [40, 10, 3]).astype(np.float32)


@pytest.mark.parametrize("most", [1, 7, 300, 2000, 9999])
def test_cores_are_a_partition_of_bounded_parts(most):
    coords = cloud()
    cores = [tile.points[tile.core] for tile in tiles(coords, most, 1.0)]
    np.testing.assert_array_equal(np.sort(np.concatenate(cores)), np.arange(len(coords)))
    assert max(map(len, cores)) <= most
    if most < 2000:
        assert min(map(len, cores)) >= most // 4  # halves of what was too large


@pytest.mark.parametrize("margin", [0.0, 2.5])
def test_a_margin_is_all_that_lies_around_the_box_of_the_core(margin):
    coords = cloud()
    for tile in tiles(coords, 150, margin):
        assert (np.diff(tile.points) > 0).all()
        core = coords[tile.points[tile.core]]
        low, high = core.min(0)[:2] - margin, core.max(0)[:2] + margin
        near = ((coords[:, :2] >= low) & (coords[:, :2] <= high)).all(1)
        np.testing.assert_array_equal(tile.points, np.flatnonzero(near))


def test_points_of_one_place_stay_together():
    heap = np.zeros((50, 3), np.float32)
    heap[:, 2] = np.arange(50)
    assert [len(tile.points) for tile in tiles(heap, 10, 0.0)] == [50]
    mixed = np.concatenate([heap, heap[:5] + np.float32([3, 0, 0])])
    assert sorted(int(tile.core.sum()) for tile in tiles(mixed, 10, 0.0)) == [5, 50]


def test_nothing_gives_no_tile_and_wrong_sizes_are_named():
    assert list(tiles(np.empty((0, 3), np.float32), 10, 1.0)) == []
    with pytest.raises(ValueError, match="tiles of 0 points"):
        list(tiles(cloud(), 0, 1.0))
    with pytest.raises(ValueError, match="margin of -1"):
        list(tiles(cloud(), 5, -1))
