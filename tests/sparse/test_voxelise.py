"""Voxels on a device against those of data.voxels and hand-worked values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mink_decouple.data import voxels as on_cpu
from mink_decouple.sparse.kernel_map import AXIS_LIMIT
from mink_decouple.sparse.tensor import SparseTensor
from mink_decouple.sparse.voxelise import point_values, voxel_label, voxel_mean, voxelise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("origin", [None, [0.31, -2.0, 0.07]])
def test_everything_equals_the_cpu_s_bit_for_bit(dtype: type, origin: list[float] | None) -> None:
    rng = np.random.default_rng(0)
    points = (rng.standard_normal((3000, 3)) * [1, 1, 0.2]).astype(dtype)
    points[:50] = np.round(points[:50] / 0.1) * 0.1
    values, labels = rng.standard_normal((3000, 4)).astype(np.float32), rng.integers(-1, 3, 3000)
    expected = on_cpu.voxelise(points, 0.1, None if origin is None else np.array(origin))
    size = len(expected)
    moved = torch.from_numpy(points).to(DEVICE)
    found = voxelise(moved, 0.1, None if origin is None else torch.tensor(origin, dtype=torch.float64))
    assert np.array_equal(found.coords[:, 1:].cpu(), expected.index) and not found.coords[:, 0].any()
    assert np.array_equal(found.inverse.cpu(), expected.inverse) and np.array_equal(found.first.cpu(), expected.first)
    mean = voxel_mean(torch.from_numpy(values).to(DEVICE), found)
    assert np.array_equal(mean.cpu(), on_cpu.group_mean(values, expected.inverse, size))
    label = voxel_label(torch.from_numpy(labels).to(DEVICE), found, 3)
    assert np.array_equal(label.cpu(), on_cpu.majority(labels, expected.inverse, size, 3, ties="ignore"))
    assert np.array_equal(point_values(label, found).cpu(), label.cpu().numpy()[expected.inverse])


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(0, 30), st.just(3)), elements=st.floats(-99, 99, width=32)))
def test_any_points_give_the_voxels_of_the_cpu(points: np.ndarray) -> None:
    expected, found = on_cpu.voxelise(points, 0.5), voxelise(torch.from_numpy(points), 0.5)
    assert np.array_equal(found.coords[:, 1:], expected.index)
    assert np.array_equal(found.inverse, expected.inverse)


def test_clouds_of_a_batch_stay_apart_and_make_a_sparse_tensor() -> None:
    points = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [-0.1, 0.1, 0.1]], device=DEVICE)
    voxels = voxelise(points, 1.0, batch=torch.tensor([1, 0, 1], device=DEVICE))
    assert voxels.coords.tolist() == [[0, 0, 0, 0], [1, -1, 0, 0], [1, 0, 0, 0]]
    assert voxels.inverse.tolist() == [2, 0, 1]
    assert len(SparseTensor(voxels.coords, points)) == 3


def test_one_labelled_point_decides_and_ties_give_none() -> None:
    points = torch.zeros(7, 3, device=DEVICE)
    points[4:] += 1
    voxels = voxelise(points, 1.0)
    labels = torch.tensor([-1, -1, 2, -1, 0, 1, -1], device=DEVICE)
    assert voxel_label(labels, voxels, 3).tolist() == [2, -1]
    assert voxel_mean(labels.unsqueeze(1), voxels).tolist() == [[-0.25], [0.0]]


def test_no_points_give_no_voxels() -> None:
    voxels = voxelise(torch.zeros(0, 3), 0.1)
    assert len(voxels) == 0 and voxel_mean(torch.zeros(0, 2), voxels).shape == (0, 2)
    assert voxel_label(torch.zeros(0, dtype=torch.int64), voxels, 3).shape == (0,)
    assert point_values(torch.zeros(0, 5), voxels).shape == (0, 5)


def test_faults_are_named() -> None:
    points = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="voxel size: 0"):
        voxelise(points, 0)
    with pytest.raises(ValueError, match="float32 or float64"):
        voxelise(points.half(), 1.0)
    for bad in (float("nan"), float("inf"), 2.0 * AXIS_LIMIT):
        points[1, 2] = bad
        with pytest.raises(ValueError, match="point 1 at"):
            voxelise(points, 1.0)
    voxels = voxelise(torch.zeros(3, 3), 1.0)
    with pytest.raises(ValueError, match="2 values for 3 points"):
        voxel_mean(torch.zeros(2, 1), voxels)
    with pytest.raises(ValueError, match="class id 3"):
        voxel_label(torch.tensor([0, 3, 1]), voxels, 3)
    with pytest.raises(ValueError, match="2 values for 1 voxels"):
        point_values(torch.zeros(2), voxels)
