import numpy as np
import pytest
import torch
from randla_helpers import (
    Batch,
    Level,
    draw,
    join,
    naive_block,
    naive_dense,
    naive_encoding,
    naive_network,
    scramble,
)
from torch.nn import functional as F

from mink_decouple.data.collate import collate, point_view
from mink_decouple.models.randlanet import VARIANTS, RandLANet, relative_positions
from mink_decouple.models.rows import Dense, Gather, attend, linear, pool_max


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(seed=0, channels=3, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = RandLANet(channels, d_out=(4, 8), ratios=(4, 2)).to(dtype)
    return scramble(net, seed)


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_local_encoding_is_distance_difference_centre_neighbour():
    level = draw(20, 0).pyramid[0]
    close(
        relative_positions(level.coords, level.neighbors).view(20, 5, 10), naive_encoding(level.coords, level.neighbors)
    )


def test_attention_equals_its_definition_and_its_gradient_that_of_autograd():
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(6 * 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    plain = (F.softmax((near @ weight.T).view(6, 4, 3), dim=1) * near.view(6, 4, 3)).sum(dim=1)
    close(attend(near, weight, 4), plain)
    assert torch.autograd.gradcheck(lambda a, b: attend(a, b, 4), (near, weight))


def test_gather_and_its_gradient_equal_indexing():
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 6, (5, 4), generator=generator)  # row 6 is never named
    weights = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    gather = Gather(index, 7)
    close(gather(table), table[index.flatten()])
    (ours,) = torch.autograd.grad((gather(table) * weights).sum(), table)
    (plain,) = torch.autograd.grad((table[index.flatten()] * weights).sum(), table)
    close(ours, plain)
    assert (ours[6] == 0).all()


def test_pooling_takes_the_maximum_and_sends_the_gradient_there():
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(9, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    neighbors = torch.randint(0, 9, (4, 5), generator=generator)
    close(pool_max(table, neighbors), table[neighbors].amax(dim=1))
    assert torch.autograd.gradcheck(lambda t: pool_max(t, neighbors), (table,))


@pytest.mark.parametrize("rows", [5, 400])
def test_linear_and_its_gradients_equal_the_matrix_product(rows):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 6, generator=generator, requires_grad=True)
    weight, bias = (torch.randn(*s, generator=generator, requires_grad=True) for s in ((4, 6), (4,)))
    grad = torch.randn(rows, 4, generator=generator)
    ours = linear(x, weight, bias)
    close(ours, x @ weight.T + bias, 1e-5)
    assert ours.is_contiguous()
    plain = (grad @ weight, grad.T @ x, grad.sum(dim=0))
    for a, b in zip(torch.autograd.grad(ours, (x, weight, bias), grad), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_a_dense_layer_equals_the_layer_with_its_bias(training):
    layer = scramble(torch.nn.Sequential(Dense(3, 4)), 0)[0].double().train(training)
    reference = torch.nn.BatchNorm1d(4, eps=1e-6, momentum=0.01).double().train(training)
    reference.load_state_dict(layer.norm.state_dict())
    x = torch.randn(11, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with_bias = reference(F.linear(x, layer.weight, layer.bias))
    close(layer(x), F.leaky_relu(with_bias, 0.2))
    close(layer.norm.running_mean, reference.running_mean)
    close(layer.norm.running_var, reference.running_var)


def test_a_single_row_is_normalised_by_the_running_statistics():
    layer = scramble(torch.nn.Sequential(Dense(3, 4)), 0)[0].train()
    before = layer.norm.running_mean.clone()
    x = torch.ones(1, 3)
    trained = layer(x)
    assert torch.equal(trained, layer.eval()(x)) and torch.equal(before, layer.norm.running_mean)


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_block_equals_the_naive_loop(training):
    net = tiny().train(training)
    level = draw(12, 3).pyramid[0]
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    close(
        net.encoder[0](x, level.coords, Gather(level.neighbors, 12)),
        naive_block(net.encoder[0], x, level.coords, level.neighbors),
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_network_equals_the_naive_network(training):
    net, batch = tiny().train(training), draw(24, 4)
    close(net(batch), naive_network(net, batch))


def test_gradients_equal_those_of_the_naive_network():
    net, batch = tiny().train(), draw(24, 5)
    weights = torch.randn(24, net.out_channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    names = [name for name, _ in net.named_parameters()]
    ours = torch.autograd.grad((net(batch) * weights).sum(), list(net.parameters()))
    plain = torch.autograd.grad((naive_network(net, batch) * weights).sum(), list(net.parameters()))
    for name, a, b in zip(names, ours, plain, strict=True):
        close(a, b, 1e-7)
        if name.endswith("bias") and "norm" not in name:
            assert (a == 0).all(), name


def test_gradcheck_of_the_features():
    net, batch = tiny().eval(), draw(9, 6)
    feats = batch.feats.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: net(Batch(f, batch.pyramid)), (feats,))


@pytest.mark.parametrize("training", [True, False])
def test_reordering_points_within_what_sampling_keeps_reorders_the_features(training):
    net, batch = tiny().train(training), draw(32, 7)
    generator = torch.Generator().manual_seed(0)
    # the kept rows 0..7 (of them 0..3 again) may only change places among themselves
    order = torch.cat(
        [low + torch.randperm(high - low, generator=generator) for low, high in ((0, 4), (4, 8), (8, 32))]
    )
    back = torch.argsort(order)
    levels = []
    for level in batch.pyramid:
        n, m = len(level.coords), len(level.pool)
        here, there = order[:n], back[:m]
        levels.append(Level(level.coords[here], back[level.neighbors[here]], level.pool, there[level.up[here]]))
    close(net(Batch(batch.feats[order], levels)), net(batch)[order])


@pytest.mark.parametrize("training", [True, False])
def test_the_order_of_neighbours_does_not_matter(training):
    net, batch = tiny().train(training), draw(20, 8)
    levels = [Level(level.coords, level.neighbors.flip(1), level.pool, level.up) for level in batch.pyramid]
    close(net(Batch(batch.feats, levels)), net(batch))


def test_samples_of_different_sizes_in_one_batch_equal_each_alone():
    net = tiny().eval()
    batches = [draw(n, seed) for seed, n in enumerate((24, 3, 40))]
    close(net(join(batches)), torch.cat([net(b) for b in batches]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_crop_with_fewer_points_than_k_gives_finite_features_and_gradients(n, training):
    net = RandLANet(3, **VARIANTS["5"]).train(training)
    rng = np.random.default_rng(n)
    coords, feats = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(n, 3)).astype(np.float32)
    view = point_view("small", coords, feats, np.full(n, -1), net.ratios, 16, rng)
    out = net(collate([view]))
    out.square().sum().backward()
    assert out.shape == (n, 32) and out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(b.isfinite().all() for b in net.buffers())


def test_two_runs_give_the_same_bits():
    batch = draw(2000, 9, ratios=(4, 4), k=16, dtype=torch.float32)
    torch.set_num_threads(2)
    runs = []
    for _ in range(2):
        net = tiny(dtype=torch.float32).train()
        out = net(batch)
        out.square().sum().backward()
        runs.append([out.detach(), *(p.grad for p in net.parameters()), *net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_bfloat16_autocast_stays_near_single_precision():
    net, batch = tiny(dtype=torch.float32).train(), draw(300, 10, dtype=torch.float32)
    single = net(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(batch)
    half.float().square().sum().backward()
    assert half.dtype == torch.bfloat16
    assert (half.float() - single).norm() / single.norm() < 0.03
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())


def test_initial_weights_are_cut_at_two_deviations_and_biases_zero():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Dense(256, 32)
    std = (2 / 32) ** 0.5
    assert layer.weight.abs().max() <= 2 * std + 5e-4
    # a normal cut at two deviations has 0.880 of its deviation left
    assert float(layer.weight.detach().std()) == pytest.approx(0.880 * std, rel=0.03)
    assert (layer.bias == 0).all()


def test_a_batch_without_the_right_pyramid_is_refused():
    net = tiny()
    with pytest.raises(ValueError, match="none pyramid levels"):
        net(Batch(torch.zeros(3, 3), None))
    with pytest.raises(ValueError, match="3 pyramid levels; this RandLA-Net needs 2"):
        net(draw(20, 0, ratios=(4, 2, 2)))
    with pytest.raises(ValueError, match="must agree"):
        RandLANet(3, d_out=(4, 8), ratios=(4,))


def test_naive_dense_is_a_batch_norm():
    layer = Dense(3, 4).double().train()
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(
        naive_dense(layer, x), F.leaky_relu(F.batch_norm(x @ layer.weight.T, None, None, training=True, eps=1e-6), 0.2)
    )
