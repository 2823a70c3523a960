"""Solid parts of a procedural room: boxes, cylinders and ellipsoids placed by nested frames.

A thing is drawn in its own frame (x to the right, y to the front, z up, origin on the floor below its middle)
through a :class:`Kit`, and ends as rows of :class:`Parts`, which the scanner casts rays at.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from mink_decouple.data.synthetic_style import Paint

Turn = tuple[float, float]
"""Cosine and sine of an angle; built without trigonometric functions, whose last bits differ between platforms."""

QUARTERS: tuple[Turn, ...] = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
BOX, CYLINDER, BALL = range(3)


class Label(IntEnum):
    """Train ids of S3DIS' classes."""

    CEILING = 0
    FLOOR = 1
    WALL = 2
    BEAM = 3
    COLUMN = 4
    WINDOW = 5
    DOOR = 6
    TABLE = 7
    CHAIR = 8
    SOFA = 9
    BOOKCASE = 10
    BOARD = 11
    CLUTTER = 12


def turn_of(t: float) -> Turn:
    """Return the turn by the angle ``2 atan(t)``; for small ``t`` that is ``2 t`` radians."""
    d = 1.0 + t * t
    return (1.0 - t * t) / d, 2.0 * t / d


def compose(a: Turn, b: Turn) -> Turn:
    """Return turn ``b`` followed by turn ``a``."""
    return a[0] * b[0] - a[1] * b[1], a[1] * b[0] + a[0] * b[1]


@dataclass(frozen=True)
class Parts:
    """All solids of a room, P rows.

    Attributes:
        kind: (P,) BOX, CYLINDER (axis along local z) or BALL.
        center: (P, 3) metres.
        axes: (P, 3, 3) rows are the local axes in room coordinates.
        half: (P, 3) half sizes along the local axes, metres.
        label: (P,) train id.
        rgb: (P, 3) colour 0..1.
        pattern: (P,) pattern of the paint.
        group: (P,) parts of one thing share a number; parts of a group stand close together.
    """

    kind: np.ndarray
    center: np.ndarray
    axes: np.ndarray
    half: np.ndarray
    label: np.ndarray
    rgb: np.ndarray
    pattern: np.ndarray
    group: np.ndarray

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest corner (P, 3) of the axis-aligned box around each part."""
        a, h = np.abs(self.axes), self.half
        reach = a[:, 0] * h[:, 0:1] + a[:, 1] * h[:, 1:2] + a[:, 2] * h[:, 2:3]
        return self.center - reach, self.center + reach


class Kit:
    """A drawing frame that collects parts; frames nest with :meth:`place`."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, ...]] = []
        self._groups: Iterator[int] = itertools.count()
        self._origin = (0.0, 0.0, 0.0)
        self._turn: Turn = (1.0, 0.0)
        self._group = next(self._groups)

    def _world(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        (c, s), (ox, oy, oz) = self._turn, self._origin
        return ox + c * x - s * y, oy + s * x + c * y, oz + z

    def place(self, x: float, y: float, z: float = 0.0, turn: Turn = (1.0, 0.0)) -> Kit:
        """Return the frame of a new thing at (x, y, z) of this frame, turned about the vertical."""
        kit = Kit.__new__(Kit)
        kit._rows, kit._groups = self._rows, self._groups
        kit._origin, kit._turn = self._world(x, y, z), compose(self._turn, turn)
        kit._group = next(self._groups)
        return kit

    def turned(self, turn: Turn) -> Kit:
        """Return this frame turned about its own vertical; parts drawn in it belong to the same thing."""
        kit = self.place(0.0, 0.0, 0.0, turn)
        kit._group = self._group
        return kit

    def _add(
        self,
        kind: int,
        center: tuple[float, float, float],
        half: tuple[float, float, float],
        label: int,
        paint: Paint,
        tilt: Turn,
    ) -> None:
        (c, s), (ct, st) = self._turn, tilt
        axes = (c, s, 0.0, -s * ct, c * ct, st, s * st, -c * st, ct)
        size = tuple(max(h, 0.002) for h in half)
        self._rows.append((kind, *self._world(*center), *axes, *size, label, *paint.rgb, paint.pattern, self._group))

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        label: int,
        paint: Paint,
        tilt: Turn = (1.0, 0.0),
    ) -> None:
        """Add a box between two corners, then tilt it about the x axis through its middle."""
        center = ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2, (z[0] + z[1]) / 2)
        self._add(BOX, center, ((x[1] - x[0]) / 2, (y[1] - y[0]) / 2, (z[1] - z[0]) / 2), label, paint, tilt)

    def rod(
        self, x: float, y: float, z: tuple[float, float], radius: float, label: int, paint: Paint, flat: float = 1.0
    ) -> None:
        """Add an upright cylinder; ``flat`` scales its y radius."""
        self._add(
            CYLINDER, (x, y, (z[0] + z[1]) / 2), (radius, radius * flat, (z[1] - z[0]) / 2), label, paint, (1.0, 0.0)
        )

    def pipe(self, x: float, y: tuple[float, float], z: float, radius: float, label: int, paint: Paint) -> None:
        """Add a cylinder that lies along y."""
        self._add(CYLINDER, (x, (y[0] + y[1]) / 2, z), (radius, radius, (y[1] - y[0]) / 2), label, paint, (0.0, 1.0))

    def ball(
        self,
        center: tuple[float, float, float],
        radius: tuple[float, float, float],
        label: int,
        paint: Paint,
        tilt: Turn = (1.0, 0.0),
    ) -> None:
        """Add an ellipsoid."""
        self._add(BALL, center, radius, label, paint, tilt)

    def parts(self) -> Parts:
        """Return everything drawn so far, by all frames of this kit."""
        rows = np.array(self._rows, dtype=np.float64)
        return Parts(
            kind=rows[:, 0].astype(np.int64),
            center=rows[:, 1:4],
            axes=rows[:, 4:13].reshape(-1, 3, 3),
            half=rows[:, 13:16],
            label=rows[:, 16].astype(np.int64),
            rgb=rows[:, 17:20],
            pattern=rows[:, 20].astype(np.int64),
            group=rows[:, 21].astype(np.int64),
        )
