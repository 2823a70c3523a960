"""Every layer against torch's dense convolutions on a densified grid."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from voxel_sets import random_voxels

from mink_decouple.sparse import layers
from mink_decouple.sparse.tensor import SparseTensor

LOW, SIDE = -8, 16


def densify(coords: Tensor, feats: Tensor, stride: int = 1) -> Tensor:
    """(B, C, X, Y, Z) grid with zeros at absent voxels."""
    cell = (coords[:, 1:].long() - LOW) // stride
    grid = feats.new_zeros(int(coords[:, 0].max()) + 1, SIDE // stride, SIDE // stride, SIDE // stride, feats.shape[1])
    return grid.index_put((coords[:, 0].long(), *cell.T), feats).permute(0, 4, 1, 2, 3)


def read(grid: Tensor, coords: Tensor, stride: int = 1) -> Tensor:
    cell = (coords[:, 1:].long() - LOW) // stride
    return grid.permute(0, 2, 3, 4, 1)[(coords[:, 0].long(), *cell.T)]


def cube(kernel: Tensor, size: int) -> Tensor:
    """(V, C_in, C_out), x fastest, as (size_x, size_y, size_z, C_in, C_out)."""
    return kernel.reshape(size, size, size, *kernel.shape[-2:]).permute(2, 1, 0, 3, 4)


def compare(out: Tensor, expected: Tensor, variables: list[Tensor]) -> None:
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(out.shape, generator=generator)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((out * weight).sum(), variables, retain_graph=True)
    theirs = torch.autograd.grad((expected * weight).sum(), variables)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


@pytest.fixture
def x() -> SparseTensor:
    voxels = random_voxels(0)
    feats = torch.randn(len(voxels), 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    return SparseTensor(voxels, feats)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("channels", [4, 16])
def test_submanifold_convolution_equals_dense_convolution(x: SparseTensor, kernel_size: int, channels: int) -> None:
    torch.manual_seed(0)
    conv = layers.Conv3d(5, channels, kernel_size, bias=True)
    assert conv.kernel.shape == ((5, channels) if kernel_size == 1 else (kernel_size**3, 5, channels))
    weight = cube(conv.kernel, kernel_size).permute(4, 3, 0, 1, 2)
    dense = F.conv3d(densify(x.coords, x.feats), weight, conv.bias.squeeze(0), padding=kernel_size // 2)
    out = conv(x)
    assert out.coords is x.coords
    compare(out.feats, read(dense, x.coords), [x.feats, conv.kernel, conv.bias])


def test_strided_convolution_equals_dense_convolution(x: SparseTensor) -> None:
    torch.manual_seed(0)
    conv = layers.Conv3d(5, 7, kernel_size=2, stride=2, bias=True)
    assert conv.kernel.shape == (8, 5, 7)
    out = conv(x)
    floored = torch.div(x.coords[:, 1:], 2, rounding_mode="floor") * 2
    expected_coords = torch.unique(torch.cat([x.coords[:, :1], floored], 1), dim=0)
    assert out.stride == 2 and torch.equal(out.coords, expected_coords)
    weight = cube(conv.kernel, 2).permute(4, 3, 0, 1, 2)
    dense = F.conv3d(densify(x.coords, x.feats), weight, conv.bias.squeeze(0), stride=2)
    compare(out.feats, read(dense, out.coords, 2), [x.feats, conv.kernel, conv.bias])


def test_transposed_convolution_equals_dense_transposed_convolution(x: SparseTensor) -> None:
    torch.manual_seed(0)
    coarse = layers.Conv3d(5, 6, kernel_size=2, stride=2)(x)
    middle = coarse.replace(coarse.feats.detach().requires_grad_())
    conv = layers.ConvTranspose3d(6, 3, bias=True)
    assert conv.kernel.shape == (8, 6, 3)
    out = conv(middle)
    assert out.stride == 1 and out.coords is x.coords
    weight = cube(conv.kernel, 2).permute(3, 4, 0, 1, 2)
    dense = F.conv_transpose3d(densify(middle.coords, middle.feats, 2), weight, conv.bias.squeeze(0), stride=2)
    compare(out.feats, read(dense, x.coords), [middle.feats, conv.kernel, conv.bias])


def test_convolution_at_a_coarser_level_equals_dense_convolution(x: SparseTensor) -> None:
    torch.manual_seed(0)
    coarse = layers.Conv3d(5, 6, kernel_size=2, stride=2)(x)
    middle = coarse.replace(coarse.feats.detach().requires_grad_())
    conv = layers.Conv3d(6, 3)
    weight = cube(conv.kernel, 3).permute(4, 3, 0, 1, 2)
    dense = F.conv3d(densify(middle.coords, middle.feats, 2), weight, padding=1)
    compare(conv(middle).feats, read(dense, middle.coords, 2), [middle.feats, conv.kernel])


def test_convolution_is_a_correlation_with_x_fastest_offsets() -> None:
    # The second voxel lies at (+1, 0, 0) of the first: weight 14 carries it there, weight 12 carries the first to it.
    x = SparseTensor(torch.tensor([[0, -1, 2, 3], [0, 0, 2, 3]], dtype=torch.int32), torch.tensor([[1.0], [10.0]]))
    conv = layers.Conv3d(1, 1)
    conv.kernel.data = torch.arange(27.0).reshape(27, 1, 1)
    assert conv(x).feats.flatten().tolist() == [13 * 1 + 14 * 10, 13 * 10 + 12 * 1]


def test_default_initialisation_has_the_reference_range() -> None:
    torch.manual_seed(0)
    for layer, count in [(layers.Conv3d(64, 4), 64 * 27), (layers.ConvTranspose3d(4, 64), 64 * 8)]:
        assert 0.95 * count**-0.5 < layer.kernel.abs().max().item() <= count**-0.5


def test_batch_norm_equals_batch_norm_of_rows_and_survives_one_voxel(x: SparseTensor) -> None:
    norm, oracle = layers.BatchNorm(5), nn.BatchNorm1d(5)
    assert set(norm.state_dict()) == {f"bn.{name}" for name in oracle.state_dict()}
    torch.testing.assert_close(norm(x).feats, oracle(x.feats))
    torch.testing.assert_close(norm.bn.running_var, oracle.running_var)
    single = SparseTensor(x.coords[:1], x.feats[:1])
    torch.testing.assert_close(norm(single).feats, oracle.eval()(x.feats[:1]))


def test_global_pooling_reduces_each_batch_item(x: SparseTensor) -> None:
    for item in range(2):
        rows = x.feats[x.coords[:, 0] == item]
        torch.testing.assert_close(layers.global_avg_pool(x)[item], rows.mean(0))
        torch.testing.assert_close(layers.global_max_pool(x)[item], rows.amax(0))
    assert layers.global_avg_pool(x, batch_size=3)[2].tolist() == [0.0] * 5
    assert layers.global_max_pool(x, batch_size=3)[2].tolist() == [0.0] * 5
    with pytest.raises(ValueError, match="batch_size 1"):
        layers.global_avg_pool(x, batch_size=1)


def test_the_mean_of_many_halves_is_no_overflow() -> None:
    coords = torch.nn.functional.pad(torch.arange(70000, dtype=torch.int32)[:, None], (1, 2))
    pooled = layers.global_avg_pool(SparseTensor(coords, torch.full((70000, 1), 2.0, dtype=torch.float16)))
    assert pooled.dtype == torch.float16 and pooled.tolist() == [[2.0]]


def test_tensors_made_apart_are_told_how_to_share_their_voxels(x: SparseTensor) -> None:
    with pytest.raises(ValueError, match=r"made apart .* a.replace\(feats\)"):
        layers.cat(x, SparseTensor(x.coords, x.feats))


def test_linear_is_a_matrix_product_per_voxel(x: SparseTensor) -> None:
    linear = layers.Linear(5, 3)
    assert {name: tuple(p.shape) for name, p in linear.named_parameters()} == {"kernel": (5, 3), "bias": (1, 3)}
    torch.testing.assert_close(linear(x).feats, x.feats @ linear.kernel + linear.bias)


def test_layers_refuse_what_they_cannot_do(x: SparseTensor) -> None:
    with pytest.raises(ValueError, match="not supported"):
        layers.Conv3d(1, 1, kernel_size=3, stride=2)
    with pytest.raises(ValueError, match="only 2 and 2"):
        layers.ConvTranspose3d(1, 1, kernel_size=3)
    with pytest.raises(ValueError, match="kernel must be"):
        layers.Conv3d(4, 1)(x)
    with pytest.raises(ValueError, match="no coordinates at tensor stride 1"):
        layers.ConvTranspose3d(5, 1)(SparseTensor(x.coords * torch.tensor([1, 2, 2, 2]).int(), x.feats, stride=2))
    with pytest.raises(ValueError, match="do not share their voxels"):
        layers.cat(x, layers.Conv3d(5, 5, kernel_size=2, stride=2)(x))


@pytest.mark.parametrize("layer", ["same", "single", "biased", "down", "up"])
@pytest.mark.parametrize("autocast", [False, True])
def test_inference_fuses_the_norm_into_the_convolution(layer: str, autocast: bool) -> None:
    torch.manual_seed(0)
    coords = random_voxels(3)
    x = SparseTensor(coords, torch.randn(len(coords), 6))
    if layer == "up":
        x = layers.Conv3d(6, 6, kernel_size=2, stride=2)(x)
    conv = {
        "same": lambda: layers.Conv3d(6, 8),
        "single": lambda: layers.Conv3d(6, 8, kernel_size=1),
        "biased": lambda: layers.Conv3d(6, 8, bias=True),
        "down": lambda: layers.Conv3d(6, 8, kernel_size=2, stride=2),
        "up": lambda: layers.ConvTranspose3d(6, 8),
    }[layer]()
    norm = layers.BatchNorm(8)
    nn.init.uniform_(norm.bn.weight, -1, 1)
    nn.init.normal_(norm.bn.bias)
    norm.bn.running_mean.normal_()
    norm.bn.running_var.uniform_(0.5, 2)
    residual = conv(x).replace(torch.randn(len(conv(x)), 8))
    for added, rectify in ((None, False), (None, True), (residual, True)):
        norm.train()
        before = norm.bn.running_mean.clone()
        with torch.no_grad():
            layers.conv_norm(conv, norm, x, added, rectify)
        assert not torch.equal(norm.bn.running_mean, before)  # training statistics are of the batch, gradients or not
        norm.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            fused = layers.conv_norm(conv, norm, x, added, rectify)
            apart = norm(conv(x), added, rectify)
        assert fused.coords is apart.coords and fused.feats.dtype == apart.feats.dtype
        tolerance = 2e-2 if autocast else 1e-5
        assert (fused.feats - apart.feats).norm() <= tolerance * apart.feats.norm()


def test_a_residual_on_other_voxels_is_refused_in_inference_too() -> None:
    x = SparseTensor(random_voxels(1), torch.randn(85, 4))
    other = SparseTensor(random_voxels(1), torch.randn(85, 4))
    conv, norm = layers.Conv3d(4, 4), layers.BatchNorm(4).eval()
    with torch.no_grad(), pytest.raises(ValueError, match="do not share their voxels"):
        layers.conv_norm(conv, norm, x, other)


def test_a_kernel_of_one_names_the_channels_it_wants() -> None:
    x = SparseTensor(random_voxels(1), torch.randn(85, 4))
    with pytest.raises(ValueError, match=r"kernel must be \(1, 4, C_out\)"):
        layers.Linear(5, 2)(x)
