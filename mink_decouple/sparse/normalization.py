"""Batch normalisation, residual addition and rectification in one step.

These are bound by memory, not arithmetic: fused, features are read once for the statistics and once for the result
instead of five times, and bfloat16 ones are half as long. Sums and results are made in float32. The kernels here are
those of a CPU; ``triton_normalization`` has those of a GPU; other cases take torch's own operations.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mink_decouple.sparse.rows import array, floats, group, repeated, store
from mink_decouple.threads import share

_CHUNK = 512


def folded(bn: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) float32 that the running statistics and the affine parameters come to in inference."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = torch.rsqrt(bn.running_var.double() + bn.eps)
    scale = scale if bn.weight is None else scale * bn.weight
    shift = -bn.running_mean * scale
    return scale.float(), (shift if bn.bias is None else shift + bn.bias).float()


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
        source, running = array(x), (bn.running_mean, bn.running_var)
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
        added = source if residual is None else array(residual.contiguous())
        target, plain = array(out), residual is None
        share(lambda first, last: _apply(source, added, target, affine, plain, rectify, first, last), chunks, work)
        # Where nothing was added the sign of the result follows from x, so the result need not be kept and read.
        ctx.save_for_backward(x, x if plain else out, weight)
        ctx.affine, ctx.batch_statistics, ctx.rectify, ctx.plain = affine, batch_statistics, rectify, plain
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight = ctx.saved_tensors
        grad, rectify = grad.contiguous(), ctx.rectify
        n, channels = x.shape
        chunks, work = -(-n // _CHUNK), 4 * x.numel()
        arrays = (array(x), array(out), array(grad))
        sums = np.empty((2, chunks, channels), np.float32)
        # 0: the gradient passes; 1: where the normalised x is positive; 2: where the result is positive
        gate = 0 if not rectify else 1 if ctx.plain else 2
        share(lambda a, b: _chunk_gradients(*arrays, ctx.affine, sums, gate, a, b), chunks, work)
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
        coefficients = _gradient_coefficients(
            sums, n, ctx.affine, weight.numpy(), ctx.batch_statistics, grad_weight.numpy(), grad_bias.numpy()
        )
        grad_x = torch.empty_like(x)
        # The residual's gradient is that of the sum, which without rectification is the incoming one.
        kept = rectify and ctx.needs_input_grad[1]
        masked = torch.empty_like(x) if kept else grad_x
        targets = (array(grad_x), array(masked))
        share(
            lambda a, b: _input_gradients(*arrays, ctx.affine, coefficients, *targets, kept, gate, a, b), chunks, work
        )
        grad_residual = None
        if ctx.needs_input_grad[1]:
            grad_residual = masked if rectify else grad
        return grad_x, grad_residual, grad_weight, grad_bias, None, None, None


@numba.njit(nogil=True)
def _summed(partial, channels):
    """Sums of the rows of a group, (channels,)."""
    total = np.zeros(channels, np.float32)
    for start in range(0, len(partial), channels):
        for c in range(channels):
            total[c] += partial[start + c]
    return total


@numba.njit(cache=True, nogil=True)
def _chunk_moments(x, means, squares, first, last):
    n, channels = x.shape
    flat, size = x.reshape(-1), group(channels)
    room, partial = np.empty(size, np.float32), np.empty(size, np.float32)
    for chunk in range(first, last):
        start, end = chunk * _CHUNK * channels, min(n, (chunk + 1) * _CHUNK) * channels
        partial[:] = 0
        for at in range(start, end, size):
            values = floats(flat, at, min(at + size, end), room)
            for i in range(len(values)):
                partial[i] += values[i]
        mean = _summed(partial, channels)
        for c in range(channels):
            mean[c] /= np.float32((end - start) // channels)
            means[chunk, c] = mean[c]
        means_again = repeated(mean, size)
        partial[:] = 0
        for at in range(start, end, size):
            values = floats(flat, at, min(at + size, end), room)
            for i in range(len(values)):
                difference = values[i] - means_again[i]
                partial[i] += difference * difference
        squares[chunk] = _summed(partial, channels)


@numba.njit(cache=True, nogil=True)
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


@numba.njit(cache=True, nogil=True)
def _apply(x, residual, out, affine, plain, rectify, first, last):
    n, channels = x.shape
    flat, others, target, size = x.reshape(-1), residual.reshape(-1), out.reshape(-1), group(channels)
    floor = np.float32(0 if rectify else -np.inf)
    scale, shift = repeated(affine[2], size), repeated(affine[3], size)
    room, more, result = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    stop = min(n, last * _CHUNK) * channels
    for at in range(first * _CHUNK * channels, stop, size):
        end = min(at + size, stop)
        values = floats(flat, at, end, room)
        if plain:
            for i in range(len(values)):
                value = values[i] * scale[i] + shift[i]
                result[i] = floor if value < floor else value
        else:
            added = floats(others, at, end, more)
            for i in range(len(values)):
                value = values[i] * scale[i] + shift[i] + added[i]
                result[i] = floor if value < floor else value
        store(result[: end - at], target, at)


@numba.njit(cache=True, nogil=True)
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


@numba.njit(nogil=True)
def _gated(x, out, grad, scale, shift, gate, result):
    """The gradient behind the rectification."""
    zero = np.float32(0)
    # A product with 0 or 1 instead of a choice: a choice keeps the compiler from using vector instructions.
    if gate == 0:
        for i in range(len(x)):
            result[i] = grad[i]
    elif gate == 1:
        for i in range(len(x)):
            result[i] = grad[i] * np.float32(x[i] * scale[i] + shift[i] > zero)
    else:
        for i in range(len(x)):
            result[i] = grad[i] * np.float32(out[i] > zero)


@numba.njit(cache=True, nogil=True)
def _chunk_gradients(x, out, grad, affine, sums, gate, first, last):
    n, channels = x.shape
    flat, outs, grads, size = x.reshape(-1), out.reshape(-1), grad.reshape(-1), group(channels)
    mean, scale, shift = repeated(affine[0], size), repeated(affine[2], size), repeated(affine[3], size)
    rooms = np.empty((4, size), np.float32)
    total, projected, g = np.empty(size, np.float32), np.empty(size, np.float32), rooms[3]
    for chunk in range(first, last):
        total[:] = 0
        projected[:] = 0
        stop = min(n, (chunk + 1) * _CHUNK) * channels
        for at in range(chunk * _CHUNK * channels, stop, size):
            end = min(at + size, stop)
            values, results = floats(flat, at, end, rooms[0]), floats(outs, at, end, rooms[1])
            _gated(values, results, floats(grads, at, end, rooms[2]), scale, shift, gate, g)
            for i in range(len(values)):
                total[i] += g[i]
                projected[i] += g[i] * (values[i] - mean[i])
        sums[0, chunk] = _summed(total, channels)
        sums[1, chunk] = _summed(projected, channels)


@numba.njit(cache=True, nogil=True)
def _input_gradients(x, out, grad, affine, coefficients, grad_x, masked, kept, gate, first, last):
    n, channels = x.shape
    flat, outs, grads, size = x.reshape(-1), out.reshape(-1), grad.reshape(-1), group(channels)
    targets, kepts = grad_x.reshape(-1), masked.reshape(-1)
    scale, shift = repeated(affine[2], size), repeated(affine[3], size)
    slope, level = repeated(coefficients[1], size), repeated(coefficients[2], size)
    rooms = np.empty((4, size), np.float32)
    stop = min(n, last * _CHUNK) * channels
    for at in range(first * _CHUNK * channels, stop, size):
        end = min(at + size, stop)
        values, results = floats(flat, at, end, rooms[0]), floats(outs, at, end, rooms[1])
        g = rooms[3][: end - at]
        _gated(values, results, floats(grads, at, end, rooms[2]), scale, shift, gate, g)
        if kept:
            store(g, kepts, at)
        for i in range(len(values)):
            g[i] = scale[i] * g[i] + slope[i] * values[i] + level[i]
        store(g, targets, at)
