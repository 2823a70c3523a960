"""The 3x3x3 convolution by itself, its kernel map made beforehand: ours, MinkowskiEngine, spconv and plain torch.

    python benchmarks/conv.py --channels 32 64 96 128 256 --voxels 100000

All results are compared with plain torch in float64 before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from harness import Case, agree, parser, race, run
from peers import peer
from spconv_minkunet import spconv_weight
from torch import Tensor
from voxel_scenes import Voxels, neighbors, rooms, scan

from mink_decouple.sparse import functional
from mink_decouple.sparse.functional import convolution
from mink_decouple.sparse.kernel_map import KernelMap
from mink_decouple.sparse.tensor import MapCache

OURS = ("ours float32", "ours bfloat16")
TOLERANCE = {"ours bfloat16": 2e-2}
Forward = Callable[[], Tensor]
Pairs = Sequence[tuple[Tensor, Tensor]]


def plain(feats: Tensor, kernel: Tensor, pairs: Pairs) -> Tensor:
    """The convolution as most would write it: for each offset a gather, a product and an addition into rows."""
    out = feats.new_zeros(len(feats), kernel.shape[2])
    for (outputs, inputs), weight in zip(pairs, kernel, strict=True):
        out = out.index_add(0, outputs, feats[inputs] @ weight)
    return out


class PlainPath(torch.autograd.Function):
    """Our own operations of plain torch, which run where the fused kernels do not."""

    @staticmethod
    def forward(ctx: Any, feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        """(n, C_in) -> (n, C_out)."""
        ctx.save_for_backward(feats, kernel)
        ctx.table = kernel_map.table
        return functional.gather_matmul_sum_torch(feats, kernel, kernel_map.table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of features and weights."""
        feats, kernel = ctx.saved_tensors
        back = functional.gather_matmul_sum_torch(grad, kernel.transpose(1, 2).flip(0), ctx.table)
        return back, functional.gather_outer_sum_torch(feats, grad, ctx.table), None


class Layers:
    """One convolution in each library, on the same voxels, features and weights.

    Attributes:
        forwards: competitor -> the convolution, (n, C_out) out.
        leaves: competitor -> the features and weights that it takes gradients of.
    """

    def __init__(self, scene: Voxels, channels: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.feats = scene.feats(channels)
        self.kernel = torch.randn(27, channels, channels, generator=generator) / (27 * channels) ** 0.5
        self.kernel_map = MapCache(scene.coords).submanifold(1, 3)
        self.pairs = list(neighbors(scene.coords, 3))
        self.forwards: dict[str, Forward] = {}
        self.leaves: dict[str, tuple[Tensor, Tensor]] = {}
        self._ours()
        self._minkowski(scene)
        self._spconv(scene)
        self._plain()

    def oracle(self) -> Tensor:
        """The result in float64."""
        return plain(self.feats.double(), self.kernel.double(), self.pairs)

    def _ours(self) -> None:
        for name, dtype in zip(OURS, (torch.float32, torch.bfloat16), strict=True):
            feats = self.feats.to(dtype, copy=True).requires_grad_()
            kernel = self.kernel.clone().requires_grad_()
            self.leaves[name] = feats, kernel
            self.forwards[name] = partial(convolution, feats, kernel, self.kernel_map)

    def _plain(self) -> None:
        feats, kernel = self.feats.clone().requires_grad_(), self.kernel.clone().requires_grad_()
        self.leaves["plain torch"] = self.leaves["ours, plain path"] = feats, kernel
        self.forwards["ours, plain path"] = lambda: PlainPath.apply(feats, kernel, self.kernel_map)
        self.forwards["plain torch"] = lambda: plain(feats, kernel, self.pairs)

    def _minkowski(self, scene: Voxels) -> None:
        ME = peer("MinkowskiEngine")
        if ME is None:
            return
        channels = self.kernel.shape[1]
        layer = ME.MinkowskiConvolution(channels, channels, kernel_size=3, dimension=3)
        layer.kernel.data.copy_(self.kernel)
        first = ME.SparseTensor(self.feats.clone(), scene.coords)
        feats = first.F.detach().requires_grad_()
        rows = {"coordinate_map_key": first.coordinate_map_key, "coordinate_manager": first.coordinate_manager}
        self.leaves["MinkowskiEngine"] = feats, layer.kernel
        self.forwards["MinkowskiEngine"] = lambda: layer(ME.SparseTensor(feats, **rows)).F

    def _spconv(self, scene: Voxels) -> None:
        spconv = peer("spconv")
        if spconv is None:
            return
        channels = self.kernel.shape[1]
        algorithm = spconv.ConvAlgo.Native
        layer = spconv.SubMConv3d(channels, channels, 3, bias=False, indice_key="same", algo=algorithm)
        layer.weight.data.copy_(spconv_weight(self.kernel))
        feats = self.feats.clone().requires_grad_()
        with torch.no_grad():
            # the pairs go into what the layer returns, not into what it is given
            first = layer(spconv.SparseConvTensor(feats, scene.coords, scene.shape, 1))
        self.leaves["spconv"] = feats, layer.weight
        self.forwards["spconv"] = lambda: layer(first.replace_feature(feats)).features


def without_gradients(forward: Forward) -> Callable[[], object]:
    """The convolution as inference runs it."""

    def infer() -> None:
        with torch.no_grad():
            forward()

    return infer


def with_gradients(forward: Forward, leaves: tuple[Tensor, Tensor], grad: Tensor) -> Callable[[], object]:
    """The convolution and its gradients of features and weights."""
    grad = grad.to(leaves[0].dtype)

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        forward().backward(grad)

    return step


def measure(args: argparse.Namespace) -> Iterator[Case]:
    """A case for each scene and width, forward and forward with backward."""
    scenes = [rooms(1000 if args.quick else args.voxels)]
    real = scan(args.samples) if args.scan else None
    for scene in [*scenes, *([real] if real is not None else [])]:
        pairs = sum(len(outputs) for outputs, _ in neighbors(scene.coords, 3))
        for channels in [16] if args.quick else args.channels:
            layers, work = Layers(scene, channels), 2.0 * pairs * channels**2
            facts = f"{len(scene):,} voxels, {pairs / len(scene):.1f} pairs a voxel"
            title = f"{scene.name}: 3x3x3 convolution, {channels} to {channels} channels, "
            case = Case(title + "forward", f"{facts}, {work / 1e9:.1f} GFLOP", OURS, len(scene), work)
            wanted = layers.oracle()
            for name, forward in layers.forwards.items():
                agree(case, name, forward(), wanted, TOLERANCE.get(name, 1e-4))
            yield race(case, {name: without_gradients(f) for name, f in layers.forwards.items()}, args)
            case = Case(title + "forward and backward", f"{facts}, {3 * work / 1e9:.1f} GFLOP", OURS, 0, 3 * work)
            grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
            steps = {name: with_gradients(f, layers.leaves[name], grad) for name, f in layers.forwards.items()}
            compare_gradients(case, layers, steps, grad)
            yield race(case, steps, args)


def compare_gradients(case: Case, layers: Layers, steps: dict[str, Callable[[], object]], grad: Tensor) -> None:
    """Gradients of all competitors against those of plain torch in float64."""
    feats, kernel = layers.feats.double().requires_grad_(), layers.kernel.double().requires_grad_()
    plain(feats, kernel, layers.pairs).backward(grad.double())
    assert feats.grad is not None and kernel.grad is not None
    for name, step in steps.items():
        step()
        found, weight = (leaf.grad for leaf in layers.leaves[name])
        assert found is not None and weight is not None
        agree(case, name, found, feats.grad, TOLERANCE.get(name, 1e-4))
        wanted = spconv_weight(kernel.grad) if name == "spconv" else kernel.grad
        agree(case, name, weight, wanted, TOLERANCE.get(name, 1e-4))


def main() -> int:
    """Measure and print the tables."""
    made = parser(__doc__)
    made.add_argument("--channels", type=int, nargs="+", default=[32, 64, 96, 128, 256])
    made.add_argument("--voxels", type=int, default=100_000)
    made.add_argument("--scan", action="store_true", help="the real scan too")
    return run(made, measure)


if __name__ == "__main__":
    sys.exit(main())
