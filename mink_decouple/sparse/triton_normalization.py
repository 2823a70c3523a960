"""Batch normalisation, residual addition and rectification on a GPU: two large kernels each way, and a small one.

Statistics are float32 sums over chunks of rows, joined in float64 in one order (Chan et al. 1979), whatever the dtype
of the features. Nothing waits for the device and no sum uses atomics.
"""

# mypy: allow-untyped-defs
# Triton infers the types of the functions it compiles.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mink_decouple.sparse.triton_runtime import jit, tl

_ROWS = 32
_CHANNELS = 64
_CHUNKS = 256
"""Chunks of rows at most: enough for every multiprocessor, few enough to be joined in one load."""
_JOINED = 16
"""Channels joined by one program."""


class Normalize(torch.autograd.Function):
    """``act(bn(x) + residual)``: see ``normalization.normalize``. Features are float32, bfloat16 or float16."""

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
        """(n, C) -> (n, C) in the dtype of ``x``; updates the running statistics where ``batch_statistics``."""
        x = x.contiguous()
        n, channels = x.shape
        out = torch.empty_like(x)
        assert bn.running_mean is not None and bn.running_var is not None and bn.num_batches_tracked is not None
        affine = torch.empty(4, channels, dtype=torch.float32, device=x.device)
        chunks, length = _cut(n)
        moments = torch.empty(2, chunks if batch_statistics else 0, channels, dtype=torch.float32, device=x.device)
        across = -(-channels // _CHANNELS)
        if batch_statistics:
            _chunk_moments[(chunks, across)](
                x, moments, bn.num_batches_tracked, n, channels, length, ROWS=_ROWS, CHANNELS=_CHANNELS
            )
        # The cumulative average depends on a count that stays on the device.
        momentum = 0.0 if bn.momentum is None else bn.momentum
        if channels:
            _join_moments[(-(-channels // _JOINED),)](
                moments, affine, bn.running_mean, bn.running_var, weight, bias, bn.num_batches_tracked,
                n, channels, chunks, length, momentum, bn.eps,
                BATCH=batch_statistics, CUMULATIVE=bn.momentum is None, CHUNKS=_CHUNKS, CHANNELS=_JOINED,
            )  # fmt: skip
        if out.numel():
            added = x if residual is None else residual.contiguous()
            _apply[(-(-n // _ROWS), across)](
                x, added, affine, out, n, channels,
                ADD=residual is not None, RECTIFY=rectify, ROWS=_ROWS, CHANNELS=_CHANNELS,
            )  # fmt: skip
        ctx.save_for_backward(x, out if rectify else x, affine, weight)
        ctx.batch_statistics, ctx.rectify = batch_statistics, rectify
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, ``residual``, ``weight`` and ``bias``."""
        x, out, affine, weight = ctx.saved_tensors
        grad = grad.contiguous()
        n, channels = x.shape
        grad_x = torch.empty_like(x)
        # The residual's gradient is that of the sum, which without rectification is the incoming one.
        wanted = ctx.needs_input_grad[1]
        masked = torch.empty_like(x) if wanted and ctx.rectify else grad_x
        parameters = torch.empty(2, channels, dtype=torch.float32, device=x.device)
        if not n:
            parameters.zero_()
        if x.numel():
            chunks, length = _cut(n)
            across = -(-channels // _CHANNELS)
            sums = torch.empty(2, chunks, channels, dtype=torch.float32, device=x.device)
            coefficients = torch.empty(3, channels, dtype=torch.float32, device=x.device)
            _chunk_gradients[(chunks, across)](
                x, out, grad, affine, sums, n, channels, length,
                RECTIFY=ctx.rectify, ROWS=_ROWS, CHANNELS=_CHANNELS,
            )  # fmt: skip
            _join_gradients[(-(-channels // _JOINED),)](
                sums, affine, coefficients, parameters, n, channels, chunks,
                BATCH=ctx.batch_statistics, CHUNKS=_CHUNKS, CHANNELS=_JOINED,
            )  # fmt: skip
            _input_gradients[(-(-n // _ROWS), across)](
                x, out, grad, coefficients, grad_x, masked, n, channels,
                RECTIFY=ctx.rectify, KEEP=wanted and ctx.rectify, ROWS=_ROWS, CHANNELS=_CHANNELS,
            )  # fmt: skip
        grad_residual = (masked if ctx.rectify else grad) if wanted else None
        grad_weight, grad_bias = parameters.to(weight.dtype).unbind(0)
        return grad_x, grad_residual, grad_weight, grad_bias, None, None, None


def _cut(n: int) -> tuple[int, int]:
    """Number of chunks of ``n`` rows, and rows of each but the last."""
    length = max(1, -(-n // (_CHUNKS * _ROWS))) * _ROWS
    return max(1, -(-n // length)), length


@jit("n", "length")
def _chunk_moments(x, moments, tracked, n, channels, length, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    chunk = tl.program_id(0)
    if (chunk == 0) & (tl.program_id(1) == 0):
        tl.store(tracked, tl.load(tracked) + 1)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = column < channels
    start = chunk * length
    end = tl.minimum(start + length, n)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(start, end, ROWS):
        row = first + tl.arange(0, ROWS)
        here = row.to(tl.int64)[:, None] * channels + column[None, :]
        total += tl.load(x + here, mask=(row < end)[:, None] & valid[None, :], other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / (end - start)
    square = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(start, end, ROWS):
        row = first + tl.arange(0, ROWS)
        here = row.to(tl.int64)[:, None] * channels + column[None, :]
        inside = (row < end)[:, None] & valid[None, :]
        gap = tl.load(x + here, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        square += tl.where(inside, gap * gap, 0.0)
    place = chunk * channels + column
    tl.store(moments + place, mean, mask=valid)
    tl.store(moments + tl.num_programs(0) * channels + place, tl.sum(square, axis=0), mask=valid)


@jit("n", "chunks", "length", "momentum", "eps")
def _join_moments(
    moments, affine, running_mean, running_var, weight, bias, tracked,
    n, channels, chunks, length, momentum, eps,
    BATCH: tl.constexpr, CUMULATIVE: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = column < channels
    mean = tl.load(running_mean + column, mask=valid, other=0.0).to(tl.float64)
    var = tl.load(running_var + column, mask=valid, other=1.0).to(tl.float64)
    if BATCH:
        old_mean, old_var = mean, var
        chunk = tl.arange(0, CHUNKS)
        size = tl.maximum(tl.minimum(length, n - chunk * length), 0).to(tl.float64)[:, None]
        here = chunk[:, None] * channels + column[None, :]
        inside = (chunk < chunks)[:, None] & valid[None, :]
        means = tl.load(moments + here, mask=inside, other=0.0).to(tl.float64)
        squares = tl.load(moments + chunks * channels + here, mask=inside, other=0.0).to(tl.float64)
        mean = tl.sum(means * size, axis=0) / n
        gap = means - mean[None, :]
        var = tl.sum(squares + gap * gap * size, axis=0)
        rate = tl.zeros((CHANNELS,), tl.float64) + momentum
        if CUMULATIVE:
            rate = 1.0 / (tl.zeros((CHANNELS,), tl.float64) + tl.load(tracked).to(tl.float64))
        tl.store(running_mean + column, (old_mean + rate * (mean - old_mean)).to(tl.float32), mask=valid)
        tl.store(running_var + column, (old_var + rate * (var / (n - 1) - old_var)).to(tl.float32), mask=valid)
        var = var / n
    inverse = 1.0 / tl.sqrt(var + eps)
    scale = tl.load(weight + column, mask=valid, other=0.0).to(tl.float64) * inverse
    shift = tl.load(bias + column, mask=valid, other=0.0).to(tl.float64) - mean * scale
    tl.store(affine + column, mean.to(tl.float32), mask=valid)
    tl.store(affine + channels + column, inverse.to(tl.float32), mask=valid)
    tl.store(affine + 2 * channels + column, scale.to(tl.float32), mask=valid)
    tl.store(affine + 3 * channels + column, shift.to(tl.float32), mask=valid)


@jit("n")
def _apply(
    x, residual, affine, out, n, channels,
    ADD: tl.constexpr, RECTIFY: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = column < channels
    inside = (row < n)[:, None] & valid[None, :]
    here = row.to(tl.int64)[:, None] * channels + column[None, :]
    scale = tl.load(affine + 2 * channels + column, mask=valid, other=0.0)
    shift = tl.load(affine + 3 * channels + column, mask=valid, other=0.0)
    value = tl.load(x + here, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if ADD:
        value += tl.load(residual + here, mask=inside, other=0.0).to(tl.float32)
    if RECTIFY:
        value = tl.where(value < 0.0, 0.0, value)
    tl.store(out + here, value.to(out.dtype.element_ty), mask=inside)


@jit("n", "length")
def _chunk_gradients(
    x, out, grad, affine, sums, n, channels, length,
    RECTIFY: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = column < channels
    mean = tl.load(affine + column, mask=valid, other=0.0)
    end = tl.minimum((chunk + 1) * length, n)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    projected = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(chunk * length, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & valid[None, :]
        here = row.to(tl.int64)[:, None] * channels + column[None, :]
        g = tl.load(grad + here, mask=inside, other=0.0).to(tl.float32)
        if RECTIFY:
            g = tl.where(tl.load(out + here, mask=inside, other=0.0).to(tl.float32) > 0.0, g, 0.0)
        total += g
        projected += g * (tl.load(x + here, mask=inside, other=0.0).to(tl.float32) - mean[None, :])
    place = chunk * channels + column
    tl.store(sums + place, tl.sum(total, axis=0), mask=valid)
    tl.store(sums + tl.num_programs(0) * channels + place, tl.sum(projected, axis=0), mask=valid)


@jit("n", "chunks")
def _join_gradients(
    sums, affine, coefficients, parameters, n, channels, chunks,
    BATCH: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # The input gradient is c[0] * g + c[1] * x + c[2].
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = column < channels
    chunk = tl.arange(0, CHUNKS)
    here = chunk[:, None] * channels + column[None, :]
    inside = (chunk < chunks)[:, None] & valid[None, :]
    total = tl.sum(tl.load(sums + here, mask=inside, other=0.0).to(tl.float64), axis=0)
    projected = tl.sum(tl.load(sums + chunks * channels + here, mask=inside, other=0.0).to(tl.float64), axis=0)
    mean = tl.load(affine + column, mask=valid, other=0.0).to(tl.float64)
    inverse = tl.load(affine + channels + column, mask=valid, other=0.0).to(tl.float64)
    scale = tl.load(affine + 2 * channels + column, mask=valid, other=0.0).to(tl.float64)
    tl.store(parameters + column, (projected * inverse).to(tl.float32), mask=valid)
    tl.store(parameters + channels + column, total.to(tl.float32), mask=valid)
    slope = tl.zeros((CHANNELS,), tl.float64)
    level = tl.zeros((CHANNELS,), tl.float64)
    if BATCH:
        slope = -scale * inverse * inverse * projected / n
        level = -scale * total / n - slope * mean
    tl.store(coefficients + column, scale.to(tl.float32), mask=valid)
    tl.store(coefficients + channels + column, slope.to(tl.float32), mask=valid)
    tl.store(coefficients + 2 * channels + column, level.to(tl.float32), mask=valid)


@jit("n")
def _input_gradients(
    x, out, grad, coefficients, grad_x, masked, n, channels,
    RECTIFY: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = column < channels
    inside = (row < n)[:, None] & valid[None, :]
    here = row.to(tl.int64)[:, None] * channels + column[None, :]
    scale = tl.load(coefficients + column, mask=valid, other=0.0)
    slope = tl.load(coefficients + channels + column, mask=valid, other=0.0)
    level = tl.load(coefficients + 2 * channels + column, mask=valid, other=0.0)
    g = tl.load(grad + here, mask=inside, other=0.0).to(tl.float32)
    if RECTIFY:
        g = tl.where(tl.load(out + here, mask=inside, other=0.0).to(tl.float32) > 0.0, g, 0.0)
    if KEEP:
        tl.store(masked + here, g.to(masked.dtype.element_ty), mask=inside)
    value = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    value = scale[None, :] * g + slope[None, :] * value + level[None, :]
    tl.store(grad_x + here, value.to(grad_x.dtype.element_ty), mask=inside)
