"""A terrestrial laser scanner in a procedural room: rays, first hits, range noise, lost returns, colour.

Only ``+ - * /``, ``sqrt``, ``floor`` and comparisons are used, without reductions over floats, so that every machine
gets the same bits.
"""

from __future__ import annotations

import numpy as np

from mink_decouple.data.synthetic_shapes import BALL, CYLINDER, Parts
from mink_decouple.data.synthetic_style import BOOKS, GLASS, GRAIN, LEAVES, SPECKLE, TILES, Dice, Difficulty, Style

_FAR = 1e9


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # An explicit sum: einsum and BLAS may add in another order on another machine.
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def _to_local(axes: np.ndarray, half: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.stack([_dot(axes[..., i, :], v) for i in range(3)], axis=-1) / half


def ray_directions(dice: Dice, n: int, blind: float) -> np.ndarray:
    """Return n unit vectors (n, 3): uniform, half as dense above 20 degrees, none below z = ``blind``."""
    found: list[np.ndarray] = []
    missing = n
    while missing > 0:
        v = dice.array(2 * missing + 64, 3) * 2.0 - 1.0
        length = np.sqrt(_dot(v, v))
        v = v[(length < 1.0) & (length > 0.1)] / length[(length < 1.0) & (length > 0.1), None]
        v = v[(v[:, 2] > blind) & ((v[:, 2] < 0.34) | (dice.array(len(v)) < 0.5))][:missing]
        found.append(v)
        missing -= len(v)
    return np.concatenate(found)


def first_hits(parts: Parts, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cast rays at solids, all of them convex.

    Args:
        parts: P solids.
        origin: (3,) metres, outside every solid.
        directions: (n, 3) unit vectors.

    Returns:
        Distance (n,) in metres to the first solid along each ray, and its row (n,), -1 where the ray meets none.
    """
    n = len(directions)
    best, hit = np.full(n, _FAR), np.full(n, -1, dtype=np.int64)
    tiny = np.abs(directions) < 1e-9
    inverse = 1.0 / np.where(tiny, 1e-9, directions)
    columns = [np.ascontiguousarray(inverse[:, i]) for i in range(3)]
    low, high = parts.bounds()
    groups = []
    for g in np.unique(parts.group):
        rows = np.flatnonzero(parts.group == g)
        lo, hi = low[rows].min(axis=0), high[rows].max(axis=0)
        gap = np.maximum(np.maximum(lo - origin, origin - hi), 0.0)
        groups.append((float(_dot(gap, gap)), rows, lo, hi))
    for _, rows, lo, hi in sorted(groups, key=lambda item: item[0]):
        near, far = np.zeros(n), best
        for i in range(3):
            a, b = (lo[i] - origin[i]) * columns[i], (hi[i] - origin[i]) * columns[i]
            near, far = np.maximum(near, np.minimum(a, b)), np.minimum(far, np.maximum(a, b))
        rays = np.flatnonzero(near <= far)
        if len(rays):
            t, which = _hit_group(parts, rows, origin, directions[rays])
            closer = t < best[rays]
            best[rays[closer]], hit[rays[closer]] = t[closer], rows[which[closer]]
    return best, hit


def _hit_group(
    parts: Parts, rows: np.ndarray, origin: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    best, which = np.full(len(directions), _FAR), np.zeros(len(directions), dtype=np.int64)
    for k, row in enumerate(rows):
        axes, half = parts.axes[row], parts.half[row]
        o = _to_local(axes, half, origin - parts.center[row])
        d = [_dot(axes[i], directions) / half[i] for i in range(3)]
        d = [np.where(np.abs(v) < 1e-9, 1e-9, v) for v in d]
        near, far = np.full(len(directions), 1e-3), best
        kind = parts.kind[row]
        slabs = (0, 1, 2) if kind not in (CYLINDER, BALL) else (2,) if kind == CYLINDER else ()
        for i in slabs:
            a, b = (-1.0 - o[i]) / d[i], (1.0 - o[i]) / d[i]
            near, far = np.maximum(near, np.minimum(a, b)), np.minimum(far, np.maximum(a, b))
        ok = near <= far
        if kind in (CYLINDER, BALL):
            a = d[0] * d[0] + d[1] * d[1]
            b = o[0] * d[0] + o[1] * d[1]
            c = o[0] * o[0] + o[1] * o[1] - 1.0
            if kind == BALL:
                a, b, c = a + d[2] * d[2], b + o[2] * d[2], c + o[2] * o[2]
            root = b * b - a * c
            ok &= root > 0.0
            root = np.sqrt(np.maximum(root, 0.0))
            near, far = np.maximum(near, (-b - root) / a), np.minimum(far, (-b + root) / a)
            ok &= near <= far
        ok &= near < best
        best, which = np.where(ok, near, best), np.where(ok, k, which)
    return best, which


def surface(parts: Parts, hit: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the outward unit normal (n, 3) of points on solids and their position in the solid's frame (n, 3)."""
    axes, half, kind = parts.axes[hit], parts.half[hit], parts.kind[hit]
    local = _to_local(axes, half, points - parts.center[hit])
    size = np.abs(local)
    face = np.where(
        size[:, 0] >= size[:, 1], np.where(size[:, 0] >= size[:, 2], 0, 2), np.where(size[:, 1] >= size[:, 2], 1, 2)
    )
    flat = np.zeros_like(local)
    flat[np.arange(len(hit)), face] = np.where(local[np.arange(len(hit)), face] < 0.0, -1.0, 1.0)
    cap = (kind == CYLINDER) & (size[:, 2] > 0.9999)
    round_ = local / half
    round_[kind == CYLINDER, 2] = 0.0
    flat[cap] = np.stack([np.zeros(cap.sum()), np.zeros(cap.sum()), np.where(local[cap, 2] < 0.0, -1.0, 1.0)], axis=1)
    normal = np.where(((kind == BALL) | ((kind == CYLINDER) & ~cap))[:, None], round_, flat)
    world = np.stack(
        [axes[:, 0, i] * normal[:, 0] + axes[:, 1, i] * normal[:, 1] + axes[:, 2, i] * normal[:, 2] for i in range(3)],
        axis=1,
    )
    return world / np.sqrt(np.maximum(_dot(world, world), 1e-12))[:, None], local * half


def _hash(*keys: np.ndarray) -> np.ndarray:
    h = np.zeros(len(keys[0]), dtype=np.uint64)
    for key in keys:
        h = (h ^ key.astype(np.int64).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    return (h >> np.uint64(40)).astype(np.float64) / float(1 << 24)


def _pattern(parts: Parts, hit: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Return the factor (n, 3) that the paint's pattern puts on the colour."""
    pattern = parts.pattern[hit]
    factor = np.ones((len(hit), 3))
    along = np.where(parts.half[hit, 0] >= parts.half[hit, 1], local[:, 1], local[:, 0])
    grain = _hash(np.floor(along * 25.0), np.floor(local[:, 2] * 25.0), hit)
    seam = np.minimum(
        local[:, 0] * 5 / 3 - np.floor(local[:, 0] * 5 / 3), local[:, 1] * 5 / 3 - np.floor(local[:, 1] * 5 / 3)
    )
    speck = _hash(np.floor(local[:, 0] * 30.0), np.floor(local[:, 1] * 30.0), np.floor(local[:, 2] * 30.0))
    for kind, value in ((GRAIN, 0.86 + 0.24 * grain), (SPECKLE, 0.85 + 0.3 * speck), (LEAVES, 0.6 + 0.8 * speck)):
        factor[pattern == kind] = value[pattern == kind, None]
    factor[pattern == TILES] = np.where(seam < 0.05, 0.72, 1.0)[pattern == TILES, None]
    books = pattern == BOOKS
    spine = np.floor(local[books, 0] * 28.0)
    tone = 0.55 + 0.7 * _hash(spine, hit[books] * 5)
    factor[books] = np.stack([tone + 0.5 * (_hash(spine, hit[books] * 5 + 1 + i) - 0.5) for i in range(3)], axis=1)
    return factor


def _standpoints(dice: Dice, parts: Parts, room: tuple[float, float], style: Style) -> list[np.ndarray]:
    low, high = parts.bounds()
    low, high = low - 0.2, high + 0.2
    found: list[np.ndarray] = []
    wanted = dice.count(*style.scanners)
    if max(room) > 5.5:
        wanted = max(wanted, 2)
    for _ in range(200):
        x, y = dice.uniform(0.15, 0.85) * room[0], dice.uniform(0.15, 0.85) * room[1]
        p = np.array([x, y, dice.uniform(*style.scanner_height)])
        inside = ((p > low) & (p < high)).all(axis=1).any()
        close = any(_dot(p - q, p - q) < (0.3 * max(room)) ** 2 for q in found)
        if not inside and not close:
            found.append(p)
            if len(found) == wanted:
                break
    return found or [np.array([room[0] / 2, room[1] / 2, 1.5])]


def scan(
    dice: Dice, parts: Parts, room: tuple[float, float], style: Style, difficulty: Difficulty, points: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scan a room from one to three standpoints.

    Args:
        dice: the room's stream of random numbers.
        parts: the solids.
        room: width and depth, metres.
        style: number and height of scanners.
        difficulty: noise and outliers.
        points: number of rays, hence the most points.

    Returns:
        Positions (N, 3) float64 in metres, colours (N, 3) float64 in 0..1, train ids (N,), with N <= ``points``.
    """
    stands = _standpoints(dice, parts, room, style)
    weights = [dice.uniform(0.6, 1.0) for _ in stands]
    tint = [1.0 + dice.uniform(-0.3, 0.3) * difficulty.light_spread for _ in range(3)]
    window = np.array([dice.uniform(-1, 1), dice.uniform(-1, 1), 0.3])
    window /= np.sqrt(_dot(window, window))
    xyz, rgb, labels = [], [], []
    left = points
    for i, origin in enumerate(stands):
        n = left if i == len(stands) - 1 else int(points * weights[i] / sum(weights))
        left -= n
        directions = ray_directions(dice, n, style.blind)
        t, hit = first_hits(parts, origin, directions)
        keep = (hit >= 0) & (t < 30.0)
        t, hit, directions = t[keep], hit[keep], directions[keep]
        normal, local = surface(parts, hit, origin + directions * t[:, None])
        facing = np.abs(_dot(normal, directions))
        shown = dice.array(len(t)) < np.minimum(1.0, 0.3 + 2.0 * facing) * np.where(
            parts.pattern[hit] == GLASS, 0.55, 1.0
        )
        t, hit, directions, normal, local, facing = (a[shown] for a in (t, hit, directions, normal, local, facing))
        # A grazing beam smears over a longer stretch, so its range is less sure.
        t = t + dice.bell(len(t)) * difficulty.range_noise * (1.0 + 0.05 * t + 0.6 * (1.0 - facing))
        loose = dice.array(len(t)) < difficulty.outliers
        t = np.where(loose, t * (1.0 - 0.25 * dice.array(len(t))), t)
        shift = dice.bell(3) * 0.5 * difficulty.range_noise
        xyz.append(origin + shift + directions * t[:, None])
        light = 0.7 + 0.08 * normal[:, 2] + 0.22 * np.maximum(_dot(normal, window), 0.0) + 0.1 * facing
        exposure = 1.1 * (1.0 + dice.uniform(-1.0, 1.0) * difficulty.light_spread)
        color = parts.rgb[hit] * _pattern(parts, hit, local) * (light * exposure)[:, None] * np.array(tint)
        color = color + (dice.bell(len(t), 3) + dice.bell(len(t), 1)) * difficulty.color_noise
        rgb.append(np.minimum(np.maximum(color, 0.0), 1.0))
        labels.append(parts.label[hit])
    return np.concatenate(xyz), np.concatenate(rgb), np.concatenate(labels)
