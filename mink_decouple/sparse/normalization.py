"""Batch normalisation, residual addition and rectification in one step.

On a CPU these are bound by memory, not arithmetic: fused, float32 features are read once for the statistics and once for the
result instead of five times. Other devices and dtypes take torch's own operations.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mink_decouple.sparse.threads import share

_CHUNK = 512


def normalize(x: Tensor, bn: nn.BatchNorm1d, residual: Tensor | None = None, rectify: bool = False) -> Tensor:
    """``act(bn(x) + residual)``, the running statistics of ``bn`` updated as ``bn(x)`` would.

    Fewer than two rows have no variance: they are normalised by the running statistics, in training too.

    Args:
        x: (N, C).
        bn: affine normalisation over the rows, with running statistics.
        residual: (N, C), added before the rectification.
        rectify: whether to end with a ReLU.

    Returns:
        (N, C).
    """
    batch_statistics = bn.training and len(x) > 1
    if type(bn) is not nn.BatchNorm1d or x.dtype != torch.float32 or x.device.type != "cpu":
        if bn.training and not batch_statistics:
            out = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps)
        else:
            out = bn(x)
        out = out if residual is None else out + residual
        return F.relu(out) if rectify else out
    if residual is not None:
        residual = residual.to(x.dtype)
    mean, var = bn.running_mean, bn.running_var
    assert mean is not None and var is not None
    if batch_statistics:
        mean, var = _moments(x.detach().contiguous())
        _update_running(bn, mean, var, len(x))
    out = _Normalize.apply(x, residual, bn.weight, bn.bias, mean, var, bn.eps, batch_statistics, rectify)  # type: ignore[no-untyped-call] # torch
    return out  # type: ignore[no-any-return] # torch


def _update_running(bn: nn.BatchNorm1d, mean: Tensor, var: Tensor, n: int) -> None:
    assert bn.running_mean is not None and bn.running_var is not None and bn.num_batches_tracked is not None
    with torch.no_grad():
        bn.num_batches_tracked += 1
        momentum = 1 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
        bn.running_mean.lerp_(mean, momentum)
        bn.running_var.lerp_(var * (n / (n - 1)), momentum)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of the columns, chunk by chunk, joined in float64 (Chan et al. 1979)."""
    n, channels = x.shape
    chunks = -(-n // _CHUNK)
    means, squares = np.empty((chunks, channels), np.float32), np.empty((chunks, channels), np.float32)
    source = x.numpy()
    share(lambda first, last: _chunk_moments(source, means, squares, first, last), chunks, 4 * x.numel())
    sizes = np.full((chunks, 1), _CHUNK, np.float64)
    sizes[-1] = n - (chunks - 1) * _CHUNK
    mean = (sizes * means).sum(0) / n
    var = (squares.astype(np.float64).sum(0) + (sizes * (means - mean) ** 2).sum(0)) / n
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(var.astype(np.float32))


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        batch_statistics: bool,
        rectify: bool,
    ) -> Tensor:
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        inverse = (var + eps).rsqrt()
        scale = weight.float() * inverse
        shift = bias.float() - mean * scale
        out = torch.empty_like(x)
        arrays = (x.numpy(), (x if residual is None else residual).numpy(), out.numpy(), scale.numpy(), shift.numpy())
        added = residual is not None
        share(lambda a, b: _apply(*arrays, added, rectify, a, b), -(-len(x) // _CHUNK), 4 * x.numel())
        ctx.save_for_backward(x, out if rectify else x, weight, mean, inverse)
        ctx.batch_statistics, ctx.rectify = batch_statistics, rectify
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, mean, inverse = ctx.saved_tensors
        grad = grad.contiguous()
        n, channels = x.shape
        chunks = -(-n // _CHUNK)
        sums = np.zeros((2, chunks, channels), np.float32)
        arrays = (x.numpy(), out.numpy(), grad.numpy(), mean.numpy())
        share(lambda a, b: _chunk_gradients(*arrays, sums, ctx.rectify, a, b), chunks, 4 * x.numel())
        total, projected = (torch.from_numpy(part.sum(0, dtype=np.float64)) for part in sums)
        scale = weight.double() * inverse
        slope = level = torch.zeros_like(scale)
        if ctx.batch_statistics:
            slope, level = -scale * inverse.double() ** 2 * projected / n, -scale * total / n
        coefficients = torch.stack([scale, slope, level - slope * mean]).float()
        grad_x = torch.empty_like(x)
        # The residual's gradient is that of the sum; without rectification it is the incoming one.
        masked = torch.empty_like(x) if ctx.rectify and ctx.needs_input_grad[1] else grad_x
        kept = masked is not grad_x
        targets = (coefficients.numpy(), grad_x.numpy(), masked.numpy())
        share(
            lambda a, b: _input_gradients(x.numpy(), out.numpy(), grad.numpy(), *targets, kept, ctx.rectify, a, b),
            chunks,
            4 * x.numel(),
        )
        grad_residual = None
        if ctx.needs_input_grad[1]:
            grad_residual = masked if ctx.rectify else grad
        grad_weight, grad_bias = (projected * inverse).to(weight.dtype), total.to(weight.dtype)
        return grad_x, grad_residual, grad_weight, grad_bias, None, None, None, None, None


@numba.njit(cache=True, nogil=True)
def _chunk_moments(x, means, squares, first, last):  # type: ignore[no-untyped-def] # compiled by numba
    n, channels = x.shape
    for chunk in range(first, last):
        start, end = chunk * _CHUNK, min(n, (chunk + 1) * _CHUNK)
        total = np.zeros(channels, np.float32)
        for i in range(start, end):
            for c in range(channels):
                total[c] += x[i, c]
        for c in range(channels):
            total[c] /= np.float32(end - start)
            means[chunk, c] = total[c]
        square = np.zeros(channels, np.float32)
        for i in range(start, end):
            for c in range(channels):
                difference = x[i, c] - total[c]
                square[c] += difference * difference
        squares[chunk] = square


@numba.njit(cache=True, nogil=True)
def _apply(x, residual, out, scale, shift, added, rectify, first, last):  # type: ignore[no-untyped-def] # compiled by numba
    n, channels = x.shape
    floor = np.float32(0 if rectify else -np.inf)
    for i in range(first * _CHUNK, min(n, last * _CHUNK)):
        if added:
            for c in range(channels):
                value = x[i, c] * scale[c] + shift[c] + residual[i, c]
                out[i, c] = floor if value < floor else value
        else:
            for c in range(channels):
                value = x[i, c] * scale[c] + shift[c]
                out[i, c] = floor if value < floor else value


@numba.njit(cache=True, nogil=True)
def _chunk_gradients(x, out, grad, mean, sums, rectify, first, last):  # type: ignore[no-untyped-def] # compiled by numba
    n, channels = x.shape
    # A product with 0 or 1 instead of a choice: a choice keeps the compiler from using vector instructions.
    floor = np.float32(0 if rectify else -np.inf)
    for chunk in range(first, last):
        total = np.zeros(channels, np.float32)
        projected = np.zeros(channels, np.float32)
        for i in range(chunk * _CHUNK, min(n, (chunk + 1) * _CHUNK)):
            x_row, out_row, grad_row = x[i], out[i], grad[i]
            for c in range(channels):
                g = grad_row[c] * np.float32(out_row[c] > floor)
                total[c] += g
                projected[c] += g * (x_row[c] - mean[c])
        sums[0, chunk] = total
        sums[1, chunk] = projected


@numba.njit(cache=True, nogil=True)
def _input_gradients(x, out, grad, coefficients, grad_x, masked, kept, rectify, first, last):  # type: ignore[no-untyped-def] # numba
    n, channels = x.shape
    floor = np.float32(0 if rectify else -np.inf)
    scale, slope, level = coefficients[0], coefficients[1], coefficients[2]
    for i in range(first * _CHUNK, min(n, last * _CHUNK)):
        x_row, out_row, grad_row, result_row, masked_row = x[i], out[i], grad[i], grad_x[i], masked[i]
        if kept:
            for c in range(channels):
                masked_row[c] = grad_row[c] * np.float32(out_row[c] > floor)
            for c in range(channels):
                result_row[c] = scale[c] * masked_row[c] + slope[c] * x_row[c] + level[c]
        else:
            for c in range(channels):
                g = grad_row[c] * np.float32(out_row[c] > floor)
                result_row[c] = scale[c] * g + slope[c] * x_row[c] + level[c]
