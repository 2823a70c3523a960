"""The fused single-precision path of RandLA-Net against the plain layers in double precision."""

import copy

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
    torch.manual_seed(0)  # of one network in thirty some value lies so near a kink that the precisions differ about it
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
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        copied = copy.deepcopy(layer)
        leaf, gather = table.clone().requires_grad_(), Gather(level.neighbors, 3000)
        own, same = fused.encode(level.coords, gather.index, copied, 0.2)
        out = fused.attend(leaf, fused.normalize(own, copied, slope=0.2), gather, weight)
        (out.square().sum() + same.square().sum()).backward()
        runs.append([out.detach(), leaf.grad, copied.norm.weight.grad, copied.weight.grad, copied.norm.running_var])
    torch.set_num_threads(1)
    for others in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], others, strict=True))


def test_moments_of_places_far_from_the_origin_keep_their_precision():
    level, layer = draw(400, 3, k=16, dtype=torch.float32).pyramid[0], Dense(10, 8).train()
    coords = (level.coords + torch.tensor([0.0, 0.0, 800.0])).float()
    own, _ = fused.encode(coords, level.neighbors, layer, 1.0)
    # normalised rows have mean 0 and deviation 1 whatever the place
    encoded = own.double()
    assert encoded.mean(dim=0).abs().max() < 1e-2
    torch.testing.assert_close(encoded.std(dim=0), torch.ones(8, dtype=torch.float64), rtol=1e-2, atol=1e-2)


def attention_inputs(n=40, k=16, h=8, seed=2):
    generator = torch.Generator().manual_seed(seed)
    table, own = torch.randn(n, h, generator=generator), torch.randn(n * k, h, generator=generator)
    index = torch.randint(0, n, (n, k), generator=generator)
    return table, own, Gather(index, n), torch.randn(2 * h, 2 * h, generator=generator)


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_attention_and_its_gradients_equal_the_plain_ones_in_double_precision(scale):
    table, own, gather, weight = attention_inputs()
    weight *= scale
    grad = torch.randn(40, 16, generator=torch.Generator().manual_seed(3))
    leaves = [t.clone().requires_grad_() for t in (table, own, weight)]
    ours = fused.attend(leaves[0], leaves[1], gather, leaves[2])
    ours.backward(grad)
    plain = [t.double().requires_grad_() for t in (table, own, weight)]
    near = torch.cat([plain[0][gather.index.flatten()], plain[1]], dim=1)
    pooled = attend(near, plain[2], 16)
    pooled.backward(grad.double())
    torch.testing.assert_close(ours.double(), pooled, rtol=1e-5, atol=1e-5)
    for a, b in zip(leaves, plain, strict=True):
        assert float((a.grad.double() - b.grad).norm()) < 1e-5 * float(b.grad.norm())


def test_attention_to_extreme_scores_takes_the_neighbour_with_the_highest():
    table, own, gather, _ = attention_inputs()
    pooled = fused.attend(table, own, gather, 1e6 * torch.eye(16))
    near = torch.cat([table[gather.index.flatten()], own], dim=1).view(40, 16, 16)
    torch.testing.assert_close(pooled, near.amax(dim=1))


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


def test_max_pooling_passes_on_what_is_no_number():
    table = torch.zeros(4, 8)
    table[2, 3] = float("nan")
    pooled = fused.pool_max(table, torch.tensor([[0, 1, 2], [2, 0, 1], [0, 1, 3]]))
    assert pooled[:2, 3].isnan().all() and int(pooled.isnan().sum()) == 2
