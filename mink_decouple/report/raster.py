"""Point clouds drawn without a display: an orthographic view from above at an angle, with hidden points removed."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Colors = NDArray[np.uint8]

ELEVATION = 55.0
# Each picture is drawn this many times larger and averaged down, which smooths the edges of the points.
SUPERSAMPLE = 2
MIN_PIXELS, MAX_PIXELS = 2, 14
# What is left standing of a wall that is cut away.
STUMP_METRES = 0.3
# Side of a marked point and of the dark square behind it.
MARK_PIXELS, EDGE_PIXELS = 6, 8


def project(coords: NDArray[np.floating], azimuth: float, elevation: float) -> NDArray[np.float64]:
    """Orthographic view from above at an angle.

    Args:
        coords: (N, 3) metres.
        azimuth: degrees from +x towards +y of the direction the camera stands in.
        elevation: degrees above the horizon.

    Returns:
        (N, 3) float64 metres: right, up, distance from the camera (smaller is nearer, zero at the origin).
    """
    a, e = math.radians(azimuth), math.radians(elevation)
    right = (-math.sin(a), math.cos(a), 0.0)
    up = (-math.sin(e) * math.cos(a), -math.sin(e) * math.sin(a), math.cos(e))
    away = (-math.cos(e) * math.cos(a), -math.cos(e) * math.sin(a), -math.sin(e))
    return np.asarray(coords, dtype=np.float64) @ np.asarray([right, up, away]).T


def visible_points(
    view: NDArray[np.float64], width: int, height: int, sizes: NDArray[np.int64], scale: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw each point as a square with a depth buffer, so that near points hide far ones.

    Args:
        view: (N, 3) right, up, distance; see :func:`project`.
        width: of the picture, pixels.
        height: of the picture, pixels.
        sizes: (N,) side of each point, pixels.
        scale: pixels per metre; the middle of the points is the middle of the picture.

    Returns:
        (height, width) index of the point seen in each pixel, and its distance in metres; -1 and inf where none is.
    """
    index = np.full(height * width, -1, dtype=np.int64)
    distance = np.full(height * width, np.inf)
    if len(view):
        middle = (view[:, :2].min(axis=0) + view[:, :2].max(axis=0)) / 2
        nearest_last = np.argsort(-view[:, 2], kind="stable")
        side = sizes[nearest_last]
        left = np.floor((view[nearest_last, 0] - middle[0]) * scale + width / 2).astype(np.int64) - side // 2
        top = np.floor((middle[1] - view[nearest_last, 1]) * scale + height / 2).astype(np.int64) - side // 2
        rank = np.full(height * width, -1, dtype=np.int64)
        for down, along in np.ndindex(int(side.max()), int(side.max())):
            r, c = top + down, left + along
            covers = np.flatnonzero((side > max(down, along)) & (r >= 0) & (r < height) & (c >= 0) & (c < width))
            np.maximum.at(rank, r[covers] * width + c[covers], covers)
        seen = rank >= 0
        index[seen] = nearest_last[rank[seen]]
        distance[seen] = view[index[seen], 2]
    return index.reshape(height, width), distance.reshape(height, width)


def shade(distance: NDArray[np.float64], strength: float, reach: int) -> NDArray[np.float32]:
    """Brightness in 0.35..1 that darkens what lies behind its neighbours (eye-dome lighting, Boucheny 2009).

    Args:
        distance: (H, W) metres, inf where nothing is seen.
        strength: darkening per metre of step.
        reach: pixels to the neighbours.
    """
    padded = np.pad(distance, reach, constant_values=np.inf)
    height, width = distance.shape
    total = np.zeros_like(distance)
    for down, along in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        near = padded[reach * (1 + down) :, reach * (1 + along) :][:height, :width]
        both = np.isfinite(near) & np.isfinite(distance)
        total += np.subtract(distance, near, out=np.zeros_like(total), where=both).clip(0)
    return np.maximum(np.exp(-strength * total), 0.35).astype(np.float32)


def open_side(
    coords: NDArray[np.floating], azimuth: float, bins: float = 0.05, margin: float = 0.2
) -> NDArray[np.bool_]:
    """Which points stay when the walls between the camera and the room are cut down to a stump, (N,) bool.

    A wall is a plane on which many points lie: on each side of the room that faces the camera it is the outermost
    slice, within the outer third, that holds at least half as many points as the fullest one there.

    Args:
        coords: (N, 3) metres.
        azimuth: degrees; see :func:`project`.
        bins: thickness of a slice, metres.
        margin: what goes with the wall on its inner side, metres.
    """
    along = math.radians(wall_direction(coords))
    gone = np.zeros(len(coords), dtype=bool)
    for turn in range(4):
        angle = along + turn * math.pi / 2
        if math.cos(angle - math.radians(azimuth)) < 0.2:
            continue
        depth = coords[:, :2] @ np.asarray([math.cos(angle), math.sin(angle)])
        depth = depth.max() - depth
        counts = np.bincount((depth[depth <= np.ptp(depth) / 3] / bins).astype(np.int64))
        gone |= depth < (np.argmax(counts >= counts.max() / 2) + 1) * bins + margin
    stump = coords[:, 2] < np.quantile(coords[:, 2], 0.01) + STUMP_METRES
    return ~gone | stump


def draw_panels(
    coords: NDArray[np.floating],
    columns: Iterable[Colors],
    width: int,
    indoors: bool = False,
    marked: NDArray[np.bool_] | None = None,
) -> list[NDArray[np.float32]]:
    """Draw the same view of a cloud once per colouring.

    The camera stands at the corner from which the scene is narrowest: it is then largest in panels side by side.

    Args:
        coords: (N, 3) metres, N > 0.
        columns: (N, 3) uint8 colourings.
        width: of a panel, pixels; its height follows from the scene.
        indoors: cut down the walls between the camera and the room.
        marked: (N,) points that are drawn last, `MARK_PIXELS` large: few that would be lost among the others.

    Returns:
        (H, width, 3) float32 pictures in 0..1, white where nothing is seen.
    """
    centred = np.asarray(coords, dtype=np.float64) - coords.mean(axis=0, dtype=np.float64)
    azimuths = [wall_direction(centred) + turn for turn in (30, 60, -60, -30)]
    azimuth = min(azimuths, key=lambda a: float(np.ptp(project(centred, a, ELEVATION)[:, 0])))
    kept = np.flatnonzero(open_side(centred, azimuth) if indoors else np.ones(len(centred), dtype=bool))
    view = project(centred[kept], azimuth, ELEVATION)
    extent = np.maximum(np.ptp(view[:, :2], axis=0), 1e-3)
    inner = width * SUPERSAMPLE
    height = SUPERSAMPLE * int(np.clip(width * extent[1] / extent[0], 0.5 * width, 1.5 * width))
    scale = float(0.96 * min(inner / extent[0], height / extent[1]))
    index, distance = visible_points(view, inner, height, point_sizes(view, scale), scale)
    light = shade(distance, strength=20.0 / float(np.ptp(view[:, 2]) + 1e-3), reach=SUPERSAMPLE)[..., None]
    marks = []
    if marked is not None:
        for side in (EDGE_PIXELS, MARK_PIXELS):
            # a point of size 0 is not drawn, but keeps the picture where it is
            sizes = np.where(marked[kept], SUPERSAMPLE * side, 0)
            marks.append(visible_points(view, inner, height, sizes, scale)[0])
    panels = []
    for colors in columns:
        image = np.where(index[..., None] >= 0, colors[kept][index].astype(np.float32) / 255 * light, np.float32(1))
        if marks:
            edge, mark = marks
            image[edge >= 0] = 0.2
            image[mark >= 0] = colors[kept][mark[mark >= 0]].astype(np.float32) / 255
        shape = (height // SUPERSAMPLE, SUPERSAMPLE, width, SUPERSAMPLE, 3)
        panels.append(image.reshape(shape).mean(axis=(1, 3), dtype=np.float32))
    return panels


def wall_direction(coords: NDArray[np.floating]) -> float:
    """Degrees from +x of a side of the smallest rectangle around the plan of the scene, in 0..90."""
    plan = np.asarray(coords[:: max(1, len(coords) // 20_000), :2], dtype=np.float64)
    angles = np.radians(np.arange(0, 90, 3))
    across = np.ptp(plan @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
    along = np.ptp(plan @ np.stack([-np.sin(angles), np.cos(angles)]), axis=0)
    return float(np.degrees(angles[np.argmin(across * along)]))


def point_sizes(view: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
    """Side in pixels, (N,), that closes the gap to the neighbours of each point; lone points are not blown up."""
    if len(view) == 1:
        return np.full(1, MAX_PIXELS, dtype=np.int64)
    spacing = cKDTree(view).query(view, k=[min(4, len(view))], workers=-1)[0][:, 0]
    wanted = 1.4 * scale * np.minimum(spacing, 2.5 * np.median(spacing))
    return np.clip(np.round(wanted), MIN_PIXELS, MAX_PIXELS).astype(np.int64)
