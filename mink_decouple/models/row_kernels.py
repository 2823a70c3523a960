"""Compiled loops of RandLA-Net's training step over single-precision rows on a CPU.

A step is bound by memory, not arithmetic, so each loop reads its rows once and does all that can be done with them.
Every kernel works on `[first, last)` of its chunks or points and writes nowhere else; sums are kept per chunk and
joined in order, so the number of threads changes no bit.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

import numpy as np

from mink_decouple.jit import njit
from mink_decouple.models import row_vectors as vectors

CHUNK = 512
"""Rows of which sums are kept; their features stay in the first cache."""
POINTS = 32
"""Points of which the sums of a local encoding are kept."""


@njit(cache=True, nogil=True)
def attend_forward(table, own, table_scores, scores, neighbors, out, keep, first, last):
    """`out` (n, 2 h) = sum over neighbours of softmax(scores) * values; with `keep` the scores become the attention.

    The values of a neighbour are [its row of `table` (n, h), its row of `own` (n * k, h)], and its scores the sum of
    its rows of `table_scores` (n, 2 h) and `scores` (n * k, 2 h).
    """
    k, h = neighbors.shape[1], np.int64(table.shape[1])
    d, row, none = 2 * h, 4 * h, (np.float32(0),)
    top, total, sums = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
    t, n, s = vectors.address(top), vectors.address(total), vectors.address(sums)
    gathered, alone = vectors.address(table), vectors.address(own)
    added, held, to = vectors.address(table_scores), vectors.address(scores), vectors.address(out)
    for i in range(first, last):
        top[:] = -np.inf
        total[:] = np.float32(0)
        sums[:] = np.float32(0)
        for j in range(k):
            place = held + (i * k + j) * 2 * row
            vectors.add_top((place, added + neighbors[i, j] * 2 * row, t), none, d)
        for j in range(k):
            place = held + (i * k + j) * 2 * row
            vectors.weigh((place, t, gathered + neighbors[i, j] * row, n, s), none, h)
            vectors.weigh((place + row, t + row, alone + (i * k + j) * row, n + row, s + row), none, h)
        vectors.divide((s, n, to + i * 2 * row), none, d)
        if keep:
            for j in range(k):
                place = held + (i * k + j) * 2 * row
                vectors.divide((place, n, place), none, d)


@njit(cache=True, nogil=True)
def attend_scores_gradient(table, own, attention, neighbors, out, grad, result, first, last):
    """`result` (n * k, 2 h) = attention * grad * (values - out), the softmax Jacobian contracted by hand."""
    k, h = neighbors.shape[1], np.int64(table.shape[1])
    row, none = 4 * h, (np.float32(0),)
    gathered, alone, held = vectors.address(table), vectors.address(own), vectors.address(attention)
    o, g, to = vectors.address(out), vectors.address(grad), vectors.address(result)
    for i in range(first, last):
        point = i * 2 * row
        for j in range(k):
            r = i * k + j
            at = r * 2 * row
            places = (held + at, g + point, gathered + neighbors[i, j] * row, o + point, to + at)
            vectors.score_gradient(places, none, h)
            at, after = at + row, point + row
            vectors.score_gradient((held + at, g + after, alone + r * row, o + after, to + at), none, h)


@njit(cache=True, nogil=True)
def attend_add_direct(attention, grad, result, k, first, last):
    """`result` (n * k, h) += attention * grad over the second half of their 2 h channels."""
    h = np.int64(result.shape[1])
    row, held, g, to = 4 * h, vectors.address(attention), vectors.address(grad), vectors.address(result)
    for i in range(first, last):
        for r in range(i * k, (i + 1) * k):
            places = (held + r * 2 * row + row, g + i * 2 * row + row, to + r * row)
            vectors.add_product(places, (np.float32(0),), h)


@njit(cache=True, nogil=True)
def attend_table_gradient(scores, attention, grad, positions, begins, k, sums, direct, first, last):
    """Sums of `scores` (2 h) and of attention * grad (h) over the positions that name each row of the table."""
    h = np.int64(direct.shape[1])
    row, none = 4 * h, (np.float32(0),)
    held, g, s = vectors.address(attention), vectors.address(grad), vectors.address(scores)
    to, beside = vectors.address(sums), vectors.address(direct)
    for i in range(first, last):
        sums[i] = np.float32(0)
        direct[i] = np.float32(0)
        for at in range(begins[i], begins[i + 1]):
            r = positions[at]
            vectors.add((s + r * 2 * row, to + i * 2 * row), none, 2 * h)
            vectors.add_product((held + r * 2 * row, g + r // k * 2 * row, beside + i * row), none, h)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
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


@njit(cache=True, nogil=True, fastmath={"contract"})
def encode_forward(coords, neighbors, weight, shift, slope, own, first, last):
    """LeakyReLU(z @ weight + shift) of each neighbour into `own` (n * k, h); weight (7, h), see `encode_moments`."""
    k, h = neighbors.shape[1], np.int64(own.shape[1])
    base = np.empty(h, np.float32)
    row, w, start, to = 4 * h, vectors.address(weight), vectors.address(base), vectors.address(own)
    for i in range(first, last):
        x, y, z = coords[i, 0], coords[i, 1], coords[i, 2]
        for c in range(h):
            base[c] = shift[c] + x * weight[4, c] + y * weight[5, c] + z * weight[6, c]
        for j in range(k):
            other = neighbors[i, j]
            dx, dy, dz = x - coords[other, 0], y - coords[other, 1], z - coords[other, 2]
            distance = np.sqrt(dx * dx + dy * dy + dz * dz)
            places = (start, w, w + row, w + 2 * row, w + 3 * row, to + (i * k + j) * row)
            vectors.encode(places, (distance, dx, dy, dz, slope), h)


@njit(cache=True, nogil=True, fastmath={"contract"})
def encode_gradient(grad_one, grad_two, own, coords, neighbors, slope, sums, first, last):
    """Sums over neighbours of g and g * z per chunk, (chunks, 8, h).

    g is the sum of the two gradients (n * k, h) before the LeakyReLU that gave `own`.
    """
    n, k = neighbors.shape
    h = np.int64(own.shape[1])
    row, point = 4 * h, np.empty(h, np.float32)
    one, two, held = vectors.address(grad_one), vectors.address(grad_two), vectors.address(own)
    p = vectors.address(point)
    for chunk in range(first, last):
        t = vectors.address(sums) + chunk * 8 * row
        for s in range(8):
            for c in range(h):
                sums[chunk, s, c] = np.float32(0)
        for i in range(chunk * POINTS, min(n, (chunk + 1) * POINTS)):
            x, y, z = coords[i, 0], coords[i, 1], coords[i, 2]
            for c in range(h):
                point[c] = np.float32(0)
            for j in range(k):
                other = neighbors[i, j]
                dx, dy, dz = x - coords[other, 0], y - coords[other, 1], z - coords[other, 2]
                distance = np.sqrt(dx * dx + dy * dy + dz * dz)
                at = np.int64(i * k + j) * row
                places = (one + at, two + at, held + at, t, t + row, t + 2 * row, t + 3 * row, p)
                vectors.encode_sums(places, (distance, dx, dy, dz, slope), h)
            vectors.fold((p, t + 4 * row, t + 5 * row, t + 6 * row, t + 7 * row), (x, y, z), h)


@njit(cache=True, nogil=True, fastmath={"contract"})
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


@njit(cache=True, nogil=True)
def norm_apply(x, residual, plain, scale, shift, slope, out, first, last):
    """`out` = LeakyReLU(x * scale + shift + residual)."""
    n, channels = len(x), np.int64(x.shape[1])
    row, source, target, added = 4 * channels, vectors.address(x), vectors.address(out), vectors.address(residual)
    factors = vectors.address(scale), vectors.address(shift)
    for i in range(first * CHUNK, min(n, last * CHUNK)):
        if plain:
            vectors.affine_leaky((source + i * row, *factors, target + i * row), (slope,), channels)
        else:
            places = (source + i * row, *factors, target + i * row, added + i * row)
            vectors.affine_add_leaky(places, (slope,), channels)


@njit(cache=True, nogil=True)
def norm_gradient(x, out, grad, mean, slope, sums, first, last):
    """Sums of g and g * (x - mean) per chunk, (2, chunks, C), g being the gradient before the LeakyReLU."""
    n, channels = len(x), np.int64(x.shape[1])
    row, source, target, incoming = 4 * channels, vectors.address(x), vectors.address(out), vectors.address(grad)
    total, centre = vectors.address(sums), vectors.address(mean)
    second = total + sums.shape[1] * row
    for chunk in range(first, last):
        sums[0, chunk] = np.float32(0)
        sums[1, chunk] = np.float32(0)
        results = total + chunk * row, second + chunk * row
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            at = i * row
            vectors.norm_sums((source + at, target + at, incoming + at, centre, *results), (slope,), channels)


@njit(cache=True, nogil=True)
def norm_input_gradient(x, out, grad, coefficients, slope, result, masked, first, last):
    """`masked` = g, the gradient before the LeakyReLU, then `result` = c[0] * g + c[1] * x + c[2]; they may be one."""
    n, channels = len(x), np.int64(x.shape[1])
    row, source, target, incoming = 4 * channels, vectors.address(x), vectors.address(out), vectors.address(grad)
    c, to, kept = vectors.address(coefficients), vectors.address(result), vectors.address(masked)
    for i in range(first * CHUNK, min(n, last * CHUNK)):
        at = i * row
        places = (source + at, target + at, incoming + at, c, c + row, c + 2 * row, to + at, kept + at)
        vectors.norm_input(places, (slope,), channels)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def sum_rows(grad, positions, begins, result, first, last):
    """`result[row]` = sum of the first columns of `grad` at the positions of each row."""
    channels, wide = np.int64(result.shape[1]), np.int64(4 * grad.shape[1])
    source, target = vectors.address(grad), vectors.address(result)
    for row in range(first, last):
        result[row] = np.float32(0)
        for at in range(begins[row], begins[row + 1]):
            places = (source + positions[at] * wide, target + 4 * row * channels)
            vectors.add(places, (np.float32(0),), channels)


@njit(cache=True, nogil=True)
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
                # what is not a number wins, so that a network that has diverged is found out
                larger = source[c] > best[c] or source[c] != source[c]
                best[c] = source[c] if larger else best[c]
                held[c] = row if larger else held[c]


@njit(cache=True, nogil=True)
def pool_max_backward(grad, winner, result, first, last):
    """Add `grad` (m, C) to the winning rows of `result`, channels [first, last)."""
    for i in range(grad.shape[0]):
        for c in range(first, last):
            result[winner[i, c], c] += grad[i, c]
