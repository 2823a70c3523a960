"""Packed ids come back as they were, in few bytes."""

from __future__ import annotations

import numpy as np
import pytest

from mink_decouple.data.packed import pack_ids


@pytest.mark.parametrize("classes", [1, 13, 254, 255, 256, 5000])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 1.0])
def test_ids_come_back_and_few_of_them_take_few_bytes(classes, share):
    rng = np.random.default_rng(0)
    ids = np.where(rng.random(10_000) < share, rng.integers(0, classes, 10_000), -1)
    if share:
        ids[rng.integers(10_000)] = classes - 1
    packed = pack_ids(ids)
    np.testing.assert_array_equal(packed.unpack(), ids)
    assert packed.unpack().dtype == np.int64
    held = packed.ids.nbytes + (0 if packed.places is None else packed.places.nbytes)
    assert held <= min(2 * 10_000, 6 * (ids >= 0).sum())


def test_no_points_at_all():
    assert pack_ids(np.empty(0, np.int64)).unpack().shape == (0,)
