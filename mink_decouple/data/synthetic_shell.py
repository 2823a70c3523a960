"""The building itself: walls with their openings, doors, windows, columns, beams and boards."""

from __future__ import annotations

from mink_decouple.data.synthetic_plan import Plan
from mink_decouple.data.synthetic_shapes import QUARTERS, Kit, Label, turn_of
from mink_decouple.data.synthetic_style import GLASS, PLAIN, TILES, Dice, Look, Paint


def add_door(plan: Plan, sides: tuple[int, ...] = (0, 1, 2, 3), open_chance: float = 0.3) -> bool:
    """Cut a doorway into a wall and hang a door in it, closed or open; return False if no wall was free."""
    dice, look = plan.dice, plan.look
    double = dice.chance(0.15)
    w, h = dice.uniform(0.82, 1.0) * (1.7 if double else 1.0), min(dice.uniform(1.98, 2.2), plan.height - 0.15)
    found = plan.spot(w + 0.14, (0.0, h + 0.07), opening=True, sides=sides, clear=0.6)
    if found is None:
        return False
    kit, label = plan.wall_kit(*found), Label.DOOR
    trim = look.trim if dice.chance(0.5) else look.metal_paint()
    for x in (-w / 2 - 0.07, w / 2):
        kit.box((x, x + 0.07), (-0.14, 0.03), (0.0, h), label, trim)
    kit.box((-w / 2 - 0.07, w / 2 + 0.07), (-0.14, 0.03), (h, h + 0.07), label, trim)
    paint = look.wall() if dice.chance(0.12) else look.wood()
    glass, leaves = dice.chance(0.2), 2 if double else 1
    leaf_w, recess = w / leaves, dice.uniform(0.03, 0.1)
    for i in range(leaves):
        angle = dice.uniform(0.5, 1.15) if dice.chance(open_chance) and w < 1.2 else 0.0
        y = 0.01 if angle else -recess - 0.045
        x, turn = (-w / 2, turn_of(angle)) if i == 0 else (w / 2, (-1.0, 0.0))
        _leaf(kit.place(x, y if i == 0 else y + 0.045, 0.0, turn), look, leaf_w, h, paint, glass)
    return True


def _leaf(kit: Kit, look: Look, w: float, h: float, paint: Paint, glass: bool) -> None:
    label, metal = Label.DOOR, look.metal_paint()
    if glass:
        for x in (0.0, w - 0.12):
            kit.box((x, x + 0.12), (0.0, 0.045), (0.01, h), label, paint)
        for z in ((0.01, 0.25), (h - 0.12, h)):
            kit.box((0.0, w), (0.0, 0.045), z, label, paint)
        kit.box((0.12, w - 0.12), (0.018, 0.027), (0.25, h - 0.12), label, Paint((0.45, 0.52, 0.52), GLASS))
    else:
        kit.box((0.0, w), (0.0, 0.045), (0.01, h), label, paint)
    for y in (-0.05, 0.06):
        kit.box((w - 0.2, w - 0.06), (y, y + 0.03), (1.0, 1.03), label, metal)


def add_window(plan: Plan, sides: tuple[int, ...], w: float, h: float, sill: float) -> bool:
    """Cut a window into a wall, with frame, panes, sill, at times a blind; return False if no wall was free."""
    dice, look, label = plan.dice, plan.look, Label.WINDOW
    h = min(h, plan.height - 0.2 - sill)
    found = plan.spot(w, (sill, sill + h), opening=True, sides=sides)
    if found is None:
        return False
    kit, back = plan.wall_kit(*found), -dice.uniform(0.09, 0.17)
    frame = look.metal_paint() if dice.chance(0.5) else look.wood() if dice.chance(0.4) else look.wall()
    x, rim = w / 2, 0.06
    for side in (-x, x - rim):
        kit.box((side, side + rim), (back - 0.03, back + 0.03), (sill, sill + h), label, frame)
    for z in (sill, sill + h - rim):
        kit.box((-x, x), (back - 0.03, back + 0.03), (z, z + rim), label, frame)
    panes = max(1, int(w / dice.uniform(0.55, 1.0)))
    for i in range(1, panes):
        at = -x + w * i / panes
        kit.box((at - 0.025, at + 0.025), (back - 0.025, back + 0.025), (sill, sill + h), label, frame)
    sky = dice.uniform(0.35, 0.85)
    kit.box((-x, x), (back - 0.008, back), (sill, sill + h), label, Paint((sky * 0.7, sky * 0.87, sky), GLASS))
    if sill > 0.3:
        kit.box(
            (-x - 0.03, x + 0.03), (back, 0.06), (sill - 0.03, sill), label, look.wall() if dice.chance(0.5) else frame
        )
    if dice.chance(0.25):
        blind = look.wall() if dice.chance(0.5) else look.board()
        kit.box((-x + 0.01, x - 0.01), (-0.07, -0.05), (sill + h * dice.uniform(0.0, 0.8), sill + h), label, blind)
    return True


def add_column(plan: Plan, where: str) -> bool:
    """Stand a column ``free``, at a ``wall`` or in a ``corner``; return False if no place was found."""
    dice, look, label = plan.dice, plan.look, Label.COLUMN
    a, b = dice.uniform(0.28, 0.55), dice.uniform(0.28, 0.55)
    paint = look.wall() if dice.chance(0.5) else look.metal_paint() if dice.chance(0.4) else look.wood()
    if where == "corner":
        side = dice.count(0, 3)
        u = plan.wall_length(side) - a / 2
        x, y = plan.wall_point(side, u, b / 2)
        if not plan.is_free(x, y, 0.3):
            return False
        plan.floor.append((x - 0.3, y - 0.3, x + 0.3, y + 0.3))
        plan.taken[side].append((u - a / 2, 0.0, u + a / 2, plan.height))
        plan.taken[(side + 1) % 4].append((0.0, 0.0, b, plan.height))
        kit = plan.wall_kit(side, u, b / 2)
    elif where == "wall":
        found = plan.spot(a, (0.0, plan.height), b)
        if found is None:
            return False
        kit = plan.wall_kit(found[0], found[1], b / 2 - 0.02)
    else:
        spot = plan.free(a + 0.1, b + 0.1, 0.6)
        if spot is None:
            return False
        kit = spot
        if dice.chance(0.4):
            kit.rod(0, 0, (0.0, plan.height), a / 2, label, paint)
            return True
    kit.box((-a / 2, a / 2), (-b / 2, b / 2), (0.0, plan.height), label, paint)
    return True


def add_shaft(plan: Plan) -> None:
    """Build a duct shaft into a wall: wall in S3DIS, and much like a column."""
    dice = plan.dice
    w, d = dice.uniform(0.6, 1.3), dice.uniform(0.15, 0.45)
    found = plan.spot(w, (0.0, plan.height), d)
    if found is not None:
        kit = plan.wall_kit(found[0], found[1], d / 2)
        kit.box((-w / 2, w / 2), (-d / 2, d / 2), (0.0, plan.height), Label.WALL, plan.look.wall())


def add_beam(plan: Plan) -> None:
    """Hang a beam below the ceiling, across the room or along a wall."""
    dice, look = plan.dice, plan.look
    along = dice.count(0, 1)
    length, across = (plan.depth, plan.width) if along else (plan.width, plan.depth)
    w, drop = dice.uniform(0.2, 0.42), min(dice.uniform(0.22, 0.45), plan.height - 2.1)
    at = w / 2 if dice.chance(0.25) else dice.uniform(w, across - w)
    x, y = (at, length / 2) if along else (length / 2, at)
    kit = plan.kit.place(x, y, 0.0, QUARTERS[along])
    paint = look.ceiling if dice.chance(0.5) else look.wall() if dice.chance(0.6) else look.wood()
    z = (plan.height - drop, plan.height + 0.02)
    kit.box((-length / 2, length / 2), (-w / 2, w / 2), z, Label.BEAM, Paint(paint.rgb, PLAIN))


def add_soffit(plan: Plan) -> None:
    """Lower a strip of the ceiling along a wall: ceiling in S3DIS, and much like a beam."""
    side = plan.dice.count(0, 3)
    w, drop, length = plan.dice.uniform(0.5, 1.1), plan.dice.uniform(0.1, 0.25), plan.wall_length(side)
    kit = plan.wall_kit(side, length / 2, w / 2)
    kit.box(
        (-length / 2, length / 2),
        (-w / 2, w / 2),
        (plan.height - drop, plan.height + 0.02),
        Label.CEILING,
        plan.look.ceiling,
    )


def draw_board(kit: Kit, dice: Dice, look: Look, w: float, h: float, z: float) -> None:
    """Draw a white, black or pin board on y = 0: frame, panel, tray."""
    label, depth = Label.BOARD, dice.uniform(0.03, 0.07)
    kit.box((-w / 2, w / 2), (0.0, depth), (z, z + h), label, look.metal_paint() if dice.chance(0.6) else look.wood())
    kit.box((-w / 2 + 0.03, w / 2 - 0.03), (depth, depth + 0.004), (z + 0.03, z + h - 0.03), label, look.board())
    if dice.chance(0.6):
        kit.box((-w / 3, w / 3), (0.0, 0.08), (z - 0.02, z), label, look.metal_paint())


def add_board(plan: Plan) -> bool:
    """Hang a board on a wall; return False if no wall was free."""
    w, h, z = plan.dice.uniform(1.0, 2.1), plan.dice.uniform(0.9, 1.2), plan.dice.uniform(0.8, 1.0)
    found = plan.spot(w, (z, z + h))
    if found is None:
        return False
    draw_board(plan.wall_kit(*found), plan.dice, plan.look, w, h, z)
    return True


def draw_shell(plan: Plan) -> None:
    """Draw floor, ceiling and the four walls around their openings; call it when all openings are cut."""
    dice, look, kit = plan.dice, plan.look, plan.kit
    w, d, h, thick = plan.width, plan.depth, plan.height, 0.2
    kit.place(0, 0).box((-thick, w + thick), (-thick, d + thick), (-0.2, 0.0), Label.FLOOR, look.floor)
    top = kit.place(0, 0)
    top.box((-thick, w + thick), (-thick, d + thick), (h, h + 0.2), Label.CEILING, look.ceiling)
    if look.ceiling.pattern == TILES:
        for _ in range(dice.count(2, 6)):
            x, y = dice.uniform(0.5, w - 0.5), dice.uniform(0.5, d - 0.5)
            top.box(
                (x - 0.3, x + 0.3), (y - 0.3, y + 0.3), (h - 0.006, h), Label.CEILING, Paint((0.97, 0.97, 0.95), PLAIN)
            )
    accent = dice.count(0, 15)
    for side in range(4):
        length, paint = plan.wall_length(side), look.wall()
        if side == accent:
            paint = Paint(look.fabric().rgb, PLAIN)
        wall = plan.wall_kit(side, 0.0)
        skirt = look.trim if dice.chance(0.5) else None
        at = -thick
        for u0, z0, u1, z1 in sorted(plan.openings[side]):
            wall.box((at, u0 + 0.03), (-thick, 0.0), (0.0, h), Label.WALL, paint)
            if z0 > 0.05:
                wall.box((u0, u1), (-thick, 0.0), (0.0, z0), Label.WALL, paint)
            wall.box((u0, u1), (-thick, 0.0), (z1, h), Label.WALL, paint)
            if skirt is not None:
                wall.box((max(at, 0.0), u0 + 0.03), (0.0, 0.014), (0.0, 0.1), Label.WALL, skirt)
            at = u1 - 0.03
        wall.box((at, length + thick), (-thick, 0.0), (0.0, h), Label.WALL, paint)
        if skirt is not None:
            wall.box((max(at, 0.0), length), (0.0, 0.014), (0.0, 0.1), Label.WALL, skirt)
