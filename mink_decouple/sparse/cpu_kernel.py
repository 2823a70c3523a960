"""Fused float32 kernels of the sparse convolution for CPUs: no gather buffer, no scatter.

Output rows are worked on in blocks whose sums stay in cache. For every block and kernel offset the pairs present are
known beforehand, so the inner tile multiplies a few gathered input rows by a strip of the weights with all sums in
vector registers. numba compiles the loops; the tile itself is written as LLVM vector instructions, because compilers
do not find this shape.

Every output row (or partial sum of the weight gradient) is made by one thread in one order, so results repeat bit for
bit and do not depend on the number of threads.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from mink_decouple.sparse.kernel_map import NeighborTable
from mink_decouple.sparse.threads import share

BLOCK_ROWS = 256
_SEGMENTS = 8

_FEATURES = llvmlite.binding.get_host_cpu_features()
_WIDE = bool(_FEATURES.get("avx512f"))
_FUSED = bool(_FEATURES.get("fma") or _FEATURES.get("neon"))
LANES = 16 if _WIDE else 8
"""Floats per vector register."""
# Sums per tile are limited by the registers: 32 with AVX-512, else 16. rows[vectors per row] of the three tile heights.
_MATMUL_ROWS = {4: (6, 2, 1), 3: (8, 2, 1), 2: (12, 4, 1), 1: (12, 4, 1)} if _WIDE else {2: (6, 2, 1), 1: (8, 4, 1)}
_OUTER_ROWS = {4: (4, 2, 1), 3: (8, 2, 1), 2: (8, 3, 1), 1: (16, 3, 1)} if _WIDE else {2: (4, 3, 1), 1: (8, 3, 1)}
_MAX_VECTORS = max(_MATMUL_ROWS)


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Pairs of a table by block of output rows, then kernel offset; ``splits[b, k]:splits[b, k + 1]`` are one group."""

    source: np.ndarray
    target: np.ndarray
    splits: np.ndarray


_BLOCKS: WeakKeyDictionary[NeighborTable, _Blocks] = WeakKeyDictionary()


def usable(x: Tensor) -> bool:
    """Whether the fused kernels take ``x``: float32 on a CPU with fused multiply-add in vector registers."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and _FUSED


def gather_matmul_sum(x: Tensor, weights: Tensor, table: NeighborTable) -> Tensor:
    """``out[u] = sum_k x[table[k, u]] @ weights[k]``: (n_source, A), (V, A, B) -> (n_out, B), all float32."""
    n_out, columns = table.rows.shape[1], weights.shape[2]
    weights = _pad_columns(weights)
    out = torch.empty(n_out, weights.shape[2])
    blocks = _blocks(table)
    arrays = (x.contiguous().numpy(), weights.numpy(), out.numpy(), blocks.source, blocks.target, blocks.splits)
    count = len(blocks.splits)

    def work(first: int, last: int) -> None:
        _matmul_blocks(*arrays, first, last)

    share(work, count, 2 * len(blocks.source) * weights[0].numel())
    return out if out.shape[1] == columns else out[:, :columns].contiguous()


def gather_outer_sum(x: Tensor, y: Tensor, table: NeighborTable) -> Tensor:
    """``out[k] = sum_u x[table[k, u]]^T y[u]``: (n_source, A), (n_out, B) -> (V, A, B), all float32."""
    volume, columns = table.rows.shape[0], y.shape[1]
    y = _pad_columns(y)
    blocks = _blocks(table)
    # The number of partial sums depends on the table alone, never on the threads.
    segments = max(1, min(_SEGMENTS, len(blocks.splits)))
    partial = torch.zeros(segments, volume, x.shape[1], y.shape[1])
    arrays = (x.contiguous().numpy(), y.numpy(), partial.numpy(), blocks.source, blocks.target, blocks.splits)

    def work(first: int, last: int) -> None:
        _outer_segments(*arrays, first, last)

    share(work, segments, 2 * len(blocks.source) * x.shape[1] * y.shape[1])
    return partial.sum(0)[..., :columns].contiguous()


def _pad_columns(values: Tensor) -> Tensor:
    missing = -values.shape[-1] % LANES
    return torch.nn.functional.pad(values, (0, missing)) if missing else values.contiguous()


def _blocks(table: NeighborTable) -> _Blocks:
    if table not in _BLOCKS:
        rows = table.rows.numpy()
        count = -(-rows.shape[1] // BLOCK_ROWS)
        pairs = int((rows >= 0).sum())
        blocks = _Blocks(
            np.empty(pairs, np.int32), np.empty(pairs, np.int32), np.zeros((count, len(rows) + 1), np.int64)
        )
        _list_pairs(rows, blocks.source, blocks.target, blocks.splits)
        _BLOCKS[table] = blocks
    return _BLOCKS[table]


@numba.njit(cache=True, nogil=True)
def _list_pairs(rows, source, target, splits):
    volume, n = rows.shape
    p = 0
    for block in range(splits.shape[0]):
        splits[block, 0] = p
        for k in range(volume):
            for u in range(block * BLOCK_ROWS, min(n, (block + 1) * BLOCK_ROWS)):
                if rows[k, u] >= 0:
                    source[p] = rows[k, u]
                    target[p] = u
                    p += 1
            splits[block, k + 1] = p


def _float_at(builder: ir.IRBuilder, base: ir.Value, row: ir.Value, stride: ir.Value, column: Any = 0) -> ir.Value:
    """Address (an integer) of float ``column`` in row ``row`` of a row-major array with ``stride`` columns."""
    place = builder.add(builder.mul(row, stride), column if isinstance(column, ir.Value) else base.type(column))
    return builder.add(base, builder.shl(place, base.type(2)))


def _load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 4
    return value


def _index(builder: ir.IRBuilder, base: ir.Value, place: ir.Value) -> ir.Value:
    raw = _load(builder, builder.add(base, builder.shl(place, base.type(2))), ir.IntType(32))
    return builder.sext(raw, base.type)


class _Tile:
    """Emits ``rows x vectors`` register sums ``acc[r][v] += scalar[r] * vector[v]`` over a counted loop."""

    def __init__(self, builder: ir.IRBuilder, rows: int, vectors: int) -> None:
        self.builder, self.rows, self.vectors = builder, rows, vectors
        self.vector = ir.VectorType(ir.FloatType(), LANES)
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{LANES}f32")

    def splat(self, scalar: ir.Value) -> ir.Value:
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(one, undefined, zeros)

    def loop(
        self,
        start: ir.Value,
        end: ir.Value,
        first: list[ir.Value],
        operands: Callable[[ir.Value], tuple[list[ir.Value], list[ir.Value]]],
    ) -> list[ir.Value]:
        """Sums after ``for i in range(start, end)``, not empty; ``operands(i)`` gives the scalars and vectors."""
        b = self.builder
        before = b.block
        body, after = b.append_basic_block("body"), b.append_basic_block("after")
        b.branch(body)
        b.position_at_end(body)
        i = b.phi(start.type)
        i.add_incoming(start, before)
        sums = [b.phi(self.vector) for _ in first]
        for phi, value in zip(sums, first):
            phi.add_incoming(value, before)
        scalars, vectors = operands(i)
        splats = [self.splat(scalar) for scalar in scalars]
        new = [
            b.call(self.fma, [splats[r], vectors[v], sums[r * self.vectors + v]])
            for r in range(self.rows)
            for v in range(self.vectors)
        ]
        for phi, value in zip(sums, new):
            phi.add_incoming(value, b.block)
        following = b.add(i, i.type(1))
        i.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, end), body, after)
        b.position_at_end(after)
        return new

    def store(self, address: ir.Value, value: ir.Value) -> None:
        self.builder.store(value, self.builder.inttoptr(address, self.vector.as_pointer())).align = 4


def _matmul_tile(rows: int, vectors: int) -> Any:
    """``out[target[p + r], c:] += x[source[p + r], :] @ w[:, c:]`` for r < rows and ``vectors * LANES`` columns."""

    @intrinsic
    def tile(typing_context, x, w, out, source, target, p, column, depth, columns):
        def emit(context, builder, signature, arguments):
            x, w, out, source, target, p, column, depth, columns = arguments
            b, kernel, long = builder, _Tile(builder, rows, vectors), p.type
            inputs = [b.mul(_index(b, source, b.add(p, long(r))), depth) for r in range(rows)]
            zero = ir.Constant(kernel.vector, [0.0] * LANES)

            def operands(i: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
                strip = _float_at(b, w, i, columns, column)
                scalars = [_load(b, b.add(x, b.shl(b.add(start, i), long(2))), ir.FloatType()) for start in inputs]
                return scalars, [_load(b, b.add(strip, long(4 * LANES * v)), kernel.vector) for v in range(vectors)]

            sums = kernel.loop(long(0), depth, [zero] * (rows * vectors), operands)
            for r in range(rows):
                start = _float_at(b, out, _index(b, target, b.add(p, long(r))), columns, column)
                for v in range(vectors):
                    address = b.add(start, long(4 * LANES * v))
                    kernel.store(address, b.fadd(_load(b, address, kernel.vector), sums[r * vectors + v]))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), emit

    return tile


def _outer_tile(rows: int, vectors: int) -> Any:
    """``out[a + r, c:] += sum_p x[source[p], a + r] * y[target[p], c:]`` over start <= p < end, for r < rows."""

    @intrinsic
    def tile(typing_context, x, y, out, source, target, start, end, a, column, depth, columns):
        def emit(context, builder, signature, arguments):
            x, y, out, source, target, start, end, a, column, depth, columns = arguments
            b, kernel, long = builder, _Tile(builder, rows, vectors), start.type
            places = [
                b.add(_float_at(b, out, b.add(a, long(r)), columns, column), long(4 * LANES * v))
                for r in range(rows)
                for v in range(vectors)
            ]

            def operands(i: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
                left = _float_at(b, x, _index(b, source, i), depth, a)
                right = _float_at(b, y, _index(b, target, i), columns, column)
                return (
                    [_load(b, b.add(left, long(4 * r)), ir.FloatType()) for r in range(rows)],
                    [_load(b, b.add(right, long(4 * LANES * v)), kernel.vector) for v in range(vectors)],
                )

            sums = kernel.loop(start, end, [_load(b, place, kernel.vector) for place in places], operands)
            for place, value in zip(places, sums):
                kernel.store(place, value)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 11), emit

    return tile


def _matmul_strip(vectors: int) -> Any:
    tall, middle, single = _MATMUL_ROWS[vectors]
    tall_tile, middle_tile, single_tile = (_matmul_tile(rows, vectors) for rows in (tall, middle, single))

    @numba.njit(nogil=True)
    def strip(x, w, out, source, target, start, end, column, depth, columns):
        p = start
        while p + tall <= end:
            tall_tile(x, w, out, source, target, p, column, depth, columns)
            p += tall
        while p + middle <= end:
            middle_tile(x, w, out, source, target, p, column, depth, columns)
            p += middle
        while p < end:
            single_tile(x, w, out, source, target, p, column, depth, columns)
            p += 1

    return strip


def _outer_strip(vectors: int) -> Any:
    tall, middle, single = _OUTER_ROWS[vectors]
    tall_tile, middle_tile, single_tile = (_outer_tile(rows, vectors) for rows in (tall, middle, single))

    @numba.njit(nogil=True)
    def strip(x, y, out, source, target, start, end, column, depth, columns):
        a = 0
        while a + tall <= depth:
            tall_tile(x, y, out, source, target, start, end, a, column, depth, columns)
            a += tall
        while a + middle <= depth:
            middle_tile(x, y, out, source, target, start, end, a, column, depth, columns)
            a += middle
        while a < depth:
            single_tile(x, y, out, source, target, start, end, a, column, depth, columns)
            a += 1

    return strip


_matmul_1, _matmul_2 = _matmul_strip(1), _matmul_strip(2)
_matmul_3, _matmul_4 = (_matmul_strip(3), _matmul_strip(4)) if _WIDE else (_matmul_2, _matmul_2)
_outer_1, _outer_2 = _outer_strip(1), _outer_strip(2)
_outer_3, _outer_4 = (_outer_strip(3), _outer_strip(4)) if _WIDE else (_outer_2, _outer_2)


@numba.njit(cache=True, nogil=True)
def _matmul_blocks(x, weights, out, source, target, splits, first, last):
    depth, columns = weights.shape[1], weights.shape[2]
    xs, ws, outs = x.ctypes.data, weights.ctypes.data, out.ctypes.data
    sources, targets = source.ctypes.data, target.ctypes.data
    for block in range(first, last):
        out[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS] = 0
        for k in range(weights.shape[0]):
            start, end = splits[block, k], splits[block, k + 1]
            w = ws + 4 * k * depth * columns
            column = 0
            while column < columns and start < end and depth > 0:
                vectors = min(_MAX_VECTORS, (columns - column) // LANES)
                if vectors == 4:
                    _matmul_4(xs, w, outs, sources, targets, start, end, column, depth, columns)
                elif vectors == 3:
                    _matmul_3(xs, w, outs, sources, targets, start, end, column, depth, columns)
                elif vectors == 2:
                    _matmul_2(xs, w, outs, sources, targets, start, end, column, depth, columns)
                else:
                    _matmul_1(xs, w, outs, sources, targets, start, end, column, depth, columns)
                column += vectors * LANES


@numba.njit(cache=True, nogil=True)
def _outer_segments(x, y, partial, source, target, splits, first, last):
    segments, volume, depth, columns = partial.shape
    blocks = splits.shape[0]
    xs, ys, outs = x.ctypes.data, y.ctypes.data, partial.ctypes.data
    sources, targets = source.ctypes.data, target.ctypes.data
    for segment in range(first, last):
        for block in range(segment * blocks // segments, (segment + 1) * blocks // segments):
            for k in range(volume):
                start, end = splits[block, k], splits[block, k + 1]
                out = outs + 4 * (segment * volume + k) * depth * columns
                column = 0
                while column < columns and start < end:
                    vectors = min(_MAX_VECTORS, (columns - column) // LANES)
                    if vectors == 4:
                        _outer_4(xs, ys, out, sources, targets, start, end, column, depth, columns)
                    elif vectors == 3:
                        _outer_3(xs, ys, out, sources, targets, start, end, column, depth, columns)
                    elif vectors == 2:
                        _outer_2(xs, ys, out, sources, targets, start, end, column, depth, columns)
                    else:
                        _outer_1(xs, ys, out, sources, targets, start, end, column, depth, columns)
                    column += vectors * LANES
