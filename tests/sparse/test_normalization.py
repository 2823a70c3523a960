import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mink_decouple.sparse.normalization import normalize


def draw(n: int, channels: int = 5) -> tuple[Tensor, Tensor, nn.BatchNorm1d]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, channels, generator=generator) * torch.arange(1.0, channels + 1) + 3
    bn = nn.BatchNorm1d(channels)
    with torch.no_grad():
        bn.weight.uniform_(-1, 2, generator=generator)
        bn.bias.normal_(generator=generator)
        bn.running_mean.normal_(generator=generator)
        bn.running_var.uniform_(0.5, 2, generator=generator)
    return x.requires_grad_(), torch.randn(n, channels, generator=generator).requires_grad_(), bn


@pytest.mark.parametrize("n", [2, 513, 1500])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("rectify", [True, False])
def test_fused_step_equals_the_separate_operations(n: int, training: bool, with_residual: bool, rectify: bool) -> None:
    x, residual, bn = draw(n)
    oracle = copy.deepcopy(bn).double()
    bn.train(training)
    oracle.train(training)
    out = normalize(x, bn, residual if with_residual else None, rectify)
    expected = oracle(x.double())
    expected = expected + residual if with_residual else expected
    expected = F.relu(expected) if rectify else expected
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(bn.named_buffers()), dict(oracle.float().named_buffers()))
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    inputs = [x, residual] if with_residual else [x]
    ours = torch.autograd.grad((out * weight).sum(), [*inputs, *bn.parameters()])
    oracle.double()
    theirs = torch.autograd.grad((expected * weight).sum(), [*inputs], retain_graph=True)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
    reference = copy.deepcopy(bn)
    reference.train(training)
    reference.running_mean, reference.running_var = draw(n)[2].running_mean, draw(n)[2].running_var
    again = reference(x) + (residual if with_residual else 0)
    again = F.relu(again) if rectify else again
    for a, b in zip(ours[len(inputs) :], torch.autograd.grad((again * weight).sum(), list(reference.parameters()))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_large_offsets_do_not_spoil_the_variance() -> None:
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)) + 1000
    out = normalize(x, nn.BatchNorm1d(4))
    torch.testing.assert_close(out.std(0, unbiased=False), torch.ones(4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_rows_use_and_keep_the_running_statistics(n: int) -> None:
    x, _, bn = draw(n)
    before = copy.deepcopy(bn)
    torch.testing.assert_close(normalize(x, bn), before.eval()(x))
    normalize(x, bn).sum().backward()
    assert torch.equal(bn.running_mean, before.running_mean)


def test_frozen_parameters_get_no_gradient() -> None:
    x, _, bn = draw(20)
    bn.requires_grad_(False)
    normalize(x, bn.eval(), rectify=True).sum().backward()
    assert x.grad is not None and bn.weight.grad is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rectify", [True, False])
def test_bfloat16_differs_from_float32_by_its_rounding_alone(training: bool, rectify: bool) -> None:
    x, residual, bn = draw(700, channels=20)
    half, half_residual = (t.detach().bfloat16().requires_grad_() for t in (x, residual))
    other = copy.deepcopy(bn)
    bn.train(training)
    other.train(training)
    out = normalize(half, bn, half_residual, rectify)
    exact = normalize(half.detach().float().requires_grad_(), other, half_residual.detach().float(), rectify)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())
    torch.testing.assert_close(bn.running_var, other.running_var)
    (grad_x, grad_residual) = torch.autograd.grad(out.float().square().sum(), (half, half_residual))
    wide, wide_residual = half.detach().float().requires_grad_(), half_residual.detach().float().requires_grad_()
    again = normalize(wide, copy.deepcopy(other), wide_residual, rectify)
    expected = torch.autograd.grad(again.square().sum(), (wide, wide_residual))
    for ours, theirs in zip((grad_x, grad_residual), expected):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() < 0.02 * theirs.norm() + 1e-6


def test_values_that_are_no_numbers_stay_none_in_bfloat16() -> None:
    x = torch.tensor([[float("nan"), 1.0], [float("inf"), 2.0]], dtype=torch.bfloat16)
    out = normalize(x, nn.BatchNorm1d(2).eval())
    assert out[0, 0].isnan() and out[1, 0].isinf() and out[:, 1].isfinite().all()
