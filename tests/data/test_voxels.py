import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.data.voxels import group_mean, majority, voxelise


def cloud(seed: int, count: int, span: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-span, span, (count, 3)).astype(np.float32)


@given(seed=st.integers(0, 10**6), count=st.integers(0, 200), size=st.floats(0.05, 3))
@settings(max_examples=50, deadline=None)
def test_cells_equal_numpy_unique_of_floor(seed: int, count: int, size: float) -> None:
    coords = cloud(seed, count)
    index, first, inverse = np.unique(
        np.floor(coords / np.float32(size)).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    voxels = voxelise(coords, size)
    np.testing.assert_array_equal(voxels.index, index)
    np.testing.assert_array_equal(voxels.first, first)
    np.testing.assert_array_equal(voxels.inverse, inverse.reshape(-1))
    assert (voxels.index.dtype, voxels.inverse.dtype, voxels.first.dtype) == (np.int32, np.int64, np.int64)


def test_hash_table_grows_and_keeps_every_cell() -> None:
    coords = cloud(0, 30_000, span=50)  # far more cells than the first table holds
    voxels = voxelise(coords, 0.5)
    np.testing.assert_array_equal(voxels.index, np.unique(np.floor(coords / 0.5).astype(np.int32), axis=0))
    np.testing.assert_array_equal(voxels.index[voxels.inverse], np.floor(coords / 0.5))


def test_point_order_does_not_change_the_cells() -> None:
    coords = cloud(1, 5000)
    order = np.random.default_rng(2).permutation(len(coords))
    np.testing.assert_array_equal(voxelise(coords, 0.3).index, voxelise(coords[order], 0.3).index)
    np.testing.assert_array_equal(voxelise(coords, 0.3).inverse[order], voxelise(coords[order], 0.3).inverse)


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_size_must_be_positive(size: float) -> None:
    with pytest.raises(ValueError, match="voxel size"):
        voxelise(cloud(0, 3), size)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e6, -3e6])
def test_far_or_infinite_coordinate_is_named(bad: float) -> None:
    coords = cloud(0, 5)
    coords[3, 1] = bad
    with pytest.raises(ValueError, match=r"point 3 .*not finite or beyond"):
        voxelise(coords, 1.0)


def test_outermost_cells_are_packed_without_loss() -> None:
    edge = 2.0**20
    coords = np.array([[-edge, edge - 1, 0], [edge - 1, -edge, -1]], np.float64)
    np.testing.assert_array_equal(voxelise(coords, 1.0).index, coords)


def oracle_majority(values: np.ndarray, inverse: np.ndarray, size: int, ties: str) -> list[int]:
    result = []
    for group in range(size):
        ids, counts = np.unique(values[(inverse == group) & (values >= 0)], return_counts=True)
        best = ids[counts == counts.max()] if len(ids) else np.array([-1])
        result.append(-1 if len(best) > 1 and ties == "ignore" else int(best.min()))
    return result


@given(seed=st.integers(0, 10**6), count=st.integers(0, 60), ties=st.sampled_from(["lowest", "ignore"]))
@settings(max_examples=80, deadline=None)
def test_majority_equals_counting(seed: int, count: int, ties: str) -> None:
    rng = np.random.default_rng(seed)
    values, inverse = rng.integers(-1, 4, count), rng.integers(0, 12, count)
    assert majority(values, inverse, 12, 4, ties).tolist() == oracle_majority(values, inverse, 12, ties)


@given(seed=st.integers(0, 10**6), size=st.floats(0.1, 5))
@settings(max_examples=30, deadline=None)
def test_labelled_points_survive_voxelisation(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    coords = cloud(seed, 300)
    values = np.full(300, -1)
    values[rng.choice(300, 1)] = 2  # one label in the whole cloud, as in the one-point setting
    voxels = voxelise(coords, size)
    merged = majority(values, voxels.inverse, len(voxels), 3)
    assert merged[voxels.inverse[values >= 0]].tolist() == [2]
    assert (merged >= 0).sum() == 1


def test_majority_refuses_what_would_leave_its_buffers() -> None:
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="inverse map spans"):
        majority(one, one + 5, 3, 2)
    with pytest.raises(ValueError, match=r"class id 7 is outside 0\.\.1"):
        majority(one + 7, one, 3, 2)
    with pytest.raises(ValueError, match="'lowest' or 'ignore'"):
        majority(one, one, 3, 2, ties="first")
    with pytest.raises(ValueError, match="lengths must agree"):
        group_mean(np.zeros(2), one, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64, bool])
def test_group_mean_equals_bincount(dtype: type) -> None:
    rng = np.random.default_rng(0)
    array, inverse = rng.integers(0, 2, (100, 3)).astype(dtype), rng.integers(0, 7, 100)
    count = np.bincount(inverse, minlength=8)
    for k in range(3):
        mean = np.bincount(inverse, array[:, k], 8) / np.maximum(count, 1)
        np.testing.assert_allclose(group_mean(array, inverse, 8)[:, k], mean, rtol=1e-6)
        np.testing.assert_allclose(group_mean(array[:, k], inverse, 8), mean, rtol=1e-6)
    assert group_mean(array, inverse, 8).dtype == np.float32


def test_empty_cloud_has_no_cells() -> None:
    voxels = voxelise(np.empty((0, 3), np.float32), 0.1)
    assert (len(voxels), voxels.index.shape, len(voxels.inverse)) == (0, (0, 3), 0)
