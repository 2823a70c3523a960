"""Samples by hash against counts of everything."""

import numpy as np
import pytest

from mink_decouple.data.hash_sample import Sampler, common, hash_rows, hash_values


def sample(values, limit, block=1000):
    sampler = Sampler(limit)
    hashes = hash_values(np.asarray(values, np.int64))
    for begin in range(0, len(hashes), block):
        sampler.add(hashes[begin : begin + block])
    return sampler.sample()


def test_hashes_of_different_values_differ_and_depend_on_the_order_of_columns():
    values = np.arange(-50_000, 50_000)
    assert len(np.unique(hash_values(values))) == len(values)
    rows = np.array([[1, 2, 3], [1, 3, 2], [0, 0, 0], [0, 0, 1], [1, 2, 3]])
    hashes = hash_rows(rows)
    assert hashes[0] == hashes[4] and len(set(hashes.tolist())) == 4
    assert len(np.unique(hash_rows(np.argwhere(np.ones((20, 20, 20)))))) == 8000


@pytest.mark.parametrize("block", [7, 1000, 10_000])
def test_below_the_limit_the_counts_are_those_of_numpy(block):
    values = np.random.default_rng(0).integers(0, 3000, 10_000)
    found = sample(values, 5000, block)
    expected, counts = np.unique(values, return_counts=True)
    assert found.shift == 0 and found.distinct == len(expected)
    assert found.repeated_share == (len(values) - len(expected)) / len(values)
    order = np.argsort(hash_values(expected))
    np.testing.assert_array_equal(found.counts, counts[order])


def test_beyond_the_limit_the_counts_are_close_and_the_sample_stays_small():
    values = np.random.default_rng(1).integers(0, 200_000, 300_000)
    found = sample(values, 4096)
    distinct = len(np.unique(values))
    assert found.shift > 0 and len(found.keys) <= 4096
    assert found.distinct == pytest.approx(distinct, rel=0.08)
    assert found.repeated_share == pytest.approx(1 - distinct / len(values), abs=0.03)
    assert sample(values, 4096, block=77).keys.tolist() == found.keys.tolist()


def test_the_same_value_over_and_over_is_one():
    found = sample(np.full(50_000, 5), 100)
    assert (found.distinct, found.repeated_share, found.shift) == (1, 1 - 1 / 50_000, 0)
    assert sample([], 10).repeated_share == 0 and sample([], 10).distinct == 0


def test_values_in_common_are_counted_against_the_smaller_set():
    one, other = np.arange(0, 60_000), np.arange(45_000, 65_000)  # 15,000 of 20,000
    assert common(sample(one, 100_000), sample(other, 100_000)) == (15_000, 0.75)
    found, share = common(sample(one, 4000), sample(other, 100_000))
    assert 0 < found < 15_000 and share == pytest.approx(0.75, abs=0.05)
    assert common(sample(one, 4000), sample([-1, -2], 10)) == (0, 0.0)
