import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_sets import random_voxels, surface_voxels

from mink_decouple.sparse import kernel_map as km


def brute_force(coords: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    row = {tuple(c): i for i, c in enumerate(coords.tolist())}
    return torch.tensor(
        [
            [row.get((b, x + dx * stride, y + dy * stride, z + dz * stride), -1) for b, x, y, z in coords.tolist()]
            for dx, dy, dz in km.kernel_offsets(kernel_size)
        ],
        dtype=torch.int32,
    ).reshape(kernel_size**3, len(coords))


def test_offsets_run_x_fastest_and_odd_kernels_are_centred() -> None:
    offsets = km.kernel_offsets(3)
    assert offsets[:4] == [(-1, -1, -1), (0, -1, -1), (1, -1, -1), (-1, 0, -1)]
    assert offsets[13] == (0, 0, 0) and offsets[26] == (1, 1, 1)
    assert km.kernel_offsets(2) == [
        (0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)
    ]  # fmt: skip
    assert km.kernel_offsets(5)[62] == (0, 0, 0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 511), *[st.integers(-km.AXIS_LIMIT, km.AXIS_LIMIT)] * 3), min_size=1, max_size=20)
)
def test_packing_is_invertible_and_keeps_the_lexicographic_order(rows: list[tuple[int, int, int, int]]) -> None:
    coords = torch.tensor(rows, dtype=torch.int32)
    keys = km.pack(coords)
    assert torch.equal(km.unpack(keys), coords)
    assert [rows[i] for i in torch.argsort(keys, stable=True)] == sorted(rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, km.AXIS_LIMIT + 1, 0, 0], "exceeds"),
        ([0, 0, 0, -km.AXIS_LIMIT - 1], "exceeds"),
        ([-1, 0, 0, 0], "batch index -1"),
        ([512, 0, 0, 0], "batch index 512"),
    ],
)
def test_coordinates_that_cannot_be_packed_are_refused(row: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        km.pack(torch.tensor([row], dtype=torch.int32))


def test_a_repeated_voxel_is_named() -> None:
    coords = torch.tensor([[0, 1, 2, 3], [1, 1, 2, 3], [0, 1, 2, 3]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"\[0, 1, 2, 3\] occurs more than once"):
        km.sort_keys(km.pack(coords))


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_merge_and_search_agree_with_brute_force(kernel_size: int, stride: int, shuffle: bool) -> None:
    coords = random_voxels(kernel_size, shuffle=shuffle)
    coords[:, 1:] *= stride
    keys, order = km.sort_keys(km.pack(coords))
    expected = brute_force(coords, kernel_size, stride)
    assert torch.equal(km.submanifold_map(keys, order, kernel_size, stride).table.rows, expected)
    assert torch.equal(km.submanifold_table_torch(keys, order, kernel_size, stride), expected)


def test_merge_and_search_agree_on_a_surface_and_at_the_edge_of_the_range() -> None:
    coords = surface_voxels(0)
    coords[:, 3] += km.AXIS_LIMIT - int(coords[:, 3].max())
    coords[:, 1] -= km.AXIS_LIMIT + int(coords[:, 1].min())
    keys, order = km.sort_keys(km.pack(coords))
    for kernel_size in (3, 5):
        merged = km.submanifold_map(keys, order, kernel_size).table.rows
        assert torch.equal(merged, km.submanifold_table_torch(keys, order, kernel_size))


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_strided_coordinates_are_floored_also_below_zero(stride: int) -> None:
    coords = random_voxels(3)
    coords[:, 1:] *= stride
    keys, _ = km.sort_keys(km.pack(coords))
    coarse, _ = km.strided_keys(keys, stride)
    floored = coords.clone()
    floored[:, 1:] = torch.div(coords[:, 1:], 2 * stride, rounding_mode="floor") * 2 * stride
    assert torch.equal(km.unpack(coarse), torch.unique(floored, dim=0))


def test_a_single_negative_voxel_keeps_absolute_units() -> None:
    keys = km.pack(torch.tensor([[0, 5, -3, 7]], dtype=torch.int32))
    coarse, parent = km.strided_keys(keys, 1)
    assert km.unpack(coarse).tolist() == [[0, 4, -4, 6]]
    table = km.strided_map(keys, None, parent, 1, 1).table.rows
    assert (table >= 0).nonzero().tolist() == [[1 + 2 + 4, 0]]


def test_strided_map_and_its_reverse_hold_every_voxel_once() -> None:
    coords = random_voxels(4)
    keys, order = km.sort_keys(km.pack(coords))
    coarse, parent = km.strided_keys(keys, 1)
    mapping = km.strided_map(keys, order, parent, len(coarse), 1)
    down, up = mapping.table.rows, mapping.reverse.rows  # type: ignore[union-attr] # a strided map has a reverse
    assert sorted(down[down >= 0].tolist()) == list(range(len(coords)))
    assert ((up >= 0).sum(0) == 1).all()
    offsets = torch.tensor(km.kernel_offsets(2))
    for offset, coarse_row in (down >= 0).nonzero().tolist():
        fine_row = int(down[offset, coarse_row])
        assert up[offset, fine_row] == coarse_row
        assert torch.equal(coords[fine_row, 1:], km.unpack(coarse)[coarse_row, 1:] + offsets[offset])


def test_pair_lists_hold_the_table() -> None:
    keys, order = km.sort_keys(km.pack(random_voxels(5)))
    table = km.submanifold_map(keys, order, 3).table
    pairs = table.pairs
    rebuilt = torch.full_like(table.rows, -1)
    for k, (start, end) in enumerate(zip(pairs.splits, pairs.splits[1:])):
        rebuilt[k, pairs.target[start:end]] = pairs.source[start:end].int()
    assert torch.equal(rebuilt, table.rows)
    assert (pairs.target[pairs.order].diff() >= 0).all()


def test_impossible_kernels_and_strides_are_refused() -> None:
    keys = km.pack(torch.zeros(1, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match="must be odd"):
        km.submanifold_map(keys, None, 2)
    with pytest.raises(ValueError, match="power of two"):
        km.submanifold_map(keys, None, 3, stride=3)
    with pytest.raises(ValueError, match="reaches beyond"):
        km.submanifold_map(keys, None, 5, stride=1024)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_strided_coordinates_and_maps_equal_those_of_plain_torch(stride: int) -> None:
    coords = random_voxels(5)
    coords[:, 1:] *= stride
    keys, order = km.sort_keys(km.pack(coords))
    coarse, parent = km.strided_keys(keys, stride)
    low = sum((2 * stride - 1) << shift for shift in (0, km.AXIS_BITS, 2 * km.AXIS_BITS))
    expected = km.number_runs_torch(*torch.sort(keys & ~low))
    assert torch.equal(coarse, expected[0]) and torch.equal(parent, expected[1])
    mapping = km.strided_map(keys, order, parent, len(coarse), stride)
    rows = torch.arange(len(keys)) if order is None else order
    down, up = km.strided_tables_torch(keys, rows, parent, len(coarse), stride.bit_length() - 1)
    assert mapping.reverse is not None
    assert torch.equal(mapping.table.rows, down) and torch.equal(mapping.reverse.rows, up)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_keys_do_not_depend_on_the_integer_type(dtype: torch.dtype) -> None:
    coords = random_voxels(6).to(dtype)
    assert torch.equal(km.unpack(km.pack(coords)).long(), coords.long())
