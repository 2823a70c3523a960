"""Loose objects of a procedural room: all of S3DIS' class clutter.

Each function draws one thing in the frame of ``kit`` (x right, y to the front, z up, metres).
"""

from __future__ import annotations

from mink_decouple.data.synthetic_shapes import Kit, Label, turn_of
from mink_decouple.data.synthetic_style import BOOKS, LEAVES, PLAIN, Dice, Look, Paint

CLUTTER = Label.CLUTTER
DARK = Paint((0.07, 0.07, 0.08), PLAIN)
PAPER = Paint((0.9, 0.9, 0.88), PLAIN)


def carton(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw a box, at times with a second one on top; the large ones resemble low tables."""
    w, d, h = dice.uniform(0.12, 0.34), dice.uniform(0.12, 0.3), dice.uniform(0.15, 0.6)
    paint = Paint((0.66, 0.52, 0.36), PLAIN) if dice.chance(0.5) else look.anything()
    kit.box((-w, w), (-d, d), (0.0, h), CLUTTER, paint)
    if dice.chance(0.35):
        top = kit.turned(turn_of(dice.uniform(-0.15, 0.15)))
        top.box((-w * 0.8, w * 0.7), (-d * 0.8, d * 0.8), (h, h + dice.uniform(0.1, 0.35)), CLUTTER, look.anything())


def bin_(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw a waste bin."""
    r, h = dice.uniform(0.12, 0.2), dice.uniform(0.28, 0.65)
    if dice.chance(0.6):
        kit.rod(0, 0, (0.0, h), r, CLUTTER, look.anything())
    else:
        kit.box((-r, r), (-r * 0.8, r * 0.8), (0.0, h), CLUTTER, look.metal_paint())


def plant(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw a potted plant."""
    r, h = dice.uniform(0.12, 0.2), dice.uniform(0.2, 0.4)
    kit.rod(0, 0, (0.0, h), r, CLUTTER, look.anything())
    green = Paint((dice.uniform(0.15, 0.3), dice.uniform(0.3, 0.5), dice.uniform(0.1, 0.25)), LEAVES)
    for _ in range(dice.count(3, 6)):
        spot = (dice.uniform(-0.2, 0.2), dice.uniform(-0.2, 0.2), h + dice.uniform(0.1, 0.8))
        kit.ball(spot, (dice.uniform(0.1, 0.24), dice.uniform(0.1, 0.24), dice.uniform(0.08, 0.2)), CLUTTER, green)


def floor_lamp(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw a standing lamp."""
    h = dice.uniform(1.3, 1.75)
    kit.rod(0, 0, (0.0, 0.03), 0.14, CLUTTER, look.metal_paint())
    kit.rod(0, 0, (0.03, h), 0.015, CLUTTER, look.metal_paint())
    kit.rod(0, 0, (h, h + 0.25), dice.uniform(0.12, 0.2), CLUTTER, look.anything())


def coat_stand(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw a pole with coats hanging on it."""
    kit.rod(0, 0, (0.0, 1.75), 0.02, CLUTTER, look.metal_paint())
    for _ in range(dice.count(1, 3)):
        at = (dice.uniform(-0.12, 0.12), dice.uniform(-0.12, 0.12), dice.uniform(1.05, 1.3))
        kit.ball(at, (0.16, 0.12, dice.uniform(0.35, 0.48)), CLUTTER, look.fabric())


def monitor(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw a screen on its foot, with keyboard in front."""
    w, h = dice.uniform(0.24, 0.34), dice.uniform(0.28, 0.4)
    kit.box((-w, w), (-0.03, 0.02), (0.12, 0.12 + h), CLUTTER, DARK, turn_of(dice.uniform(0.0, 0.06)))
    kit.box((-0.04, 0.04), (-0.06, -0.02), (0.0, 0.25), CLUTTER, DARK)
    kit.box((-0.14, 0.14), (-0.12, 0.08), (0.0, 0.02), CLUTTER, DARK)
    if dice.chance(0.8):
        kit.box((-0.22, 0.22), (0.16, 0.32), (0.0, 0.025), CLUTTER, look.metal_paint())


def laptop(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw an open laptop."""
    paint = look.metal_paint()
    kit.box((-0.18, 0.18), (-0.12, 0.12), (0.0, 0.025), CLUTTER, paint)
    kit.box((-0.18, 0.18), (-0.14, -0.12), (0.02, 0.26), CLUTTER, DARK, turn_of(dice.uniform(0.08, 0.2)))


def small_thing(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw one of: paper pile, mug, telephone, books, desk lamp, small box."""
    which = dice.count(0, 5)
    if which == 0:
        kit.box((-0.11, 0.11), (-0.15, 0.15), (0.0, dice.uniform(0.01, 0.12)), CLUTTER, PAPER)
    elif which == 1:
        kit.rod(0, 0, (0.0, dice.uniform(0.09, 0.22)), 0.045, CLUTTER, look.anything())
    elif which == 2:
        kit.box((-0.1, 0.1), (-0.1, 0.1), (0.0, 0.07), CLUTTER, DARK)
    elif which == 3:
        kit.box((-0.16, 0.16), (-0.1, 0.1), (0.0, dice.uniform(0.12, 0.26)), CLUTTER, Paint(look.anything().rgb, BOOKS))
    elif which == 4:
        kit.rod(0, 0, (0.0, 0.38), 0.012, CLUTTER, look.metal_paint())
        kit.rod(0, 0, (0.34, 0.46), 0.09, CLUTTER, look.anything())
    else:
        s = dice.uniform(0.07, 0.16)
        kit.box((-s, s), (-s, s), (0.0, dice.uniform(0.08, 0.25)), CLUTTER, look.anything())


def computer(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw a computer case for the floor."""
    kit.box(
        (-0.1, 0.1),
        (-0.22, 0.22),
        (0.0, dice.uniform(0.38, 0.46)),
        CLUTTER,
        DARK if dice.chance(0.6) else look.metal_paint(),
    )


def copier(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw an office copier."""
    paint = Paint((0.78, 0.78, 0.76), PLAIN) if dice.chance(0.6) else look.metal_paint()
    kit.box((-0.32, 0.32), (-0.33, 0.33), (0.06, 0.9), CLUTTER, paint)
    kit.box((-0.34, 0.3), (-0.3, 0.3), (0.97, 1.12), CLUTTER, paint)
    kit.box((0.32, 0.6), (-0.22, 0.22), (0.68, 0.72), CLUTTER, paint)
    kit.box((-0.3, -0.2), (0.2, 0.36), (0.92, 1.05), CLUTTER, DARK)


def kitchenette(kit: Kit, dice: Dice, look: Look, w: float) -> None:
    """Draw a counter with wall cupboards, ``w`` metres wide, against y = -0.3."""
    front, top = look.wood(), look.anything()
    kit.box((-w / 2, w / 2), (-0.3, 0.27), (0.08, 0.87), CLUTTER, front)
    kit.box((-w / 2, w / 2), (-0.3, 0.3), (0.87, 0.91), CLUTTER, top)
    kit.box((-w / 2, w / 2), (-0.3, 0.05), (1.45, 2.1), CLUTTER, front)
    kit.box((-w / 4, -w / 4 + 0.5), (-0.2, 0.15), (0.91, 1.2), CLUTTER, look.metal_paint())
    for _ in range(3):
        small_thing(kit.place(dice.uniform(-w / 2 + 0.15, w / 2 - 0.15), 0.1, 0.91), dice, look)


def fridge(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw a refrigerator or vending machine."""
    h, paint = dice.uniform(1.5, 1.9), look.anything()
    kit.box((-0.32, 0.32), (-0.33, 0.3), (0.03, h), CLUTTER, paint)
    kit.box((-0.31, 0.31), (0.3, 0.34), (0.06, h * 0.35), CLUTTER, paint)
    kit.box((-0.31, 0.31), (0.3, 0.34), (h * 0.37, h - 0.02), CLUTTER, paint)


def picture(kit: Kit, dice: Dice, look: Look, w: float, h: float, z: float) -> None:
    """Draw a framed picture, poster or screen on the wall y = 0; may be as large as a board."""
    depth = dice.uniform(0.015, 0.05)
    kit.box((-w / 2, w / 2), (0.0, depth), (z, z + h), CLUTTER, look.metal_paint() if dice.chance(0.5) else look.wood())
    inner = PAPER if dice.chance(0.3) else DARK if dice.chance(0.3) else look.anything()
    kit.box((-w / 2 + 0.04, w / 2 - 0.04), (depth, depth + 0.006), (z + 0.04, z + h - 0.04), CLUTTER, inner)


def wall_thing(kit: Kit, dice: Dice, look: Look) -> None:
    """Draw one of: switch, clock, extinguisher, hanging coat, wall shelf box, thermostat panel on the wall y = 0."""
    which = dice.count(0, 4)
    if which == 0:
        kit.box((-0.05, 0.05), (0.0, 0.03), (1.05, 1.2), CLUTTER, PAPER)
    elif which == 1:
        kit.box((-0.15, 0.15), (0.0, 0.05), (1.95, 2.25), CLUTTER, look.anything())
    elif which == 2:
        kit.rod(0, 0.1, (0.6, 1.15), 0.08, CLUTTER, Paint((0.7, 0.1, 0.1), PLAIN))
    elif which == 3:
        kit.ball((0, 0.1, 1.25), (0.2, 0.1, dice.uniform(0.35, 0.5)), CLUTTER, look.fabric())
    else:
        kit.box((-0.2, 0.2), (0.0, 0.14), (1.2, dice.uniform(1.5, 1.8)), CLUTTER, look.metal_paint())


def radiator(kit: Kit, dice: Dice, look: Look, w: float) -> None:
    """Draw a radiator on the wall y = 0, often below a window."""
    paint = look.wall() if dice.chance(0.6) else PAPER
    kit.box((-w / 2, w / 2), (0.04, 0.12), (0.12, dice.uniform(0.55, 0.75)), CLUTTER, paint)
    for side in (-w / 2, w / 2 - 0.03):
        kit.box((side, side + 0.03), (0.0, 0.05), (0.2, 0.5), CLUTTER, paint)


def ceiling_thing(kit: Kit, dice: Dice, look: Look, ceiling: float) -> None:
    """Draw a pendant lamp, projector, duct piece or strip light below the ceiling."""
    which = dice.count(0, 3)
    if which == 0:
        kit.rod(0, 0, (ceiling - 0.5, ceiling), 0.01, CLUTTER, DARK)
        kit.ball((0, 0, ceiling - 0.55), (0.2, 0.2, 0.12), CLUTTER, look.anything())
    elif which == 1:
        kit.box((-0.2, 0.2), (-0.16, 0.16), (ceiling - 0.36, ceiling - 0.22), CLUTTER, PAPER)
        kit.rod(0, 0, (ceiling - 0.22, ceiling), 0.03, CLUTTER, look.metal_paint())
    elif which == 2:
        kit.pipe(0, (-0.9, 0.9), ceiling - 0.16, dice.uniform(0.06, 0.14), CLUTTER, look.metal_paint())
    else:
        kit.box((-0.08, 0.08), (-0.6, 0.6), (ceiling - 0.09, ceiling - 0.01), CLUTTER, PAPER)
