"""Normalisation on the GPU, in Triton's interpreter where there is no GPU; the oracle is torch in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from triton_support import DEVICE

from mink_decouple.sparse import normalization, triton_normalization
from mink_decouple.sparse.normalization import normalize
from mink_decouple.sparse.triton_normalization import Normalize


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalization, "_fused", lambda x, bn: Normalize)
    monkeypatch.setattr(triton_normalization, "_CHUNKS", 4)


def draw(n: int, channels: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, nn.BatchNorm1d]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, channels, generator=generator) * torch.linspace(1, 5, channels) + 3
    residual = torch.randn(n, channels, generator=generator)
    bn = nn.BatchNorm1d(channels)
    with torch.no_grad():
        bn.weight.uniform_(-1, 2, generator=generator)
        bn.bias.normal_(generator=generator)
        bn.running_mean.normal_(generator=generator)
        bn.running_var.uniform_(0.5, 2, generator=generator)
    x, residual = (t.to(DEVICE, dtype).requires_grad_() for t in (x, residual))
    return x, residual, bn.to(DEVICE)


def apply(x: Tensor, bn: nn.BatchNorm1d, residual: Tensor | None, rectify: bool) -> list[Tensor]:
    """Result, gradients of features and parameters, running statistics; all float64."""
    if bn.weight.dtype == torch.float64:
        out = bn(x) if residual is None else bn(x) + residual
        out = F.relu(out) if rectify else out
    else:
        out = normalize(x, bn, residual, rectify)
        assert out.dtype == x.dtype
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
    inputs = [x, *([] if residual is None else [residual]), *bn.parameters()]
    grads = torch.autograd.grad((out.double() * weight).sum(), inputs)
    return [t.detach().double() for t in (out, *grads, *bn.buffers())]


@pytest.mark.parametrize("n", [2, 150])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("rectify", [True, False])
def test_fused_step_equals_the_separate_operations(n: int, training: bool, with_residual: bool, rectify: bool) -> None:
    x, residual, bn = draw(n)
    bn.train(training)
    oracle = copy.deepcopy(bn).double()
    added = residual if with_residual else None
    ours = apply(x, bn, added, rectify)
    wide = (x.detach().double().requires_grad_(), None if added is None else added.detach().double().requires_grad_())
    for a, b in zip(ours, apply(wide[0], oracle, wide[1], rectify), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_features_have_float32_statistics(dtype: torch.dtype) -> None:
    x, residual, bn = draw(200, 70, dtype)
    oracle = copy.deepcopy(bn).double()
    ours = apply(x, bn, residual, True)
    wide = (x.detach().double().requires_grad_(), residual.detach().double().requires_grad_())
    theirs = apply(wide[0], oracle, wide[1], True)
    for a, b in zip(ours[-3:], theirs[-3:]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, theirs):
        assert (a - b).norm() <= 0.02 * b.norm()


def test_the_cumulative_average_and_large_offsets() -> None:
    x, _, bn = draw(130)
    bn.momentum = None
    oracle = copy.deepcopy(bn).double()
    for _ in range(2):
        out = normalize(x + 1000, bn)
        expected = oracle((x + 1000).double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(bn.running_mean.double(), oracle.running_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(bn.running_var.double(), oracle.running_var, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_rows_use_and_keep_the_running_statistics(n: int) -> None:
    x, _, bn = draw(n)
    before = copy.deepcopy(bn)
    torch.testing.assert_close(normalize(x, bn), before.eval()(x))
    normalize(x, bn).sum().backward()
    assert torch.equal(bn.running_mean, before.running_mean) and bn.num_batches_tracked == 0


def test_a_constant_channel_and_frozen_parameters() -> None:
    x, _, bn = draw(20)
    bn.requires_grad_(False)
    out = normalize(torch.cat([x[:, :4], torch.ones_like(x[:, :1])], 1), bn)
    torch.testing.assert_close(out[:, 4], bn.bias[4].expand(20))
    out.sum().backward()
    assert x.grad is not None and bn.weight.grad is None
