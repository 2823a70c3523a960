"""Operations on one row of single-precision channels as vector instructions.

Written out, since a compiler that cannot tell whether two rows overlap checks it at every row, and leaves loops of
fewer than 32 channels scalar: that makes them three to ten times as slow as the memory they read.

An operation is called as ``operation(places, numbers, channels)`` inside a compiled function: a tuple of addresses
(int64, bytes), a tuple of float32, and the number of channels, a multiple of `LANES`.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mink_decouple.jit import njit

LANES = 8
"""Channels handled at once; rows of another multiple are left to torch."""

_INT = ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


@njit(inline="always")
def address(array):
    """Where an array begins, int64."""
    return np.int64(array.ctypes.data)


class Emitter:
    """Vectors of one step of a row: loads, stores and arithmetic between them."""

    def __init__(self, builder: ir.IRBuilder, places: list[ir.Value], numbers: list[ir.Value]) -> None:
        self.builder, self.places, self.numbers = builder, places, numbers
        signature = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fmuladd.v{LANES}f32")

    def load(self, place: int) -> ir.Value:
        """The vector at a place."""
        value = self.builder.load(self.builder.inttoptr(self.places[place], _VECTOR.as_pointer()))
        value.align = 4
        return value

    def store(self, place: int, value: ir.Value) -> None:
        """Write the vector at a place."""
        self.builder.store(value, self.builder.inttoptr(self.places[place], _VECTOR.as_pointer())).align = 4

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """The vector a * b + c."""
        return self.builder.call(self._fma, [a, b, c])

    def choose(self, sign: ir.Value, positive: ir.Value, other: ir.Value) -> ir.Value:
        """`positive` where `sign` > 0, else `other`."""
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        return self.builder.select(self.builder.fcmp_ordered(">", sign, zero), positive, other)

    def leaky(self, value: ir.Value, slope: ir.Value) -> ir.Value:
        """LeakyReLU."""
        return self.choose(value, value, self.builder.fmul(value, slope))

    def leaky_gradient(self, out: ir.Value, grad: ir.Value, slope: ir.Value) -> ir.Value:
        """Gradient before a LeakyReLU that gave `out`."""
        return self.choose(out, grad, self.builder.fmul(grad, slope))

    def largest(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger of two values; `a` where `b` is not a number."""
        return self.builder.select(self.builder.fcmp_unordered("<", b, a), a, b)

    def exp(self, x: ir.Value) -> ir.Value:
        """e**x for x <= 0, to 2 units in the last place (Cephes' expf)."""
        b = self.builder
        x = b.select(b.fcmp_ordered("<", x, _constant(-87.0)), _constant(-87.0), x)
        signature = ir.FunctionType(_VECTOR, [_VECTOR])
        floor = cgutils.get_or_insert_function(b.module, signature, f"llvm.floor.v{LANES}f32")
        whole = b.call(floor, [self.fma(x, _constant(1.4426950408889634), _constant(0.5))])
        r = self.fma(whole, _constant(-0.693359375), x)
        r = self.fma(whole, _constant(2.12194440e-4), r)
        p = _constant(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = self.fma(p, r, _constant(c))
        p = b.fadd(self.fma(p, b.fmul(r, r), r), _constant(1.0))
        words = ir.VectorType(ir.IntType(32), LANES)
        exponent = b.add(b.fptosi(whole, words), ir.Constant(words, [127] * LANES))
        return b.fmul(p, b.bitcast(b.shl(exponent, ir.Constant(words, [23] * LANES)), _VECTOR))


def _constant(value: float) -> ir.Constant:
    # LLVM reads a float constant as a double that single precision holds exactly
    return ir.Constant(_VECTOR, [float(np.float32(value))] * LANES)


def _splat(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, number, ir.IntType(32)(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _operation(body: Callable[[Emitter], None]) -> Any:
    @intrinsic
    def operation(typingctx, places, numbers, channels):
        def codegen(context, builder, signature, args):
            starts = [builder.extract_value(args[0], i) for i in range(signature.args[0].count)]
            vectors = [_splat(builder, builder.extract_value(args[1], i)) for i in range(signature.args[1].count)]
            with cgutils.for_range_slice(builder, _INT(0), args[2], _INT(LANES), _INT) as (channel, _):
                step = builder.shl(channel, _INT(2))
                body(Emitter(builder, [builder.add(start, step) for start in starts], vectors))
            return context.get_dummy_value()

        return types.void(
            types.UniTuple(types.int64, places.count), types.UniTuple(types.float32, numbers.count), types.int64
        ), codegen

    return operation


def _add(e: Emitter) -> None:
    e.store(1, e.builder.fadd(e.load(1), e.load(0)))


def _add_square(e: Emitter) -> None:
    apart = e.builder.fsub(e.load(0), e.load(1))
    e.store(2, e.fma(apart, apart, e.load(2)))


def _affine_leaky(e: Emitter) -> None:
    e.store(3, e.leaky(e.fma(e.load(0), e.load(1), e.load(2)), e.numbers[0]))


def _affine_add_leaky(e: Emitter) -> None:
    value = e.builder.fadd(e.fma(e.load(0), e.load(1), e.load(2)), e.load(4))
    e.store(3, e.leaky(value, e.numbers[0]))


def _norm_sums(e: Emitter) -> None:
    g = e.leaky_gradient(e.load(1), e.load(2), e.numbers[0])
    e.store(4, e.builder.fadd(e.load(4), g))
    e.store(5, e.fma(g, e.builder.fsub(e.load(0), e.load(3)), e.load(5)))


def _norm_input(e: Emitter) -> None:
    g = e.leaky_gradient(e.load(1), e.load(2), e.numbers[0])
    e.store(7, g)
    e.store(6, e.fma(e.load(3), g, e.fma(e.load(4), e.load(0), e.load(5))))


def _encode(e: Emitter) -> None:
    value = e.load(0)
    for a in range(4):
        value = e.fma(e.numbers[a], e.load(1 + a), value)
    e.store(5, e.leaky(value, e.numbers[4]))


def _encode_sums(e: Emitter) -> None:
    g = e.leaky_gradient(e.load(2), e.builder.fadd(e.load(0), e.load(1)), e.numbers[4])
    for a in range(4):
        e.store(3 + a, e.fma(e.numbers[a], g, e.load(3 + a)))
    e.store(7, e.builder.fadd(e.load(7), g))


def _fold(e: Emitter) -> None:
    value = e.load(0)
    for a in range(3):
        e.store(1 + a, e.fma(e.numbers[a], value, e.load(1 + a)))
    e.store(4, e.builder.fadd(e.load(4), value))


def _add_top(e: Emitter) -> None:
    value = e.builder.fadd(e.load(0), e.load(1))
    e.store(0, value)
    e.store(2, e.largest(e.load(2), value))


def _weigh(e: Emitter) -> None:
    weight = e.exp(e.builder.fsub(e.load(0), e.load(1)))
    e.store(0, weight)
    e.store(3, e.builder.fadd(e.load(3), weight))
    e.store(4, e.fma(weight, e.load(2), e.load(4)))


def _divide(e: Emitter) -> None:
    e.store(2, e.builder.fdiv(e.load(0), e.load(1)))


def _score_gradient(e: Emitter) -> None:
    apart = e.builder.fsub(e.load(2), e.load(3))
    e.store(4, e.builder.fmul(e.builder.fmul(e.load(0), e.load(1)), apart))


def _add_product(e: Emitter) -> None:
    e.store(2, e.fma(e.load(0), e.load(1), e.load(2)))


add = _operation(_add)
"""(source, sum): sum += source."""
add_square = _operation(_add_square)
"""(x, mean, sum): sum += (x - mean) ** 2."""
affine_leaky = _operation(_affine_leaky)
"""(x, scale, shift, out), (slope,): out = LeakyReLU(x * scale + shift)."""
affine_add_leaky = _operation(_affine_add_leaky)
"""(x, scale, shift, out, added), (slope,): out = LeakyReLU(x * scale + shift + added)."""
norm_sums = _operation(_norm_sums)
"""(x, out, grad, mean, total, projected), (slope,): g before the LeakyReLU; total += g, projected += g * (x - mean)."""
norm_input = _operation(_norm_input)
"""(x, out, grad, c0, c1, c2, result, masked), (slope,): masked = g, then result = c0 * g + c1 * x + c2."""
encode = _operation(_encode)
"""(base, w0, w1, w2, w3, out), (z0, z1, z2, z3, slope): LeakyReLU(base + z @ w)."""
encode_sums = _operation(_encode_sums)
"""(grad, grad, out, s0, s1, s2, s3, total), (z0, z1, z2, z3, slope): s += z * g, total += g."""
fold = _operation(_fold)
"""(total, s0, s1, s2, sum), (x, y, z): s += (x, y, z) * total, sum += total."""
add_top = _operation(_add_top)
"""(scores, added, top): scores += added, top = the larger of top and scores."""
weigh = _operation(_weigh)
"""(scores, top, values, total, sum): scores = e = exp(scores - top), total += e, sum += e * values."""
divide = _operation(_divide)
"""(sum, total, out): out = sum / total."""
score_gradient = _operation(_score_gradient)
"""(attention, grad, values, out, result): result = attention * grad * (values - out)."""
add_product = _operation(_add_product)
"""(a, b, sum): sum += a * b."""
