import copy
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llvmlite.binding
import pytest
import torch
from torch import Tensor
from voxel_sets import random_voxels, surface_voxels

from mink_decouple import threads
from mink_decouple.sparse import cpu_kernel
from mink_decouple.sparse.functional import (
    convolution,
    convolve_norm,
    gather_matmul_sum_torch,
    gather_outer_sum_torch,
)
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


def test_results_repeat_bit_for_bit_whatever_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_PARALLEL_OPERATIONS", 0)
    mapping = maps(surface_voxels(2))["same"]
    feats, kernel = draw(mapping, 24, 32)

    def once() -> tuple[Tensor, ...]:
        out = convolution(feats, kernel, mapping)
        return (out, *torch.autograd.grad(out.square().sum(), (feats, kernel)))

    first = once()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for a, b in zip(first, once()):
            assert torch.equal(a, b)


@pytest.mark.skipif(not cpu_kernel.usable(torch.zeros(1)), reason="no fused multiply-add on this processor")
@pytest.mark.parametrize("kind", ["same", "down", "up"])
def test_fused_kernels_agree_with_plain_torch(kind: str) -> None:
    table = maps(surface_voxels(4, side=30))[kind].table
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(table.n_source, 24, generator=generator)
    y = torch.randn(table.rows.shape[1], 40, generator=generator)
    weights = torch.randn(len(table.rows), 24, 40, generator=generator)
    for fused, plain in [
        (cpu_kernel.gather_matmul_sum(x, weights, table), gather_matmul_sum_torch(x, weights, table)),
        (cpu_kernel.gather_outer_sum(x, y, table), gather_outer_sum_torch(x, y, table)),
    ]:
        assert (fused - plain).norm() <= 1e-6 * plain.norm()


def test_several_threads_may_convolve_at_once() -> None:
    mapping = maps(surface_voxels(5, side=20))["same"]
    feats, kernel = (t.detach() for t in draw(mapping, 16, 16))
    expected = convolution(feats, kernel, mapping)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: convolution(feats, kernel, mapping), range(8)):
            assert torch.equal(result, expected)


NARROW = """
import llvmlite.binding, torch
features = llvmlite.binding.get_host_cpu_features()
features.update({name: False for name in features if name.startswith("avx512")})
llvmlite.binding.get_host_cpu_features = lambda: features
from mink_decouple.sparse import cpu_kernel
from mink_decouple.sparse.functional import gather_matmul_sum_torch, gather_outer_sum_torch
from mink_decouple.sparse.kernel_map import pack, submanifold_map
assert cpu_kernel.LANES == 8
table = submanifold_map(pack(torch.cartesian_prod(*[torch.arange(n) for n in (2, 9, 8, 7)])), None, 3).table
x, y, w = torch.randn(1008, 11), torch.randn(1008, 24), torch.randn(27, 11, 24)
for fused, plain in [
    (cpu_kernel.gather_matmul_sum(x, w, table), gather_matmul_sum_torch(x, w, table)),
    (cpu_kernel.gather_outer_sum(x, y, table), gather_outer_sum_torch(x, y, table)),
]:
    assert (fused - plain).norm() <= 1e-6 * plain.norm()
"""


@pytest.mark.slow
@pytest.mark.skipif(not cpu_kernel.usable(torch.zeros(1)), reason="no fused multiply-add on this processor")
def test_fused_kernels_for_narrower_registers_are_right_too(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", NARROW], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


PAIRED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from voxel_sets import surface_voxels
from mink_decouple.sparse import cpu_kernel
from mink_decouple.sparse.functional import gather_matmul_sum_torch, gather_outer_sum_torch
from mink_decouple.sparse.tensor import MapCache
assert cpu_kernel.usable(torch.zeros(1, dtype=torch.bfloat16))
cache = MapCache(surface_voxels(1, items=2, side=20))
for table in (cache.submanifold(1, 3).table, cache.strided(1).table, cache.strided(1).reverse):
    for a, b in ((1, 1), (3, 16), (33, 37), (64, 80), (16, 160), (16, 208)):
        x, y = torch.randn(table.n_source, a).bfloat16(), torch.randn(table.rows.shape[1], b).bfloat16()
        w = (torch.randn(len(table.rows), a, b) / 8).bfloat16()
        scale, shift, residual = torch.rand(b), torch.randn(b), torch.randn(len(y), b).bfloat16()
        epilogue = cpu_kernel.Epilogue(scale, shift, residual, True)
        exact = gather_matmul_sum_torch(x.double(), w.double(), table)
        for ours, expected, tolerance in (
            (cpu_kernel.gather_matmul_sum(x, w, table), exact, 2**-9),
            (cpu_kernel.gather_matmul_sum(x, w, table, epilogue=epilogue),
             (exact * scale + shift + residual).relu(), 2**-9),
            (cpu_kernel.gather_outer_sum(x, y, table), gather_outer_sum_torch(x.double(), y.double(), table), 1e-6),
        ):
            assert (ours - expected).norm() <= tolerance * expected.norm(), (a, b)
print("right")
"""


@pytest.mark.slow
@pytest.mark.skipif(not cpu_kernel.usable(torch.zeros(1)), reason="no fused multiply-add on this processor")
def test_bfloat16_products_are_right_where_the_processor_has_them(tmp_path: Path) -> None:
    features = llvmlite.binding.get_host_cpu_features()
    if not features.get("avx512f"):
        pytest.skip("the processor has no AVX-512, hence no bfloat16 products")
    features["avx512bf16"] = True
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "znver4",
        "NUMBA_CPU_FEATURES": ",".join(("+" if has else "-") + name for name, has in features.items()),
        "NUMBA_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", PAIRED, str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGILL:
        pytest.skip("the processor has no instruction for bfloat16 products")
    assert done.returncode == 0 and "right" in done.stdout, done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["same", "down", "up"])
def test_a_norm_fused_into_the_convolution_equals_the_separate_operations(kind: str, dtype: torch.dtype) -> None:
    mapping = maps(surface_voxels(6, side=20))[kind]
    feats, kernel = (t.detach().to(dtype) for t in draw(mapping, 12, 20, torch.float64))
    generator = torch.Generator().manual_seed(3)
    bn = torch.nn.BatchNorm1d(20, dtype=torch.float64 if dtype == torch.float64 else torch.float32).eval()
    for tensor in (bn.weight.data, bn.bias.data, bn.running_mean):
        tensor.normal_(generator=generator)
    bn.running_var.uniform_(0.5, 2, generator=generator)
    residual = torch.randn(mapping.n_out, 20, generator=generator).to(dtype)
    expected = copy.deepcopy(bn).double()(definition(feats.double(), kernel.double(), mapping))
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-13, torch.bfloat16: 1e-2}[dtype]
    with torch.no_grad():
        for added in (None, residual):
            for rectify in (False, True):
                out = convolve_norm(feats, kernel, mapping, bn, added, rectify)
                exact = expected if added is None else expected + added
                exact = exact.relu() if rectify else exact
                assert out.dtype == dtype
                assert (out - exact).norm() <= tolerance * exact.norm()


def test_a_residual_of_other_rows_or_channels_is_refused() -> None:
    mapping = maps(random_voxels(1))["same"]
    feats, kernel = (t.detach() for t in draw(mapping, 3, 4))
    for shape in ((84, 4), (85, 3)):
        with pytest.raises(ValueError, match=rf"residual must be \(85, 4\), got \({shape[0]}, {shape[1]}\)"):
            convolve_norm(feats, kernel, mapping, torch.nn.BatchNorm1d(4).eval(), torch.zeros(shape))


@pytest.mark.parametrize(("c_in", "c_out"), [(0, 16), (16, 0)])
@pytest.mark.parametrize("kind", ["same", "down", "up"])
def test_no_channels_give_zeros_and_no_crash(kind: str, c_in: int, c_out: int) -> None:
    mapping = maps(random_voxels(1))[kind]
    feats, kernel = draw(mapping, c_in, c_out)
    out = convolution(feats, kernel, mapping)
    assert out.shape == (mapping.n_out, c_out) and not out.any()
    grads = torch.autograd.grad(out.sum(), (feats, kernel))
    assert [g.shape for g in grads] == [feats.shape, kernel.shape] and not any(g.any() for g in grads)


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
