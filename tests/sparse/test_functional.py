import pytest
import torch
from voxel_sets import random_voxels, surface_voxels
from torch import Tensor

from mink_decouple.sparse.functional import convolution
from mink_decouple.sparse.kernel_map import KernelMap
from mink_decouple.sparse.tensor import MapCache


def maps(voxels: Tensor) -> dict[str, KernelMap]:
    cache = MapCache(voxels)
    return {"same": cache.submanifold(1, 3), "down": cache.strided(1), "up": cache.strided(1).swapped()}


def draw(mapping: KernelMap, c_in: int, c_out: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(c_in + c_out)
    feats = torch.randn(mapping.n_in, c_in, generator=generator, dtype=dtype)
    kernel = torch.randn(mapping.table.rows.shape[0], c_in, c_out, generator=generator, dtype=dtype)
    return feats.requires_grad_(), (kernel / 8).requires_grad_()


def definition(feats: Tensor, kernel: Tensor, mapping: KernelMap) -> Tensor:
    padded = torch.cat([feats, feats.new_zeros(1, feats.shape[1])])
    return torch.einsum("vna,vab->nb", padded[mapping.table.rows.long()], kernel)


@pytest.mark.parametrize("kind", ["same", "down", "up"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    mapping = maps(random_voxels(0, sizes=(12, 4), side=4))[kind]
    feats, kernel = draw(mapping, 2, 3, torch.float64)
    bias = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, k, b: convolution(f, k, mapping, b), (feats, kernel, bias))


@pytest.mark.parametrize("kind", ["same", "down", "up"])
@pytest.mark.parametrize(("c_in", "c_out"), [(1, 1), (3, 16), (16, 32), (48, 32), (20, 96), (64, 80), (33, 37)])
def test_forward_and_gradients_equal_the_definition(kind: str, c_in: int, c_out: int) -> None:
    mapping = maps(surface_voxels(1, items=2, side=20))[kind]
    feats, kernel = draw(mapping, c_in, c_out)
    out = convolution(feats, kernel, mapping)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    grads = torch.autograd.grad((out * weight).sum(), (feats, kernel))
    feats64, kernel64 = (t.detach().double().requires_grad_() for t in (feats, kernel))
    expected = definition(feats64, kernel64, mapping)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (feats64, kernel64))
    for ours, exact in zip((out, *grads), (expected, *expected_grads)):
        assert (ours - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("threads", [1, 2])
def test_results_repeat_bit_for_bit(threads: int) -> None:
    torch.set_num_threads(threads)
    mapping = maps(surface_voxels(2))["same"]
    feats, kernel = draw(mapping, 24, 32)

    def once() -> tuple[Tensor, ...]:
        out = convolution(feats, kernel, mapping)
        return (out, *torch.autograd.grad(out.square().sum(), (feats, kernel)))

    first = once()
    for _ in range(3):
        for a, b in zip(first, once()):
            assert torch.equal(a, b)


def test_bfloat16_stays_close_to_float32() -> None:
    mapping = maps(surface_voxels(3, side=16))["same"]
    feats, kernel = draw(mapping, 32, 16)
    exact = convolution(feats, kernel, mapping)
    for half in (
        convolution(feats.bfloat16(), kernel.bfloat16(), mapping),
        torch.autocast("cpu", torch.bfloat16)(convolution)(feats, kernel, mapping),
    ):
        assert half.dtype == torch.bfloat16
        assert (half - exact).norm() < 0.01 * exact.norm()
    grads = torch.autograd.grad(half.float().square().sum(), (feats, kernel))
    exact_grads = torch.autograd.grad(exact.square().sum(), (feats, kernel))
    for ours, expected in zip(grads, exact_grads):
        assert ours.dtype == torch.float32
        assert (ours - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("kind", ["same", "down", "up"])
def test_no_voxels_give_no_rows_and_zero_gradients(kind: str) -> None:
    mapping = maps(torch.zeros(0, 4, dtype=torch.int32))[kind]
    feats, kernel = draw(mapping, 4, 16)
    out = convolution(feats, kernel, mapping)
    assert out.shape == (0, 16)
    out.sum().backward()
    assert kernel.grad is not None and not kernel.grad.any()


def test_an_isolated_voxel_sees_only_the_centre() -> None:
    mapping = maps(torch.tensor([[0, 9, 9, 9]], dtype=torch.int32))["same"]
    feats, kernel = draw(mapping, 3, 16)
    torch.testing.assert_close(convolution(feats, kernel, mapping), feats @ kernel[13])


def test_an_unneeded_gradient_is_not_made() -> None:
    mapping = maps(random_voxels(1))["same"]
    feats, kernel = draw(mapping, 3, 16)
    convolution(feats.detach(), kernel, mapping).sum().backward()
    assert feats.grad is None and kernel.grad is not None


def test_a_map_of_other_rows_is_refused() -> None:
    mapping = maps(random_voxels(1))["same"]
    feats, kernel = draw(mapping, 3, 4)
    with pytest.raises(ValueError, match="kernel map expects 85"):
        convolution(feats[1:], kernel, mapping)
