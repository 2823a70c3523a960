"""Fused kernels of the sparse convolution for CPUs, float32 and bfloat16: no gather buffer, no scatter.

Output rows are worked on in blocks whose float32 sums stay in cache. For every block and kernel offset the pairs
present are known beforehand, so a tile multiplies a few gathered input rows by a strip of the packed weights with all
sums in vector registers. A finished block may be normalised, added to and rectified before it is written.

Every output row (or partial sum of the weight gradient) is made by one thread in one order, so results repeat bit for
bit and do not depend on the number of threads.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mink_decouple.jit import njit
from mink_decouple.sparse.cpu_blocks import BLOCK_ROWS, blocks_of
from mink_decouple.sparse.cpu_tiles import (
    DOT_BFLOAT16,
    FUSED,
    LANES,
    MAX_VECTORS,
    STRIP,
    dense_strip,
    gather_strip,
    pack_pairs,
)
from mink_decouple.sparse.kernel_map import NeighborTable
from mink_decouple.sparse.rows import array, floats, group, repeated, store
from mink_decouple.threads import share

_DEPTH = 128
"""Multiplicands of a row worked on at a time: that many rows of a strip of weights fit in the first-level cache."""
_CHUNK = 64
"""Pairs multiplied at a time for the weight gradient, fewer where rows are long: they stay in the first-level cache."""
_NEAR_BLOCKS = 4
_SEGMENTS = 8
_SEGMENT_BLOCKS = 16


@dataclass(frozen=True)
class Epilogue:
    """What is done to the sums of a row before they are written: ``act(sums * scale + shift + residual)``.

    Attributes:
        scale: (B,) float32.
        shift: (B,) float32.
        residual: (n_out, B) in the dtype of the features, or None.
        rectify: whether to end with a ReLU.
    """

    scale: Tensor
    shift: Tensor
    residual: Tensor | None = None
    rectify: bool = False


def usable(x: Tensor) -> bool:
    """Whether the fused kernels take ``x``: float32 or, where the processor multiplies it faster, bfloat16 on a CPU."""
    dtype = x.dtype == torch.float32 or (DOT_BFLOAT16 and x.dtype == torch.bfloat16)
    return dtype and x.device.type == "cpu" and FUSED


def gather_matmul_sum(
    x: Tensor, weights: Tensor, table: NeighborTable, opposite: bool = False, epilogue: Epilogue | None = None
) -> Tensor:
    """``out[u] = sum_k x[table[k, u]] @ weights[k]``: (n_source, A), (V, A, B) -> (n_out, B), in the dtype of ``x``.

    Args:
        x: features.
        weights: any strides, so a transposed view costs nothing.
        table: which rows meet.
        opposite: take the weights of the opposite offset, ``weights[V - 1 - k]``.
        epilogue: applied to every row of the result.
    """
    _, depth, columns = weights.shape
    n_out = table.rows.shape[1]
    if not n_out or not columns:
        return x.new_empty(n_out, columns)
    blocks = blocks_of(table)
    count, work = len(blocks.splits), 2 * blocks.pairs * depth * columns
    half = x.dtype == torch.bfloat16
    if half and depth % 2:
        x = torch.nn.functional.pad(x, (0, 1))
    out = torch.empty(n_out, columns, dtype=x.dtype)
    scale = shift = np.empty(0, np.float32)
    residual, rectify = out, False
    if epilogue is not None:
        scale, shift, rectify = epilogue.scale.numpy(), epilogue.shift.numpy(), epilogue.rectify
        if epilogue.residual is not None:
            residual = epilogue.residual.contiguous()
    added = residual is not out
    arrays = (array(x.contiguous()), _pack_weights(weights), array(out), blocks.source, blocks.target, blocks.splits)
    last = (scale, shift, array(residual), added, rectify, opposite)
    run = _matmul_bfloat16 if half else _matmul_float32
    share(lambda first, end: run(*arrays, *last, first, end), count, work)
    return out


def gather_outer_sum(x: Tensor, y: Tensor, table: NeighborTable) -> Tensor:
    """``out[k] = sum_u x[table[k, u]]^T y[u]``: (n_source, A), (n_out, B) -> (V, A, B) float32."""
    volume = table.rows.shape[0]
    if not x.shape[1] or not y.shape[1]:
        return torch.zeros(volume, x.shape[1], y.shape[1])
    blocks = blocks_of(table)
    # The number of partial sums depends on the table alone, never on the threads.
    segments = max(1, min(_SEGMENTS, len(blocks.splits) // _SEGMENT_BLOCKS))
    parts = volume if segments == 1 else min(3, volume)
    partial = torch.empty(segments, volume, x.shape[1], _padded(y.shape[1]))
    half, missing = x.dtype == torch.bfloat16, -y.shape[1] % LANES
    columns = y.shape[1]
    if missing and not half:
        y = torch.nn.functional.pad(y, (0, missing))
    arrays = (array(x.contiguous()), array(y.contiguous()), partial.numpy())
    lists = (blocks.source, blocks.target, blocks.splits, parts)
    run = _outer_bfloat16 if half else _outer_float32
    share(
        lambda first, end: run(*arrays, *lists, first, end),
        segments * parts,
        2 * blocks.pairs * x.shape[1] * columns,
    )
    total = partial[0] if segments == 1 else partial.sum(0)
    return total[..., :columns].contiguous()


def _padded(columns: int) -> int:
    return columns + -columns % LANES


def _pack_weights(weights: Tensor) -> np.ndarray:
    """Weights (V, A, B) flat, strip of columns by strip, so that a strip is read without a gap.

    Zeros fill the last strip. bfloat16 rows are laid out in pairs, as its product instruction takes them.
    """
    _, depth, columns = weights.shape
    half = weights.dtype == torch.bfloat16
    missing = (0, -columns % LANES, 0, depth % 2 if half else 0)
    if any(missing):
        weights = torch.nn.functional.pad(weights, missing)
    if half:
        weights = weights.unflatten(1, (-1, 2)).transpose(2, 3)
    strips = [strip.reshape(-1) for strip in weights.detach().split(STRIP, dim=2)]
    return array(strips[0] if len(strips) == 1 else torch.cat(strips))


def _gathering(bfloat16: bool) -> Any:
    """Compiled ``add(x, w, out, source, target, start, end, length, columns, volume, k)`` for a group of pairs."""
    one, two = gather_strip(1, bfloat16), gather_strip(2, bfloat16)
    three, four = (gather_strip(3, bfloat16), gather_strip(4, bfloat16)) if MAX_VECTORS == 4 else (two, two)

    @njit(nogil=True)
    def add(x, w, out, source, target, start, end, length, columns, volume, k):
        for column in range(0, columns, STRIP):
            vectors = min(MAX_VECTORS, (columns - column) // LANES)
            panel = w + 4 * length * (column * volume + k * vectors * LANES)
            sums, width = out + 4 * column, 4 * columns
            for first in range(0, length, _DEPTH):
                rows, strip = x + 4 * first, panel + 4 * first * vectors * LANES
                count = min(_DEPTH, length - first)
                if vectors == 4:
                    four(rows, strip, sums, source, target, start, end, count, 4 * length, width)
                elif vectors == 3:
                    three(rows, strip, sums, source, target, start, end, count, 4 * length, width)
                elif vectors == 2:
                    two(rows, strip, sums, source, target, start, end, count, 4 * length, width)
                else:
                    one(rows, strip, sums, source, target, start, end, count, 4 * length, width)

    return add


def _multiplying(bfloat16: bool) -> Any:
    """Compiled ``add(x, y, out, left, right, depth, length, full)``: adds the products of a chunk of pairs.

    float32 rows are read where they lie, those of x and y with the numbers at ``left`` and ``right``. bfloat16 ones are
    packed, strip of columns by strip.
    """
    one, two = dense_strip(1, bfloat16), dense_strip(2, bfloat16)
    three, four = (dense_strip(3, bfloat16), dense_strip(4, bfloat16)) if MAX_VECTORS == 4 else (two, two)

    @njit(nogil=True)
    def add(x, y, out, left, right, depth, length, full):
        for row in range(0, depth, STRIP if bfloat16 else max(depth, 1)):
            count = min(STRIP, depth - row) if bfloat16 else depth
            rows = x + 4 * (length * row if bfloat16 else row)
            x_stride = 4 * (count + -count % LANES) if bfloat16 else 4 * depth
            for column in range(0, full, STRIP):
                vectors = min(MAX_VECTORS, (full - column) // LANES)
                y_stride = 4 * vectors * LANES if bfloat16 else 4 * full
                strip, sums = y + 4 * column * (length if bfloat16 else 1), out + 4 * (row * full + column)
                if vectors == 4:
                    four(rows, strip, sums, left, right, count, length, x_stride, y_stride, 4 * full)
                elif vectors == 3:
                    three(rows, strip, sums, left, right, count, length, x_stride, y_stride, 4 * full)
                elif vectors == 2:
                    two(rows, strip, sums, left, right, count, length, x_stride, y_stride, 4 * full)
                else:
                    one(rows, strip, sums, left, right, count, length, x_stride, y_stride, 4 * full)

    return add


def _matmul_blocks(bfloat16: bool) -> Any:
    gather = _gathering(bfloat16)
    per_multiplicand = 2 if bfloat16 else 1

    @njit(nogil=True)
    def run(
        x,
        packed,
        out,
        source,
        target,
        splits,
        scale,
        shift,
        residual,
        added,
        rectify,
        opposite,
        first_block,
        last_block,
    ):
        n, columns = out.shape
        volume, length = splits.shape[1] - 1, x.shape[1] // per_multiplicand
        full = columns + -columns % LANES
        sums, size = np.empty((BLOCK_ROWS, full), np.float32), group(columns)
        flat, result, others, spare = (
            sums.reshape(-1),
            out.reshape(-1),
            residual.reshape(-1),
            np.empty(size, np.float32),
        )
        if len(scale) > 0:
            scale, shift = repeated(scale, size), repeated(shift, size)
        addresses = (x.ctypes.data, packed.ctypes.data, sums.ctypes.data, source.ctypes.data, target.ctypes.data)
        for block in range(first_block, last_block):
            first = block * BLOCK_ROWS
            count = min(BLOCK_ROWS, n - first)
            sums[:count] = 0
            for k in range(volume):
                if splits[block, k] < splits[block, k + 1] and length > 0:
                    own = volume - 1 - k if opposite else k
                    gather(*addresses, splits[block, k], splits[block, k + 1], length, full, volume, own)
            if full > columns:
                for i in range(1, count):
                    for c in range(columns):
                        flat[i * columns + c] = flat[i * full + c]
            for at in range(0, count * columns, size):
                end = min(at + size, count * columns)
                values = flat[at:end]
                if len(scale) > 0:
                    for i in range(end - at):
                        values[i] = values[i] * scale[i] + shift[i]
                if added:
                    other = floats(others, first * columns + at, first * columns + end, spare)
                    for i in range(end - at):
                        values[i] += other[i]
                if rectify:
                    for i in range(end - at):
                        values[i] = max(values[i], np.float32(0))
                store(values, result, first * columns + at)

    return run


_pack_1, _pack_2 = pack_pairs(1), pack_pairs(2)
_pack_3, _pack_4 = (pack_pairs(3), pack_pairs(4)) if MAX_VECTORS == 4 else (_pack_2, _pack_2)


@njit(nogil=True)
def _pack_rows(x, rows, first, start, end, packed, none):
    """bfloat16 rows ``first + rows[p]``, start <= p < end, interleaved in pairs strip of columns by strip.

    Zeros follow the last column, and the last of an odd number of rows.
    """
    columns, count = x.shape[1], end - start + (end - start) % 2
    lists, zeros, stride = rows.ctypes.data, none.ctypes.data, 2 * columns
    for column in range(0, columns, STRIP):
        width = min(STRIP, columns - column)
        vectors = -(-width // LANES)
        place, source = packed.ctypes.data + 2 * count * column, x.ctypes.data + 2 * column
        if width < vectors * LANES:
            for i in range(count):
                at = count * column + i // 2 * 2 * vectors * LANES + i % 2
                row = first + rows[start + i] if start + i < end else -1
                for c in range(vectors * LANES):
                    packed[at + 2 * c] = x[row, column + c] if c < width and row >= 0 else 0
        elif vectors == 4:
            _pack_4(place, source, lists, first, start, end, stride, zeros)
        elif vectors == 3:
            _pack_3(place, source, lists, first, start, end, stride, zeros)
        elif vectors == 2:
            _pack_2(place, source, lists, first, start, end, stride, zeros)
        else:
            _pack_1(place, source, lists, first, start, end, stride, zeros)


def _outer_segments(bfloat16: bool) -> Any:
    multiply = _multiplying(bfloat16)

    @njit(nogil=True)
    def run(x, y, partial, source, target, splits, parts, first, last):
        """Work items are pairs of a segment of the blocks and a share of the offsets, the share running fastest."""
        segments, volume, depth, full = partial.shape
        blocks = splits.shape[0]
        size = max(16, min(_CHUNK, _CHUNK * 128 // full))
        room = size + size % 2 if bfloat16 else 0  # packed in pairs
        left, right = np.empty(room * (depth + -depth % LANES), x.dtype), np.empty(room * full, y.dtype)
        none = np.zeros(STRIP, x.dtype)
        for item in range(first, last):
            segment, part = item // parts, item % parts
            first_k, last_k = volume * part // parts, volume * (part + 1) // parts
            partial[segment, first_k:last_k] = 0
            last_block = (segment + 1) * blocks // segments
            # A few blocks an offset, so that its sums are brought near once for all of them.
            for near in range(segment * blocks // segments, last_block, _NEAR_BLOCKS):
                for k in range(first_k, last_k):
                    out = partial.ctypes.data + 4 * (segment * volume + k) * depth * full
                    for block in range(near, min(near + _NEAR_BLOCKS, last_block)):
                        pairs = splits[block, k + 1] - splits[block, k]
                        chunks = -(-pairs // size)
                        for chunk in range(chunks):
                            start = splits[block, k] + pairs * chunk // chunks
                            end = splits[block, k] + pairs * (chunk + 1) // chunks
                            if bfloat16:
                                _pack_rows(x, source, 0, start, end, left, none)
                                _pack_rows(y, target, block * BLOCK_ROWS, start, end, right, none)
                                addresses = (left.ctypes.data, right.ctypes.data, out, 0, 0)
                                multiply(*addresses, depth, (end - start + 1) // 2, full)
                            else:
                                rows = y.ctypes.data + 4 * block * BLOCK_ROWS * full
                                lists = (source.ctypes.data + 4 * start, target.ctypes.data + 4 * start)
                                multiply(x.ctypes.data, rows, out, *lists, depth, end - start, full)

    return run


_matmul_32, _matmul_16 = _matmul_blocks(False), _matmul_blocks(True)
_outer_32, _outer_16 = _outer_segments(False), _outer_segments(True)


@njit(cache=True, nogil=True)
def _matmul_float32(x, w, out, source, target, splits, scale, shift, residual, added, rectify, opposite, first, last):
    _matmul_32(x, w, out, source, target, splits, scale, shift, residual, added, rectify, opposite, first, last)


@njit(cache=True, nogil=True)
def _matmul_bfloat16(x, w, out, source, target, splits, scale, shift, residual, added, rectify, opposite, first, last):
    _matmul_16(x, w, out, source, target, splits, scale, shift, residual, added, rectify, opposite, first, last)


@njit(cache=True, nogil=True)
def _outer_float32(x, y, partial, source, target, splits, parts, first, last):
    _outer_32(x, y, partial, source, target, splits, parts, first, last)


@njit(cache=True, nogil=True)
def _outer_bfloat16(x, y, partial, source, target, splits, parts, first, last):
    _outer_16(x, y, partial, source, target, splits, parts, first, last)
