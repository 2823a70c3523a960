"""The point-cloud record keeps its rules and its millimetres."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.data.cloud import PointCloud, from_world


def _cloud(count: int = 5) -> PointCloud:
    rng = np.random.default_rng(0)
    return PointCloud(
        name="room",
        coords=rng.random((count, 3)).astype(np.float32),
        offset=np.array([10.0, 20.0, 0.0]),
        features={"rgb": rng.random((count, 3)).astype(np.float32), "intensity": np.arange(count, dtype=np.float32)},
        labels=np.arange(count, dtype=np.int64),
    )


def test_select_by_mask_equals_select_by_index() -> None:
    cloud = _cloud()
    mask = np.array([True, False, True, False, True])
    by_mask, by_index = cloud.select(mask), cloud.select(np.flatnonzero(mask))
    assert len(by_mask) == 3
    np.testing.assert_array_equal(by_mask.coords, by_index.coords)
    np.testing.assert_array_equal(by_mask.features["rgb"], cloud.features["rgb"][mask])
    assert by_index.labels is not None
    np.testing.assert_array_equal(by_index.labels, [0, 2, 4])


def test_world_is_float64_sum_of_coords_and_offset() -> None:
    cloud = _cloud()
    assert cloud.world().dtype == np.float64
    np.testing.assert_allclose(cloud.world() - cloud.offset, cloud.coords, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    origin=st.tuples(*[st.floats(-1e7, 1e7)] * 3),
    size=st.floats(0.1, 3e4),
    seed=st.integers(0, 2**16),
)
def test_from_world_keeps_one_millimetre_anywhere(origin: tuple[float, float, float], size: float, seed: int) -> None:
    xyz = np.random.default_rng(seed).random((20, 3)) * size + origin
    cloud = from_world("tile", xyz)
    assert np.abs(cloud.world() - xyz).max() < 1e-3
    np.testing.assert_array_equal(cloud.offset, np.floor(cloud.offset))


def test_small_coordinates_get_no_offset() -> None:
    assert not from_world("room", np.array([[1.5, -2.0, 3.0]])).offset.any()


def test_stray_point_that_would_cost_precision_is_named() -> None:
    with pytest.raises(ValueError, match=r"tile: the cloud is 6,861,000 m long.*stray"):
        from_world("tile", np.array([[652000.0, 6861000.0, 30.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_coordinates_are_counted_and_located(bad: float) -> None:
    xyz = np.zeros((6, 3))
    xyz[2, 1] = xyz[4, 0] = bad
    with pytest.raises(ValueError, match=r"room: 2 of 6 points have NaN or infinite .* index 2"):
        from_world("room", xyz)
    with pytest.raises(ValueError, match=r"room: 2 of 6"):
        PointCloud("room", xyz.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coords": np.zeros((5, 3))}, r"coords must be \(N, 3\) float32, found \(5, 3\) float64"),
        ({"coords": np.zeros((5, 2), np.float32)}, "coords must be"),
        ({"offset": np.zeros(3, np.float32)}, "offset must be"),
        ({"offset": np.array([0.0, np.nan, 0.0])}, "offset must be finite"),
        ({"labels": np.zeros(4, np.int64)}, "4 labels for 5 points"),
        ({"labels": np.zeros(5, np.int32)}, r"labels must be \(N,\) int64"),
        ({"features": {"intensity": np.zeros(4)}}, "'intensity' has 4 rows for 5 points"),
        ({"features": {"rgb": np.zeros((5, 3), np.uint8)}}, "'rgb' must be"),
        ({"features": {"name": np.array([None] * 5)}}, "'name' must be"),
    ],
)
def test_broken_rules_are_one_line_naming_the_cloud(change: dict[str, object], message: str) -> None:
    fields = {"name": "room", "coords": np.zeros((5, 3), np.float32), **change}
    with pytest.raises(ValueError, match=message) as caught:
        PointCloud(**fields)  # type: ignore[arg-type]  # wrong types are the point of this test
    assert str(caught.value).startswith("room: ")
    assert "\n" not in str(caught.value)
