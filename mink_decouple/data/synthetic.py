"""The embedded default dataset: procedural buildings with S3DIS' 13 classes, their shares and their Area 5.

Nothing is downloaded. A room follows from ``(seed, area, index)`` alone, the same bytes everywhere, and is kept in a
cache folder.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from mink_decouple.data.classes import S3DIS, Classes
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.synthetic_rooms import build_room, room_kind
from mink_decouple.data.synthetic_scan import scan
from mink_decouple.data.synthetic_shapes import QUARTERS, compose, turn_of
from mink_decouple.data.synthetic_style import HELD_OUT_AREA, Dice, Difficulty, area_style

GENERATOR_VERSION = 2
"""Part of every cache key: raise it with any change that alters a room."""

DIFFICULTY = Difficulty()
"""The knobs of the default dataset."""

CACHE_VARIABLE = "MINK_DECOUPLE_CACHE"


def room_name(area: int, index: int) -> str:
    """Return the S3DIS-like name of room ``index`` (from 0) of an area, e.g. ``Area_1_office_3``: the third office."""
    kind = room_kind(area, index)
    return f"Area_{area}_{kind}_{sum(room_kind(area, i) == kind for i in range(index + 1))}"


def _arrays(area: int, index: int, seed: int, points: int, difficulty: Difficulty) -> dict[str, np.ndarray]:
    dice = Dice(seed, area, index)
    style = area_style(seed, area, difficulty)
    plan = build_room(dice, style, difficulty, area, index)
    xyz, rgb, labels = scan(dice, plan.kit.parts(), (plan.width, plan.depth), style, difficulty, points)
    c, s = compose(dice.pick(QUARTERS), turn_of(dice.uniform(-0.03, 0.03)))
    x, y = c * xyz[:, 0] - s * xyz[:, 1], s * xyz[:, 0] + c * xyz[:, 1]
    corner = (dice.uniform(-20.0, 20.0), dice.uniform(-20.0, 20.0), dice.uniform(-0.05, 0.05))
    placed = np.stack([x + corner[0], y + corner[1], xyz[:, 2] + corner[2]], axis=1)
    return {
        "millimetres": np.rint(placed * 1000.0).astype("<i4"),
        "rgb": np.rint(rgb * 255.0).astype("|u1"),
        "labels": labels.astype("|u1"),
    }


def _digest(arrays: dict[str, np.ndarray]) -> str:
    sha = hashlib.sha256()
    for key in ("millimetres", "rgb", "labels"):
        sha.update(np.ascontiguousarray(arrays[key]).tobytes())
    return sha.hexdigest()


def _cloud(name: str, arrays: dict[str, np.ndarray]) -> PointCloud:
    return PointCloud(
        name=name,
        coords=(arrays["millimetres"] / 1000.0).astype(np.float32),
        offset=np.zeros(3),
        features={"rgb": arrays["rgb"].astype(np.float32) / np.float32(255.0)},
        labels=arrays["labels"].astype(np.int64),
    )


def make_room(
    area: int, index: int, seed: int = 0, points: int = 45_000, difficulty: Difficulty = DIFFICULTY
) -> PointCloud:
    """Build, furnish and scan one room.

    Args:
        area: building area, from 1; 5 is in another style than the others.
        index: room of the area, from 0; it fixes the kind of room.
        seed: seed of the whole building.
        points: number of laser rays, hence the most points of the cloud.
        difficulty: the knobs of the generator.

    Returns:
        A cloud with coords (N, 3) in metres rounded to millimetres, feature ``rgb`` (N, 3) in 0..1 and labels (N,)
        as train ids of S3DIS.
    """
    return _cloud(room_name(area, index), _arrays(area, index, seed, points, difficulty))


def default_cache() -> Path:
    """Return the cache folder: ``$MINK_DECOUPLE_CACHE``, else ``~/.cache/mink_decouple``."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path(os.path.expanduser("~")) / ".cache" / "mink_decouple"


class SyntheticBuildings:
    """Procedural rooms in the areas of a building; area 5 is held out for validation and differs in style.

    Args:
        areas: number of areas, at least 2; one of them is always Area 5, which with fewer than five takes the place
            of the last.
        rooms_per_area: rooms in each area, at least 1.
        points_per_room: most points of a room, at least 1000.
        seed: seed of the buildings; another seed gives other rooms of the same kind.
        cache: folder of generated rooms; None takes :func:`default_cache`. A folder that cannot be written is done
            without.
        difficulty: the knobs of the generator.

    Attributes:
        classes: S3DIS' classes.

    Raises:
        ValueError: a number is out of range.
    """

    classes: Classes = S3DIS

    def __init__(
        self,
        areas: int = 6,
        rooms_per_area: int = 6,
        points_per_room: int = 45_000,
        seed: int = 0,
        cache: Path | None = None,
        difficulty: Difficulty = DIFFICULTY,
    ) -> None:
        for key, value, least in (
            ("areas", areas, 2),
            ("rooms_per_area", rooms_per_area, 1),
            ("points_per_room", points_per_room, 1000),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"synthetic dataset: {key} is {value}, it must be at least {least}")
        self.seed, self.points, self.difficulty = seed, points_per_room, difficulty
        self.cache = default_cache() if cache is None else Path(cache)
        numbers = list(range(1, areas + 1)) if areas >= HELD_OUT_AREA else [*range(1, areas), HELD_OUT_AREA]
        self._rooms = {room_name(a, i): (a, i) for a in numbers for i in range(rooms_per_area)}

    def scenes(self, split: str) -> list[str]:
        """Return the rooms of ``train`` (all areas but 5) or ``val`` (area 5).

        Raises:
            ValueError: the split is neither.
        """
        if split not in ("train", "val"):
            raise ValueError(f"synthetic dataset: unknown split {split!r}, choose train or val")
        return [name for name, (area, _) in self._rooms.items() if (area == HELD_OUT_AREA) == (split == "val")]

    def load(self, name: str) -> PointCloud:
        """Return a room from the cache, or make it and try to keep it there.

        Raises:
            ValueError: no room has this name.
        """
        if name not in self._rooms:
            raise ValueError(f"synthetic dataset: no room {name!r}, the rooms are {', '.join(self._rooms)}")
        area, index = self._rooms[name]
        path = self.cache / self._file_name(area, index)
        arrays = _read(path)
        if arrays is None:
            arrays = _arrays(area, index, self.seed, self.points, self.difficulty)
            _write(path, arrays)
        return _cloud(name, arrays)

    def _file_name(self, area: int, index: int) -> str:
        knobs = hashlib.sha256(repr(self.difficulty).encode()).hexdigest()[:8]
        return f"synthetic-v{GENERATOR_VERSION}-{knobs}-s{self.seed}-p{self.points}-a{area}-r{index}.npz"


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of a cached room, or None if the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("millimetres", "rgb", "labels")}
            digest = str(stored["sha256"])
    except Exception:  # NumPy, tokenize, zipfile and zlib raise a dozen types, by the place of the damage
        return None
    return arrays if digest == _digest(arrays) else None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Store a room in one step: no reader meets half a file; a folder that cannot be written is left alone."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                millimetres=arrays["millimetres"],
                rgb=arrays["rgb"],
                labels=arrays["labels"],
                sha256=np.array(_digest(arrays)),
            )
        os.replace(temporary, path)
    except OSError:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
