import pytest
import torch
from voxel_sets import random_voxels

from mink_decouple.sparse.tensor import MapCache, SparseTensor


def test_replace_keeps_voxels_and_shares_the_maps() -> None:
    x = SparseTensor(random_voxels(0), torch.zeros(85, 2))
    y = x.replace(torch.ones(85, 5))
    assert y.maps is x.maps and y.coords is x.coords and y.feats.shape == (85, 5)
    assert x.maps.submanifold(1, 3) is y.maps.submanifold(1, 3)
    assert x.maps.strided(1) is y.maps.strided(1)


@pytest.mark.parametrize(
    ("coords", "feats", "message"),
    [
        (torch.zeros(3, 3, dtype=torch.int32), torch.zeros(3, 1), r"\(N, 4\) int32"),
        (torch.zeros(3, 4), torch.zeros(3, 1), r"\(N, 4\) int32"),
        (torch.zeros(1, 4, dtype=torch.int32), torch.zeros(2, 1), "N = 1 voxels"),
        (torch.zeros(1, 4, dtype=torch.int32), torch.zeros(1), "N = 1 voxels"),
        (torch.zeros(1, 4, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int64), "floating point"),
        (torch.zeros(2, 4, dtype=torch.int32), torch.zeros(2, 1), "more than once"),
    ],
)
def test_malformed_input_is_refused(coords: torch.Tensor, feats: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseTensor(coords, feats)


def test_coordinates_must_lie_on_the_grid_of_the_stride() -> None:
    with pytest.raises(ValueError, match="no multiple of the tensor stride 2"):
        SparseTensor(torch.tensor([[0, 1, 0, 0]], dtype=torch.int32), torch.zeros(1, 1), stride=2)


def test_a_foreign_map_cache_is_refused() -> None:
    x = SparseTensor(random_voxels(0), torch.zeros(85, 2))
    with pytest.raises(ValueError, match="not those of the given map cache"):
        SparseTensor(random_voxels(1), torch.zeros(85, 2), maps=x.maps)


def test_rows_in_key_order_are_the_same_voxels_sorted() -> None:
    given = MapCache(random_voxels(2))
    order = given.level(1).order
    ordered = given.in_key_order()
    assert order is not None and torch.equal(ordered.level(1).coords, given.level(1).coords[order])
    assert ordered.level(1).order is None and ordered.in_key_order() is ordered
    afresh = MapCache(ordered.level(1).coords)
    assert torch.equal(ordered.submanifold(1, 3).table.rows, afresh.submanifold(1, 3).table.rows)
    assert not torch.equal(ordered.submanifold(1, 3).table.rows, given.submanifold(1, 3).table.rows)
