"""Sparse convolution on a GPU: masked implicit GEMM and weight gradient in Triton.

The forward pass and the input gradient are one kernel. A program owns a tile of output rows and columns, walks the
kernel offsets that its rows need, gathers their input rows straight into the matrix product and writes each output row
once: no gather buffer, no scatter, no atomics. The weight gradient multiplies gathered rows with gathered rows, piece
by piece of the list of pairs, and adds the pieces in order. Sums are float32; results repeat bit for bit as long as the
tile sizes stay (see ``triton_tuning``).

float32 products are exact unless ``torch.backends.cuda.matmul.allow_tf32`` asks for TF32.
"""

# mypy: allow-untyped-defs
# Triton infers the types of the functions it compiles.

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mink_decouple.sparse.kernel_map import NeighborTable
from mink_decouple.sparse.triton_layout import Layout, layout
from mink_decouple.sparse.triton_runtime import jit, tl, usable
from mink_decouple.sparse.triton_tuning import Tile, choose

__all__ = ["Epilogue", "gather_matmul_sum", "gather_outer_sum", "usable"]

_PROGRAMS = 528
"""Programs that keep a large GPU busy: four for each of the 132 multiprocessors of an H100."""
_SHORTEST = 128
_REDUCE = 512

# The first of each list is the default. Three stages hold two steps of features, five hold three: the rows to gather
# are loaded ahead of them. Exact float32 runs on the ordinary arithmetic units, where large tiles spill.
_MATMUL_16 = [
    Tile(128, 64, 32, 4, 3),
    Tile(128, 64, 64, 4, 3),
    Tile(128, 64, 32, 4, 5),
    Tile(128, 128, 32, 8, 5),
    Tile(128, 128, 64, 8, 3),
    Tile(64, 128, 32, 4, 5),
    Tile(64, 64, 64, 4, 5),
    Tile(64, 32, 32, 4, 5),
]
_MATMUL_32 = [Tile(64, 64, 32, 4, 3), Tile(128, 64, 16, 8, 3), Tile(64, 32, 32, 4, 5), Tile(128, 32, 16, 4, 5)]
_OUTER_16 = [
    Tile(64, 64, 64, 4, 3),
    Tile(64, 64, 32, 4, 5),
    Tile(128, 64, 32, 8, 5),
    Tile(128, 128, 32, 8, 3),
    Tile(32, 32, 64, 4, 5),
]
_OUTER_32 = [Tile(64, 64, 32, 4, 3), Tile(32, 32, 32, 4, 5), Tile(64, 32, 32, 4, 3)]


@dataclass(frozen=True)
class Epilogue:
    """What follows the sum over offsets before a row is written.

    ``act((sum - mean) / sqrt(var + eps) * scale + shift + residual)``, where everything may be left out.

    Attributes:
        scale: (C_out,) or None.
        shift: (C_out,) or None.
        mean: (C_out,) or None; comes with ``var``, ``scale`` and ``shift``.
        var: (C_out,) or None.
        eps: added to ``var``.
        residual: (n_out, C_out) in the dtype of the result, or None.
        rectify: whether to end with a ReLU.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float = 0.0
    residual: Tensor | None = None
    rectify: bool = False


_NOTHING = Epilogue()


def gather_matmul_sum(
    x: Tensor, weights: Tensor, table: NeighborTable, opposite: bool = False, epilogue: Epilogue | None = None
) -> Tensor:
    """``out[u] = sum_k x[table[k, u]] @ weights[k]``, then the epilogue.

    Args:
        x: (n_source, A) float32, bfloat16 or float16.
        weights: (V, A, B), same dtype; any strides.
        table: (V, n_out). One offset means that every row meets itself.
        opposite: whether to take ``weights[V - 1 - k]`` instead.
        epilogue: applied to the float32 sums.

    Returns:
        (n_out, B) in the dtype of ``x``.
    """
    volume, n = table.rows.shape
    if volume == 1 and epilogue is None:
        return x @ weights[0]
    a, b = weights.shape[1:]
    out = x.new_empty(n, b)
    if not out.numel():
        return out
    where = layout(table)
    x = x.contiguous()
    groups, size = where.groups, where.size
    sums = out if groups == 1 else torch.empty(n, b, dtype=torch.float32, device=x.device)
    precision = _precision(x)

    def run(tile: Tile, end: Epilogue = _NOTHING) -> None:
        tiles = where.tiles(tile.rows)
        columns = -(-b // tile.columns)
        number = tiles.counts.shape[1]
        for group in range(groups):
            last = group == groups - 1
            after = end if last else _NOTHING
            first = group * size
            # Arguments that a flag turns off are never read; any tensor stands in for them.
            _matmul_tiles[(number * columns,)](
                x, weights, sums, out if last else sums, where.order, tiles.counts, tiles.lists, tiles.rows,
                _or(after.scale, out), _or(after.shift, out), _or(after.mean, out), _or(after.var, out),
                _or(after.residual, out),
                n, group, number, size, a, b, volume - 1 - first if opposite else first, *weights.stride(), after.eps,
                OPPOSITE=opposite, ADD=group > 0, SCALE=after.scale is not None, SHIFT=after.shift is not None,
                NORM=after.mean is not None, RESIDUAL=after.residual is not None, RECTIFY=after.rectify,
                EVEN=a % tile.depth == 0, PRECISION=precision,
                ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip

    def candidates() -> list[Tile]:
        tiles = _MATMUL_32 if x.dtype == torch.float32 and precision == "ieee" else _MATMUL_16
        return [replace(tile, columns=_within(tile.columns, b), depth=_within(tile.depth, a)) for tile in tiles]

    # Tiles are compared without an epilogue, so that its variants are compiled for the chosen one alone.
    tile = choose(("matmul", n.bit_length(), volume, groups, a, b, x.dtype, precision), candidates, run)
    run(tile, epilogue or _NOTHING)
    return out


def gather_outer_sum(x: Tensor, y: Tensor, table: NeighborTable) -> Tensor:
    """``out[k] = sum_u x[table[k, u]]^T y[u]``: (n_source, A), (n_out, B) -> (V, A, B) float32.

    One offset means that every row meets itself.
    """
    volume, n = table.rows.shape
    a, b = x.shape[1], y.shape[1]
    if volume == 1:
        return (x.t() @ y).unsqueeze(0).float()
    if not a * b * n:
        return x.new_zeros(volume, a, b, dtype=torch.float32)
    out = x.new_empty(volume, a, b, dtype=torch.float32)
    where = layout(table)
    x, y = x.contiguous(), y.contiguous()
    source, target = where.pairs
    precision = _precision(x)

    def run(tile: Tile) -> None:
        across, down = -(-a // tile.rows), -(-b // tile.columns)
        pieces = where.chunks(_length(where, across * down))
        if not pieces.number:
            out.zero_()
            return
        partial = torch.empty(pieces.number, a, b, dtype=torch.float32, device=x.device)
        _outer_chunks[(pieces.number * across * down,)](
            x, y, source, target, pieces.bounds, partial, a, b,
            PRECISION=precision, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        _sum_chunks[(-(-a * b // _REDUCE), volume)](partial, pieces.splits, out, a * b, BLOCK=_REDUCE)

    def candidates() -> list[Tile]:
        tiles = _OUTER_32 if x.dtype == torch.float32 and precision == "ieee" else _OUTER_16
        return [replace(tile, rows=_within(tile.rows, a), columns=_within(tile.columns, b)) for tile in tiles]

    run(choose(("outer", n.bit_length(), volume, a, b, x.dtype, precision), candidates, run))
    return out


def _precision(x: Tensor) -> str:
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _or(given: Tensor | None, other: Tensor) -> Tensor:
    return other if given is None else given.contiguous()


def _within(size: int, channels: int) -> int:
    """A tile's size along an axis of ``channels``: no larger than they need, no smaller than a matrix unit takes."""
    return min(size, max(16, 1 << (channels - 1).bit_length()))


def _length(where: Layout, tiles: int) -> int:
    """Pairs per piece, a power of two, that give about ``_PROGRAMS`` programs of ``tiles`` tiles a piece."""
    wanted = sum(where.present) * tiles // _PROGRAMS
    return max(_SHORTEST, 1 << wanted.bit_length())


@jit("n", "group", "number", "size", "first", "eps")
def _matmul_tiles(
    x, weights, sums, out, order, counts, lists, rows, scale, shift, mean, var, residual,
    n, group, number, size, a, b, first, stride_k, stride_a, stride_b, eps,
    OPPOSITE: tl.constexpr, ADD: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, NORM: tl.constexpr,
    RESIDUAL: tl.constexpr, RECTIFY: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # Programs that share input rows follow each other.
    across = tl.cdiv(b, COLUMNS)
    tile = tl.program_id(0) // across
    within = tl.arange(0, ROWS)
    place = tile * ROWS + within
    inside = place < n
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < b
    blocks = tl.cdiv(a, DEPTH)
    depth = tl.arange(0, DEPTH)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    # One flat loop over offsets and channels, so that loads of the next steps overlap with the products of this one.
    listed = tl.cast(group, tl.int64) * number + tile
    for step in range(tl.load(counts + listed) * blocks):
        item = listed * size + step // blocks
        k = tl.load(lists + item)
        row = tl.load(rows + item * ROWS + within)
        channel = step % blocks * DEPTH + depth
        here = x + row.to(tl.int64)[:, None] * a + channel[None, :]
        offset = first - k if OPPOSITE else first + k
        there = weights + offset.to(tl.int64) * stride_k + channel[:, None] * stride_a
        there += column[None, :] * stride_b
        if EVEN:
            left = tl.load(here, mask=(row >= 0)[:, None], other=0.0)
            right = tl.load(there, mask=valid[None, :], other=0.0)
        else:
            left = tl.load(here, mask=(row >= 0)[:, None] & (channel < a)[None, :], other=0.0)
            right = tl.load(there, mask=(channel < a)[:, None] & valid[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    target = tl.load(order + tl.cast(group, tl.int64) * n + place, mask=inside, other=0)[:, None] * b + column[None, :]
    written = inside[:, None] & valid[None, :]
    if ADD:
        total += tl.load(sums + target, mask=written, other=0.0)
    if NORM:
        total -= tl.load(mean + column, mask=valid, other=0.0).to(tl.float32)[None, :]
        total /= tl.sqrt(tl.load(var + column, mask=valid, other=1.0).to(tl.float32) + eps)[None, :]
    if SCALE:
        total *= tl.load(scale + column, mask=valid, other=0.0).to(tl.float32)[None, :]
    if SHIFT:
        total += tl.load(shift + column, mask=valid, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += tl.load(residual + target, mask=written, other=0.0).to(tl.float32)
    if RECTIFY:
        total = tl.where(total < 0.0, 0.0, total)
    tl.store(out + target, total.to(out.dtype.element_ty), mask=written)


@jit()
def _outer_chunks(
    x, y, source, target, bounds, partial, a, b,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    across, down = tl.cdiv(a, ROWS), tl.cdiv(b, COLUMNS)
    piece = tl.program_id(0) // (across * down)
    tile = tl.program_id(0) % (across * down)
    row = tile // down * ROWS + tl.arange(0, ROWS)
    column = tile % down * COLUMNS + tl.arange(0, COLUMNS)
    start, end = tl.load(bounds + 2 * piece), tl.load(bounds + 2 * piece + 1)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for p in range(start, end, DEPTH):
        pair = p + tl.arange(0, DEPTH)
        inside = pair < end
        s = tl.load(source + pair, mask=inside, other=0).to(tl.int64)
        t = tl.load(target + pair, mask=inside, other=0).to(tl.int64)
        left = tl.load(x + s[:, None] * a + row[None, :], mask=inside[:, None] & (row < a)[None, :], other=0.0)
        right = tl.load(y + t[:, None] * b + column[None, :], mask=inside[:, None] & (column < b)[None, :], other=0.0)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
    here = tl.cast(piece, tl.int64) * a * b + row[:, None] * b + column[None, :]
    tl.store(partial + here, total, mask=(row < a)[:, None] & (column < b)[None, :])


@jit()
def _sum_chunks(partial, splits, out, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    k = tl.program_id(1)
    total = tl.zeros((BLOCK,), tl.float32)
    for piece in range(tl.load(splits + k), tl.load(splits + k + 1)):
        total += tl.load(partial + tl.cast(piece, tl.int64) * size + place, mask=inside, other=0.0)
    tl.store(out + tl.cast(k, tl.int64) * size + place, total.to(out.dtype.element_ty), mask=inside)
