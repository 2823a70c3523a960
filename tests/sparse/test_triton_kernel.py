"""The convolution of the GPU, in Triton's interpreter where there is no GPU."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from triton_support import DEVICE
from voxel_sets import random_voxels, surface_voxels

from mink_decouple.sparse import functional, triton_kernel, triton_layout
from mink_decouple.sparse.functional import convolution
from mink_decouple.sparse.kernel_map import KernelMap, NeighborTable
from mink_decouple.sparse.tensor import MapCache
from mink_decouple.sparse.triton_kernel import Epilogue, gather_matmul_sum, gather_outer_sum

# The interpreter cuts bfloat16 off where hardware rounds.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
KINDS = ["same", "down", "up"]


def maps(voxels: Tensor) -> dict[str, KernelMap]:
    cache = MapCache(voxels.to(DEVICE))
    return {"same": cache.submanifold(1, 3), "down": cache.strided(1), "up": cache.strided(1).swapped()}


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def matmul_definition(x: Tensor, weights: Tensor, table: NeighborTable) -> Tensor:
    padded = torch.cat([x.double(), x.new_zeros(1, x.shape[1], dtype=torch.float64)])
    return torch.einsum("vna,vab->nb", padded[table.rows.long()], weights.double())


def outer_definition(x: Tensor, y: Tensor, table: NeighborTable) -> Tensor:
    padded = torch.cat([x.double(), x.new_zeros(1, x.shape[1], dtype=torch.float64)])
    return torch.einsum("vna,nb->vab", padded[table.rows.long()], y.double())


def assert_close(ours: Tensor, exact: Tensor, dtype: torch.dtype, of: torch.dtype | None = None) -> None:
    assert ours.dtype == (of or dtype) and ours.shape == exact.shape
    assert (ours.double() - exact).norm() <= TOLERANCE[dtype] * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("a", "b"), [(3, 16), (20, 33)])
def test_products_equal_the_definition(kind: str, dtype: torch.dtype, a: int, b: int) -> None:
    table = maps(random_voxels(1))[kind].table
    x, y = draw(table.n_source, a, dtype=dtype), draw(table.rows.shape[1], b, dtype=dtype)
    weights = draw(len(table.rows), a, b, dtype=dtype)
    assert_close(gather_matmul_sum(x, weights, table), matmul_definition(x, weights, table), dtype)
    assert_close(gather_outer_sum(x, y, table), outer_definition(x, y, table), dtype, torch.float32)


def test_wide_channels_take_several_tiles() -> None:
    table = maps(random_voxels(1, sizes=(20, 10)))["down"].table
    x, y, weights = draw(table.n_source, 96), draw(table.rows.shape[1], 130), draw(8, 96, 130)
    assert_close(gather_matmul_sum(x, weights, table), matmul_definition(x, weights, table), torch.float32)
    assert_close(gather_outer_sum(x, y, table), outer_definition(x, y, table), torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_convolution_and_its_gradients_equal_the_definition(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "_fused", lambda x: triton_kernel)
    mapping = maps(random_voxels(2))[kind]
    feats, kernel = draw(mapping.n_in, 17).requires_grad_(), draw(len(mapping.table.rows), 17, 24).requires_grad_()
    out = convolution(feats, kernel, mapping)
    weight = draw(*out.shape).double()
    grads = torch.autograd.grad((out * weight).sum(), (feats, kernel))
    exact = matmul_definition(feats, kernel, mapping.table)
    exact_grads = torch.autograd.grad((exact * weight).sum(), (feats, kernel))
    for ours, theirs in zip((out, *grads), (exact, *exact_grads)):
        assert_close(ours, theirs.double(), torch.float32)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_groups_of_offsets_add_up(groups: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_layout, "_FEW_ROWS", 0)
    monkeypatch.setattr(triton_layout, "_FULL", 0.0 if groups == 1 else 1.0)
    table = maps(random_voxels(3))["same"].table
    x, weights = draw(table.n_source, 16, dtype=dtype), draw(27, 16, 32, dtype=dtype)
    assert triton_layout.layout(table).groups == groups
    assert_close(gather_matmul_sum(x, weights, table), matmul_definition(x, weights, table), dtype)


def test_a_kernel_of_five_goes_in_groups_too() -> None:
    table = MapCache(random_voxels(4, sizes=(30,)).to(DEVICE)).submanifold(1, 5).table
    assert triton_layout.layout(table).groups == 5
    x, y, weights = draw(30, 4), draw(30, 16), draw(125, 4, 16)
    assert_close(gather_matmul_sum(x, weights, table), matmul_definition(x, weights, table), torch.float32)
    assert_close(gather_outer_sum(x, y, table), outer_definition(x, y, table), torch.float32)


def test_a_kernel_of_one_is_a_matrix_product() -> None:
    table = MapCache(random_voxels(5).to(DEVICE)).submanifold(1, 1).table
    x, y, weights = draw(85, 6), draw(85, 5), draw(1, 6, 5)
    residual = draw(85, 5)
    for epilogue in (None, Epilogue(residual=residual)):
        expected = x @ weights[0] + (0 if epilogue is None else residual)
        torch.testing.assert_close(
            gather_matmul_sum(x, weights, table, epilogue=epilogue), expected, rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(gather_outer_sum(x, y, table)[0], x.t() @ y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_epilogue_scales_shifts_adds_and_rectifies_in_this_order(dtype: torch.dtype) -> None:
    table = maps(random_voxels(6, sizes=(30,)))["same"].table
    x, weights, residual = draw(30, 8, dtype=dtype), draw(27, 8, 20, dtype=dtype), draw(30, 20, dtype=dtype)
    scale, shift = draw(20), draw(1, 20)[0] + 1
    plain = matmul_definition(x, weights, table)
    full = torch.relu(plain * scale + shift + residual)
    given = Epilogue(scale, shift, residual=residual, rectify=True)
    assert_close(gather_matmul_sum(x, weights, table, epilogue=given), full, dtype)
    assert_close(gather_matmul_sum(x, weights, table, epilogue=Epilogue(shift=shift)), plain + shift, dtype)
    mean, var = draw(20) + 2, draw(20).square()
    normalised = Epilogue(scale, shift, mean, var, 0.1)
    exact = F.batch_norm(plain, mean.double(), var.double(), scale.double(), shift.double(), eps=0.1)
    assert_close(gather_matmul_sum(x, weights, table, epilogue=normalised), exact, dtype)


def test_weights_may_be_a_transposed_view_and_features_strided() -> None:
    table = maps(random_voxels(7))["down"].table
    x, weights = draw(table.n_source, 40)[:, ::2], draw(8, 24, 20).transpose(1, 2)
    assert_close(gather_matmul_sum(x, weights, table), matmul_definition(x, weights, table), torch.float32)


def test_results_repeat_bit_for_bit() -> None:
    table = maps(random_voxels(8))["same"].table
    x, y, weights = draw(85, 16), draw(85, 16), draw(27, 16, 16)
    assert torch.equal(gather_matmul_sum(x, weights, table), gather_matmul_sum(x, weights, table))
    assert torch.equal(gather_outer_sum(x, y, table), gather_outer_sum(x, y, table))


@pytest.mark.parametrize("kind", KINDS)
def test_no_voxels_give_no_rows_and_zero_gradients(kind: str) -> None:
    table = maps(torch.zeros(0, 4, dtype=torch.int32))[kind].table
    x, y = draw(0, 4), draw(0, 16)
    assert gather_matmul_sum(x, draw(len(table.rows), 4, 16), table).shape == (0, 16)
    outer = gather_outer_sum(x, y, table)
    assert outer.shape == (len(table.rows), 4, 16) and not outer.any()


def test_absent_rows_give_zeros() -> None:
    table = NeighborTable(torch.full((8, 5), -1, dtype=torch.int32, device=DEVICE), 3)
    assert not gather_matmul_sum(draw(3, 4), draw(8, 4, 16), table).any()
    assert not gather_outer_sum(draw(3, 4), draw(5, 16), table).any()


def test_rows_with_equal_neighbours_become_neighbours_and_every_pair_is_listed_once() -> None:
    table = maps(surface_voxels(0, items=1, side=24))["same"].table
    layout = triton_layout.layout(table)
    (order,) = layout.order
    assert torch.equal(order.sort().values, torch.arange(576, device=DEVICE))
    ordered = table.rows[:, order]
    present = ordered >= 0
    changes = (present[:, 1:] != present[:, :-1]).any(0).sum() + 1
    assert changes == len(torch.unique(present, dim=1).t())
    (counts,), (lists,), (rows,) = (getattr(layout.tiles(64), name) for name in ("counts", "lists", "rows"))
    needed = present.view(27, 9, 64).any(2)
    assert torch.equal(counts.long(), needed.sum(0))
    for tile in range(9):
        offsets = lists[tile, : int(counts[tile])].long()
        assert torch.equal(offsets, needed[:, tile].nonzero().squeeze(1))
        assert torch.equal(rows[tile, : len(offsets)], ordered[offsets, 64 * tile : 64 * tile + 64])
    unsorted = (table.rows >= 0).view(27, 9, 64).any(2)
    assert needed.sum() < unsorted.sum()
    source, target = layout.pairs
    chunks = layout.chunks(100)
    offset = torch.repeat_interleave(torch.arange(27, device=DEVICE), torch.tensor(layout.present, device=DEVICE))
    assert torch.equal(table.rows[offset, target.long()], source)
    lengths = chunks.bounds[:, 1] - chunks.bounds[:, 0]
    assert lengths.sum() == len(source) and lengths.min() > 0 and lengths.max() <= 100
    begins = chunks.bounds[:, 0].long()
    pieces = torch.bincount(offset[begins], minlength=27)
    assert torch.equal(pieces.cumsum(0), chunks.splits[1:].long())


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_every_group_has_an_order_of_its_own(groups: int) -> None:
    rng = torch.Generator().manual_seed(groups)
    table = torch.where(torch.rand(27, 70, generator=rng) < torch.rand(27, 1, generator=rng), 1, -1).int().to(DEVICE)
    size = -(-27 // groups)
    orders = triton_layout.sorted_rows(table, (table >= 0).sum(1), groups, size)
    for group, order in enumerate(orders):
        part = (table[group * size : (group + 1) * size] >= 0).long()
        rarest_first = torch.argsort(part.sum(1), descending=True, stable=True).flip(0)
        masks = sum(bit << power for power, bit in enumerate(part[rarest_first].flip(0)))
        assert isinstance(masks, torch.Tensor)
        assert torch.equal(order, torch.sort(masks, stable=True, descending=True).indices)


def test_the_project_works_where_triton_is_missing() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from mink_decouple.sparse import triton_kernel, triton_runtime
assert triton_runtime._obstacle(0) == "Triton is not installed"
assert not triton_kernel.usable(torch.zeros(1))
"""
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
