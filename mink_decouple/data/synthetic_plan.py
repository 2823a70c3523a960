"""Where things may stand in a procedural room: free stretches of wall and free rectangles of floor."""

from __future__ import annotations

from mink_decouple.data.synthetic_shapes import QUARTERS, Kit, Turn
from mink_decouple.data.synthetic_style import Dice, Difficulty, Look

Rect = tuple[float, float, float, float]
_TRIES = 60


def _clash(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


class Plan:
    """A rectangular room under construction.

    The room spans ``0..width`` along x, ``0..depth`` along y and ``0..height`` along z, metres. Wall 0 is y = 0, and
    1, 2, 3 follow
    anticlockwise. A position on a wall is (u, z), with u to the right for somebody inside who stands with the back
    to the wall.
    """

    def __init__(
        self, width: float, depth: float, height: float, dice: Dice, look: Look, difficulty: Difficulty
    ) -> None:
        self.width, self.depth, self.height = width, depth, height
        self.dice, self.look, self.difficulty = dice, look, difficulty
        self.kit = Kit()
        self.openings: list[list[Rect]] = [[], [], [], []]
        self.taken: list[list[Rect]] = [[], [], [], []]
        self.floor: list[Rect] = []

    def wall_length(self, side: int) -> float:
        """Return the length of a wall, metres."""
        return self.width if side % 2 == 0 else self.depth

    def wall_point(self, side: int, u: float, v: float) -> tuple[float, float]:
        """Return the plan position ``u`` along a wall and ``v`` in front of it."""
        return ((u, v), (self.width - v, u), (self.width - u, self.depth - v), (v, self.depth - u))[side]

    def wall_kit(self, side: int, u: float, v: float = 0.0) -> Kit:
        """Return a frame at a wall, y pointing into the room."""
        x, y = self.wall_point(side, u, v)
        return self.kit.place(x, y, 0.0, QUARTERS[side])

    def _footprint(self, side: int, u0: float, u1: float, depth: float) -> Rect:
        (ax, ay), (bx, by) = self.wall_point(side, u0, 0.0), self.wall_point(side, u1, depth)
        return min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)

    def spot(
        self,
        w: float,
        z: tuple[float, float],
        depth: float = 0.0,
        sides: tuple[int, ...] = (0, 1, 2, 3),
        opening: bool = False,
        clear: float = 0.0,
    ) -> tuple[int, float] | None:
        """Reserve a free stretch of wall.

        Args:
            w: width, metres.
            z: lowest and highest height used.
            depth: floor depth used in front of the wall; 0 uses no floor.
            sides: walls to try.
            opening: reserve a hole in the wall (no other hole above or below it).
            clear: floor depth to keep free in front of it, metres.

        Returns:
            The wall and the middle of the stretch, or None if nothing was free.
        """
        for _ in range(_TRIES):
            side = self.dice.pick(sides)
            length = self.wall_length(side)
            u = self.dice.uniform(0.12 + w / 2, length - 0.12 - w / 2)
            if w + 0.24 > length:
                continue
            rect = (u - w / 2 - 0.03, 0.0 if opening else z[0], u + w / 2 + 0.03, self.height if opening else z[1])
            if any(_clash(rect, other) for other in self.openings[side] + self.taken[side]):
                continue
            foot = self._footprint(side, u - w / 2, u + w / 2, max(depth, clear))
            if max(depth, clear) > 0.0 and any(_clash(foot, other) for other in self.floor):
                continue
            (self.openings if opening else self.taken)[side].append((rect[0], z[0], rect[2], z[1]))
            if max(depth, clear) > 0.0:
                self.floor.append(foot)
            return side, u
        return None

    def stand(
        self, w: float, d: float, height: float, sides: tuple[int, ...] = (0, 1, 2, 3), clear: float = 0.0
    ) -> Kit | None:
        """Reserve room for a thing with its back to a wall and return its frame, or None if nothing is free."""
        found = self.spot(w, (0.0, height), d + 0.03, sides, clear=d + clear if clear else 0.0)
        return None if found is None else self.wall_kit(found[0], found[1], d / 2 + 0.03)

    def free(self, w: float, d: float, margin: float = 0.1, turn: Turn = (1.0, 0.0)) -> Kit | None:
        """Reserve a rectangle of floor and return the frame in its middle, or None if nothing is free."""
        for _ in range(_TRIES):
            if w + 2 * margin >= self.width or d + 2 * margin >= self.depth:
                return None
            x = self.dice.uniform(margin + w / 2, self.width - margin - w / 2)
            y = self.dice.uniform(margin + d / 2, self.depth - margin - d / 2)
            rect = (x - w / 2, y - d / 2, x + w / 2, y + d / 2)
            if not any(_clash(rect, other) for other in self.floor):
                self.floor.append(rect)
                return self.kit.place(x, y, 0.0, turn)
        return None

    def is_free(self, x: float, y: float, margin: float) -> bool:
        """Tell whether nothing stands within ``margin`` metres (a square) of a point of the floor."""
        rect = (x - margin, y - margin, x + margin, y + margin)
        return not any(_clash(rect, other) for other in self.floor)
