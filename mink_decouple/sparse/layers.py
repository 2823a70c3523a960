"""Sparse layers as modules, with MinkowskiEngine's parameter names, shapes, offset order and default initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mink_decouple.sparse.functional import convolution, convolve_norm
from mink_decouple.sparse.kernel_map import KernelMap
from mink_decouple.sparse.normalization import normalize
from mink_decouple.sparse.tensor import SparseTensor


class _Convolution(nn.Module):
    """Parameters shared by the convolutions: ``kernel`` (V, C_in, C_out) or (C_in, C_out), and ``bias`` (1, C_out)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, bias: bool, fan: int
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = kernel_size, stride
        volume = kernel_size**3
        shape = (in_channels, out_channels) if volume == 1 else (volume, in_channels, out_channels)
        bound = 1 / math.sqrt(fan * volume)
        self.kernel = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(1, out_channels).uniform_(-bound, bound)) if bias else None

    def plan(self, x: SparseTensor) -> tuple[Tensor, KernelMap, Callable[[Tensor], SparseTensor]]:
        """The kernel (V, C_in, C_out), the map it is applied over, and what makes a tensor of the result's features."""
        raise NotImplementedError

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve: features (N, C_in) -> (M, C_out) on the voxels the layer leads to."""
        kernel, kernel_map, onto = self.plan(x)
        return onto(convolution(x.feats, kernel, kernel_map, self.bias))

    def extra_repr(self) -> str:
        """The sizes, for ``print(module)``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"bias={self.bias is not None}"
        )


class Conv3d(_Convolution):
    """Sparse convolution onto its own voxels (odd kernel, stride 1) or the next coarser grid (kernel 2, stride 2).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd with stride 1; 2 with stride 2.
        stride: 1 or 2.
        bias: whether to add a ``bias`` (1, C_out).

    Raises:
        ValueError: any other kernel size and stride.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, bias: bool = False
    ) -> None:
        if not (stride == 1 and kernel_size % 2 == 1) and not (stride == 2 and kernel_size == 2):
            raise ValueError(
                f"kernel size {kernel_size} with stride {stride} is not supported: "
                "odd with stride 1, or 2 with stride 2"
            )
        super().__init__(in_channels, out_channels, kernel_size, stride, bias, fan=in_channels)

    def plan(self, x: SparseTensor) -> tuple[Tensor, KernelMap, Callable[[Tensor], SparseTensor]]:
        """As in the base class: onto the N voxels themselves, or the M voxels of the coarser grid."""
        if self.stride == 2:
            kernel_map = x.maps.strided(x.stride)
            coarse = x.maps.level(2 * x.stride).coords
            return self.kernel, kernel_map, lambda feats: SparseTensor(coarse, feats, 2 * x.stride, x.maps)
        kernel = self.kernel.unsqueeze(0) if self.kernel_size == 1 else self.kernel
        return kernel, x.maps.submanifold(x.stride, self.kernel_size), x.replace

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(N, C_in) -> (N, C_out), or (M, C_out) on the M voxels of the coarser grid.

        Raises:
            ValueError: the number of input channels is another.
        """
        if self.kernel_size > 1 or x.feats.device.type == "cpu":
            # A BLAS would do for a kernel of one, but its weight gradient depends on the number of threads.
            return super().forward(x)
        if x.feats.shape[1] != self.in_channels:
            raise ValueError(f"feats must be (N, {self.in_channels}), got {tuple(x.feats.shape)}")
        out = x.feats @ self.kernel.to(x.feats.dtype)  # every voxel is its own only neighbour
        return x.replace(out if self.bias is None else out + self.bias.to(out.dtype))


class Linear(Conv3d):
    """The same linear map on every voxel: a convolution with kernel 1, its ``kernel`` being (C_in, C_out)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)


class ConvTranspose3d(_Convolution):
    """Transposed convolution with kernel 2 and stride 2, back onto the voxels that were convolved down.

    ``out[v] = x[u] @ kernel[dx + 2 dy + 4 dz]`` with ``u`` the coarse voxel of ``v`` and ``(dx, dy, dz)`` its place
    therein.

    Raises:
        ValueError: a kernel size or stride other than 2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 2, stride: int = 2, bias: bool = False
    ) -> None:
        if kernel_size != 2 or stride != 2:
            raise ValueError(f"transposed convolution with kernel size {kernel_size} and stride {stride}: only 2 and 2")
        super().__init__(in_channels, out_channels, kernel_size, stride, bias, fan=out_channels)

    def plan(self, x: SparseTensor) -> tuple[Tensor, KernelMap, Callable[[Tensor], SparseTensor]]:
        """As in the base class: from M voxels onto the N of the finer level, in its row order.

        Raises:
            ValueError: the input was not made by strided convolutions, so there is no finer level.
        """
        stride = x.stride // 2
        fine = x.maps.level(stride).coords
        return (
            self.kernel,
            x.maps.strided(stride).swapped(),
            lambda feats: SparseTensor(fine, feats, stride, x.maps),
        )


class BatchNorm(nn.Module):
    """Batch normalisation over all voxels of the batch; parameters under ``bn.``.

    A batch of fewer than two voxels has no variance: it is normalised by the running statistics, in training too.

    Args:
        channels: channels of the input.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, eps=eps, momentum=momentum)

    def forward(self, x: SparseTensor, residual: SparseTensor | None = None, rectify: bool = False) -> SparseTensor:
        """``act(bn(x) + residual)``: (N, C) -> (N, C). Addition and ReLU are optional and cost next to nothing here.

        Raises:
            ValueError: ``residual`` lives on other voxels.
        """
        if residual is not None:
            _check_same_voxels(x, residual)
        return x.replace(normalize(x.feats, self.bn, None if residual is None else residual.feats, rectify))


def conv_norm(
    conv: _Convolution, norm: BatchNorm, x: SparseTensor, residual: SparseTensor | None = None, rectify: bool = False
) -> SparseTensor:
    """``norm(conv(x), residual, rectify)``; in inference the sums are normalised before they are written.

    Raises:
        ValueError: ``residual`` lives on other voxels than the result.
    """
    bn = norm.bn
    inference = not torch.is_grad_enabled() and not bn.training and type(bn) is nn.BatchNorm1d
    inference = inference and bn.running_mean is not None
    alone = conv.kernel_size == 1 and x.feats.device.type != "cpu"
    if not inference or alone or conv.bias is not None:
        return norm(conv(x), residual, rectify)
    kernel, kernel_map, onto = conv.plan(x)
    added = None if residual is None else residual.feats
    out = onto(convolve_norm(x.feats, kernel, kernel_map, bn, added, rectify))
    if residual is not None:
        _check_same_voxels(out, residual)
    return out


class ReLU(nn.Module):
    """Rectification of the features."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(N, C) -> (N, C)."""
        return relu(x)


def relu(x: SparseTensor) -> SparseTensor:
    """Rectify the features."""
    return x.replace(F.relu(x.feats))


def add(a: SparseTensor, b: SparseTensor) -> SparseTensor:
    """Sum of two tensors on the same voxels.

    Raises:
        ValueError: the tensors live on different voxels.
    """
    _check_same_voxels(a, b)
    return a.replace(a.feats + b.feats)


def cat(a: SparseTensor, b: SparseTensor) -> SparseTensor:
    """Channels of ``a``, then channels of ``b``, on the same voxels.

    Raises:
        ValueError: the tensors live on different voxels.
    """
    _check_same_voxels(a, b)
    return a.replace(torch.cat([a.feats, b.feats], dim=1))


def global_avg_pool(x: SparseTensor, batch_size: int | None = None) -> Tensor:
    """Mean of the features of every batch item.

    Args:
        x: (N, C) features.
        batch_size: number of batch items; by default the largest batch index plus one.

    Returns:
        (B, C); zeros for an item without voxels.
    """
    batch, size = _batch_index(x, batch_size)
    feats = x.feats.float() if x.feats.dtype.itemsize < 4 else x.feats  # a sum of many halves overflows
    total = feats.new_zeros(size, feats.shape[1]).index_add(0, batch, feats)
    count = torch.bincount(batch, minlength=size).clamp_(min=1)
    return (total / count.unsqueeze(1).to(total.dtype)).to(x.feats.dtype)


def global_max_pool(x: SparseTensor, batch_size: int | None = None) -> Tensor:
    """Maximum of the features of every batch item: as :func:`global_avg_pool`."""
    batch, size = _batch_index(x, batch_size)
    start = x.feats.new_zeros(size, x.feats.shape[1])
    return start.scatter_reduce(0, batch.unsqueeze(1).expand_as(x.feats), x.feats, "amax", include_self=False)


def _batch_index(x: SparseTensor, batch_size: int | None) -> tuple[Tensor, int]:
    batch = x.coords[:, 0].long()
    found = int(batch.max()) + 1 if len(batch) else 0
    if batch_size is not None and batch_size < found:
        raise ValueError(f"batch_size {batch_size} is smaller than the {found} batch items of the tensor")
    return batch, found if batch_size is None else batch_size


def _check_same_voxels(a: SparseTensor, b: SparseTensor) -> None:
    if a.stride != b.stride:
        raise ValueError(f"tensors at strides {a.stride} and {b.stride} do not share their voxels")
    if a.maps is not b.maps:
        raise ValueError("tensors made apart do not share their voxels; make the second with a.replace(feats)")
