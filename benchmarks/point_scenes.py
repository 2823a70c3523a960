"""Point clouds of any size from furnished rooms of the synthetic buildings."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.synthetic import make_room

WALL = 0.3
"""Metres between two rooms."""


@cache
def _room(number: int, rays: int) -> PointCloud:
    return make_room(1 + number // 8, number % 8, points=rays)


def building(points: int, rays: int = 1_000_000, different: int = 4) -> PointCloud:
    """Exactly `points` points: rooms in rows, each scanned with `rays` rays, some of which meet nothing.

    Args:
        points: of the cloud.
        rays: points of a room, at most; fewer make rooms quicker and leave their surfaces thinner.
        different: number of rooms after which they repeat.

    Returns:
        A cloud with `rgb` and labels, room by room.
    """
    rays = min(rays, max(2 * points, 1000))
    rooms: list[PointCloud] = []
    while sum(len(room) for room in rooms) < points:
        rooms.append(_room(len(rooms) % different, rays))
    row = max(1, math.isqrt(len(rooms)))
    placed: list[np.ndarray] = []
    corner, depth = 0.0, 0.0
    for number, room in enumerate(rooms):
        low, high = room.coords.min(0), room.coords.max(0)
        if number and number % row == 0:
            corner, depth = 0.0, max(float(part[:, 1].max()) for part in placed) + WALL
        placed.append(room.coords - low + np.array([corner, depth, 0.0], np.float32))
        corner += float(high[0] - low[0]) + WALL
    labels = np.concatenate([room.labels for room in rooms if room.labels is not None])
    # a share of every room rather than all but the last one's, in the scanner's order
    order = np.sort(np.random.default_rng(0).permutation(len(labels))[:points])
    coords, rgb = np.concatenate(placed)[order], np.concatenate([room.features["rgb"] for room in rooms])[order]
    return PointCloud(f"{points:,} points of {len(rooms)} rooms", coords, features={"rgb": rgb}, labels=labels[order])
