"""The sparse convolution itself: forward and explicit backward, for every device and dtype.

With ``T[k, u]`` the input row at offset ``k`` of output row ``u`` (absent neighbours contribute nothing):

    out[u] = sum_k x[T[k, u]] @ W[k] + b        (correlation, as in MinkowskiEngine)

The input gradient is the same operation with the opposite table and transposed weights, so one routine serves both.
No step scatters with atomics: every output row is summed by one worker in one order, which makes results repeat bit
for bit on a CPU.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mink_decouple.sparse import cpu_kernel
from mink_decouple.sparse.kernel_map import KernelMap, NeighborTable
from mink_decouple.sparse.normalization import folded, normalize


def convolution(feats: Tensor, kernel: Tensor, kernel_map: KernelMap, bias: Tensor | None = None) -> Tensor:
    """Convolve features over a kernel map.

    Args:
        feats: (n_in, C_in) float32, float64 or bfloat16.
        kernel: (V, C_in, C_out), one matrix per kernel offset.
        kernel_map: which rows meet.
        bias: (1, C_out) or (C_out,), optional.

    Returns:
        (n_out, C_out) in the dtype of ``feats``, or autocast's where that is on. A CPU sums bfloat16 in float32.

    Raises:
        ValueError: shapes that do not fit together.
    """
    feats = _checked(feats, kernel, kernel_map)
    out: Tensor = _Convolution.apply(feats, kernel, kernel_map)
    return out if bias is None else out + bias.to(out.dtype)


def convolve_norm(
    feats: Tensor,
    kernel: Tensor,
    kernel_map: KernelMap,
    bn: nn.BatchNorm1d,
    residual: Tensor | None = None,
    rectify: bool = False,
) -> Tensor:
    """``act(bn(convolution(feats, kernel, kernel_map)) + residual)`` by the running statistics, for inference.

    Where a fused kernel takes the features, sums are normalised before they leave the cache. No gradients.

    Args:
        feats: (n_in, C_in), as for :func:`convolution`.
        kernel: (V, C_in, C_out).
        kernel_map: which rows meet.
        bn: normalisation in evaluation mode, with running statistics.
        residual: (n_out, C_out), added last.
        rectify: whether to end with a ReLU.

    Returns:
        (n_out, C_out), as :func:`convolution`.

    Raises:
        ValueError: shapes that do not fit together.
    """
    feats = _checked(feats, kernel, kernel_map)
    kernel = kernel.to(feats.dtype)
    if residual is not None and residual.shape != (kernel_map.n_out, kernel.shape[2]):
        raise ValueError(f"residual must be ({kernel_map.n_out}, {kernel.shape[2]}), got {tuple(residual.shape)}")
    fused = _fused(feats)
    if fused is None or bn.weight is None:
        return normalize(gather_matmul_sum(feats, kernel, kernel_map.table), bn, residual, rectify)
    added = None if residual is None else residual.to(feats.dtype)
    if fused is cpu_kernel:
        scale, shift = folded(bn)
        epilogue = cpu_kernel.Epilogue(scale.float(), shift.float(), added, rectify)
    else:  # the GPU's kernels read the statistics themselves, which saves the launches that fold them
        epilogue = fused.Epilogue(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps, added, rectify)
    out: Tensor = fused.gather_matmul_sum(feats, kernel, kernel_map.table, epilogue=epilogue)
    return out


def _checked(feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Features in the dtype they are multiplied in."""
    volume = kernel_map.table.rows.shape[0]
    if feats.ndim != 2 or kernel.shape[:2] != (volume, feats.shape[1]):
        raise ValueError(
            f"kernel must be ({volume}, {feats.shape[-1]}, C_out) for feats {tuple(feats.shape)}, "
            f"got {tuple(kernel.shape)}"
        )
    if len(feats) != kernel_map.n_in:
        raise ValueError(f"feats have {len(feats)} rows but the kernel map expects {kernel_map.n_in}")
    device = feats.device.type
    dtype = feats.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    return feats.to(dtype)


class _Convolution(torch.autograd.Function):
    """Convolution without bias: a plain broadcast addition differentiates itself.

    The kernel is narrowed to the dtype of the features here, so that its gradient need not be.
    """

    @staticmethod
    def forward(ctx: Any, feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.dtype, kernel = kernel.dtype, kernel.to(feats.dtype)
        ctx.save_for_backward(feats, kernel)
        ctx.kernel_map = kernel_map
        with torch.autocast(feats.device.type, enabled=False):
            return gather_matmul_sum(feats, kernel, kernel_map.table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feats, kernel = ctx.saved_tensors
        kernel_map: KernelMap = ctx.kernel_map
        grad_feats = grad_kernel = None
        grad = grad.contiguous()
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                table, own = kernel_map.reverse, kernel_map.reverse is None
                # A map of a coordinate set onto itself is its own opposite, with the offsets in reverse order.
                table = kernel_map.table if table is None else table
                grad_feats = gather_matmul_sum(grad, kernel.transpose(1, 2), table, opposite=own)
            if ctx.needs_input_grad[1]:
                grad_kernel = gather_outer_sum(feats, grad, kernel_map.table, ctx.dtype)
        return grad_feats, grad_kernel, None


def gather_matmul_sum(x: Tensor, weights: Tensor, table: NeighborTable, opposite: bool = False) -> Tensor:
    """``out[u] = sum_k x[table[k, u]] @ weights[k]``: (n_source, A), (V, A, B) -> (n_out, B), without autograd.

    ``opposite`` takes ``weights[V - 1 - k]`` instead. bfloat16 is summed in float32 on a CPU.
    """
    fused = _fused(x)
    if fused is not None:
        out: Tensor = fused.gather_matmul_sum(x, weights, table, opposite)
        return out
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        return gather_matmul_sum(x.float(), weights.float(), table, opposite).to(x.dtype)
    return gather_matmul_sum_torch(x, weights.flip(0) if opposite else weights, table)


def gather_outer_sum(x: Tensor, y: Tensor, table: NeighborTable, dtype: torch.dtype) -> Tensor:
    """``out[k] = sum_u x[table[k, u]]^T y[u]``: (n_source, A), (n_out, B) -> (V, A, B) of ``dtype``, without autograd.

    Fused kernels sum in float32 and round once.
    """
    fused = _fused(x)
    if fused is not None:
        out: Tensor = fused.gather_outer_sum(x, y, table).to(dtype)
        return out
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        x, y = x.float(), y.float()
    return gather_outer_sum_torch(x, y, table).to(dtype)


def _fused(x: Tensor) -> ModuleType | None:
    """The module whose kernels take ``x``; None: plain torch operations."""
    if x.is_cuda:
        from mink_decouple.sparse import triton_kernel

        return triton_kernel if triton_kernel.usable(x) else None
    return cpu_kernel if cpu_kernel.usable(x) else None


def gather_matmul_sum_torch(x: Tensor, weights: Tensor, table: NeighborTable) -> Tensor:
    """:func:`gather_matmul_sum` in plain torch operations: one gather, a product per offset, one segmented sum."""
    pairs = table.pairs
    if not len(pairs.source) or not weights.shape[2]:
        return x.new_zeros(table.rows.shape[1], weights.shape[2])
    gathered = x.index_select(0, pairs.source)
    products = x.new_empty(len(gathered), weights.shape[2])
    for k, (start, end) in enumerate(zip(pairs.splits, pairs.splits[1:])):
        if end > start:
            torch.mm(gathered[start:end], weights[k], out=products[start:end])
    return F.embedding_bag(pairs.order, products, pairs.starts, mode="sum")


def gather_outer_sum_torch(x: Tensor, y: Tensor, table: NeighborTable) -> Tensor:
    """:func:`gather_outer_sum` in plain torch operations."""
    pairs = table.pairs
    gathered_x, gathered_y = x.index_select(0, pairs.source), y.index_select(0, pairs.target)
    out = x.new_zeros(table.rows.shape[0], x.shape[1], y.shape[1])
    for k, (start, end) in enumerate(zip(pairs.splits, pairs.splits[1:])):
        if end > start:
            torch.mm(gathered_x[start:end].t(), gathered_y[start:end], out=out[k])
    return out
