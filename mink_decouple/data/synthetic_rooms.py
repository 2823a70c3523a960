"""Furnish a procedural room: office, conference room, hallway, lounge, storage, copy room, pantry."""

from __future__ import annotations

from collections.abc import Callable

from mink_decouple.data import synthetic_clutter as clutter
from mink_decouple.data import synthetic_furniture as furniture
from mink_decouple.data import synthetic_shell as shell
from mink_decouple.data.synthetic_plan import Plan
from mink_decouple.data.synthetic_shapes import QUARTERS, Kit, compose, turn_of
from mink_decouple.data.synthetic_style import Dice, Difficulty, Look, Style

# Kinds of room in the order in which an area lists them. The lounge is first because it can hold every class: an
# area of one room is whole.
_CYCLE = ("lounge", "office", "hallway", "conferenceRoom", "office", "", "hallway", "office", "", "conferenceRoom")
_SERVICE = ("storage", "copyRoom", "pantry")


def room_kind(area: int, index: int) -> str:
    """Return the kind of room ``index`` (from 0) of an area."""
    return _CYCLE[index % len(_CYCLE)] or _SERVICE[(area + index // 5) % len(_SERVICE)]


def _on_top(kit: Kit, plan: Plan, w: float, d: float, top: float, n: int) -> None:
    for _ in range(n):
        x, y = plan.dice.uniform(-w / 2 + 0.15, w / 2 - 0.15), plan.dice.uniform(-d / 2 + 0.12, d / 2 - 0.12)
        clutter.small_thing(kit.place(x, y, top, turn_of(plan.dice.uniform(-0.3, 0.3))), plan.dice, plan.look)


def _loose(plan: Plan, low: int, high: int) -> int:
    return int(plan.dice.uniform(low, high + 1) * plan.difficulty.clutter)


def _desk(plan: Plan, sides: tuple[int, ...] = (0, 1, 2, 3)) -> None:
    dice, look = plan.dice, plan.look
    w, d = dice.uniform(1.2, 1.9), dice.uniform(0.7, 0.95)
    kit = plan.stand(w, d, 1.1, sides, clear=0.6)
    if kit is None:
        return
    top = furniture.table(kit, dice, look, w, d)
    seat = kit.place(
        dice.uniform(-0.2, 0.2),
        d / 2 + dice.uniform(0.1, 0.35),
        0,
        compose(QUARTERS[2], turn_of(dice.uniform(-0.35, 0.35))),
    )
    furniture.chair(seat, dice, look, "swivel" if dice.chance(0.6) else None)
    if dice.chance(0.8):
        clutter.monitor(kit.place(dice.uniform(-0.25, 0.25), -d / 2 + 0.15, top), dice, look)
    if dice.chance(0.3):
        clutter.laptop(kit.place(dice.uniform(-0.4, 0.4), 0.05, top), dice, look)
    _on_top(kit, plan, w, d, top, _loose(plan, 2, 6))
    if dice.chance(0.5 * plan.difficulty.clutter):
        clutter.computer(kit.place(w / 2 - 0.3, 0.0), dice, look)


def _bookcase(plan: Plan, boxes: bool = False) -> None:
    dice = plan.dice
    w, d, h = (
        dice.uniform(0.75, 1.35),
        dice.uniform(0.26, 0.42),
        dice.pick((0.85, 1.2, 1.8, 2.05, 2.1)) * dice.uniform(0.95, 1.05),
    )
    kit = plan.stand(w, d, min(h, plan.height - 0.1))
    if kit is not None:
        furniture.bookcase(kit, dice, plan.look, w, d, min(h, plan.height - 0.1), dice.uniform(0.5, 0.95), boxes)
        if h < 1.4:
            _on_top(kit, plan, w, d, h, _loose(plan, 0, 2))


def _cabinet(plan: Plan) -> None:
    dice = plan.dice
    w, d, h = (
        dice.uniform(0.45, 1.1),
        dice.uniform(0.36, 0.5),
        dice.pick((0.7, 1.05, 1.35, 1.9)) * dice.uniform(0.95, 1.05),
    )
    kit = plan.stand(w, d, h)
    if kit is not None:
        furniture.cabinet(kit, dice, plan.look, w, d, h)
        if h < 1.5:
            _on_top(kit, plan, w, d, h, _loose(plan, 0, 2))


def _table_with_chairs(plan: Plan, w: float, d: float, chairs: int, low: bool = False) -> None:
    dice, look = plan.dice, plan.look
    space = 0.2 if low else 0.5
    turn = dice.pick(QUARTERS[:2])
    kit = None
    for _ in range(4):
        a, b = (w, d) if turn == QUARTERS[0] else (d, w)
        kit = plan.free(a + 2 * space, b + 2 * space, 0.02, turn)
        if kit is not None:
            break
        w, d, space = w * 0.85, max(d * 0.92, 0.5), space * 0.9
    if kit is None:
        return
    top = furniture.table(kit, dice, look, w, d, dice.uniform(0.36, 0.46) if low else None)
    _on_top(kit, plan, w, d, top, _loose(plan, 2, 5))
    if not low and dice.chance(0.5):
        clutter.laptop(kit.place(0, d / 4, top), dice, look)
    design = dice.pick(look.style.chairs) if dice.chance(0.8) else None
    per_side = max(1, int((w - 0.1) / 0.62))
    places = [(-w / 2 + w * (i + 0.5) / per_side, s) for i in range(per_side) for s in (-1, 1)]
    for x, s in dice.some(places, chairs):
        out = d / 2 + dice.uniform(0.05, 0.3)
        turn = compose(QUARTERS[1 + s], turn_of(dice.uniform(-0.15, 0.15)))
        furniture.chair(kit.place(x + dice.uniform(-0.05, 0.05), s * out, 0, turn), dice, look, design)


def _sofa(plan: Plan) -> None:
    kit = plan.stand(2.0, 0.95, 0.9, clear=0.3)
    if kit is not None:
        furniture.sofa(kit, plan.dice, plan.look)


def _seat(plan: Plan, design: str | None = None) -> None:
    kit = plan.stand(0.85, 0.95, 0.9)
    if kit is not None:
        furniture.chair(kit, plan.dice, plan.look, design)


def _office(plan: Plan) -> None:
    if plan.dice.chance(0.07):
        _sofa(plan)
    for _ in range(plan.dice.count(3, 5)):
        _desk(plan)
    for _ in range(plan.dice.count(2, 3)):
        _bookcase(plan)
    for _ in range(plan.dice.count(1, 2)):
        _cabinet(plan)
    if plan.dice.chance(0.6):
        _table_with_chairs(plan, plan.dice.uniform(0.8, 1.2), 0.8, 3)
    for _ in range(plan.dice.count(1, 2)):
        _seat(plan)


def _conference(plan: Plan) -> None:
    long = max(plan.width, plan.depth)
    w, d = min(long - 1.9, plan.dice.uniform(2.0, 3.4)), plan.dice.uniform(0.9, 1.3)
    _table_with_chairs(plan, w, d, plan.dice.count(6, 10))
    for _ in range(2):
        _cabinet(plan)
        _bookcase(plan)
    for _ in range(plan.dice.count(3, 5)):
        _seat(plan)


def _hallway(plan: Plan) -> None:
    for _ in range(plan.dice.count(1, 2)):
        _seat(plan)
    for _ in range(plan.dice.count(1, 2)):
        _cabinet(plan)
    _bookcase(plan)


def _lounge(plan: Plan) -> None:
    _sofa(plan)
    for _ in range(2):
        _bookcase(plan)
    _table_with_chairs(plan, plan.dice.uniform(0.7, 1.0), plan.dice.uniform(0.5, 0.7), 0, low=True)
    for _ in range(plan.dice.count(1, 2)):
        _seat(plan, "armchair" if "armchair" in plan.look.style.chairs else None)
    _table_with_chairs(plan, plan.dice.uniform(1.0, 1.5), 0.9, 4)
    if plan.dice.chance(0.6):
        kit = plan.stand(1.6, 0.6, 2.1)
        if kit is not None:
            clutter.kitchenette(kit, plan.dice, plan.look, 1.6)


def _storage(plan: Plan) -> None:
    for _ in range(plan.dice.count(4, 6)):
        _bookcase(plan, boxes=plan.dice.chance(0.35))
    for _ in range(plan.dice.count(1, 3)):
        _cabinet(plan)
    _desk(plan)


def _copy_room(plan: Plan) -> None:
    for _ in range(plan.dice.count(1, 2)):
        kit = plan.stand(1.0, 0.72, 1.15)
        if kit is not None:
            clutter.copier(kit, plan.dice, plan.look)
    _desk(plan)
    _seat(plan)
    for _ in range(2):
        _bookcase(plan)
    for _ in range(plan.dice.count(1, 3)):
        _cabinet(plan)
    _desk(plan)


def _pantry(plan: Plan) -> None:
    w = plan.dice.uniform(1.6, 2.4)
    kit = plan.stand(w, 0.6, 2.1)
    if kit is not None:
        clutter.kitchenette(kit, plan.dice, plan.look, w)
    kit = plan.stand(0.68, 0.7, 1.9)
    if kit is not None:
        clutter.fridge(kit, plan.dice, plan.look)
    _table_with_chairs(plan, plan.dice.uniform(1.2, 1.7), 0.8, plan.dice.count(4, 6))
    _bookcase(plan)
    _cabinet(plan)


_FURNISH: dict[str, Callable[[Plan], None]] = {
    "office": _office,
    "conferenceRoom": _conference,
    "hallway": _hallway,
    "lounge": _lounge,
    "storage": _storage,
    "copyRoom": _copy_room,
    "pantry": _pantry,
}
# Width and length of a room, lowest and highest, metres.
_SIZE: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "office": ((2.7, 3.6), (3.3, 4.5)),
    "conferenceRoom": ((3.4, 4.1), (4.2, 5.4)),
    "hallway": ((1.6, 2.2), (5.0, 7.5)),
    "lounge": ((3.7, 4.4), (4.2, 5.0)),
    "storage": ((2.6, 3.4), (3.2, 4.6)),
    "copyRoom": ((2.8, 3.6), (3.4, 4.6)),
    "pantry": ((2.8, 3.5), (3.4, 4.4)),
}


def _build_shell(plan: Plan, kind: str, area: int, index: int) -> None:
    dice, alike = plan.dice, plan.difficulty.look_alikes
    rich = kind == "lounge"
    walls = dice.some((0, 1, 2, 3), 4)
    if kind == "hallway":
        for side in (1, 3):
            for _ in range(dice.count(1, 2)):
                shell.add_door(plan, (side,), 0.12)
        if dice.chance(0.5):
            shell.add_door(plan, (0, 2), 0.1)
    else:
        for i in range(2 if dice.chance(0.3) else 1):
            shell.add_door(plan, walls[:2] if i == 0 else walls)
    sill = dice.pick((0.15, 0.8, 0.9, 1.0))
    for _ in range(0 if kind == "storage" else dice.count(0, 1) if kind == "hallway" else dice.count(1, 2)):
        shell.add_window(
            plan, (0, 2) if kind == "hallway" else walls[2:], dice.uniform(0.8, 1.7), dice.uniform(1.0, 1.6), sill
        )
    if rich or dice.chance(0.5):
        for where in dice.some(("wall", "corner", "free"), 2):
            if shell.add_column(plan, where):
                break
    if dice.chance(alike):
        shell.add_shaft(plan)
    # Beams and boards are rare: alternate them over the rooms so that every area has some.
    if rich or (area + index) % 2 == 0:
        shell.add_beam(plan)
    elif dice.chance(0.5 * alike):
        shell.add_soffit(plan)
    if rich or kind == "conferenceRoom" or dice.chance(0.2):
        shell.add_board(plan)


def _strew(plan: Plan, kind: str) -> None:
    dice, look, alike = plan.dice, plan.look, plan.difficulty.look_alikes
    if dice.chance(0.5):
        w = dice.uniform(0.7, 1.3)
        found = plan.spot(w, (0.0, 0.75), 0.15)
        if found is not None:
            clutter.radiator(plan.wall_kit(*found), dice, look, w)
    for _ in range(_loose(plan, 1, 3)):
        w, h = dice.uniform(0.3, 0.7), dice.uniform(0.3, 0.7)
        if dice.chance(alike):
            w, h = dice.uniform(0.9, 1.6), dice.uniform(0.6, 1.0)
        z = dice.uniform(0.9, 1.4)
        found = plan.spot(w, (z, z + h))
        if found is not None:
            clutter.picture(plan.wall_kit(*found), dice, look, w, h, z)
    for _ in range(_loose(plan, 2, 5)):
        found = plan.spot(0.4, (0.6, 2.25))
        if found is not None:
            clutter.wall_thing(plan.wall_kit(*found), dice, look)
    for _ in range(_loose(plan, 0, 2)):
        x, y = dice.uniform(0.8, plan.width - 0.8), dice.uniform(0.8, plan.depth - 0.8)
        clutter.ceiling_thing(plan.kit.place(x, y, 0, dice.pick(QUARTERS)), dice, look, plan.height)
    kinds = (clutter.carton, clutter.carton, clutter.bin_, clutter.plant, clutter.floor_lamp, clutter.coat_stand)
    for _ in range(_loose(plan, 3, 7) + (3 if kind == "storage" else 0)):
        kit = plan.stand(0.55, 0.5, 1.2) if dice.chance(0.7) else plan.free(0.6, 0.6, 0.2, dice.pick(QUARTERS))
        if kit is not None:
            dice.pick(kinds)(kit, dice, look)


def build_room(dice: Dice, style: Style, difficulty: Difficulty, area: int, index: int) -> Plan:
    """Build and furnish room ``index`` of an area; its solids are ``plan.kit.parts()``."""
    kind = room_kind(area, index)
    (w0, w1), (d0, d1) = _SIZE[kind]
    plan = Plan(
        dice.uniform(w0, w1) * style.size,
        dice.uniform(d0, d1) * style.size,
        dice.uniform(*style.height),
        dice,
        Look(dice, style, difficulty),
        difficulty,
    )
    _build_shell(plan, kind, area, index)
    _FURNISH[kind](plan)
    _strew(plan, kind)
    shell.draw_shell(plan)
    return plan
