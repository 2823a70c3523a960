"""Sub-sampling in chunks gives what sub-sampling the whole gives, bit for bit."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.data import grid_stream
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.grid import GridCloud, subsample
from mink_decouple.data.grid_stream import COORDS, FEATURE, LABELS, Rows, stream_columns


def streamed(cloud: PointCloud, size: float, chunk: int, held: int = grid_stream.HELD_BYTES):
    """The grid cloud and the inverse map from chunks of at most `chunk` points, with sums of `held` bytes at once."""
    inverse: list[np.ndarray] = []

    def read(wanted):
        for begin in range(0, len(cloud), chunk):
            rows = slice(begin, begin + chunk)
            labels = None if cloud.labels is None else cloud.labels[rows]
            yield Rows(cloud.coords[rows], {k: cloud.features[k][rows] for k in wanted}, labels)

    shapes = {key: column.shape[1:] for key, column in cloud.features.items()}
    with mock.patch.object(grid_stream, "HELD_BYTES", held), mock.patch.object(grid_stream, "_BLOCK_CELLS", 7):
        columns = dict(stream_columns(cloud.name, read, shapes, size, inverse.append))
    features = {key.removeprefix(FEATURE): columns[key] for key in columns if key.startswith(FEATURE)}
    there = np.concatenate(inverse)
    return GridCloud(cloud.name, columns[COORDS], features, columns.get(LABELS), there, size), there


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 300),
    chunk=st.integers(1, 320),
    size=st.sampled_from([0.05, 0.3, 0.7, 5.0]),
    labels=st.sampled_from(["none", "some", "all ignored"]),
    held=st.sampled_from([1, 3000, 1 << 30]),
)
def test_any_chunks_and_passes_give_the_grid_cloud_of_the_whole(seed, count, chunk, size, labels, held):
    rng = np.random.default_rng(seed)
    # Whole millimetres: many points lie on cell borders, where the last bit of the origin decides.
    coords = (np.rint(rng.uniform(-2, 2, (count, 3)) * 1000) / 1000).astype(np.float32)
    features = {
        "rgb": rng.random((count, 3)).astype(np.float32),
        "intensity": (rng.random(count) * 1e4).astype(np.float32),
        "return_number": rng.integers(1, 5, count).astype(np.uint8),
        "edge": rng.random(count) < 0.5,
    }
    ids = {"none": None, "some": rng.integers(-1, 4, count), "all ignored": np.full(count, -1)}[labels]
    cloud = PointCloud("room", coords, features=features, labels=ids)
    whole = subsample(cloud, size)
    grid, inverse = streamed(cloud, size, chunk, held)
    np.testing.assert_array_equal(inverse, whole.inverse)
    np.testing.assert_array_equal(grid.coords, whole.coords)
    assert grid.features.keys() == whole.features.keys() and (grid.name, grid.size) == (whole.name, whole.size)
    for key, column in whole.features.items():
        assert grid.features[key].dtype == column.dtype == np.float32
        np.testing.assert_array_equal(grid.features[key], column)
    if ids is None:
        assert grid.labels is None
    else:
        assert grid.labels.dtype == np.int64
        np.testing.assert_array_equal(grid.labels, whole.labels)


def test_tied_labels_go_to_the_lowest_id_wherever_they_stand():
    cloud = PointCloud("a", np.zeros((4, 3), np.float32), labels=np.array([2, 1, 1, 2]))
    for chunk in (1, 2, 3, 4):
        assert streamed(cloud, 1.0, chunk)[0].labels.tolist() == [1]


@pytest.mark.parametrize(("size", "words"), [(0.0, "voxel size: 0.0"), (1e-6, "use larger cells")])
def test_errors_name_the_scene(size, words):
    cloud = PointCloud("hall", np.array([[0, 0, 0], [900, 0, 0]], np.float32))
    with pytest.raises(ValueError, match=f"^hall: .*{words}"):
        streamed(cloud, size, 1)
