"""Two samples laid into each other: nothing is lost, and halves keep what is labelled."""

import numpy as np
import pytest

from mink_decouple.data.mixing import halves, join, thin
from mink_decouple.data.transforms import Sample


def sample(name, count, labelled=0, seed=0):
    rng = np.random.default_rng(seed)
    target = np.full(count, -1)
    target[rng.choice(count, labelled, replace=False)] = rng.integers(0, 3, labelled)
    rgb, height = rng.random((count, 3)).astype(np.float32), rng.random(count).astype(np.float32)
    coords = rng.normal(size=(count, 3)).astype(np.float32)
    return Sample(name, coords, {"rgb": rgb, "height": height}, target, rng.permutation(count), np.zeros(3))


def test_a_union_holds_every_point_label_and_feature_of_both_in_order():
    a, b = sample("a", 7, 3), sample("b", 5, 2, seed=1)
    both = join([a, b])
    assert both.name == "a+b" and len(both) == 12
    for part, rows in ((a, slice(0, 7)), (b, slice(7, 12))):
        for name in ("coords", "target", "points"):
            np.testing.assert_array_equal(getattr(both, name)[rows], getattr(part, name))
        for name in part.features:
            np.testing.assert_array_equal(both.features[name][rows], part.features[name])


def test_one_sample_is_its_own_union():
    a = sample("a", 4)
    assert join([a]) is a
    with pytest.raises(ValueError, match="no samples"):
        join([])


def test_samples_of_other_features_are_refused_by_name():
    a, b = sample("a", 4), sample("b", 4)
    del b.features["rgb"]
    with pytest.raises(ValueError, match=r"a with features height, rgb and b with height"):
        join([a, b])


@pytest.mark.parametrize("sizes", [(10, 10), (11, 11), (9, 4), (1, 1)])
def test_two_halves_of_samples_of_one_size_have_that_size(sizes):
    parts = halves([sample("a", sizes[0]), sample("b", sizes[1])], np.random.default_rng(0))
    assert [len(part) for part in parts] == [(sizes[0] + 1) // 2, sizes[1] // 2]


def test_thinning_keeps_labelled_points_first_and_the_order():
    whole = sample("a", 100, labelled=8)
    part = thin(whole, 20, np.random.default_rng(1))
    assert len(part) == 20
    assert (part.target >= 0).sum() == 8
    place = [int(np.flatnonzero(whole.points == point)[0]) for point in part.points]
    assert place == sorted(place)
    np.testing.assert_array_equal(part.coords, whole.coords[place])


def test_thinning_of_labelled_points_is_even():
    whole = sample("a", 50, labelled=50)
    kept = np.zeros(50)
    for seed in range(400):
        kept[np.isin(whole.points, thin(whole, 25, np.random.default_rng(seed)).points)] += 1
    assert kept.min() > 140 and kept.max() < 260  # 200 +- 10 expected


def test_a_sample_with_no_more_points_than_asked_for_is_left_alone():
    whole = sample("a", 5)
    rng = np.random.default_rng(0)
    assert thin(whole, 5, rng) is whole
    assert rng.random() == np.random.default_rng(0).random()
