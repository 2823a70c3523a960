"""RandLA-Net's work between two matrix products, each piece as one pass over its rows with its own backward.

It serves single precision on a CPU outside autocast; `usable` says when. The values are those of the plain layers of
`rows.py` up to rounding; other devices and dtypes take those.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mink_decouple.models import row_kernels
from mink_decouple.models.products import linear, weight_gradient
from mink_decouple.models.row_vectors import LANES
from mink_decouple.threads import share

kernels: Any = row_kernels  # numba declares its compiled functions without arguments


class NormalizedLayer(Protocol):
    """A 1x1 convolution before batch norm, as `rows.Dense` holds it: weight (C_out, C_in) and bias (C_out,)."""

    weight: nn.Parameter
    bias: nn.Parameter
    norm: nn.BatchNorm1d


class SortedRows(Protocol):
    """Row numbers into a table and their sorted list, as `rows.Gather` holds them."""

    index: Tensor

    def lists(self) -> tuple[Tensor, Tensor]:
        """Positions sorted by the row they name, and where each row's positions begin."""


def usable(*tensors: Tensor, channels: int = LANES) -> bool:
    """Whether these kernels take the tensors: single precision, on a CPU, outside autocast, whole vectors."""
    return (
        channels % LANES == 0
        and not torch.is_autocast_enabled("cpu")
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    )


def sort_positions(index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Positions in `index` (m,) int64 stably sorted by row, and where those of each of n rows begin (n + 1,)."""
    positions, begins = kernels.sort_positions(_array(index), n)
    return torch.from_numpy(positions), torch.from_numpy(begins)


def sum_rows(grad: Tensor, channels: int, positions: Tensor, begins: Tensor) -> Tensor:
    """Gradient of a gather: (n, channels), for each row the sum of `grad[:, :channels]` at its positions."""
    summed = grad.new_empty(len(begins) - 1, channels)
    arrays: tuple[Any, ...] = grad.numpy(), positions.numpy(), begins.numpy(), summed.numpy()
    share(lambda a, b: kernels.sum_rows(*arrays, a, b), len(summed), 2 * len(positions) * channels)
    return summed


def attend(table: Tensor, own: Tensor, rows: SortedRows, weight: Tensor) -> Tensor:
    """Attentive pooling (Eq. 2 and 3) over neighbours whose features are [gathered features, their encoding].

    A score is linear in both halves, so that of the gathered one is worked out once a point instead of once a
    neighbour: half the arithmetic, and the two halves never stand beside each other in memory.

    Args:
        table: (n, h) features of the points.
        own: (n * k, h) encoding of each neighbour.
        rows: neighbours (n, k).
        weight: (2 h, 2 h) of the scores.

    Returns:
        (n, 2 h).
    """
    pooled: Tensor = _Attend.apply(table, own, weight, rows, torch.is_grad_enabled())
    return pooled


def normalize(x: Tensor, layer: NormalizedLayer, residual: Tensor | None = None, slope: float = 1.0) -> Tensor:
    """LeakyReLU of the batch norm of a layer, of which x (rows, C) is the product without bias, plus `residual`.

    A bias before batch statistics cancels; it only moves the running mean, and its gradient is zero. A single row has
    no variance and is normalised by the running statistics.

    Args:
        x: (rows, C).
        layer: whose bias and norm to apply.
        residual: (rows, C), added before the LeakyReLU.
        slope: of the LeakyReLU below zero; 1 is none.
    """
    out: Tensor = _Normalize.apply(x, residual, layer.norm.weight, layer.norm.bias, layer.bias, layer, slope)
    return out


def encode(coords: Tensor, neighbors: Tensor, layer: NormalizedLayer, slope: float) -> tuple[Tensor, Tensor]:
    """Local spatial encoding (Eq. 1) after its layer, of 10 to h channels: (n * k, h), twice.

    The ten channels of the encoding are linear in seven, z = [distance, p_i - p_k, p_i], so their batch norm follows
    from the moments of z, and neither they nor the layer's product are ever written.

    Args:
        coords: (n, 3), metres.
        neighbors: (n, k) int64.
        layer: of 10 to h channels.
        slope: of its LeakyReLU.

    Returns:
        The same values as two tensors, so that the gradients of two users are added where they are needed.
    """
    norm = layer.norm
    one, two = _Encode.apply(layer.weight, norm.weight, norm.bias, layer.bias, coords, neighbors, layer, slope)
    return one, two


def pool_max(table: Tensor, neighbors: Tensor) -> Tensor:
    """Channel-wise maximum of the rows of `table` (n, C) named by `neighbors` (m, k): (m, C)."""
    pooled: Tensor = _PoolMax.apply(table, neighbors)
    return pooled


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _affine(layer: NormalizedLayer, moments: tuple[Any, Any] | None, rows: int) -> tuple[Any, Any, Any, Any]:
    """Mean, 1 / std, scale and shift (C,) float64 for `x @ weight.T` before its bias.

    Batch moments (mean and variance; None: the running ones serve) update the running statistics, which are those of
    the layer with its bias.
    """
    norm = layer.norm
    running_mean, running_var, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert running_mean is not None and running_var is not None and batches is not None
    bias = _array(layer.bias).astype(np.float64)
    if moments is None:
        mean, var = running_mean.numpy() - bias, running_var.numpy().astype(np.float64)
    else:
        mean, var = moments
        batches += 1
        momentum = 1 / float(batches) if norm.momentum is None else norm.momentum
        kept_mean, kept_var = running_mean.numpy(), running_var.numpy()
        kept_mean += (momentum * (mean + bias - kept_mean)).astype(np.float32)
        kept_var += (momentum * (var * rows / (rows - 1) - kept_var)).astype(np.float32)
    inverse = 1 / np.sqrt(var + norm.eps)
    scale = _array(norm.weight) * inverse
    return mean, inverse, scale, _array(norm.bias) - mean * scale


def _single(array: Any) -> Any:
    return np.ascontiguousarray(array, np.float32)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, own: Tensor, weight: Tensor, rows: SortedRows, keep: bool) -> Tensor:
        table, own, h = table.contiguous(), own.contiguous(), table.shape[1]
        halves = weight[:, :h].contiguous(), weight[:, h:].contiguous()
        scores, out = linear(own, halves[1]), table.new_empty(len(table), 2 * h)
        inputs = table.numpy(), own.numpy(), linear(table, halves[0]).numpy(), scores.numpy()
        arrays: tuple[Any, ...] = *inputs, _array(rows.index), out.numpy(), keep
        share(lambda a, b: kernels.attend_forward(*arrays, a, b), len(out), 20 * scores.numel())
        if keep:
            ctx.save_for_backward(table, own, *halves, scores, out)
            ctx.rows = rows
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, own, of_table, of_own, attention, out = ctx.saved_tensors
        n, k, work = len(out), ctx.rows.index.shape[1], 4 * attention.numel()
        grad_scores = torch.empty_like(attention)
        held, incoming, changed = attention.numpy(), grad.contiguous().numpy(), grad_scores.numpy()
        places = _array(ctx.rows.index), out.numpy()
        arrays: tuple[Any, ...] = table.numpy(), own.numpy(), held, *places, incoming, changed
        share(lambda a, b: kernels.attend_scores_gradient(*arrays, a, b), n, work)
        grad_own = linear(grad_scores, of_own.t().contiguous())
        target = grad_own.numpy()
        share(lambda a, b: kernels.attend_add_direct(held, incoming, target, k, a, b), n, work)
        summed, grad_table = torch.empty_like(out), torch.empty_like(table)
        positions, begins = (_array(t) for t in ctx.rows.lists())
        lists: tuple[Any, ...] = changed, held, incoming, positions, begins, k, summed.numpy(), grad_table.numpy()
        share(lambda a, b: kernels.attend_table_gradient(*lists, a, b), n, work)
        grad_table += linear(summed, of_table.t().contiguous())
        grad_weight = torch.cat([weight_gradient(summed, table), weight_gradient(grad_scores, own)], dim=1)
        return grad_table, grad_own, grad_weight, None, None


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        shift: Tensor,
        bias: Tensor,
        layer: NormalizedLayer,
        slope: float,
    ) -> Tensor:
        x = x.contiguous()
        n, channels = x.shape
        chunks, source, moments = -(-n // kernels.CHUNK), x.numpy(), None
        batch_statistics = layer.norm.training and n > 1
        if batch_statistics:
            means, squares = (np.empty((chunks, channels), np.float32) for _ in range(2))
            share(lambda a, b: kernels.norm_moments(source, means, squares, a, b), chunks, 4 * x.numel())
            moments = _join(means, squares, n)
        mean, inverse, scale, offset = _affine(layer, moments, n)
        out = torch.empty_like(x)
        added = source if residual is None else residual.contiguous().numpy()
        factors = _single(scale), _single(offset), np.float32(slope)
        arrays: tuple[Any, ...] = source, added, residual is None, *factors, out.numpy()
        share(lambda a, b: kernels.norm_apply(*arrays, a, b), chunks, 4 * x.numel())
        ctx.save_for_backward(x, out if slope != 1 else x)
        ctx.affine, ctx.slope = (mean, inverse, scale, batch_statistics), slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out = ctx.saved_tensors
        mean, inverse, scale, batch_statistics = ctx.affine
        grad, slope = grad.contiguous(), np.float32(ctx.slope)
        n, channels = x.shape
        chunks, work = -(-n // kernels.CHUNK), 4 * x.numel()
        arrays: tuple[Any, ...] = x.numpy(), out.numpy(), grad.numpy()
        sums, centre = np.empty((2, chunks, channels), np.float32), _single(mean)
        share(lambda a, b: kernels.norm_gradient(*arrays, centre, slope, sums, a, b), chunks, work)
        total, projected = sums.sum(axis=1, dtype=np.float64)
        coefficients = np.zeros((3, channels), np.float32)
        coefficients[0] = scale
        if batch_statistics:
            fall = -scale * inverse * inverse * projected / n
            coefficients[1], coefficients[2] = fall, -scale * total / n - fall * mean
        grad_x = torch.empty_like(x)
        kept = ctx.needs_input_grad[1] and slope != 1
        masked = torch.empty_like(x) if kept else grad_x
        targets = grad_x.numpy(), masked.numpy()
        share(lambda a, b: kernels.norm_input_gradient(*arrays, coefficients, slope, *targets, a, b), chunks, work)
        grad_residual = (masked if kept else grad) if ctx.needs_input_grad[1] else None
        grad_bias = np.zeros_like(total) if batch_statistics else scale * total
        parameters = (torch.from_numpy(_single(g)) for g in (projected * inverse, total, grad_bias))
        return grad_x, grad_residual, *parameters, None, None


def _join(means: Any, squares: Any, n: int) -> tuple[Any, Any]:
    """Mean and variance (C,) float64 of the moments of chunks (Chan et al. 1979)."""
    sizes = np.full((len(means), 1), kernels.CHUNK, np.float64)
    sizes[-1] = n - kernels.CHUNK * (len(means) - 1)
    mean = (means * sizes).sum(axis=0) / n
    return mean, (squares + sizes * (means - mean) ** 2).sum(axis=0) / n


def _channels_of_z() -> Any:
    """(10, 7): the channels [distance, p_i - p_k, p_i, p_k] from z = [distance, p_i - p_k, p_i]."""
    matrix = np.zeros((10, 7))
    matrix[:7] = np.eye(7)
    matrix[7:, 4:], matrix[7:, 1:4] = np.eye(3), -np.eye(3)
    return matrix


_CHANNELS_OF_Z = _channels_of_z()


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        bias: Tensor,
        coords: Tensor,
        neighbors: Tensor,
        layer: NormalizedLayer,
        slope: float,
    ) -> tuple[Tensor, Tensor]:
        (n, k), h = neighbors.shape, weight.shape[0]
        places = _array(coords), _array(neighbors)
        weight_z = _array(weight).astype(np.float64) @ _CHANNELS_OF_Z
        moments, centre, spread = None, np.zeros(7), np.zeros((7, 7))
        batch_statistics = layer.norm.training and n * k > 1
        if batch_statistics:
            chunks = -(-n // kernels.POINTS)
            sums = np.empty((chunks, 8, 7), np.float64)
            share(lambda a, b: kernels.encode_moments(*places, sums, a, b), chunks, 80 * n * k)
            joined = sums.sum(axis=0) / (n * k)
            centre = joined[7]
            spread = joined[:7] - np.outer(centre, centre)
            moments = weight_z @ centre, np.maximum(((weight_z @ spread) * weight_z).sum(axis=1), 0)
        mean, inverse, factor, offset = _affine(layer, moments, n * k)
        own = weight.new_empty(n * k, h)
        factors = _single((factor[:, None] * weight_z).T), _single(offset), np.float32(slope)
        arrays: tuple[Any, ...] = *places, *factors, own.numpy()
        share(lambda a, b: kernels.encode_forward(*arrays, a, b), n, 12 * own.numel())
        ctx.save_for_backward(own)
        ctx.places, ctx.slope = places, slope
        ctx.layer = weight_z, mean, inverse, factor, centre, spread, batch_statistics
        return own, own.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, one: Tensor, two: Tensor) -> tuple[Tensor | None, ...]:
        (own,) = ctx.saved_tensors
        weight_z, mean, inverse, factor, centre, spread, batch_statistics = ctx.layer
        n, h = len(ctx.places[1]), own.shape[1]
        chunks = -(-n // kernels.POINTS)
        sums = np.empty((chunks, 8, h), np.float32)
        gradients = one.contiguous().numpy(), two.contiguous().numpy()
        arrays: tuple[Any, ...] = *gradients, own.numpy(), *ctx.places, np.float32(ctx.slope), sums
        share(lambda a, b: kernels.encode_gradient(*arrays, a, b), chunks, 20 * own.numel())
        joined = sums.sum(axis=0, dtype=np.float64)
        with_z, total = joined[:7].T, joined[7]
        projected = inverse * ((weight_z * with_z).sum(axis=1) - mean * total)
        # the gradient before the norm is linear in g, so its products with z follow from those of g
        grad_z = with_z
        if batch_statistics:
            grad_z = with_z - np.outer(total, centre) - projected[:, None] * inverse[:, None] * (weight_z @ spread)
        grad_weight = (factor[:, None] * grad_z) @ _CHANNELS_OF_Z.T
        grad_bias = np.zeros_like(total) if batch_statistics else factor * total
        parameters = (torch.from_numpy(_single(g)) for g in (grad_weight, projected, total, grad_bias))
        return *parameters, None, None, None, None


class _PoolMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, neighbors: Tensor) -> Tensor:
        m, k = neighbors.shape
        out = table.new_empty(m, table.shape[1])
        winner = torch.empty(out.shape, dtype=torch.int32)
        arrays: tuple[Any, ...] = _array(table), _array(neighbors), out.numpy(), winner.numpy()
        share(lambda a, b: kernels.pool_max_forward(*arrays, a, b), m, k * out.numel())
        ctx.save_for_backward(winner)
        ctx.rows = table.shape[0]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (winner,) = ctx.saved_tensors
        result = grad.new_zeros(ctx.rows, grad.shape[1])
        arrays: tuple[Any, ...] = grad.contiguous().numpy(), winner.numpy(), result.numpy()
        # by channels: several points may add to one row
        share(lambda a, b: kernels.pool_max_backward(*arrays, a, b), grad.shape[1], grad.numel())
        return result, None
