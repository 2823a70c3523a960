"""Kernel maps of the GPU, in Triton's interpreter where there is no GPU; the oracle is the search in plain torch."""

import pytest
import torch
from triton_support import DEVICE
from voxel_sets import random_voxels, surface_voxels

from mink_decouple.sparse import kernel_map as km
from mink_decouple.sparse.triton_maps import strided_tables, submanifold_table, unpack


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 4), (5, 1), (5, 4), (7, 2)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_table_equals_that_of_plain_torch(kernel_size: int, stride: int, shuffle: bool) -> None:
    coords = random_voxels(kernel_size, shuffle=shuffle)
    coords[:, 1:] *= stride
    keys, order = km.sort_keys(km.pack(coords))
    expected = km.submanifold_table_torch(keys, order, kernel_size, stride)
    on_device = None if order is None else order.to(DEVICE)
    assert torch.equal(submanifold_table(keys.to(DEVICE), on_device, kernel_size, stride).cpu(), expected)


def test_surfaces_at_the_edge_of_the_range() -> None:
    coords = surface_voxels(0, side=20)
    coords[:, 3] += km.AXIS_LIMIT - int(coords[:, 3].max())
    coords[:, 1] -= km.AXIS_LIMIT + int(coords[:, 1].min())
    keys, order = km.sort_keys(km.pack(coords))
    expected = km.submanifold_table_torch(keys, order, 3)
    on_device = None if order is None else order.to(DEVICE)
    assert torch.equal(submanifold_table(keys.to(DEVICE), on_device, 3).cpu(), expected)


@pytest.mark.parametrize("n", [0, 1])
def test_few_voxels(n: int) -> None:
    keys = km.pack(torch.zeros(n, 4, dtype=torch.int32))
    table = submanifold_table(keys.to(DEVICE), None, 3).cpu()
    assert table.shape == (27, n) and (table >= 0).sum() == n


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_strided_tables_and_coordinates_equal_those_of_plain_torch(stride: int, shuffle: bool) -> None:
    coords = random_voxels(stride, sizes=(200, 90), shuffle=shuffle)
    coords[:, 1:] *= stride
    keys, order = km.sort_keys(km.pack(coords))
    coarse, parent = km.strided_keys(keys, stride)
    bit = stride.bit_length() - 1
    rows = torch.arange(len(keys)) if order is None else order
    on_device = None if order is None else order.to(DEVICE)
    ours = strided_tables(keys.to(DEVICE), on_device, parent.to(DEVICE), len(coarse), bit)
    for table, expected in zip(ours, km.strided_tables_torch(keys, rows, parent, len(coarse), bit)):
        assert torch.equal(table.cpu(), expected)
    assert torch.equal(unpack(coarse.to(DEVICE)).cpu(), km.unpack_torch(coarse))
    assert torch.equal(unpack(keys.to(DEVICE)).cpu(), coords[rows])


def test_no_voxels_have_no_coarse_ones() -> None:
    keys = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    down, up = strided_tables(keys, None, keys, 0, 0)
    assert down.shape == up.shape == (8, 0) and unpack(keys).shape == (0, 4)
