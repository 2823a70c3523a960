"""How a procedural building looks: difficulty knobs, palettes and the style of each area.

Every draw goes through :class:`Dice`, which uses nothing but ``Generator.random`` of a PCG64 stream and the four
basic operations, so that a room is the same, bit for bit, on every machine and NumPy version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
Rgb = tuple[float, float, float]

HELD_OUT_AREA = 5


@dataclass(frozen=True)
class Difficulty:
    """What makes the default dataset easy or hard; every knob is a share or a length.

    Attributes:
        color_overlap: chance that an object takes a material that other classes use too, 0 (colour tells the class)
            to 1 (it does not).
        color_noise: half width of the colour noise of a point, 0..1.
        light_spread: half width of the random exposure and tint of a room and of a scanner, relative.
        range_noise: half width of the range noise of a scanner, metres.
        style_shift: chance that area 5 takes a design or material no training area has, 0..1.
        look_alikes: chance of each object made to resemble another class (shafts, soffits, pictures, armchairs,
            cabinets), 0..1.
        clutter: factor on the number of loose objects, 0 leaves only cabinets and kitchens.
        outliers: share of points thrown off their surface, 0..1.
    """

    color_overlap: float = 0.4
    color_noise: float = 0.06
    light_spread: float = 0.12
    range_noise: float = 0.014
    style_shift: float = 0.4
    look_alikes: float = 0.35
    clutter: float = 1.0
    outliers: float = 0.002


class Dice:
    """Random draws that are the same on every platform.

    Args:
        key: integers that name the stream, e.g. ``(seed, area, index)``.
    """

    def __init__(self, *key: int) -> None:
        self.rng = np.random.Generator(np.random.PCG64([int(k) for k in key]))

    def uniform(self, low: float, high: float) -> float:
        """Return a number in ``[low, high)``."""
        return low + (high - low) * float(self.rng.random())

    def count(self, low: int, high: int) -> int:
        """Return an integer in ``low..high``, both included."""
        return low + int(float(self.rng.random()) * (high - low + 1))

    def chance(self, p: float) -> bool:
        """Return True with probability ``p``."""
        return float(self.rng.random()) < p

    def pick(self, items: Sequence[T]) -> T:
        """Return one of ``items``."""
        return items[self.count(0, len(items) - 1)]

    def some(self, items: Sequence[T], n: int) -> tuple[T, ...]:
        """Return ``n`` different ``items`` in random order."""
        pool = list(items)
        return tuple(pool.pop(self.count(0, len(pool) - 1)) for _ in range(min(n, len(pool))))

    def array(self, *shape: int) -> np.ndarray:
        """Return float64 numbers in [0, 1)."""
        return self.rng.random(shape)

    def bell(self, *shape: int) -> np.ndarray:
        """Return bell-shaped numbers in (-1, 1), standard deviation 0.29: sums of four uniform ones, free of libm."""
        r = self.rng.random
        return (r(shape) + r(shape) + r(shape) + r(shape)) * 0.5 - 1.0


class Paint(NamedTuple):
    """Surface of a part: linear colour 0..1 and the pattern drawn over it (one of the constants below)."""

    rgb: Rgb
    pattern: int = 0


PLAIN, GRAIN, TILES, BOOKS, SPECKLE, LEAVES, GLASS = range(7)

WOODS: tuple[Rgb, ...] = (
    (0.80, 0.66, 0.48),
    (0.72, 0.53, 0.35),
    (0.47, 0.32, 0.21),
    (0.58, 0.38, 0.26),
    (0.86, 0.78, 0.64),
    (0.30, 0.21, 0.16),
    (0.74, 0.72, 0.68),
    (0.89, 0.88, 0.85),
)
NEW_WOODS: tuple[Rgb, ...] = (
    (0.62, 0.30, 0.20),
    (0.55, 0.50, 0.44),
    (0.20, 0.19, 0.19),
    (0.93, 0.92, 0.90),
    (0.66, 0.60, 0.42),
)
FABRICS: tuple[Rgb, ...] = (
    (0.10, 0.10, 0.11),
    (0.16, 0.22, 0.42),
    (0.38, 0.38, 0.40),
    (0.56, 0.14, 0.13),
    (0.62, 0.54, 0.42),
    (0.36, 0.23, 0.15),
    (0.22, 0.36, 0.28),
    (0.70, 0.68, 0.63),
)
NEW_FABRICS: tuple[Rgb, ...] = (
    (0.75, 0.42, 0.14),
    (0.20, 0.42, 0.48),
    (0.86, 0.84, 0.80),
    (0.26, 0.24, 0.30),
    (0.54, 0.56, 0.30),
)
WALLS: tuple[Rgb, ...] = (
    (0.86, 0.85, 0.81),
    (0.83, 0.78, 0.68),
    (0.76, 0.77, 0.78),
    (0.89, 0.88, 0.87),
    (0.78, 0.73, 0.60),
    (0.70, 0.76, 0.74),
)
NEW_WALLS: tuple[Rgb, ...] = ((0.68, 0.74, 0.82), (0.66, 0.62, 0.58), (0.84, 0.74, 0.70), (0.92, 0.92, 0.91))
FLOORS: tuple[Rgb, ...] = (
    (0.44, 0.44, 0.45),
    (0.33, 0.36, 0.43),
    (0.58, 0.45, 0.32),
    (0.66, 0.62, 0.55),
    (0.29, 0.27, 0.26),
    (0.54, 0.50, 0.40),
)
NEW_FLOORS: tuple[Rgb, ...] = ((0.40, 0.27, 0.19), (0.74, 0.73, 0.71), (0.36, 0.42, 0.38))
CEILINGS: tuple[Rgb, ...] = ((0.88, 0.88, 0.86), (0.82, 0.81, 0.78), (0.91, 0.90, 0.86), (0.70, 0.69, 0.67))
NEW_CEILINGS: tuple[Rgb, ...] = ((0.60, 0.60, 0.60), (0.93, 0.93, 0.93), (0.78, 0.72, 0.62))
METALS: tuple[Rgb, ...] = ((0.62, 0.63, 0.65), (0.18, 0.18, 0.19), (0.45, 0.46, 0.47), (0.80, 0.80, 0.80))
BOARDS: tuple[Rgb, ...] = (
    (0.92, 0.92, 0.92),
    (0.92, 0.92, 0.92),
    (0.88, 0.89, 0.90),
    (0.13, 0.26, 0.20),
    (0.62, 0.47, 0.31),
)
NEW_BOARDS: tuple[Rgb, ...] = ((0.95, 0.95, 0.94), (0.80, 0.83, 0.84), (0.11, 0.12, 0.13), (0.24, 0.32, 0.40))

CHAIRS = ("swivel", "four_legs", "cantilever", "armchair")
NEW_CHAIRS = ("shell", "stool", "swivel", "tub")
TABLES = ("four_legs", "panels", "pedestal", "four_legs")
NEW_TABLES = ("trestle", "panels", "pedestal")
SOFAS = ("box_arms", "legs")
NEW_SOFAS = ("corner", "legs", "low_arms")


@dataclass(frozen=True)
class Style:
    """What the rooms of one area share.

    Attributes:
        woods: colours of wooden things; likewise ``fabrics``, ``walls``, ``floors``, ``ceilings``, ``boards``.
        chairs: names of designs to pick from; likewise ``tables`` and ``sofas``.
        height: lowest and highest ceiling, metres.
        size: factor on the plan of a room.
        stretch: factor on the height and depth of furniture.
        scanners: fewest and most scanner positions in a room.
        scanner_height: lowest and highest scanner, metres.
        blind: rays steeper than this downward component see only the tripod.
    """

    woods: tuple[Rgb, ...]
    fabrics: tuple[Rgb, ...]
    walls: tuple[Rgb, ...]
    floors: tuple[Rgb, ...]
    ceilings: tuple[Rgb, ...]
    boards: tuple[Rgb, ...]
    chairs: tuple[str, ...]
    tables: tuple[str, ...]
    sofas: tuple[str, ...]
    height: tuple[float, float]
    size: float
    stretch: float
    scanners: tuple[int, int]
    scanner_height: tuple[float, float]
    blind: float


def area_style(seed: int, area: int, difficulty: Difficulty) -> Style:
    """Draw the style of an area; area 5 mixes in designs and materials that the others never show."""
    dice = Dice(seed, area, 7919)
    shift = difficulty.style_shift if area == HELD_OUT_AREA else 0.0

    def palette(common: Sequence[T], new: Sequence[T], n: int) -> tuple[T, ...]:
        fresh, known = dice.some(new, n), dice.some(common, n)
        return tuple(fresh[i] if i < len(fresh) and dice.chance(shift) else known[i] for i in range(len(known)))

    low = dice.uniform(2.35, 2.6) + 0.35 * shift
    return Style(
        woods=palette(WOODS, NEW_WOODS, 5),
        fabrics=palette(FABRICS, NEW_FABRICS, 5),
        walls=palette(WALLS, NEW_WALLS, 4),
        floors=palette(FLOORS, NEW_FLOORS, 4),
        ceilings=palette(CEILINGS, NEW_CEILINGS, 3),
        boards=palette(BOARDS, NEW_BOARDS, 3),
        chairs=palette(CHAIRS, NEW_CHAIRS, 4),
        tables=palette(TABLES, NEW_TABLES, 3),
        sofas=palette(SOFAS, NEW_SOFAS, 2),
        height=(low, low + 0.35),
        size=dice.uniform(0.94, 1.06) + 0.04 * shift,
        stretch=dice.uniform(0.95, 1.05) - 0.08 * shift,
        scanners=(2, 3) if shift == 0.0 else (1, 3),
        scanner_height=(1.4, 1.7) if shift == 0.0 else (1.2, 1.6),
        blind=-0.94 if shift == 0.0 else -0.9,
    )


class Look:
    """The materials of one room: most things share a few, so that colour does not name the class."""

    def __init__(self, dice: Dice, style: Style, difficulty: Difficulty) -> None:
        self.dice, self.style, self.overlap = dice, style, difficulty.color_overlap
        self.main_wood = dice.pick(style.woods)
        self.main_wall = dice.pick(style.walls)
        self.main_fabric = dice.pick(style.fabrics)
        self.metal = dice.pick(METALS)
        self.floor = Paint(self._near(dice.pick(style.floors)), dice.pick((SPECKLE, GRAIN, TILES, SPECKLE)))
        self.ceiling = Paint(self._near(dice.pick(style.ceilings)), dice.pick((TILES, PLAIN, SPECKLE)))
        self.trim = Paint(self._near(dice.pick((self.main_wood, self.main_wall, self.metal))), PLAIN)

    def _near(self, rgb: Rgb, spread: float = 0.05) -> Rgb:
        shift = self.dice.uniform(-spread, spread)
        r, g, b = (min(1.0, max(0.02, v + shift + self.dice.uniform(-spread / 3, spread / 3))) for v in rgb)
        return r, g, b

    def _shared(self) -> Rgb:
        return self.dice.pick((self.main_wood, self.main_wall, self.main_fabric, self.metal, self.main_wood))

    def wood(self) -> Paint:
        """A wooden or laminated surface: table, door, bookcase, cabinet."""
        rgb = self.main_wood if self.dice.chance(self.overlap) else self.dice.pick(self.style.woods)
        return Paint(self._near(rgb), GRAIN)

    def fabric(self) -> Paint:
        """An upholstered surface: chair, sofa, coat."""
        if self.dice.chance(0.4 * self.overlap):
            return Paint(self._near(self._shared()), PLAIN)
        rgb = self.main_fabric if self.dice.chance(0.5) else self.dice.pick(self.style.fabrics)
        return Paint(self._near(rgb), SPECKLE)

    def wall(self) -> Paint:
        """A painted wall, column, beam or door frame."""
        return Paint(self._near(self.main_wall, 0.02), PLAIN)

    def board(self) -> Paint:
        """A white, black or pin board, at times in the colour of the wall."""
        rgb = self.main_wall if self.dice.chance(0.4 * self.overlap) else self.dice.pick(self.style.boards)
        return Paint(self._near(rgb, 0.02), PLAIN)

    def metal_paint(self) -> Paint:
        """Legs, frames, handles, filing cabinets."""
        return Paint(self._near(self.metal), PLAIN)

    def anything(self) -> Paint:
        """A loose object: any colour of the room, or any colour at all."""
        if self.dice.chance(self.overlap):
            return Paint(self._near(self._shared()), PLAIN)
        grey, spread, d = self.dice.uniform(0.1, 0.85), self.dice.uniform(0.02, 0.3), self.dice
        return Paint(self._near((grey + d.uniform(-spread, spread), grey, grey + d.uniform(-spread, spread))), PLAIN)
