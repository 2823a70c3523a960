"""Between named columns, which every file format comes down to, and a `PointCloud`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mink_decouple.data.cloud import PointCloud, from_world

#: Columns read as labels, in order of precedence, compared in lower case without CloudCompare's `scalar_`.
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "classification",
    "semantic",
    "semantic_label",
    "sem_label",
    "sem_class",
    "class_id",
    "category",
)
#: Meaning of the columns where a file gives only numbers, by their count.
UNNAMED_COLUMNS = {
    3: ("x", "y", "z"),
    4: ("x", "y", "z", "intensity"),
    6: ("x", "y", "z", "red", "green", "blue"),
}
#: Columns read as the feature `normal` where all three are there, compared as `LABEL_NAMES`; the first are written.
NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"))
_ALIASES = {
    "r": "red",
    "g": "green",
    "b": "blue",
    "returnnumber": "return_number",
    "numberofreturns": "number_of_returns",
}
_KNOWN = {"x", "y", "z", "red", "green", "blue", "intensity", "remission", "return_number", "number_of_returns"}


def cloud_from_columns(path: Path, columns: Mapping[str, np.ndarray]) -> PointCloud:
    """Sort the columns of a file into coordinates, colour, labels and other features.

    Args:
        path: the file, for the name (stem) and for messages.
        columns: name -> (N,) array, or (N, k) for features without a meaning here. `x`, `y`, `z` are needed; `red`,
            `green`, `blue` become `rgb`, one of `NORMALS` `normal`; the first of `LABEL_NAMES` becomes the labels; the
            rest keep name and dtype.

    Raises:
        ValueError: missing coordinates, no points, NaN coordinates, or labels that are not whole numbers.
    """
    named = {_standard(key): value for key, value in columns.items()}
    if len(named) < len(columns):
        raise ValueError(f"{path}: columns repeat one name: {', '.join(columns)}")
    missing = [axis for axis in "xyz" if axis not in named]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; found: {', '.join(columns) or 'none'}")
    xyz = np.stack([np.asarray(named.pop(axis), dtype=np.float64) for axis in "xyz"], axis=1)
    if len(xyz) == 0:
        raise ValueError(f"{path}: no points")
    labels = None
    for key in LABEL_NAMES:
        found = next((name for name in named if _plain(name) == key), None)
        if found is not None:
            labels = whole_numbers(named.pop(found), f"{path}: column '{found}'")
            break
    features: dict[str, np.ndarray] = {}
    if all(channel in named for channel in ("red", "green", "blue")):
        features["rgb"] = unit_rgb(path, np.stack([named.pop(c) for c in ("red", "green", "blue")], axis=1))
    plain = {_plain(name): name for name in named}
    for axes in NORMALS:
        if "normal" not in plain and all(axis in plain for axis in axes):
            features["normal"] = np.stack([named.pop(plain[axis]) for axis in axes], axis=1).astype(np.float32)
            break
    for key, column in named.items():
        features[key] = standard_dtype(key, np.ascontiguousarray(column))
    return replace(from_world(str(path), xyz, features, labels), name=path.stem)


def standard_dtype(key: str, column: np.ndarray) -> np.ndarray:
    """Give features with a fixed meaning their dtype: `intensity`, `remission` float32, return counts uint8."""
    if key in ("intensity", "remission"):
        return column.astype(np.float32)
    if key in ("return_number", "number_of_returns"):
        return column.astype(np.uint8)
    return column


def unit_rgb(path: Path, color: np.ndarray) -> np.ndarray:
    """Bring colours (N, 3) to float32 in 0..1.

    uint8 is divided by 255. Other integers, and floats above 1, hold 8 bits where no value passes 255, else 16 bits.
    NaN stays NaN, for those who ask for colours to refuse.
    """
    highest = float(np.fmax.reduce(color, axis=None, initial=0))
    if np.fmin.reduce(color, axis=None, initial=0) < 0 or highest > 65535:
        raise ValueError(f"{path}: colours must be 0..1, 0..255 or 0..65535, found up to {highest:g}")
    if color.dtype.kind == "f" and highest <= 1:
        return color.astype(np.float32)
    return (color / (255.0 if color.dtype == np.uint8 or highest <= 255 else 65535.0)).astype(np.float32)


def columns_from_cloud(cloud: PointCloud) -> dict[str, np.ndarray]:
    """Columns of a cloud in writing order: x y z, red green blue, other features, label; all one-dimensional.

    x, y, z are world coordinates in float64 where the cloud has an offset, else float32. Colours become uint8, `normal`
    (N, 3) nx ny nz, other (N, k) features `name_0` ... `name_{k-1}`. `label` is int32 where the ids fit, else int64.
    """
    xyz = cloud.world() if cloud.offset.any() else cloud.coords
    columns = {axis: xyz[:, index] for index, axis in enumerate("xyz")}
    if "rgb" in cloud.features:
        color = np.rint(np.clip(cloud.features["rgb"], 0, 1) * 255).astype(np.uint8)
        columns.update({channel: color[:, index] for index, channel in enumerate(("red", "green", "blue"))})
    for key, column in cloud.features.items():
        if key == "rgb":
            continue
        if column.ndim == 1:
            parts = {key: column}
        else:
            is_normal = key == "normal" and column.shape[1] == 3
            names = NORMALS[0] if is_normal else [f"{key}_{i}" for i in range(column.shape[1])]
            parts = {name: column[:, i] for i, name in enumerate(names)}
        for name, part in parts.items():
            if name in columns or (cloud.labels is not None and name == "label"):
                raise ValueError(f"{cloud.name}: feature '{name}' would be written under a name already in use")
            columns[name] = part
    if cloud.labels is not None:
        columns["label"] = narrow(cloud.labels)
    return columns


def narrow(column: np.ndarray) -> np.ndarray:
    """Change to a dtype every format knows: bool to uint8, float16 to float32, int64 to int32 where it fits."""
    if column.dtype == bool:
        return column.astype(np.uint8)
    if column.dtype == np.float16:
        return column.astype(np.float32)
    if column.dtype in (np.int64, np.uint64, np.uint32):
        limits = np.iinfo(np.int32)
        if column.size == 0 or (column.min() >= limits.min and column.max() <= limits.max):
            return column.astype(np.int32)
    return column


def portable(path: Path, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns with names without blanks and dtypes of at most 32-bit integers, as PLY needs them."""
    result = {}
    for key, column in columns.items():
        column = narrow(column)
        if column.dtype.kind not in "iuf" or (column.dtype.kind in "iu" and column.dtype.itemsize == 8):
            raise ValueError(f"{path}: column '{key}' ({column.dtype}) does not fit; numbers of up to 32 bits are kept")
        result["_".join(key.split())] = column
    return result


def single(path: Path, key: str, column: np.ndarray) -> np.ndarray:
    """A feature of one number a point as (N,). Raises ValueError naming file and feature where it has more."""
    if column.ndim == 2 and column.shape[1] != 1:
        raise ValueError(f"{path}: feature '{key}' has {column.shape[1]} numbers a point, the format keeps one")
    return column.reshape(len(column))


def whole_numbers(column: np.ndarray, where: str) -> np.ndarray:
    """Return labels as int64, NaN as -1; ValueError naming the first row where one is no whole number.

    NaN is what CloudCompare writes for the points that a merged cloud without such a column brought in.
    """
    column = np.asarray(column)
    if column.ndim != 1 or column.dtype.kind not in "biuf":
        raise ValueError(f"{where} must be one whole number per point, found {column.shape} {column.dtype}")
    if column.dtype.kind == "f":
        column = np.where(np.isnan(column), -1, column)
        bad = np.flatnonzero(~(np.isfinite(column) & (column == np.rint(column))))
        if len(bad):
            raise ValueError(f"{where} must hold whole numbers, found {column[bad[0]]} at row {bad[0]}")
    return column.astype(np.int64)


def unnamed_columns(path: Path, count: int, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names for `count` columns of bare numbers: `given`, or the default for that count."""
    if given is not None:
        if len(given) != count:
            raise ValueError(f"{path}: {count} columns, but {len(given)} names were given: {', '.join(given)}")
        if len(given) < 3:
            raise ValueError(f"{path}: columns {list(given)}: need three at least, x, y and z")
        if len(set(given)) < len(given):
            raise ValueError(f"{path}: columns repeat one name: {', '.join(given)}")
        return tuple(given)
    if count not in UNNAMED_COLUMNS:
        raise ValueError(
            f"{path}: {count} columns without names; name them (--columns, `columns` in the classes file, or a first "
            f"line such as 'x y z red green blue label'). Without names only {_choices()} are read"
        )
    return UNNAMED_COLUMNS[count]


def _choices() -> str:
    return ", ".join(f"{count} ({' '.join(names)})" for count, names in UNNAMED_COLUMNS.items())


def _plain(name: str) -> str:
    lower = name.strip().lower()
    return lower[len("scalar_") :] if lower.startswith("scalar_") else lower


def _standard(name: str) -> str:
    plain = _plain(name)
    plain = _ALIASES.get(plain, plain)
    return plain if plain in _KNOWN else name.strip()


def first_of(names: Iterable[str], choices: Sequence[str]) -> str | None:
    """The first of `choices` that occurs in `names` (compared in lower case), spelled as in `names`."""
    lower = {name.lower(): name for name in names}
    return next((lower[choice] for choice in choices if choice in lower), None)


def one_line(error: BaseException) -> str:
    """The message of a parser's error on one line of at most 160 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."
