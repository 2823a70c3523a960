"""LAS and LAZ files through laspy and lazrs, which are imported on first use."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mink_decouple.data.cloud import PointCloud, from_world
from mink_decouple.data.io_columns import narrow, one_line, single, unit_rgb, whole_numbers

LAS = (".las", ".laz")
_SCALE = 1e-4
POINTS_PER_BYTE = 1000
"""No LAZ file packs more: ten million equal points take 100 kB."""
CHUNK_POINTS = 10_000_000
"""Chunks may be so large in any file; writers take 50,000."""
ENCODING_ERRORS = "surrogateescape"
"""How laspy is to write texts of a header that it has read, which should be ASCII and are not always."""
_RETURNS = ("return_number", "number_of_returns")


def read_las(path: Path) -> PointCloud:
    """Read coordinates, intensity, return counts, rgb (where the point format has it) and extra dimensions.

    Labels are the classification; a file where it is 0 ("never classified") throughout has none. An extra dimension
    `label` goes before it, as `write_las` writes ids beyond 0..255 there.
    """
    las = _read(path)
    if len(las.points) == 0:
        raise ValueError(f"{path}: no points")
    features = _features(las)
    if "rgb" in features:
        features["rgb"] = unit_rgb(path, features["rgb"])
    labels: np.ndarray | None = np.asarray(las.classification, dtype=np.int64)
    if "label" in features:
        labels = whole_numbers(features.pop("label"), f"{path}: dimension 'label'")
    elif not np.any(labels):
        labels = None
    cloud = from_world(str(path), las.xyz, features, labels)
    return replace(cloud, name=path.stem)


def las_points(path: Path) -> int:
    """Points that the header speaks of. Raises ValueError for a file that is no LAS file."""
    with opened(path) as reader:
        return int(reader.header.point_count)


def las_chunks(path: Path, chunk_points: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """World coordinates (n, 3) float64 and the features of `read_las`, so many points at a time.

    Whether colours have 8 or 16 bits takes a pass of its own over the file.

    Raises:
        ValueError: as `read_las`.
    """
    highest = 0
    with opened(path) as reader:
        if "red" in reader.header.point_format.dimension_names:
            for points in chunks(path, reader, chunk_points):
                highest = max(highest, *(int(np.asarray(points[c]).max()) for c in ("red", "green", "blue")))
                if highest > 255:
                    break
    with opened(path) as reader:
        if reader.header.point_count == 0:
            raise ValueError(f"{path}: no points")
        for points in chunks(path, reader, chunk_points):
            features = _features(points)
            features.pop("label", None)
            if "rgb" in features:
                features["rgb"] = (features["rgb"] / (255.0 if highest <= 255 else 65535.0)).astype(np.float32)
            yield np.stack([points.x, points.y, points.z], axis=1).astype(np.float64), features


def _features(points: Any) -> dict[str, np.ndarray]:
    """Features of points as they are stored; `rgb` (n, 3) in the file's own numbers."""
    features = {"intensity": np.asarray(points.intensity, dtype=np.float32)}
    features.update({key: np.asarray(points[key], dtype=np.uint8) for key in _RETURNS})
    if "red" in points.point_format.dimension_names:
        features["rgb"] = np.stack([np.asarray(points[c]) for c in ("red", "green", "blue")], axis=1)
    features.update({name: np.asarray(points[name]) for name in points.point_format.extra_dimension_names})
    return features


def write_las(path: Path, cloud: PointCloud, like: Path | None = None) -> None:
    """Write LAS 1.4 (compressed for `.laz`): point format 7 with colours, else 6; other features as extra dimensions.

    Coordinates are scaled integers of 0.1 mm from the cloud's offset. Labels outside 0..255 go to an extra dimension
    `label`.

    Args:
        path: target file.
        cloud: the points.
        like: a LAS file with the same points; its header, coordinate system, coordinates and all dimensions are kept,
            and only labels and features are written into them. The index of a COPC file is left out.
    """
    import laspy

    if like is not None:
        las = _read(like)
        las.vlrs, las.evlrs = without_index(las.vlrs), without_index(las.evlrs or [])
        if len(las.points) != len(cloud):
            raise ValueError(f"{path}: {len(cloud)} points, but {like} has {len(las.points)}")
    else:
        header = laspy.LasHeader(point_format=7 if "rgb" in cloud.features else 6, version="1.4")
        header.scales, header.offsets = np.full(3, _SCALE), cloud.offset
        las = laspy.LasData(header)
        try:
            las.xyz = cloud.world()
        except OverflowError as error:
            raise ValueError(f"{path}: '{cloud.name}' is too long for LAS coordinates: {error}") from error
        # A return count of 0 is invalid.
        las.return_number = las.number_of_returns = np.ones(len(cloud), dtype=np.uint8)
    dimensions = set(las.point_format.dimension_names)
    for key, column in cloud.features.items():
        if key == "rgb" and {"red", "green", "blue"} <= dimensions:
            _write_rgb(las, column)
        elif key == "intensity":
            las.intensity = np.clip(np.rint(single(path, key, column).astype(np.float64)), 0, 65535).astype(np.uint16)
        elif key in las.point_format.standard_dimension_names:
            las[key] = single(path, key, column)
        elif key in dimensions:
            las[key] = column
        elif key != "rgb":
            _write_extra(las, key, column)
    if cloud.labels is not None:
        largest = 31 if las.point_format.id < 6 else 255
        if len(cloud) == 0 or (cloud.labels.min() >= 0 and cloud.labels.max() <= largest):
            las.classification = cloud.labels.astype(np.uint8)
        else:
            _write_extra(las, "label", cloud.labels)
    las.update_header()
    with laspy.open(str(path), mode="w", header=las.header, encoding_errors=ENCODING_ERRORS) as writer:
        writer.write_points(las.points)
        if las.evlrs:
            writer.write_evlrs(las.evlrs)


def without_index(records: Any) -> Any:
    """Records of a header without those of a COPC file's octree, which laspy reads and cannot write."""
    from laspy.vlrs.vlrlist import VLRList

    return VLRList([record for record in records if record.user_id != "copc"])


def _read(path: Path) -> Any:
    with opened(path) as reader:
        expected = reader.header.point_count
        with readable(path):
            las = reader.read()
    if len(las.points) != expected:
        raise ValueError(f"{path}: truncated LAS file: {len(las.points)} of {expected} points")
    return las


def opened(path: Path) -> Any:
    """Laspy's reader. Raises ValueError where the file is no LAS file or laspy is missing."""
    with readable(path):
        import laspy

        require_room(path)
        return laspy.open(str(path))


def require_room(path: Path) -> None:
    """Raises ValueError where a header speaks of more records than its file has room for.

    Laspy makes as many as the header says, four billion in the worst case, from whatever it finds there. Offsets are
    those of the LAS 1.4 specification, tables 3 and 4.
    """
    with path.open("rb") as file:
        head, size = file.read(375), file.seek(0, os.SEEK_END)
    if len(head) < 227 or head[:4] != b"LASF":
        return  # laspy says what is wrong with it
    minor, own = head[25], int.from_bytes(head[94:96], "little")
    begin, records = struct.unpack_from("<II", head, 96)
    kind, width, points = struct.unpack_from("<BHI", head, 104)
    if begin > size:
        raise ValueError(f"points begin at byte {begin:,}, the file has {size:,}")
    if own + 54 * records > begin:
        raise ValueError(f"{records:,} variable-length records have no room before the points at byte {begin:,}")
    if minor >= 4 and len(head) == 375:
        first, extended, points = struct.unpack_from("<QIQ", head, 235)
        if extended and first + 60 * extended > size:
            raise ValueError(f"{extended:,} extended variable-length records have no room in {size:,} bytes")
    most = size - begin if kind < 128 else POINTS_PER_BYTE * (size - begin)  # the highest bit marks LAZ
    if points * (width if kind < 128 else 1) > most:
        raise ValueError(f"{points:,} points have no room in the {size - begin:,} bytes after the header")
    if kind >= 128 and points:
        _require_chunks(path, (own, records), begin, size, points)


def _require_chunks(path: Path, own: tuple[int, int], begin: int, size: int, points: int) -> None:
    """The same of the chunks of a LAZ file; lazrs ends the process where it cannot get the memory for them.

    Args:
        path: the file.
        own: first byte and number of the variable-length records.
        begin: first byte of the points.
        size: of the file.
        points: of the file.
    """
    place, left = own
    with path.open("rb") as file:
        for _ in range(left):
            file.seek(place)
            record = file.read(54 + 16)
            if record[2:16] == b"laszip encoded" and len(record) == 54 + 16:
                chunk = int.from_bytes(record[66:70], "little")
                if max(points, CHUNK_POINTS) < chunk < 2**32 - 1:  # the highest: chunks differ in size
                    raise ValueError(f"chunks of {chunk:,} points in a file of {points:,}")
            place += 54 + int.from_bytes(record[20:22], "little")
        file.seek(begin)
        table = int.from_bytes(file.read(8), "little", signed=True)
        if table == -1:  # a writer that could not go back has put the place at the end
            file.seek(size - 8)
            table = int.from_bytes(file.read(8), "little", signed=True)
        if not begin + 8 <= table <= size - 8:
            raise ValueError(f"the table of chunks lies at byte {table:,}, outside the points")
        file.seek(table + 4)
        count = int.from_bytes(file.read(4), "little")
    if 20 * count > size - begin:  # each begins with a whole point
        raise ValueError(f"{count:,} chunks have no room in the {size - begin:,} bytes after the header")


def chunks(path: Path, reader: Any, chunk_points: int) -> Iterator[Any]:
    """Laspy's point records of at most `chunk_points`. Raises ValueError where the file is damaged or cut off."""
    left = reader.header.point_count
    while left:
        with readable(path):
            points = reader.read_points(min(chunk_points, left))
        if not len(points):
            raise ValueError(f"{path}: truncated LAS file: ends {left} points early")
        left -= len(points)
        yield points


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what laspy and lazrs raise while they read `path` into a ValueError that names it."""
    try:
        for name in ("laspy", "lazrs"):
            import_module(name)
    except ImportError as error:
        raise ValueError(f"{path}: LAS/LAZ needs laspy and lazrs; run: pip install 'laspy[lazrs]'") from error
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a dozen types, by the place of the damage; among them panics of lazrs
        raise ValueError(f"{path}: damaged or truncated LAS file: {one_line(error)}") from error


def _write_rgb(las: Any, rgb: np.ndarray) -> None:
    color = np.rint(np.clip(rgb, 0, 1) * 65535.0)
    if color.max(initial=0) <= 255:
        # Such dark 16-bit colours would be read as 8 bits.
        color = np.rint(rgb * 255.0)
    las.red, las.green, las.blue = color.astype(np.uint16).T


def _write_extra(las: Any, key: str, column: np.ndarray) -> None:
    import laspy

    column = narrow(column)
    name = "_".join(key.split())
    if len(name.encode()) > 32 or column.dtype.kind not in "iuf" or (column.ndim == 2 and column.shape[1] > 3):
        parts = f"{column.dtype}{list(column.shape[1:])}"
        raise ValueError(f"LAS cannot hold feature '{key}' ({parts}): up to 32 letters and 3 numbers per point")
    width = f"{column.shape[1]}" if column.ndim == 2 else ""
    if name not in las.point_format.extra_dimension_names:
        las.add_extra_dim(laspy.ExtraBytesParams(name=name, type=f"{width}{column.dtype.str[1:]}"))
    las[name] = column
