"""Building blocks on rows: a tensor is (rows, channels), so a 1x1 convolution is one matrix product.

Two of them carry their own backward. A gather sums its gradient by target row over a sorted list instead of scattering,
which is faster on a CPU and gives the same bits on every run. Attentive pooling keeps the attention and works its
gradient out in two passes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mink_decouple.models import fused
from mink_decouple.models.products import linear, weight_gradient

SLOPE = 0.2
BN_EPS = 1e-6
BN_MOMENTUM = 0.01


def truncated_normal_(weight: Tensor) -> Tensor:
    """Fill `weight` (C_out, C_in) as the authors' `conv2d`: normal cut at 2 std, std sqrt(2 / C_out), rounded to 1e-3.

    Here all layers begin so; theirs of the attention's scores and of the input with TensorFlow's default.
    """
    std = math.sqrt(2.0 / weight.shape[0])
    with torch.no_grad():
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        return weight.mul_(1000).round_().div_(1000)


class Dense(nn.Module):
    """1x1 convolution with bias, batch norm and, if `activation`, LeakyReLU 0.2: (rows, C_in) -> (rows, C_out).

    Under batch statistics a bias before the norm cancels, so it is not added there: the outputs and running statistics
    are those of the layer with bias, and its gradient is exactly zero. A single row has no variance and is normalised
    by the running statistics.
    """

    def __init__(self, in_channels: int, out_channels: int, activation: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(truncated_normal_(torch.empty(out_channels, in_channels)))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.norm = nn.BatchNorm1d(out_channels, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, C_in) -> (n, C_out)."""
        norm = self.norm
        if fused.usable(x, self.weight, channels=len(self.weight)):
            return fused.normalize(linear(x, self.weight), self, slope=SLOPE if self.activation else 1.0)
        if norm.training and x.shape[0] > 1:
            # the zero term keeps the bias in the graph, as distributed training asks of every parameter
            shift = norm.bias + 0.0 * self.bias
            with torch.no_grad():
                # what the bias adds to the running mean, put in before its decay by 1 - momentum
                mean: Tensor = norm.get_buffer("running_mean")
                mean.add_(self.bias, alpha=BN_MOMENTUM / (1 - BN_MOMENTUM))
                norm.get_buffer("num_batches_tracked").add_(1)
            y = linear(x, self.weight)
            y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, shift, True, BN_MOMENTUM, BN_EPS)
        else:
            y = linear(x, self.weight, self.bias)
            y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, BN_EPS)
        return F.leaky_relu(y, SLOPE, inplace=True) if self.activation else y


class Gather:
    """Row numbers into a table of `n` rows, with the sorted list that the backward of a gather needs.

    Attributes:
        index: int64 of any shape; values in [0, n).
        n: rows of the table.
    """

    def __init__(self, index: Tensor, n: int) -> None:
        self.index = index
        self.n = n
        self._lists: tuple[Tensor, Tensor] | None = None

    def __call__(self, table: Tensor) -> Tensor:
        """Rows of `table` (n, C) at `index`: (index.numel(), C)."""
        if table.requires_grad and torch.is_grad_enabled():
            rows: Tensor = _GatherRows.apply(table, self.index.reshape(-1), *self.lists())
            return rows
        return table.index_select(0, self.index.reshape(-1))

    def lists(self) -> tuple[Tensor, Tensor]:
        """Positions in `index` sorted by the row they name (numel,), and where each row's positions begin (n + 1,)."""
        if self._lists is None:
            flat = self.index.reshape(-1)
            if flat.device.type == "cpu":
                self._lists = fused.sort_positions(flat, self.n)
                return self._lists
            ordered, positions = torch.sort(flat, stable=True)
            rows = torch.arange(self.n + 1, device=flat.device)
            self._lists = positions, torch.searchsorted(ordered, rows)
        return self._lists


class _GatherRows(torch.autograd.Function):
    """`table[index]`, whose gradient is summed row by row."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, positions: Tensor, begins: Tensor) -> Tensor:
        ctx.save_for_backward(positions, begins)
        return table.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        positions, begins = ctx.saved_tensors
        if fused.usable(grad, channels=grad.shape[1]):
            return fused.sum_rows(grad.contiguous(), grad.shape[1], positions, begins), None, None, None
        summed = F.embedding_bag(positions, grad.contiguous(), begins, mode="sum", include_last_offset=True)
        return summed, None, None, None


class _Attend(torch.autograd.Function):
    """Softmax over neighbours of `near @ weight.T`, then the weighted sum of `near`."""

    @staticmethod
    def forward(ctx: Any, near: Tensor, weight: Tensor, k: int) -> Tensor:
        n, d = near.shape[0] // k, near.shape[1]
        # a GPU's autocast would widen the softmax, and the backward must see one dtype
        with torch.autocast(near.device.type, enabled=False):
            attention = torch.softmax(linear(near, weight).view(n, k, d), dim=1)
            out = (attention * near.view(n, k, d)).sum(dim=1)
        ctx.save_for_backward(near, weight, attention, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        near, weight, attention, out = ctx.saved_tensors
        n, k, d = attention.shape
        # d out / d score of one neighbour is attention * (near - out): the softmax Jacobian contracted by hand
        direct = attention * grad.unsqueeze(1)
        scores = (near.view(n, k, d) - out.unsqueeze(1)).mul_(direct).view(-1, d)
        return direct.view(-1, d).add_(linear(scores, weight.t())), weight_gradient(scores, near), None


def attend(near: Tensor, weight: Tensor, k: int) -> Tensor:
    """Attentive pooling (RandLA-Net, Eq. 2 and 3) over the k neighbours of each point.

    Args:
        near: (n * k, d) neighbour features, neighbours of one point side by side.
        weight: (d, d) of the shared function that scores each channel of each neighbour; no bias.
        k: neighbours per point.

    Returns:
        (n, d) sum over neighbours of softmax(scores) * features.
    """
    kind = near.device.type
    if torch.is_autocast_enabled(kind):
        # a custom function is not cast by autocast, and its backward must see one dtype
        dtype = torch.get_autocast_dtype(kind)
        near, weight = near.to(dtype), weight.to(dtype)
    pooled: Tensor = _Attend.apply(near, weight, k)
    return pooled


class _PoolMax(torch.autograd.Function):
    """Largest value of each channel over a few rows; the gradient goes to the first row that holds it."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, neighbors: Tensor) -> Tensor:
        m, k = neighbors.shape
        values, winner = table.index_select(0, neighbors.reshape(-1)).view(m, k, -1).max(dim=1)
        ctx.save_for_backward(neighbors.gather(1, winner))
        ctx.rows = table.shape[0]
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, grad.shape[1]).scatter_add_(0, rows, grad), None


def pool_max(table: Tensor, neighbors: Tensor) -> Tensor:
    """Channel-wise maximum of the rows of `table` (n, C) named by `neighbors` (m, k): (m, C)."""
    if fused.usable(table):
        return fused.pool_max(table, neighbors)
    pooled: Tensor = _PoolMax.apply(table, neighbors)
    return pooled
