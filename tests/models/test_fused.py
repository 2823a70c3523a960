"""The fused single-precision path of RandLA-Net against the plain layers in double precision."""

import copy

import numpy as np
import pytest
import torch
from randla_helpers import Batch, Level, draw, scramble

from mink_decouple.models import fused
from mink_decouple.models.randlanet import RandLANet
from mink_decouple.models.rows import Dense, Gather, attend


def double(batch):
    levels = [Level(x.coords.double(), x.neighbors, x.pool, x.up) for x in batch.pyramid]
    return Batch(batch.feats.double(), levels)


def everything(net, batch, weights):
    """Features, gradients of inputs and parameters, and running statistics of a step, by name."""
    feats = batch.feats.clone().requires_grad_()
    out = net(Batch(feats, batch.pyramid))
    (out * weights.to(out)).sum().backward()
    found = {"features": out.detach(), "inputs": feats.grad}
    found |= {name: p.grad for name, p in net.named_parameters()}
    return found | {name: b for name, b in net.named_buffers() if "running" in name}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [5, 16])
def test_a_step_equals_the_plain_network_in_double_precision(training, k):
    net = scramble(RandLANet(3, d_out=(16, 64), ratios=(4, 2)), 0).train(training)
    batch = draw(700, 1, k=k, dtype=torch.float32)
    weights = torch.randn(700, net.out_channels, generator=torch.Generator().manual_seed(0))
    plain = everything(copy.deepcopy(net).double(), double(batch), weights)
    ours = everything(net, batch, weights)
    for name, value in plain.items():
        scale = float(value.norm()) + 1e-3
        assert float((ours[name].double() - value).norm()) < 1e-4 * scale, name


def test_the_number_of_threads_changes_no_bit_of_the_row_operations():
    batch = draw(3000, 2, k=16, dtype=torch.float32)
    level, layer = batch.pyramid[0], scramble(torch.nn.Sequential(Dense(10, 8)), 0)[0].train()
    table = torch.randn(3000, 8, generator=torch.Generator().manual_seed(1))
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        copied = copy.deepcopy(layer)
        leaf, gather = table.clone().requires_grad_(), Gather(level.neighbors, 3000)
        near, own = fused.encode(leaf, level.coords, gather, copied, 0.2)
        out = fused.normalize(own, copied, slope=0.2, gathered=(leaf, gather))
        (near.square().sum() + out.square().sum()).backward()
        runs.append([near.detach(), out.detach(), leaf.grad, copied.norm.weight.grad, copied.norm.running_var])
    torch.set_num_threads(1)
    for others in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], others, strict=True))


def test_moments_of_places_far_from_the_origin_keep_their_precision():
    generator = torch.Generator().manual_seed(0)
    level, layer = draw(400, 3, k=16, dtype=torch.float32).pyramid[0], Dense(10, 8).train()
    coords = (level.coords + torch.tensor([0.0, 0.0, 800.0])).float()
    table = torch.randn(400, 8, generator=generator)
    near, _ = fused.encode(table, coords, Gather(level.neighbors, 400), layer, 1.0)
    # normalised rows have mean 0 and deviation 1 whatever the place
    encoded = near[:, 8:].double()
    assert encoded.mean(dim=0).abs().max() < 1e-2
    torch.testing.assert_close(encoded.std(dim=0), torch.ones(8, dtype=torch.float64), rtol=1e-2, atol=1e-2)


def test_attention_to_extreme_scores_stays_finite_and_sums_to_one():
    near = torch.tensor([[1e4, -1e4] * 8, [-1e4, 1e4] * 8, [0.0, 3.0] * 8, [5.0, 0.0] * 8])
    pooled = attend(near, torch.eye(16), 4)
    torch.testing.assert_close(pooled, torch.full((1, 16), 1e4))
    ones = torch.ones(8, 16)
    torch.testing.assert_close(attend(ones, torch.randn(16, 16), 8), torch.ones(1, 16))


def test_softmax_of_the_attention_is_that_of_torch():
    generator = torch.Generator().manual_seed(2)
    near = torch.randn(40 * 16, 16, generator=generator) * 4
    weight = torch.randn(16, 16, generator=generator)
    scores = (near.double() @ weight.double().T).view(40, 16, 16)
    plain = (scores.softmax(dim=1) * near.double().view(40, 16, 16)).sum(dim=1)
    np.testing.assert_allclose(attend(near, weight, 16), plain, rtol=1e-4, atol=1e-4)


def test_widths_and_types_that_the_kernels_do_not_take_are_refused():
    x = torch.zeros(2, 8)
    assert fused.usable(x) and fused.usable(x, channels=16)
    assert not fused.usable(x, channels=12) and not fused.usable(x.double()) and not fused.usable(x, x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.usable(x)


@pytest.mark.parametrize("residual", [True, False])
def test_normalize_equals_batch_norm_and_leaky_relu(residual):
    generator = torch.Generator().manual_seed(3)
    layer = scramble(torch.nn.Sequential(Dense(5, 16)), 4)[0].train()
    x = torch.randn(1100, 16, generator=generator)
    added = torch.randn(1100, 16, generator=generator) if residual else None
    grad = torch.randn(1100, 16, generator=generator, dtype=torch.float64)
    norm = copy.deepcopy(layer.norm).double()
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    ours = fused.normalize(a, layer, residual=added, slope=0.2)
    plain = norm(b)
    plain = torch.nn.functional.leaky_relu(plain if added is None else plain + added.double(), 0.2)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=1e-5)
    ours.backward(grad.float())
    plain.backward(grad)
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.norm.weight.grad.double(), norm.weight.grad, rtol=1e-4, atol=1e-3)
