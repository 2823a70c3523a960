"""Unsupervised over-segmentation of a grid cloud by geometry and colour, and labels that spread within a segment.

One label of a segment tells the others (One Thing One Click; Liu et al., CVPR 2021, arXiv 2104.02246), and so does the
mean of its predictions. The segments are those of Felzenszwalb and Huttenlocher (IJCV 2004), as ScanNet's are, on the
graph of nearest neighbours: here an edge weighs the angle between normals and the difference of colours.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

import numpy as np

from mink_decouple.config import SegmentsConfig
from mink_decouple.data.grid import GridCloud
from mink_decouple.data.groups import Groups
from mink_decouple.data.neighbors import knn
from mink_decouple.jit import njit


def over_segment(grid: GridCloud, options: SegmentsConfig) -> np.ndarray:
    """Segments of a scene: pieces of even direction and colour, of `options.most` grid points at most.

    Edges are looked at from the lightest on. Two segments become one where the edge between them is not heavier than
    the heaviest edge that made either of them plus `scale / size`. The result follows the points whatever their order.

    Args:
        grid: V points; without a feature ``rgb`` their geometry alone counts.
        options: what is alike, and how large a segment may be.

    Returns:
        (V,) int32 numbers of the segments, from 0 on.
    """
    if len(grid) == 0:
        return np.zeros(0, np.int32)
    order = np.lexsort(grid.coords.T)  # grid points differ in their place, so this order is theirs alone
    coords = np.ascontiguousarray(grid.coords[order])
    near = knn(coords, coords, options.k)
    normals = _normals(coords, near)
    rgb = grid.features["rgb"][order].astype(np.float64) if "rgb" in grid.features else np.zeros((len(coords), 3))
    first, second, weight = _edges(near, normals, rgb, np.deg2rad(options.angle), options.colour)
    lightest = np.argsort(weight, kind="stable")
    found = _merge(first[lightest], second[lightest], weight[lightest], len(coords), options.scale, options.most)
    result = np.empty(len(coords), np.int32)
    result[order] = found
    return result


def smooth(probs: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Mean probabilities of each point's segment, (V, C) float32, of (V, C) probabilities and (V,) segments."""
    count = int(segments.max(initial=-1)) + 1
    means: np.ndarray = Groups(segments, count).mean(probs)[segments]
    return means


LEAST = 1e-4
"""A probability counts as no less when those of a segment are pooled, so that no point alone rules a class out."""


def pool(probs: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """What the points of a segment say together: their probabilities' geometric mean, normalised.

    Where all are of one class and err independently, its posterior has the geometric mean's order (a logarithmic
    opinion pool, Genest and Zidek 1986).

    Args:
        probs: (V, C) float32.
        segments: (V,) int32.

    Returns:
        (V, C) float32; rows sum to 1.
    """
    pooled = np.exp(smooth(np.log(np.maximum(probs, np.float32(LEAST))), segments))
    pooled /= pooled.sum(1, keepdims=True)
    return pooled


def spread_labels(visible: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """The label that reaches each point: that of the given labels of its segment where they agree.

    Args:
        visible: (V,) int64 given labels, -1 hidden.
        segments: (V,) int32.

    Returns:
        (V,) int64, -1 where the segment has no given label or different ones.
    """
    count = int(segments.max(initial=-1)) + 1
    given = np.flatnonzero(visible >= 0)
    low, high = np.full(count, np.iinfo(np.int64).max), np.full(count, -1, np.int64)
    np.minimum.at(low, segments[given], visible[given])
    np.maximum.at(high, segments[given], visible[given])
    return np.where(low == high, high, -1)[segments]


def _normals(coords: np.ndarray, near: np.ndarray) -> np.ndarray:
    """(n, 3) float64 unit normals of unknown sign: the least direction of the spread of a point's neighbours."""
    normals = np.empty((len(coords), 3))
    for begin in range(0, len(coords), 1 << 18):
        around = coords[near[begin : begin + (1 << 18)]].astype(np.float64)
        around -= around.mean(axis=1, keepdims=True)
        normals[begin : begin + (1 << 18)] = np.linalg.eigh(around.transpose(0, 2, 1) @ around)[1][:, :, 0]
    return normals


@njit(cache=True, nogil=True)
def _edges(near, normals, rgb, angle, colour):
    """Edges of the neighbour graph, each once, in the order of their ends: two (m,) int32 ends, (m,) float32 weight."""
    n, k = near.shape
    first, second = np.empty(n * k, np.int32), np.empty(n * k, np.int32)
    weight = np.empty(n * k, np.float32)
    count = 0
    for i in range(n):
        for s in range(k):
            j = near[i, s]
            if j == i:
                continue
            if j < i:
                # the other end has found this edge already, unless this end is too far for it
                found = False
                for t in range(k):
                    found = found or near[j, t] == i
                if found:
                    continue
            cosine, difference = 0.0, 0.0
            for axis in range(3):
                cosine += normals[i, axis] * normals[j, axis]
                difference += (rgb[i, axis] - rgb[j, axis]) ** 2
            turn = np.arccos(min(abs(cosine), 1.0)) / angle
            first[count], second[count] = i, j
            weight[count] = np.sqrt(turn * turn + difference / (colour * colour))
            count += 1
    return first[:count], second[:count], weight[:count]


@njit(cache=True, nogil=True)
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _merge(first, second, weight, n, scale, most):
    """Segments (n,) int32 from edges in ascending order, numbered by their first point."""
    parent, size, within = np.arange(n), np.ones(n, np.int64), np.zeros(n, np.float64)
    for e in range(len(first)):
        a, b = _root(parent, first[e]), _root(parent, second[e])
        if a == b or size[a] + size[b] > most:
            continue
        if weight[e] > min(within[a] + scale / size[a], within[b] + scale / size[b]):
            continue
        if size[a] < size[b]:
            a, b = b, a
        parent[b] = a
        size[a] += size[b]
        within[a] = weight[e]  # no edge of either was heavier
    number, count = np.full(n, -1, np.int32), 0
    result = np.empty(n, np.int32)
    for i in range(n):
        root = _root(parent, i)
        if number[root] < 0:
            number[root] = count
            count += 1
        result[i] = number[root]
    return result
