"""Batch normalisation, residual addition and rectification in one step.

These are bound by memory, not arithmetic: fused, features are read once for the statistics and once for the result
instead of five times. Sums and results are made in float32. The kernels here are those of a CPU;
``triton_normalization`` has those of a GPU; other cases take torch's own operations.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mink_decouple.jit import njit
from mink_decouple.threads import share

_CHUNK = 512


def folded(bn: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) float64 that the running statistics and the affine parameters come to in inference."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = torch.rsqrt(bn.running_var.double() + bn.eps)
    scale = scale if bn.weight is None else scale * bn.weight
    shift = -bn.running_mean * scale
    return scale, shift if bn.bias is None else shift + bn.bias


def normalize(x: Tensor, bn: nn.BatchNorm1d, residual: Tensor | None = None, rectify: bool = False) -> Tensor:
    """``act(bn(x) + residual)``, the running statistics of ``bn`` updated as ``bn(x)`` would.

    Fewer than two rows have no variance: they are normalised by the running statistics, in training too.

    Args:
        x: (N, C) floating point; float32 and bfloat16 are fused on a CPU, float16 too on a GPU.
        bn: affine normalisation over the rows, with running statistics.
        residual: (N, C), added before the rectification.
        rectify: whether to end with a ReLU.

    Returns:
        (N, C).
    """
    batch_statistics = bn.training and len(x) > 1
    fused = _fused(x, bn)
    if fused is None:
        if bn.training and not batch_statistics:
            out = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps)
        else:
            out = bn(x)
        out = out if residual is None else out + residual
        return F.relu(out) if rectify else out
    if fused is _Normalize and x.dtype == torch.bfloat16:
        wide = None if residual is None else residual.float()
        return normalize(x.float(), bn, wide, rectify).to(x.dtype)
    if residual is not None:
        residual = residual.to(x.dtype)
    normalized: Tensor = fused.apply(x, residual, bn.weight, bn.bias, bn, batch_statistics, rectify)
    return normalized


def _fused(x: Tensor, bn: nn.BatchNorm1d) -> Any:
    """The function whose kernels take ``x``; None: torch's own operations."""
    if type(bn) is not nn.BatchNorm1d or bn.weight is None or bn.weight.dtype != torch.float32:
        return None
    if bn.running_mean is None:
        return None
    if x.is_cuda:
        from mink_decouple.sparse import triton_normalization, triton_runtime

        return triton_normalization.Normalize if triton_runtime.usable(x) else None
    return _Normalize if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) else None


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        bn: nn.BatchNorm1d,
        batch_statistics: bool,
        rectify: bool,
    ) -> Tensor:
        x = x.contiguous()
        n, channels = x.shape
        chunks, work = -(-n // _CHUNK), 4 * x.numel()
        source, running = x.numpy(), (bn.running_mean, bn.running_var)
        assert running[0] is not None and running[1] is not None and bn.num_batches_tracked is not None
        momentum = 0.0
        means = squares = np.empty((0, channels), np.float32)
        if batch_statistics:
            bn.num_batches_tracked += 1
            momentum = 1 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
            means, squares = np.empty((chunks, channels), np.float32), np.empty((chunks, channels), np.float32)
            share(lambda first, last: _chunk_moments(source, means, squares, first, last), chunks, work)
        affine = _affine(
            means, squares, n, running[0].numpy(), running[1].numpy(), weight.numpy(), bias.numpy(), momentum, bn.eps
        )
        out = torch.empty_like(x)
        added = source if residual is None else residual.contiguous().numpy()
        target, plain = out.numpy(), residual is None
        share(lambda first, last: _apply(source, added, target, affine, plain, rectify, first, last), chunks, work)
        ctx.save_for_backward(x, out if rectify else x, weight)
        ctx.affine, ctx.batch_statistics, ctx.rectify = affine, batch_statistics, rectify
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight = ctx.saved_tensors
        grad, rectify = grad.contiguous(), ctx.rectify
        n, channels = x.shape
        chunks, work = -(-n // _CHUNK), 4 * x.numel()
        arrays = (x.numpy(), out.numpy(), grad.numpy())
        sums = np.empty((2, chunks, channels), np.float32)
        share(lambda a, b: _chunk_gradients(*arrays, ctx.affine, sums, rectify, a, b), chunks, work)
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
        coefficients = _gradient_coefficients(
            sums, n, ctx.affine, weight.numpy(), ctx.batch_statistics, grad_weight.numpy(), grad_bias.numpy()
        )
        grad_x = torch.empty_like(x)
        # The residual's gradient is that of the sum, which without rectification is the incoming one.
        kept = rectify and ctx.needs_input_grad[1]
        masked = torch.empty_like(x) if kept else grad_x
        targets = (grad_x.numpy(), masked.numpy())
        share(lambda a, b: _input_gradients(*arrays, coefficients, *targets, kept, rectify, a, b), chunks, work)
        grad_residual = None
        if ctx.needs_input_grad[1]:
            grad_residual = masked if rectify else grad
        return grad_x, grad_residual, grad_weight, grad_bias, None, None, None


@njit(cache=True, nogil=True)
def _chunk_moments(x, means, squares, first, last):
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


@njit(cache=True, nogil=True)
def _affine(means, squares, n, running_mean, running_var, weight, bias, momentum, eps):
    """Rows mean, 1 / std, scale and shift of each channel; chunk moments are joined in float64 (Chan et al. 1979).

    Without chunks the running statistics serve, with chunks they are updated.
    """
    chunks, channels = means.shape
    affine = np.empty((4, channels), np.float32)
    for c in range(channels):
        mean, var = np.float64(running_mean[c]), np.float64(running_var[c])
        if chunks > 0:
            mean = var = 0.0
            for chunk in range(chunks):
                mean += means[chunk, c] * np.float64(min(_CHUNK, n - chunk * _CHUNK)) / n
            for chunk in range(chunks):
                size = np.float64(min(_CHUNK, n - chunk * _CHUNK))
                var += (squares[chunk, c] + size * (means[chunk, c] - mean) ** 2) / n
            running_mean[c] += momentum * (mean - running_mean[c])
            running_var[c] += momentum * (var * n / (n - 1) - running_var[c])
        inverse = 1 / np.sqrt(var + eps)
        affine[0, c], affine[1, c] = mean, inverse
        affine[2, c], affine[3, c] = weight[c] * inverse, bias[c] - mean * weight[c] * inverse
    return affine


@njit(cache=True, nogil=True)
def _apply(x, residual, out, affine, plain, rectify, first, last):
    n, channels = x.shape
    floor = np.float32(0 if rectify else -np.inf)
    scale, shift = affine[2], affine[3]
    for i in range(first * _CHUNK, min(n, last * _CHUNK)):
        x_row, out_row, residual_row = x[i], out[i], residual[i]
        if plain:
            for c in range(channels):
                value = x_row[c] * scale[c] + shift[c]
                out_row[c] = floor if value < floor else value
        else:
            for c in range(channels):
                value = x_row[c] * scale[c] + shift[c] + residual_row[c]
                out_row[c] = floor if value < floor else value


@njit(cache=True, nogil=True)
def _gradient_coefficients(sums, n, affine, weight, batch_statistics, grad_weight, grad_bias):
    """The input gradient is ``c[0] * g + c[1] * x + c[2]``; fills the parameters' gradients."""
    channels = sums.shape[2]
    coefficients = np.zeros((3, channels), np.float32)
    for c in range(channels):
        total = projected = 0.0
        for chunk in range(sums.shape[1]):
            total += sums[0, chunk, c]
            projected += sums[1, chunk, c]
        mean, inverse = np.float64(affine[0, c]), np.float64(affine[1, c])
        grad_weight[c], grad_bias[c] = projected * inverse, total
        coefficients[0, c] = affine[2, c]
        if batch_statistics:
            slope = -affine[2, c] * inverse * inverse * projected / n
            coefficients[1, c] = slope
            coefficients[2, c] = -affine[2, c] * total / n - slope * mean
    return coefficients


@njit(cache=True, nogil=True)
def _chunk_gradients(x, out, grad, affine, sums, rectify, first, last):
    n, channels = x.shape
    # A product with 0 or 1 instead of a choice: a choice keeps the compiler from using vector instructions.
    floor = np.float32(0 if rectify else -np.inf)
    mean = affine[0]
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


@njit(cache=True, nogil=True)
def _input_gradients(x, out, grad, coefficients, grad_x, masked, kept, rectify, first, last):
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
