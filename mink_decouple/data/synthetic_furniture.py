"""Seats, tables and bookcases of a procedural room.

Each function draws one thing in the frame of ``kit`` (x right, y to the front, z up, metres) and returns the size a
caller must know.
"""

from __future__ import annotations

from mink_decouple.data.synthetic_shapes import Kit, Label, turn_of
from mink_decouple.data.synthetic_style import BOOKS, PLAIN, Dice, Look, Paint


def _legs(kit: Kit, w: float, d: float, top: float, thick: float, label: int, paint: Paint) -> None:
    for x in (-w, w):
        for y in (-d, d):
            kit.box((x - thick, x + thick), (y - thick, y + thick), (0.0, top), label, paint)


def chair(kit: Kit, dice: Dice, look: Look, design: str | None = None) -> None:
    """Draw a chair that faces +y; ``design`` is one of the style's chairs if not given."""
    design = design or dice.pick(look.style.chairs)
    if design in ("armchair", "tub"):
        armchair(kit, dice, look, tub=design == "tub")
        return
    cloth, metal, label = look.fabric(), look.metal_paint(), Label.CHAIR
    k = look.style.stretch
    seat, w = dice.uniform(0.42, 0.5) * k, dice.uniform(0.21, 0.28)
    lean = turn_of(dice.uniform(0.03, 0.12))
    if design == "stool":
        seat += dice.uniform(0.0, 0.25)
        kit.rod(0, 0, (seat, seat + 0.06), 0.18, label, cloth)
        _legs(kit, 0.13, 0.13, seat, 0.015, label, metal)
        return
    kit.box((-w, w), (-w, w), (seat - 0.04, seat + 0.04), label, cloth)
    top = seat + dice.uniform(0.4, 0.6) * k
    gap = dice.uniform(0.04, 0.18)
    kit.box((-w * 0.95, w * 0.95), (-w - 0.03, -w + 0.03), (seat + gap, top), label, cloth, lean)
    if design == "swivel":
        kit.rod(0, 0, (0.08, seat - 0.04), 0.03, label, metal)
        for t in (0.0, 0.727, 3.078, -3.078, -0.727):
            kit.turned(turn_of(t)).box((-0.02, 0.02), (0.0, 0.3), (0.04, 0.09), label, metal)
        if dice.chance(0.6):
            for x in (-w - 0.04, w + 0.02):
                kit.box((x, x + 0.04), (-0.12, 0.14), (seat + 0.18, seat + 0.21), label, metal)
                kit.box((x, x + 0.03), (-0.02, 0.03), (seat, seat + 0.18), label, metal)
    elif design == "cantilever":
        for x in (-w, w - 0.03):
            kit.box((x, x + 0.03), (-w, w), (0.0, 0.03), label, metal)
            kit.box((x, x + 0.03), (w - 0.03, w), (0.0, seat), label, metal)
            kit.box((x, x + 0.03), (-w - 0.02, -w + 0.01), (seat, top), label, metal)
    elif design == "shell":
        kit.ball((0, 0, seat + 0.05), (w + 0.03, w + 0.03, 0.09), label, cloth)
        _legs(kit, w * 0.7, w * 0.7, seat, 0.018, label, look.wood())
    else:
        _legs(kit, w - 0.03, w - 0.03, seat, 0.02, label, metal)
        if dice.chance(0.4):
            for x in (-w - 0.02, w - 0.02):
                kit.box((x, x + 0.04), (-w, w * 0.8), (seat + 0.2, seat + 0.23), label, look.wood())
                kit.box((x, x + 0.03), (w * 0.7, w * 0.8), (seat, seat + 0.2), label, metal)


def armchair(kit: Kit, dice: Dice, look: Look, tub: bool = False) -> None:
    """Draw a wide upholstered chair; like a one-seat sofa, but S3DIS calls it a chair."""
    cloth, w, d = look.fabric(), dice.uniform(0.27, 0.35), dice.uniform(0.3, 0.37)
    seat, arm, top = dice.uniform(0.38, 0.45), dice.uniform(0.55, 0.66), dice.uniform(0.72, 0.95)
    if tub:
        kit.rod(0, 0, (0.05, seat), w, Label.CHAIR, cloth)
        arm = top - 0.08
    else:
        kit.box((-w, w), (-d, d), (0.1, seat), Label.CHAIR, cloth)
        _legs(kit, w - 0.05, d - 0.05, 0.1, 0.02, Label.CHAIR, look.metal_paint())
    kit.box((-w - 0.02, w + 0.02), (-d - 0.1, -d + 0.06), (0.1, top), Label.CHAIR, cloth, turn_of(0.05))
    for x in (-w - 0.08, w):
        kit.box((x, x + 0.08), (-d, d * 0.9), (0.12, arm), Label.CHAIR, cloth)


def sofa(kit: Kit, dice: Dice, look: Look) -> tuple[float, float]:
    """Draw a sofa that faces +y and return its width and depth, metres."""
    design, cloth, label = dice.pick(look.style.sofas), look.fabric(), Label.SOFA
    seats = dice.pick((2, 2, 2, 3))
    each, d = dice.uniform(0.52, 0.66), dice.uniform(0.38, 0.46)
    w = each * seats / 2
    seat, top = dice.uniform(0.38, 0.46), dice.uniform(0.72, 0.9)
    arm = dice.uniform(0.12, 0.2) if design != "legs" else 0.07
    base = 0.04 if design == "box_arms" else 0.14
    kit.box((-w, w), (-d, d), (base, seat - 0.12), label, cloth)
    for i in range(seats):
        x = -w + i * each
        kit.box((x + 0.01, x + each - 0.01), (-d + 0.18, d + 0.02), (seat - 0.12, seat), label, cloth)
        kit.box(
            (x + 0.02, x + each - 0.02),
            (-d + 0.1, -d + 0.24),
            (seat, top),
            label,
            cloth,
            turn_of(dice.uniform(0.05, 0.1)),
        )
    kit.box((-w - arm, w + arm), (-d - 0.04, -d + 0.12), (base, top - 0.06), label, cloth)
    arm_top = seat + (0.05 if design == "low_arms" else dice.uniform(0.14, 0.24))
    for x in (-w - arm, w):
        kit.box((x, x + arm), (-d, d), (base, arm_top), label, cloth)
    if base > 0.1:
        _legs(kit, w - 0.05, d - 0.06, base, 0.025, label, look.metal_paint())
    if design == "corner":
        kit.box((w - each, w), (d, d + 0.55), (base, seat), label, cloth)
    if dice.chance(0.5):
        kit.box(
            (-w + 0.05, -w + 0.45), (-d + 0.24, -d + 0.36), (seat, seat + 0.36), label, look.fabric(), turn_of(0.15)
        )
    return 2 * (w + arm), 2 * d + (0.6 if design == "corner" else 0.08)


def table(
    kit: Kit, dice: Dice, look: Look, w: float, d: float, height: float | None = None, design: str | None = None
) -> float:
    """Draw a table of width ``w`` and depth ``d`` and return the height of its top, metres."""
    design = design or dice.pick(look.style.tables)
    top, label, wood = height or dice.uniform(0.7, 0.78) * look.style.stretch, Label.TABLE, look.wood()
    frame = look.metal_paint() if dice.chance(0.6) else wood
    thick = dice.uniform(0.025, 0.05)
    x, y = w / 2, d / 2
    if design == "pedestal" and w < 1.4 and w - d < 0.3:
        kit.rod(0, 0, (top - thick, top), x, label, wood, d / w)
        kit.rod(0, 0, (0.03, top - thick), 0.05, label, frame)
        kit.rod(0, 0, (0.0, 0.03), x * 0.6, label, frame)
        return top
    kit.box((-x, x), (-y, y), (top - thick, top), label, wood)
    if design == "panels":
        for side in (-x + 0.02, x - 0.05):
            kit.box((side, side + 0.03), (-y + 0.03, y - 0.03), (0.0, top - thick), label, wood)
        kit.box((-x + 0.05, x - 0.05), (-y + 0.06, -y + 0.08), (top * 0.35, top - thick), label, wood)
    elif design in ("pedestal", "trestle"):
        for side in (-x * 0.65, x * 0.65):
            kit.box((side - 0.04, side + 0.04), (-y * 0.25, y * 0.25), (0.04, top - thick), label, frame)
            kit.box((side - 0.05, side + 0.05), (-y * 0.8, y * 0.8), (0.0, 0.04), label, frame)
    else:
        _legs(kit, x - 0.05, y - 0.05, top - thick, dice.uniform(0.018, 0.035), label, frame)
        if dice.chance(0.5):
            kit.box((-x + 0.06, x - 0.06), (-y + 0.04, y - 0.04), (top - thick - 0.07, top - thick), label, frame)
    if top > 0.6 and w > 1.2 and dice.chance(0.45):
        side = dice.pick((-1, 1)) * (x - 0.28)
        kit.box((side - 0.2, side + 0.2), (-y + 0.05, y - 0.08), (0.05, top - 0.1), label, wood)
    return top


def bookcase(
    kit: Kit, dice: Dice, look: Look, w: float, d: float, height: float, fill: float = 0.8, boxes: bool = False
) -> None:
    """Draw shelves against y = -d/2; books count as bookcase, ``boxes`` standing on them as clutter."""
    label = Label.BOOKCASE
    frame = look.metal_paint() if boxes and dice.chance(0.6) else look.wood()
    x, y = w / 2, d / 2
    for side in (-x, x - 0.025):
        kit.box((side, side + 0.025), (-y, y), (0.0, height), label, frame)
    if dice.chance(0.75) and not boxes:
        kit.box((-x, x), (-y, -y + 0.015), (0.0, height), label, frame)
    pitch = dice.uniform(0.3, 0.38) + (0.1 if boxes else 0.0)
    shelves = max(2, int(height / pitch))
    pitch = (height - 0.08) / shelves
    closed = dice.count(1, 2) if dice.chance(0.3) and not boxes else 0
    kit.box((-x, x), (-y, y), (height - 0.025, height), label, frame)
    for i in range(shelves):
        z = 0.06 + i * pitch
        kit.box((-x, x), (-y, y), (z - 0.025, z), label, frame)
        if i < closed:
            kit.box((-x, x), (y - 0.02, y), (z - 0.02, z + pitch - 0.03), label, frame)
            continue
        at = -x + 0.04
        while at < x - 0.1:
            run = min(dice.uniform(0.12, 0.45), x - 0.04 - at)
            if dice.chance(fill):
                tall = pitch * dice.uniform(0.5, 0.85)
                kind, paint = (Label.CLUTTER, look.anything()) if boxes else (label, Paint(look.anything().rgb, BOOKS))
                front = y - dice.uniform(0.01, 0.09)
                kit.box((at, at + run), (-y + 0.02, front), (z, z + tall), kind, paint)
            at += run + (dice.uniform(0.0, 0.06) if not boxes else dice.uniform(0.02, 0.15))


def cabinet(kit: Kit, dice: Dice, look: Look, w: float, d: float, height: float) -> None:
    """Draw a closed cupboard or filing cabinet; clutter in S3DIS, though it may look like a bookcase or a table."""
    label = Label.CLUTTER
    paint = look.metal_paint() if dice.chance(0.5) else look.wood()
    x, y = w / 2, d / 2
    kit.box((-x, x), (-y, y - 0.02), (0.04, height), label, paint)
    rows = max(1, int(height / dice.uniform(0.3, 0.7)))
    front = Paint(look.wood().rgb, PLAIN) if dice.chance(0.3) else paint
    for i in range(rows):
        z = 0.06 + i * (height - 0.08) / rows
        kit.box((-x + 0.01, x - 0.01), (y - 0.02, y), (z, z + (height - 0.08) / rows - 0.02), label, front)
        kit.box((-0.06, 0.06), (y, y + 0.02), (z + 0.15, z + 0.17), label, look.metal_paint())
