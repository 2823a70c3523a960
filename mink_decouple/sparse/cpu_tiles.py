"""Inner loops of the CPU kernels as LLVM vector instructions: a few rows by a strip of columns, all sums in registers.

Compilers do not find this shape by themselves. A multiplicand is 4 bytes: one float32, or two bfloat16 that one
instruction multiplies by two others and adds to a float32 sum. numba inlines the tiles into the loops of
`cpu_kernel.py`.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import config
from numba.core import cgutils, types
from numba.extending import intrinsic

from mink_decouple.jit import njit

# numba takes another target from NUMBA_CPU_NAME and NUMBA_CPU_FEATURES
_CONFIG: Any = config
_NAME = _CONFIG.CPU_NAME or llvmlite.binding.get_host_cpu_name()
_FEATURES = (
    {name[1:]: name[0] == "+" for name in _CONFIG.CPU_FEATURES.split(",") if name}
    if _CONFIG.CPU_FEATURES
    else llvmlite.binding.get_host_cpu_features()
)
WIDE = bool(_FEATURES.get("avx512f"))
# every 64-bit ARM has it, also where LLVM names no features
FUSED = bool(_FEATURES.get("fma") or _FEATURES.get("neon")) or platform.machine() in ("arm64", "aarch64")
"""Whether the processor multiplies and adds in one instruction; without it torch's own operations are as good."""
LANES = 16 if WIDE else 8
"""Floats per vector register."""
MAX_VECTORS = 4 if WIDE else 2
"""Vector registers per row of a tile, at most."""
STRIP = LANES * MAX_VECTORS
"""Columns of a tile, at most."""


# The instruction must exist and pay: Intel's 512-bit form has half the rate of its float32 units, AMD's twice.
DOT_BFLOAT16 = WIDE and bool(_FEATURES.get("avx512bf16")) and _NAME.startswith("znver")
"""Whether bfloat16 features are multiplied as such; elsewhere they are widened to float32 first."""

# Sums per tile are limited by the registers: 32 with AVX-512, else 16. rows[vectors per row] of the three tile heights.
_GATHER_ROWS = {4: (6, 2, 1), 3: (8, 2, 1), 2: (8, 3, 1), 1: (8, 3, 1)} if WIDE else {2: (6, 2, 1), 1: (8, 4, 1)}
_DENSE_ROWS = {4: (6, 2, 1), 3: (8, 3, 1), 2: (8, 3, 1), 1: (16, 4, 1)} if WIDE else {2: (4, 3, 1), 1: (8, 3, 1)}
LOOKAHEAD = 2 * max(rows[0] for rows in _GATHER_ROWS.values())
"""Pairs that a tile may read beyond the last one."""


class _Name(ir.Type):
    """A type that llvmlite has no class for."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _to_string(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Name) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


class _Tile:
    """Emits ``rows x vectors`` register sums ``acc[r][v] += scalar[r] * vector[v]`` over a counted loop."""

    def __init__(self, builder: ir.IRBuilder, rows: int, vectors: int, bfloat16: bool) -> None:
        self.builder, self.rows, self.vectors, self.bfloat16 = builder, rows, vectors, bfloat16
        self.vector = ir.VectorType(ir.FloatType(), LANES)
        self.element = ir.IntType(32) if bfloat16 else ir.FloatType()
        if bfloat16:
            old = llvmlite.binding.llvm_version_info[0] < 16
            self.operand = ir.VectorType(ir.IntType(32), 16) if old else ir.VectorType(_Name("bfloat"), 32)
            kinds, name = [self.vector, self.operand, self.operand], "llvm.x86.avx512bf16.dpbf16ps.512"
        else:
            self.operand = self.vector
            kinds, name = [self.vector] * 3, f"llvm.fma.v{LANES}f32"
        self.multiply = cgutils.get_or_insert_function(builder.module, ir.FunctionType(self.vector, kinds), name)

    def splat(self, scalar: ir.Value) -> ir.Value:
        kind = ir.VectorType(self.element, LANES)
        undefined = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.bitcast(self.builder.shuffle_vector(one, undefined, zeros), self.operand)

    def add(self, left: ir.Value, right: ir.Value, total: ir.Value) -> ir.Value:
        order = [total, left, right] if self.bfloat16 else [left, right, total]
        return self.builder.call(self.multiply, order)

    def loop(
        self,
        length: ir.Value,
        scalars: Callable[[ir.Value], list[ir.Value]],
        strip: Callable[[ir.Value], ir.Value],
    ) -> list[ir.Value]:
        """Sums over ``for i in range(length)``, not empty, of the scalars times the vectors at these addresses."""
        b, long = self.builder, length.type
        before = b.block
        body, after = b.append_basic_block("body"), b.append_basic_block("after")
        b.branch(body)
        b.position_at_end(body)
        i = b.phi(long)
        i.add_incoming(long(0), before)
        sums = [b.phi(self.vector) for _ in range(self.rows * self.vectors)]
        for phi in sums:
            phi.add_incoming(ir.Constant(self.vector, [0.0] * LANES), before)
        splats = [self.splat(load(b, address, self.element)) for address in scalars(i)]
        row = strip(i)
        vectors = [load(b, b.add(row, long(4 * LANES * v)), self.operand) for v in range(self.vectors)]
        new = [
            self.add(splats[r], vectors[v], sums[r * self.vectors + v])
            for r in range(self.rows)
            for v in range(self.vectors)
        ]
        for phi, value in zip(sums, new):
            phi.add_incoming(value, b.block)
        following = b.add(i, long(1))
        i.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, length), body, after)
        b.position_at_end(after)
        return new

    def update(self, rows: list[ir.Value], sums: list[ir.Value]) -> None:
        """Add the sums to the rows of floats at these addresses."""
        b = self.builder
        for r, row in enumerate(rows):
            for v in range(self.vectors):
                address = b.add(row, row.type(4 * LANES * v))
                total = b.fadd(load(b, address, self.vector), sums[r * self.vectors + v])
                b.store(total, b.inttoptr(address, self.vector.as_pointer())).align = 4


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type, align: int = 4) -> ir.Value:
    """A value at an address (an integer) that is a multiple of ``align``."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def _index(builder: ir.IRBuilder, base: ir.Value, place: ir.Value) -> ir.Value:
    raw = load(builder, builder.add(base, builder.shl(place, base.type(2))), ir.IntType(32))
    return builder.sext(raw, base.type)


def _prefetch(builder: ir.IRBuilder, rows: list[ir.Value], length: ir.Value) -> None:
    """Bring ``length`` bytes, more than none, at each of these addresses near."""
    b, byte = builder, ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte] + [ir.IntType(32)] * 3)
    fetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0i8")
    read, keep, data = ir.IntType(32)(0), ir.IntType(32)(3), ir.IntType(32)(1)

    def body(i: ir.Value) -> None:
        for row in rows:
            place = b.add(row, b.shl(i, i.type(6)))
            b.call(fetch, [b.inttoptr(place, byte), read, keep, data])

    _counted(b, b.lshr(b.add(length, length.type(63)), length.type(6)), body)


def _gather_tile(rows: int, vectors: int, bfloat16: bool) -> Any:
    """``out[target[p + r]] += x[source[p + r]] @ w`` for r < rows and one strip of columns."""

    @intrinsic
    def tile(typing_context, x, w, out, source, target, p, length, x_stride, out_stride):
        def emit(context, builder, signature, arguments):
            x, w, out, source, target, p, length, x_stride, out_stride = arguments
            b, kernel, long = builder, _Tile(builder, rows, vectors, bfloat16), p.type

            def address(base: ir.Value, table: ir.Value, place: int, stride: ir.Value) -> ir.Value:
                return b.add(base, b.mul(_index(b, table, b.add(p, long(place))), stride))

            inputs = [address(x, source, r, x_stride) for r in range(rows)]
            if rows > 3 and vectors > 1:  # the few bytes of narrow rows are near anyway
                following = [address(x, source, rows + r, x_stride) for r in range(rows)]
                _prefetch(b, following, b.shl(length, long(2)))
            sums = kernel.loop(
                length,
                lambda i: [b.add(start, b.shl(i, long(2))) for start in inputs],
                lambda i: b.add(w, b.mul(i, long(4 * LANES * vectors))),
            )
            kernel.update([address(out, target, r, out_stride) for r in range(rows)], sums)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), emit

    return tile


def _dense_tile(rows: int, vectors: int, bfloat16: bool) -> Any:
    """``out[r] += sum_i x[i, r] * y[i]`` for r < rows and one strip of columns.

    Row i is that of float32 ``x`` and ``y`` whose numbers stand at ``left[i]`` and ``right[i]``; bfloat16 is packed.
    """

    @intrinsic
    def tile(typing_context, x, y, out, left, right, length, x_stride, y_stride, out_stride):
        def emit(context, builder, signature, arguments):
            x, y, out, left, right, length, x_stride, y_stride, out_stride = arguments
            b, kernel, long = builder, _Tile(builder, rows, vectors, bfloat16), length.type

            def scalars(i: ir.Value) -> list[ir.Value]:
                row = b.add(x, b.mul(i if bfloat16 else _index(b, left, i), x_stride))
                return [b.add(row, long(4 * r)) for r in range(rows)]

            def strip(i: ir.Value) -> ir.Value:
                return b.add(y, b.mul(i if bfloat16 else _index(b, right, i), y_stride))

            sums = kernel.loop(length, scalars, strip)
            kernel.update([b.add(out, b.mul(out_stride, long(r))) for r in range(rows)], sums)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), emit

    return tile


def _counted(builder: ir.IRBuilder, count: ir.Value, body: Callable[[ir.Value], None]) -> None:
    """Emit ``for i in range(count): body(i)``; not empty."""
    b, before = builder, builder.block
    loop, after = b.append_basic_block("loop"), b.append_basic_block("done")
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(count.type)
    i.add_incoming(count.type(0), before)
    body(i)
    following = b.add(i, count.type(1))
    i.add_incoming(following, b.block)
    b.cbranch(b.icmp_signed("<", following, count), loop, after)
    b.position_at_end(after)


def pack_pairs(vectors: int) -> Any:
    """An intrinsic ``pack(packed, x, rows, first, start, end, stride, none)``: bfloat16 rows of one strip, in pairs.

    It joins the rows ``first + rows[p]`` and ``first + rows[p + 1]``, start <= p < end and not empty, value by value;
    an odd last one is joined with that at ``none``. All arguments are integers; ``stride`` in bytes.
    """
    part = ir.VectorType(ir.IntType(16), LANES)
    order = [lane // 2 + LANES * (lane % 2) for lane in range(2 * LANES)]

    @intrinsic
    def pack(typing_context, packed, x, rows, first, start, end, stride, none):
        def emit(context, builder, signature, arguments):
            packed, x, rows, first, start, end, stride, none = arguments
            b, long = builder, packed.type

            def address(p: ir.Value) -> ir.Value:
                return b.add(x, b.mul(b.add(first, _index(b, rows, p)), stride))

            def body(i: ir.Value) -> None:
                p = b.add(start, b.shl(i, long(1)))
                following = b.add(p, long(1))
                last = b.icmp_signed(">=", following, end)
                sources = address(p), b.select(last, none, address(b.select(last, p, following)))
                for v in range(vectors):
                    even, odd = (load(b, b.add(source, long(2 * LANES * v)), part, 2) for source in sources)
                    both = b.shuffle_vector(even, odd, ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), order))
                    place = b.add(packed, b.mul(b.add(b.mul(i, long(vectors)), long(v)), long(4 * LANES)))
                    b.store(both, b.inttoptr(place, both.type.as_pointer())).align = 4

            _counted(b, b.sdiv(b.add(b.sub(end, start), long(1)), long(2)), body)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), emit

    return pack


def gather_strip(vectors: int, bfloat16: bool = False) -> Any:
    """A compiled ``strip(x, w, out, source, target, start, end, length, x_stride, out_stride)``.

    It adds ``x[source[p]] @ w`` to ``out[target[p]]`` for start <= p < end. All arguments are integers: addresses of x
    (rows of ``length`` 4-byte multiplicands), of w (length, vectors * LANES), of out and of the int32 row numbers, and
    strides in bytes. Up to ``LOOKAHEAD`` numbers beyond ``end`` are read.
    """
    tall, middle, single = _GATHER_ROWS[vectors]
    tall_tile, middle_tile, single_tile = (_gather_tile(rows, vectors, bfloat16) for rows in (tall, middle, single))

    @njit(nogil=True)
    def strip(x, w, out, source, target, start, end, length, x_stride, out_stride):
        p = start
        while p + tall <= end:
            tall_tile(x, w, out, source, target, p, length, x_stride, out_stride)
            p += tall
        while p + middle <= end:
            middle_tile(x, w, out, source, target, p, length, x_stride, out_stride)
            p += middle
        while p < end:
            single_tile(x, w, out, source, target, p, length, x_stride, out_stride)
            p += 1

    return strip


def dense_strip(vectors: int, bfloat16: bool = False) -> Any:
    """A compiled ``strip(x, y, out, left, right, count, length, x_stride, y_stride, out_stride)``: ``out += x^T y``.

    Addresses of x (rows of ``count`` 4-byte multiplicands), y (rows of ``vectors * LANES``) and out; of the int32
    numbers of the ``length`` rows of x and y that meet, unless they are packed bfloat16; strides in bytes.
    """
    tall, middle, single = _DENSE_ROWS[vectors]
    tall_tile, middle_tile, single_tile = (_dense_tile(rows, vectors, bfloat16) for rows in (tall, middle, single))

    @njit(nogil=True)
    def strip(x, y, out, left, right, count, length, x_stride, y_stride, out_stride):
        a = 0
        while a + tall <= count:
            tall_tile(x + 4 * a, y, out + a * out_stride, left, right, length, x_stride, y_stride, out_stride)
            a += tall
        while a + middle <= count:
            middle_tile(x + 4 * a, y, out + a * out_stride, left, right, length, x_stride, y_stride, out_stride)
            a += middle
        while a < count:
            single_tile(x + 4 * a, y, out + a * out_stride, left, right, length, x_stride, y_stride, out_stride)
            a += 1

    return strip
