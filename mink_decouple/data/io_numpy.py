"""NumPy files: `.npz` with named arrays, `.npy` with a table. Pickled objects are never loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mink_decouple.data.cloud import PointCloud, from_world
from mink_decouple.data.io_columns import (
    LABEL_NAMES,
    cloud_from_columns,
    columns_from_cloud,
    first_of,
    one_line,
    standard_dtype,
    unit_rgb,
    unnamed_columns,
    whole_numbers,
)

#: Arrays read as the coordinates, in order of precedence, compared in lower case.
COORD_NAMES = ("coords", "coord", "xyz", "points", "pos")
_COLOR_NAMES = ("rgb", "color", "colors", "colour")


def read_npy(path: Path, columns: Sequence[str] | None = None) -> PointCloud:
    """Read a structured array by its field names, or a plain (N, k) array by `columns` or the defaults for k."""
    table = read_arrays(path)
    if not isinstance(table, np.ndarray):
        raise ValueError(f"{path}: holds several arrays; give it the suffix .npz")
    if table.dtype.names:
        return cloud_from_columns(path, {name: table[name] for name in table.dtype.names})
    if table.ndim != 2 or table.shape[1] < 3 or table.dtype.kind not in "iuf":
        raise ValueError(f"{path}: needs a (N, 3 or more) array of numbers, found {table.shape} {table.dtype}")
    names = unnamed_columns(path, table.shape[1], columns)
    return cloud_from_columns(path, {name: table[:, index] for index, name in enumerate(names)})


def write_npy(path: Path, cloud: PointCloud) -> None:
    """Write a plain (N, 3) array, or a structured array with one field per column where there is more."""
    columns = columns_from_cloud(cloud)
    if len(columns) == 3:
        table = np.stack(list(columns.values()), axis=1)
    else:
        table = np.empty(len(cloud), dtype=[(name, column.dtype) for name, column in columns.items()])
        for name, column in columns.items():
            table[name] = column
    with path.open("wb") as stream:  # by a name, NumPy appends a suffix that is not in lower case
        np.save(stream, table, allow_pickle=False)


def read_npz(path: Path) -> PointCloud:
    """Read named arrays.

    `coords` (or coord, xyz, points, pos; or x, y, z) with an optional `offset` (3,), `rgb` (or color, colors), labels
    under any of `LABEL_NAMES`; every other array of one row per point is a feature.
    """
    arrays = read_arrays(path)
    if isinstance(arrays, np.ndarray):
        raise ValueError(f"{path}: holds a single array; give it the suffix .npy")
    key = first_of(arrays, COORD_NAMES)
    if key is None:
        return cloud_from_columns(path, arrays)
    xyz = arrays.pop(key)
    if xyz.ndim != 2 or xyz.shape[1] != 3 or xyz.dtype.kind not in "iuf":
        raise ValueError(f"{path}: '{key}' must be (N, 3) numbers, found {xyz.shape} {xyz.dtype}")
    if len(xyz) == 0:
        raise ValueError(f"{path}: no points")
    offset = np.asarray(arrays.pop("offset"), dtype=np.float64) if "offset" in arrays else None
    if offset is not None and offset.shape != (3,):
        raise ValueError(f"{path}: 'offset' must be three numbers, found {offset.shape}")
    labels = None
    key = first_of(arrays, LABEL_NAMES)
    if key is not None:
        labels = whole_numbers(arrays.pop(key), f"{path}: '{key}'")
    features = {}
    key = first_of(arrays, _COLOR_NAMES)
    if key is not None and arrays[key].shape == (len(xyz), 3):
        features["rgb"] = unit_rgb(path, arrays.pop(key))
    features.update({name: standard_dtype(name, column) for name, column in arrays.items()})
    if offset is None:
        cloud = from_world(str(path), xyz, features, labels)
    else:
        cloud = PointCloud(str(path), xyz.astype(np.float32), offset, features, labels)
    return replace(cloud, name=path.stem)


def write_npz(path: Path, cloud: PointCloud) -> None:
    """Write `coords`, `offset`, `labels` and each feature under its own name, shape and dtype; compressed."""
    arrays: dict[str, np.ndarray] = {"coords": cloud.coords, "offset": cloud.offset}
    if cloud.labels is not None:
        arrays["labels"] = cloud.labels
    taken = sorted((set(arrays) | set(LABEL_NAMES)) & set(cloud.features)) if cloud.labels is not None else []
    taken = taken or sorted(set(arrays) & set(cloud.features))
    if taken:
        raise ValueError(f"{path}: features {taken} would be written under a name already in use")
    with path.open("wb") as stream:
        columns = {**arrays, **cloud.features}
        np.savez_compressed(stream, **columns)  # type: ignore[arg-type] # mypy takes them for `allow_pickle`


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a `.npy` file, or the named ones of a `.npz` file.

    Raises:
        ValueError: it is damaged, or holds anything but numbers.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return {name: content[name] for name in content.files}
    except Exception as error:  # NumPy, tokenize, zipfile and zlib raise a dozen types, by the place of the damage
        raise ValueError(f"{path}: damaged or not a plain NumPy file: {one_line(error)}") from error
