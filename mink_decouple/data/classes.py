"""Class names, colours and the map between raw ids in files and train ids 0..C-1."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

IGNORE = -1


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a dataset, in train-id order.

    Attributes:
        names: C class names.
        colors: (C, 3) uint8.
        raw_ids: raw id -> train id; several raw ids may share a train id.
        ignored: raw ids that become -1.

    Raises:
        ValueError: a repeated name, a class without raw id, a raw id listed twice, or colours of another shape.
    """

    names: tuple[str, ...]
    colors: np.ndarray
    raw_ids: dict[int, int]
    ignored: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """Check names, colours and ids against each other."""
        count = len(self.names)
        if count == 0:
            raise ValueError("classes: at least one class is needed")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ValueError(f"classes: repeated names {repeated}")
        if self.colors.shape != (count, 3) or self.colors.dtype != np.uint8:
            raise ValueError(
                f"classes: colors must be ({count}, 3) uint8, found {self.colors.shape} {self.colors.dtype}"
            )
        outside = sorted({train for train in self.raw_ids.values() if not 0 <= train < count})
        if outside:
            raise ValueError(f"classes: train ids {outside} are outside 0..{count - 1}")
        without = [name for index, name in enumerate(self.names) if index not in self.raw_ids.values()]
        if without:
            raise ValueError(f"classes: no raw id for {without}")
        both = sorted(self.ignored & set(self.raw_ids))
        if both:
            raise ValueError(f"classes: raw ids {both} are both ignored and given to a class")

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.names)

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """Map raw ids (any integer array) to train ids, int64 of the same shape; ignored ids become -1.

        Raises:
            ValueError: an id that is neither given to a class nor ignored.
        """
        raw = np.asarray(raw)
        table = {**self.raw_ids, **dict.fromkeys(self.ignored, IGNORE)}
        keys = np.array(sorted(table), dtype=np.int64)
        values = np.array([table[int(key)] for key in keys], dtype=np.int64)
        place = np.minimum(np.searchsorted(keys, raw), len(keys) - 1)
        unknown = keys[place] != raw
        if unknown.any():
            found = np.unique(raw[unknown])
            ids = ", ".join(str(value) for value in found[:5]) + (", ..." if len(found) > 5 else "")
            none = "; -1, and NaN, which is read as -1, stand for no label: put -1 under ignore" if -1 in found else ""
            raise ValueError(
                f"raw id {ids} ({int(unknown.sum())} points) is not among the classes {sorted(self.raw_ids)} "
                f"nor ignored {sorted(self.ignored)}{none}"
            )
        return values[place]

    def decode(self, train: np.ndarray) -> np.ndarray:
        """Map train ids to raw ids, int64 of the same shape.

        A class with several raw ids gives the one listed first; -1 gives the smallest ignored id.

        Raises:
            ValueError: a train id outside -1..C-1, or -1 where no raw id is ignored.
        """
        train = np.asarray(train)
        count = len(self.names)
        if train.size and (train.min() < IGNORE or train.max() >= count):
            raise ValueError(f"train ids must lie in -1..{count - 1}, found {int(train.min())}..{int(train.max())}")
        if not self.ignored and (train == IGNORE).any():
            raise ValueError("train id -1 has no raw id: these classes ignore none")
        table = np.full(count + 1, min(self.ignored, default=IGNORE), dtype=np.int64)
        for raw, index in reversed(self.raw_ids.items()):
            table[index] = raw
        return table[train]


def default_palette(count: int) -> np.ndarray:
    """Colours for `count` classes, (count, 3) uint8: the same every time, a prefix of any longer palette.

    Hues advance by the golden ratio, so neighbours in the list differ most.
    """
    colors = np.zeros((count, 3), dtype=np.uint8)
    for index in range(count):
        hue = (0.08 + index * 0.6180339887498949) % 1.0
        saturation = (0.75, 0.5, 0.95)[index % 3]
        value = (0.9, 0.7, 0.5)[(index // 3) % 3]
        colors[index] = [round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value)]
    return colors


def classes_from_mapping(content: Any, source: str) -> Classes:
    """Build classes from the content of a `classes.yaml`.

    Args:
        content: `{"classes": {name: {"raw": [ids], "color": [r, g, b]}}, "ignore": [ids]}`; the order of `classes`
            is the order of train ids and `color` is optional. A plain list of names stands for raw ids 0..C-1.
        source: file name for error messages.

    Raises:
        ValueError: an entry of another form; the message names `source`, the class and the value.
    """
    if not isinstance(content, Mapping) or not content.get("classes"):
        raise ValueError(f"{source}: needs a key 'classes' with at least one class")
    entries = content["classes"]
    if isinstance(entries, list):
        repeated = [name for index, name in enumerate(entries) if name in entries[:index]]
        if repeated:
            raise ValueError(f"{source}: class {repeated[0]!r} is listed twice")
        if not all(isinstance(name, str) for name in entries):
            raise ValueError(f"{source}: 'classes' as a list must hold names, found {entries!r}")
        entries = {name: {"raw": index} for index, name in enumerate(entries)}
    if not isinstance(entries, Mapping):
        raise ValueError(f"{source}: 'classes' must map names to raw ids, found {entries!r}")
    colors = default_palette(len(entries))
    raw_ids: dict[int, int] = {}
    for index, (name, entry) in enumerate(entries.items()):
        if not isinstance(name, str):
            raise ValueError(f"{source}: class name {name!r} is not text; put it in quotes")
        if not isinstance(entry, Mapping) or "raw" not in entry or set(entry) - {"raw", "color"}:
            raise ValueError(f"{source}: class '{name}' must be {{raw: [ids], color: [r, g, b]}}, found {entry!r}")
        for raw in _ids(entry["raw"], f"{source}: raw of class '{name}'"):
            if raw in raw_ids:
                raise ValueError(f"{source}: raw id {raw} is listed twice, the second time in class '{name}'")
            raw_ids[raw] = index
        if "color" in entry:
            color = _ids(entry["color"], f"{source}: color of class '{name}'")
            if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
                raise ValueError(f"{source}: color of class '{name}' must be three numbers 0..255, found {color}")
            colors[index] = color
    ignored = frozenset(_ids(content.get("ignore") or [], f"{source}: ignore"))
    try:
        return Classes(tuple(entries), colors, raw_ids, ignored)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def read_yaml(path: str | Path) -> Any:
    """Content of a YAML file through `yaml.safe_load`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML; the message names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error


def load_classes(path: str | Path) -> Classes:
    """Read a `classes.yaml` (see `classes_from_mapping`); other keys such as `splits` are left to the dataset."""
    return classes_from_mapping(read_yaml(path), str(path))


def save_classes(path: str | Path, classes: Classes) -> None:
    """Write `classes` as a `classes.yaml` that `load_classes` reads back, replacing `path` in one step."""
    path = Path(path)
    lines = ["classes:  # order = train ids"]
    for index, name in enumerate(classes.names):
        raw = [key for key, train in classes.raw_ids.items() if train == index]
        entry = yaml.safe_dump(
            {name: {"raw": raw, "color": classes.colors[index].tolist()}}, default_flow_style=None, width=1000
        )
        lines += ["  " + line for line in entry.splitlines()]
    lines.append(f"ignore: {sorted(classes.ignored)}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _ids(value: Any, where: str) -> list[int]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in values):
        raise ValueError(f"{where} must be whole numbers, found {value!r}")
    return values


# Order and colours of the PointNet and RandLA-Net releases; other projects swap table/chair and sofa/bookcase.
_S3DIS_COLORS = {
    "ceiling": (0, 255, 0),
    "floor": (0, 0, 255),
    "wall": (0, 255, 255),
    "beam": (255, 255, 0),
    "column": (255, 0, 255),
    "window": (100, 100, 255),
    "door": (200, 200, 100),
    "table": (170, 120, 200),
    "chair": (255, 0, 0),
    "sofa": (200, 100, 100),
    "bookcase": (10, 200, 100),
    "board": (200, 200, 200),
    "clutter": (50, 50, 50),
}

#: The 13 classes of S3DIS (Armeni et al., CVPR 2016); raw ids equal train ids, -1 is ignored.
S3DIS = Classes(
    names=tuple(_S3DIS_COLORS),
    colors=np.array(list(_S3DIS_COLORS.values()), dtype=np.uint8),
    raw_ids={index: index for index in range(len(_S3DIS_COLORS))},
    ignored=frozenset({IGNORE}),
)
