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
