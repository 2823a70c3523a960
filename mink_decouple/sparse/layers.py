"""Sparse layers as modules, with MinkowskiEngine's parameter names, shapes, offset order and default initialisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mink_decouple.sparse.functional import convolution, convolution_norm
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

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(N, C_in) -> (N, C_out), or (M, C_out) where the convolution leads to another level."""
        kernel_map, coords, stride = self._reach(x)
        return SparseTensor(coords, convolution(x.feats, self._matrices(), kernel_map, self.bias), stride, x.maps)

    def _matrices(self) -> Tensor:
        """The kernel as (V, C_in, C_out)."""
        return self.kernel.unsqueeze(0) if self.kernel.ndim == 2 else self.kernel

    def _reach(self, x: SparseTensor) -> tuple[KernelMap, Tensor, int]:
        """The kernel map, and the coordinates and stride it leads to."""
        raise NotImplementedError

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

    def _reach(self, x: SparseTensor) -> tuple[KernelMap, Tensor, int]:
        if self.stride == 2:
            kernel_map = x.maps.strided(x.stride)
            return kernel_map, x.maps.level(2 * x.stride).coords, 2 * x.stride
        return x.maps.submanifold(x.stride, self.kernel_size), x.coords, x.stride


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

    def _reach(self, x: SparseTensor) -> tuple[KernelMap, Tensor, int]:
        stride = x.stride // 2
        fine = x.maps.level(stride)  # raises ValueError where nothing was convolved down from there
        return x.maps.strided(stride).swapped(), fine.coords, stride


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


def convolve_and_normalize(
    conv: _Convolution, norm: BatchNorm, x: SparseTensor, residual: SparseTensor | None = None, rectify: bool = False
) -> SparseTensor:
    """``norm(conv(x), residual, rectify)``; in one kernel where a GPU infers without gradients.

    Raises:
        ValueError: ``residual`` lives on other voxels.
    """
    if conv.bias is None and not torch.is_grad_enabled():
        kernel_map, coords, stride = conv._reach(x)
        if residual is not None and (residual.maps is not x.maps or residual.stride != stride):
            raise ValueError(f"tensors at strides {stride} and {residual.stride} do not share their voxels")
        added = None if residual is None else residual.feats
        feats = convolution_norm(x.feats, conv._matrices(), kernel_map, norm.bn, added, rectify)
        if feats is not None:
            return SparseTensor(coords, feats, stride, x.maps)
    out: SparseTensor = norm(conv(x), residual, rectify)
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
    total = x.feats.new_zeros(size, x.feats.shape[1]).index_add(0, batch, x.feats)
    count = torch.bincount(batch, minlength=size).clamp_(min=1)
    return total / count.unsqueeze(1).to(total.dtype)


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
    if a.maps is not b.maps or a.stride != b.stride:
        raise ValueError(f"tensors at strides {a.stride} and {b.stride} do not share their voxels")
