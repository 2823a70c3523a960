"""Compiled loops of RandLA-Net's training step over single-precision rows on a CPU.

A step is bound by memory, not arithmetic, so each loop reads its rows once and does all that can be done with them.
Every kernel works on `[first, last)` of its chunks or points and writes nowhere else; sums are kept per chunk and
joined in order, so the number of threads changes no bit.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mink_decouple.models import row_vectors as vectors

CHUNK = 512
"""Rows of which sums are kept; their features stay in the first cache."""
POINTS = 32
"""Points of which the sums of a local encoding are kept."""


@intrinsic
def _float_of_bits(typingctx, bits=None):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@numba.njit(inline="always")
def _exp(x):
    """e**x of a float32 x <= 0 to 2 units in the last place; written out so that loops over it become vector code."""
    x = max(x, np.float32(-87.0))
    whole = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def attend_forward(near, scores, d, out, keep, first, last):
    """`out` (n, d) = sum over neighbours of softmax(scores) * near; with `keep` the scores become the attention.

    near, scores: (n, k / r, r * d): r neighbours side by side, since vector code needs loops of 32 or more.
    """
    parts, wide = near.shape[1], near.shape[2]
    top, total, sums = np.empty(wide, np.float32), np.empty(wide, np.float32), np.empty(wide, np.float32)
    for i in range(first, last):
        s0 = scores[i, 0]
        for c in range(wide):
            top[c] = s0[c]
            total[c] = sums[c] = np.float32(0)
        for j in range(1, parts):
            s = scores[i, j]
            for c in range(wide):
                top[c] = max(top[c], s[c])
        for q in range(d, wide, d):
            for c in range(d):
                top[c] = max(top[c], top[q + c])
        for q in range(d, wide, d):
            for c in range(d):
                top[q + c] = top[c]
        for j in range(parts):
            s, x = scores[i, j], near[i, j]
            for c in range(wide):
                e = _exp(s[c] - top[c])
                s[c] = e
                total[c] += e
                sums[c] += e * x[c]
        for q in range(d, wide, d):
            for c in range(d):
                total[c] += total[q + c]
                sums[c] += sums[q + c]
        for c in range(d):
            total[c] = np.float32(1) / total[c]
            out[i, c] = sums[c] * total[c]
        if keep:
            for q in range(d, wide, d):
                for c in range(d):
                    total[q + c] = total[c]
            for j in range(parts):
                s = scores[i, j]
                for c in range(wide):
                    s[c] *= total[c]


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def attend_scores_gradient(near, attention, out, grad, result, first, last):
    """`result` = attention * grad * (near - out), the softmax Jacobian contracted by hand; (n, k / r, r * d)."""
    parts, wide = near.shape[1], near.shape[2]
    d = out.shape[1]
    g, o = np.empty(wide, np.float32), np.empty(wide, np.float32)
    for i in range(first, last):
        for q in range(0, wide, d):
            for c in range(d):
                g[q + c], o[q + c] = grad[i, c], out[i, c]
        for j in range(parts):
            x, a, r = near[i, j], attention[i, j], result[i, j]
            for c in range(wide):
                r[c] = a[c] * g[c] * (x[c] - o[c])


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def attend_add_direct(attention, grad, result, first, last):
    """`result` += attention * grad; (n, k / r, r * d)."""
    parts, wide = attention.shape[1], attention.shape[2]
    d = grad.shape[1]
    g = np.empty(wide, np.float32)
    for i in range(first, last):
        for q in range(0, wide, d):
            for c in range(d):
                g[q + c] = grad[i, c]
        for j in range(parts):
            a, r = attention[i, j], result[i, j]
            for c in range(wide):
                r[c] += a[c] * g[c]


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def encode_moments(coords, neighbors, sums, first, last):
    """Sums and products of z = [distance, p_i - p_k, p_i] over the neighbours: (chunks, 8, 7), row 7 the sums."""
    n, k = neighbors.shape
    z = np.empty((7, POINTS * k), np.float64)
    for chunk in range(first, last):
        rows = 0
        for i in range(chunk * POINTS, min(n, (chunk + 1) * POINTS)):
            for j in range(k):
                other = neighbors[i, j]
                square = np.float32(0)
                for a in range(3):
                    apart = coords[i, a] - coords[other, a]
                    square += apart * apart
                    z[1 + a, rows] = apart
                    z[4 + a, rows] = coords[i, a]
                z[0, rows] = np.sqrt(square)
                rows += 1
        for a in range(7):
            total = 0.0
            for r in range(rows):
                total += z[a, r]
            sums[chunk, 7, a] = total
            for b in range(a + 1):
                total = 0.0
                for r in range(rows):
                    total += z[a, r] * z[b, r]
                sums[chunk, a, b] = sums[chunk, b, a] = total


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def encode_forward(table, coords, neighbors, weight, shift, slope, near, own, first, last):
    """Neighbour rows [table, encoding] of each point into `near` (n * k, 2 h), the encoding into `own` (n * k, h) too.

    weight: (7, h) of z, see `encode_moments`; shift: (h,).
    """
    k, h = neighbors.shape[1], np.int64(table.shape[1])
    base = np.empty(h, np.float32)
    row, w, to, plain, source = (
        4 * h,
        vectors.address(weight),
        vectors.address(near),
        vectors.address(own),
        vectors.address(table),
    )
    start = vectors.address(base)
    for i in range(first, last):
        x, y, z = coords[i, 0], coords[i, 1], coords[i, 2]
        for c in range(h):
            base[c] = shift[c] + x * weight[4, c] + y * weight[5, c] + z * weight[6, c]
        for j in range(k):
            other = neighbors[i, j]
            dx, dy, dz = x - coords[other, 0], y - coords[other, 1], z - coords[other, 2]
            distance = np.sqrt(dx * dx + dy * dy + dz * dz)
            r = np.int64(i * k + j)
            vectors.copy((source + other * row, to + r * 2 * row), (slope,), h)
            targets = (to + r * 2 * row + row, plain + r * row)
            places = (start, w, w + row, w + 2 * row, w + 3 * row, *targets)
            vectors.encode(places, (distance, dx, dy, dz, slope), h)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def encode_gradient(grad_near, grad_own, own, coords, neighbors, slope, sums, first, last):
    """Sums over neighbours of g and g * z per chunk, (chunks, 8, h), g being the gradient before the LeakyReLU."""
    n, k = neighbors.shape
    h = np.int64(own.shape[1])
    row, point, total = 4 * h, np.empty(h, np.float32), np.empty((8, h), np.float32)
    near, alone, held = vectors.address(grad_near), vectors.address(grad_own), vectors.address(own)
    t, p = vectors.address(total), vectors.address(point)
    for chunk in range(first, last):
        total[:] = np.float32(0)
        for i in range(chunk * POINTS, min(n, (chunk + 1) * POINTS)):
            x, y, z = coords[i, 0], coords[i, 1], coords[i, 2]
            point[:] = np.float32(0)
            for j in range(k):
                other = neighbors[i, j]
                dx, dy, dz = x - coords[other, 0], y - coords[other, 1], z - coords[other, 2]
                distance = np.sqrt(dx * dx + dy * dy + dz * dz)
                r = np.int64(i * k + j)
                places = (
                    near + r * 2 * row + row,
                    alone + r * row,
                    held + r * row,
                    t,
                    t + row,
                    t + 2 * row,
                    t + 3 * row,
                    p,
                )
                vectors.encode_sums(places, (distance, dx, dy, dz, slope), h)
            vectors.fold((p, t + 4 * row, t + 5 * row, t + 6 * row, t + 7 * row), (x, y, z), h)
        sums[chunk] = total


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def norm_moments(x, means, squares, first, last):
    """Mean and summed squared deviation of each chunk and channel, (chunks, C)."""
    n, channels = len(x), np.int64(x.shape[1])
    row, source, mean, square = 4 * channels, vectors.address(x), vectors.address(means), vectors.address(squares)
    none = (np.float32(0),)
    for chunk in range(first, last):
        start, end = chunk * CHUNK, min(n, (chunk + 1) * CHUNK)
        means[chunk] = np.float32(0)
        squares[chunk] = np.float32(0)
        for i in range(start, end):
            vectors.add((source + i * row, mean + chunk * row), none, channels)
        for c in range(channels):
            means[chunk, c] /= np.float32(end - start)
        for i in range(start, end):
            vectors.add_square((source + i * row, mean + chunk * row, square + chunk * row), none, channels)


@numba.njit(cache=True, nogil=True)
def norm_apply(x, residual, plain, scale, shift, slope, table, index, out, at, first, last):
    """`out[:, at:]` = LeakyReLU(x * scale + shift + residual); `out[:, :at]` = table[index]."""
    n, channels, before = len(x), np.int64(x.shape[1]), np.int64(at)
    row, wide = 4 * channels, 4 * (channels + before)
    source, target, added = vectors.address(x), vectors.address(out) + 4 * before, vectors.address(residual)
    factors = vectors.address(scale), vectors.address(shift)
    held = vectors.address(table)
    for i in range(first * CHUNK, min(n, last * CHUNK)):
        if before > 0:
            vectors.copy((held + index[i] * 4 * before, target + i * wide - 4 * before), (slope,), before)
        if plain:
            vectors.affine_leaky((source + i * row, *factors, target + i * wide), (slope,), channels)
        else:
            places = (source + i * row, *factors, target + i * wide, added + i * row)
            vectors.affine_add_leaky(places, (slope,), channels)


@numba.njit(cache=True, nogil=True)
def norm_gradient(x, out, grad, at, mean, slope, sums, first, last):
    """Sums of g and g * (x - mean) per chunk, (2, chunks, C), g being the gradient before the LeakyReLU."""
    n, channels = len(x), np.int64(x.shape[1])
    row, wide = 4 * channels, 4 * (channels + at)
    source, target, incoming = vectors.address(x), vectors.address(out) + 4 * at, vectors.address(grad) + 4 * at
    total, centre = vectors.address(sums), vectors.address(mean)
    second = total + sums.shape[1] * row
    for chunk in range(first, last):
        sums[0, chunk] = np.float32(0)
        sums[1, chunk] = np.float32(0)
        results = total + chunk * row, second + chunk * row
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            places = (source + i * row, target + i * wide, incoming + i * wide, centre, *results)
            vectors.norm_sums(places, (slope,), channels)


@numba.njit(cache=True, nogil=True)
def norm_input_gradient(x, out, grad, at, coefficients, slope, result, masked, first, last):
    """`masked` = g, the gradient before the LeakyReLU, then `result` = c[0] * g + c[1] * x + c[2]; they may be one."""
    n, channels = len(x), np.int64(x.shape[1])
    row, wide = 4 * channels, 4 * (channels + at)
    source, target, incoming = vectors.address(x), vectors.address(out) + 4 * at, vectors.address(grad) + 4 * at
    c, to, kept = vectors.address(coefficients), vectors.address(result), vectors.address(masked)
    for i in range(first * CHUNK, min(n, last * CHUNK)):
        arrays = source + i * row, target + i * wide, incoming + i * wide
        vectors.norm_input((*arrays, c, c + row, c + 2 * row, to + i * row, kept + i * row), (slope,), channels)


@numba.njit(cache=True, nogil=True)
def sort_positions(index, n):
    """Positions in `index` (m,) in the order of the row they name, and where each of the n rows' positions begin."""
    begins = np.zeros(n + 1, np.int64)
    for row in index:
        begins[row + 1] += 1
    for row in range(n):
        begins[row + 1] += begins[row]
    free = begins[:n].copy()
    positions = np.empty(len(index), np.int64)
    for i in range(len(index)):
        positions[free[index[i]]] = i
        free[index[i]] += 1
    return positions, begins


@numba.njit(cache=True, nogil=True)
def sum_rows(grad, positions, begins, result, first, last):
    """`result[row]` = sum of the first columns of `grad` at the positions of each row."""
    channels, wide = np.int64(result.shape[1]), np.int64(4 * grad.shape[1])
    source, target = vectors.address(grad), vectors.address(result)
    for row in range(first, last):
        result[row] = np.float32(0)
        for at in range(begins[row], begins[row + 1]):
            places = (source + positions[at] * wide, target + 4 * row * channels)
            vectors.add(places, (np.float32(0),), channels)


@numba.njit(cache=True, nogil=True)
def pool_max_forward(table, neighbors, out, winner, first, last):
    """Channel-wise maximum over the rows `neighbors` (m, k) of `table`, and the first row that holds it."""
    k, channels = neighbors.shape[1], table.shape[1]
    for i in range(first, last):
        best, held = out[i], winner[i]
        row = np.int32(neighbors[i, 0])
        source = table[row]
        for c in range(channels):
            best[c] = source[c]
            held[c] = row
        for j in range(1, k):
            row = np.int32(neighbors[i, j])
            source = table[row]
            for c in range(channels):
                larger = source[c] > best[c]
                best[c] = source[c] if larger else best[c]
                held[c] = row if larger else held[c]


@numba.njit(cache=True, nogil=True)
def pool_max_backward(grad, winner, result, first, last):
    """Add `grad` (m, C) to the winning rows of `result`, channels [first, last)."""
    for i in range(grad.shape[0]):
        for c in range(first, last):
            result[winner[i, c], c] += grad[i, c]
