from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mink_decouple import threads
from mink_decouple.models.minkunet import VARIANTS, MinkUNet


@dataclass
class Batch:
    voxels: Tensor
    feats: Tensor


def draw(seed: int, sizes: tuple[int, ...] = (150, 60), channels: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    side = 9
    items = []
    for index, size in enumerate(sizes):
        cell = torch.randperm(side**3, generator=generator)[:size]
        xyz = torch.stack([cell // side**2, cell // side % side, cell % side], 1) - 5
        items.append(torch.cat([torch.full((size, 1), index), xyz], 1))
    voxels = torch.cat(items).int() if items else torch.zeros(0, 4, dtype=torch.int32)
    return Batch(voxels, torch.randn(len(voxels), channels, generator=generator))


def net(variant: str = "tiny", channels: int = 3) -> MinkUNet:
    torch.manual_seed(0)
    return MinkUNet.from_variant(variant, channels)


@pytest.mark.parametrize(("variant", "published"), [("14A", 8.0), ("18A", 15.5), ("34C", 37.9)])
def test_parameter_counts_are_the_published_ones(variant: str, published: float) -> None:
    with torch.device("meta"):
        model = MinkUNet.from_variant(variant, 3)
    head = model.out_channels * 13 + 13
    assert head == 1261
    assert round((sum(p.numel() for p in model.parameters()) + head) / 1e6, 1) == published


def test_the_tiny_variant_is_small() -> None:
    model = net()
    assert model.out_channels == VARIANTS["tiny"].planes[7]
    assert sum(p.numel() for p in model.parameters()) < 1.5e6


def test_names_and_shapes_are_those_of_the_reference_network() -> None:
    shapes = {name: tuple(value.shape) for name, value in net("14A").state_dict().items()}
    assert shapes["conv0p1s1.kernel"] == (125, 3, 32)
    assert shapes["conv4p8s2.kernel"] == (8, 128, 128)
    assert shapes["convtr4p16s2.kernel"] == (8, 256, 128)
    assert shapes["block5.0.conv1.kernel"] == (27, 256, 128)
    assert shapes["block8.0.downsample.0.kernel"] == (128, 96)
    assert shapes["block8.0.downsample.1.bn.running_var"] == (96,)
    assert shapes["bntr7.bn.weight"] == (96,)


def test_kernels_start_with_the_fan_out_spread() -> None:
    model = net("14A")
    assert model.block4[0].conv2.kernel.std().item() == pytest.approx((2 / (27 * 256)) ** 0.5, rel=0.02)
    assert model.block4[0].downsample[0].kernel.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert model.convtr4p16s2.kernel.abs().max().item() <= (128 * 8) ** -0.5


def test_permuting_the_voxels_permutes_the_features() -> None:
    model, batch = net().eval(), draw(0)
    order = torch.randperm(len(batch.voxels), generator=torch.Generator().manual_seed(1))
    features = model(batch)
    assert features.shape == (210, 32)
    torch.testing.assert_close(model(Batch(batch.voxels[order], batch.feats[order])), features[order])


def test_batch_items_do_not_see_each_other_and_shifts_by_the_coarsest_stride_change_nothing() -> None:
    model, batch = net().eval(), draw(0)
    alone = batch.voxels[:, 0] == 1
    shifted = batch.voxels[alone] + torch.tensor([-1, 16, -32, 48], dtype=torch.int32)
    torch.testing.assert_close(model(Batch(shifted, batch.feats[alone])), model(batch)[alone])


def test_every_parameter_gets_a_finite_gradient_and_the_loss_falls() -> None:
    model, batch = net(), draw(2)
    target = torch.randint(0, 32, (210,), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = torch.nn.functional.cross_entropy(model(batch), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("sizes", [(), (1,), (1, 1)])
def test_hardly_any_voxels_do_not_break_training(sizes: tuple[int, ...]) -> None:
    model, batch = net(), draw(0, sizes=sizes)
    features = model(batch)
    features.sum().backward()
    assert features.shape == (len(batch.voxels), 32) and features.isfinite().all()


def test_autocast_stays_close_to_float32() -> None:
    model, batch = net().eval(), draw(0)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
    assert (half.float() - exact).norm() < 0.05 * exact.norm()


def test_wrong_features_and_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"feats must be \(n, 3\)"):
        net()(draw(0, channels=4))
    with pytest.raises(ValueError, match="choices: 14A, 18A, 34C, tiny"):
        net("50")
    with pytest.raises(ValueError, match="needs 8 values"):
        MinkUNet(3, (1,) * 7, (8,) * 8)


def test_the_number_of_threads_changes_no_bit_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MIN_PARALLEL_OPERATIONS", 0)
    grid = torch.cartesian_prod(torch.arange(70), torch.arange(70))  # long enough for a BLAS to split its sums
    voxels = torch.cat([torch.zeros(len(grid), 1), grid, grid[:, :1] % 3], 1).int()
    batch = Batch(voxels, torch.randn(len(grid), 3, generator=torch.Generator().manual_seed(1)))
    model, before, seen = net().train(), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            model.zero_grad()
            out = model(batch)
            (out * torch.linspace(-1, 1, out.shape[1])).sum().backward()
            seen.append([out.detach().clone(), *(p.grad.clone() for p in model.parameters())])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        for name, ours, theirs in zip(["out", *dict(model.named_parameters())], other, seen[0], strict=True):
            assert torch.equal(ours, theirs), name
