"""The whole MinkUNet against the same network written down with torch's dense layers on a masked grid.

A convolution of a sparse tensor is the dense one over zeros at absent voxels, read where there are voxels.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mink_decouple.models.minkunet import MinkUNet

SIDE = 32
PLANES = (8, 12, 16, 20, 12, 16, 8, 4)  # of every stage another number, so that no two can be taken for each other


@dataclass
class Batch:
    voxels: Tensor
    feats: Tensor


@dataclass
class Grid:
    """Values (B, C, X, Y, Z), zero where `there` (B, 1, X, Y, Z) is."""

    values: Tensor
    there: Tensor


class Dense:
    """The network's layers on grids, each looked up by the name it has in MinkowskiEngine's example."""

    def __init__(self, weights: dict[str, Tensor], training: bool) -> None:
        self.weights, self.training = weights, training

    def cube(self, name: str) -> Tensor:
        """(C_out, C_in, X, Y, Z) of a kernel, whose offsets run x fastest."""
        kernel = self.weights[name]
        kernel = kernel if kernel.ndim == 3 else kernel[None]
        size = round(len(kernel) ** (1 / 3))
        return kernel.reshape(size, size, size, *kernel.shape[1:]).permute(4, 3, 2, 1, 0)

    def conv(self, name: str, x: Grid) -> Grid:
        weight = self.cube(f"{name}.kernel")
        return Grid(F.conv3d(x.values, weight, padding=weight.shape[-1] // 2) * x.there, x.there)

    def down(self, name: str, x: Grid) -> Grid:
        there = F.max_pool3d(x.there, 2)
        return Grid(F.conv3d(x.values, self.cube(f"{name}.kernel"), stride=2), there)

    def up(self, name: str, x: Grid, there: Tensor) -> Grid:
        weight = self.cube(f"{name}.kernel").transpose(0, 1)
        return Grid(F.conv_transpose3d(x.values, weight, stride=2) * there, there)

    def norm(self, name: str, x: Grid) -> Grid:
        mean, variance, weight, bias = (
            self.weights[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        if self.training:  # of the voxels that are there, each counting once
            rows = x.values.movedim(1, -1)[x.there[:, 0] > 0]
            mean, variance = rows.mean(0), rows.var(0, unbiased=False)
        scale = weight / (variance + 1e-5).sqrt()
        shape = (1, -1, 1, 1, 1)
        values = x.values * scale.view(shape) + (bias - mean * scale).view(shape)
        return Grid(values * x.there, x.there)

    def block(self, name: str, x: Grid) -> Grid:
        shortcut = x
        if f"{name}.downsample.0.kernel" in self.weights:
            shortcut = self.norm(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x))
        out = relu(self.norm(f"{name}.norm1", self.conv(f"{name}.conv1", x)))
        out = self.norm(f"{name}.norm2", self.conv(f"{name}.conv2", out))
        return relu(Grid(out.values + shortcut.values, x.there))

    def stage(self, name: str, blocks: int, x: Grid) -> Grid:
        for index in range(blocks):
            x = self.block(f"{name}.{index}", x)
        return x

    def network(self, x: Grid, layers: tuple[int, ...]) -> Grid:
        p1 = relu(self.norm("bn0", self.conv("conv0p1s1", x)))
        p2 = self.stage("block1", layers[0], relu(self.norm("bn1", self.down("conv1p1s2", p1))))
        p4 = self.stage("block2", layers[1], relu(self.norm("bn2", self.down("conv2p2s2", p2))))
        p8 = self.stage("block3", layers[2], relu(self.norm("bn3", self.down("conv3p4s2", p4))))
        p16 = self.stage("block4", layers[3], relu(self.norm("bn4", self.down("conv4p8s2", p8))))
        out = relu(self.norm("bntr4", self.up("convtr4p16s2", p16, p8.there)))
        out = self.stage("block5", layers[4], beside(out, p8))
        out = relu(self.norm("bntr5", self.up("convtr5p8s2", out, p4.there)))
        out = self.stage("block6", layers[5], beside(out, p4))
        out = relu(self.norm("bntr6", self.up("convtr6p4s2", out, p2.there)))
        out = self.stage("block7", layers[6], beside(out, p2))
        out = relu(self.norm("bntr7", self.up("convtr7p2s2", out, p1.there)))
        return self.stage("block8", layers[7], beside(out, p1))


def relu(x: Grid) -> Grid:
    return Grid(x.values.relu(), x.there)


def beside(x: Grid, skip: Grid) -> Grid:
    return Grid(torch.cat([x.values, skip.values], 1), x.there)


def draw(channels: int) -> Batch:
    """Two clouds: a slab with holes, and a few voxels far apart."""
    generator = torch.Generator().manual_seed(4)
    cells = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE), torch.arange(4))
    slab = cells[torch.rand(len(cells), generator=generator) < 0.4] + torch.tensor([0, 0, 13])
    few = torch.unique(torch.randint(0, SIDE, (40, 3), generator=generator), dim=0)
    clouds = [F.pad(cloud, (1, 0), value=index) for index, cloud in enumerate((slab, few))]
    voxels = torch.cat(clouds)[torch.randperm(len(slab) + len(few), generator=generator)].int()
    return Batch(voxels, torch.randn(len(voxels), channels, generator=generator))


def unlike_the_start(model: MinkUNet) -> None:
    """Batch norms whose weights, biases and running statistics all tell."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("bn.weight", "running_var")):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("bn.bias", "running_mean")):
                value.normal_(0.0, 0.3, generator=generator)


@pytest.mark.parametrize(("stem", "stem_kernel", "training"), [(8, 5, False), (6, 3, True)])
def test_features_and_gradients_are_those_of_dense_layers(stem: int, stem_kernel: int, training: bool) -> None:
    torch.manual_seed(0)
    layers = (2, 1, 2, 1, 1, 2, 1, 2)
    model = MinkUNet(3, layers, PLANES, stem=stem, stem_kernel=stem_kernel, engine_name="native")
    unlike_the_start(model)
    model.double().train(training)
    batch = draw(3)
    feats = batch.feats.double()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    learned = [name for name, _ in model.named_parameters()]
    for name in learned:
        weights[name].requires_grad_()

    where = tuple(batch.voxels.long().T)
    grid = torch.zeros(2, SIDE, SIDE, SIDE, 3, dtype=torch.float64).index_put(where, feats)
    there = torch.zeros(2, SIDE, SIDE, SIDE, 1, dtype=torch.float64).index_put(where, torch.ones(1).double())
    x = Grid(grid.movedim(-1, 1), there.movedim(-1, 1))
    expected = Dense(weights, training).network(x, layers).values.movedim(1, -1)[where]

    features = model(Batch(batch.voxels, feats))
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)
    pull = torch.randn(features.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    ours = torch.autograd.grad((features * pull).sum(), list(model.parameters()))
    theirs = torch.autograd.grad((expected * pull).sum(), [weights[name] for name in learned])
    for name, mine, other in zip(learned, ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-9 * other.norm(), name
