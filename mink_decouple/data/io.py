"""Read and write point clouds; the suffix of the file chooses the format.

| suffix | columns |
|---|---|
| `.ply` | every scalar vertex property |
| `.las` `.laz` | intensity, return_number, number_of_returns, rgb, extra dimensions; labels = classification |
| `.pcd` | every field, `rgb` packed or apart |
| `.npz` | arrays `coords` (+ `offset`), `rgb`, `labels`, any other of one row per point |
| `.npy` | a structured array, or plain: x y z / x y z intensity / x y z red green blue / as named by `columns` |
| `.txt` `.csv` `.xyz` | as a first line names them, else as `.npy` |
| `.bin` | float32: KITTI's x y z remission, or as named by `columns`; labels from `io_kitti.label_path` |

`red green blue` become `rgb` in 0..1 (8 or 16 bits by their highest value); a column `label`, `class`, `classification`
(also with CloudCompare's `scalar_`) becomes the labels, NaN in it -1; `nx ny nz` (or `normal_x normal_y normal_z`)
become `normal`; other columns keep their name and dtype.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io_kitti import CONFIDENCE, LABELS, label_path, read_bin, write_bin, write_label
from mink_decouple.data.io_las import read_las, write_las
from mink_decouple.data.io_numpy import read_arrays, read_npy, read_npz, write_npy, write_npz
from mink_decouple.data.io_pcd import read_pcd, write_pcd
from mink_decouple.data.io_ply import read_ply, write_ply
from mink_decouple.data.io_text import read_text, write_text

_READERS: dict[str, Callable[[Path], PointCloud]] = {
    ".ply": read_ply,
    ".las": read_las,
    ".laz": read_las,
    ".pcd": read_pcd,
    ".npy": read_npy,
    ".npz": read_npz,
    ".txt": read_text,
    ".csv": read_text,
    ".xyz": read_text,
    ".bin": read_bin,
}
_WRITERS: dict[str, Callable[[Path, PointCloud], None]] = {
    ".ply": write_ply,
    ".las": write_las,
    ".laz": write_las,
    ".pcd": write_pcd,
    ".npy": write_npy,
    ".npz": write_npz,
    ".txt": write_text,
    ".csv": write_text,
    ".xyz": write_text,
    ".bin": write_bin,
    ".label": write_label,
}

#: Suffixes `read_cloud` knows (lower case).
SUFFIXES = tuple(_READERS)


def read_cloud(path: str | Path, columns: Sequence[str] | None = None) -> PointCloud:
    """Read a point cloud; its name is the file's stem, its labels the raw ids of the file.

    Args:
        path: a file with one of `SUFFIXES`.
        columns: names of the columns of a text file, plain `.npy` array or `.bin` file, for example
            `["x", "y", "z", "red", "green", "blue", "label"]`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown suffix, damaged or empty file, no coordinates, NaN coordinates, labels that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    suffix = path.suffix.lower()
    if suffix == ".label":
        raise ValueError(f"{path}: holds labels only; read the .bin file of the same name")
    if suffix not in _READERS:
        raise ValueError(f"{path}: unknown suffix '{path.suffix}'; choose from {', '.join(SUFFIXES)}")
    if columns is not None:
        if suffix in (".txt", ".csv", ".xyz"):
            return read_text(path, columns)
        if suffix == ".npy":
            return read_npy(path, columns)
        if suffix == ".bin":
            return read_bin(path, columns)
    return _READERS[suffix](path)


def clouds_of(folder: Path) -> list[Path]:
    """The point clouds of a folder by their names, those of its sub-folders left out.

    Hidden files are unfinished writes and systems' own litter. `NAME.confidence.npy` beside `NAME.bin` is no cloud.
    """
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    beside = {path.stem + CONFIDENCE for path in files if path.suffix.lower() == ".bin"}
    return [path for path in files if not path.name.startswith(".") and path.name not in beside]


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file by their names.

    Raises:
        ValueError: it is damaged, is no such file, or holds anything but numbers.
    """
    arrays = read_arrays(path)
    if isinstance(arrays, np.ndarray):
        raise ValueError(f"{path}: holds a single array, not named ones")
    return arrays


def write_cloud(path: str | Path, cloud: PointCloud, like: str | Path | None = None) -> None:
    """Write a point cloud with world coordinates, replacing `path` in one step; missing folders are made.

    KITTI `.bin` keeps x y z and remission only, with the labels in a second file (`io_kitti.label_path`); for a cloud
    without, one beside `path` is removed, one in a folder `labels` stays. `.label` writes the labels alone. Colours
    have 8 bits (LAS 16, `.npz` float32), (N, k) features become k columns (`.npz` and LAS keep them whole), `normal`
    nx ny nz.

    Args:
        path: a file with one of `SUFFIXES`, or `.label`.
        cloud: at least one point.
        like: for LAS/LAZ, a LAS/LAZ file with the same points in the same order whose header, coordinate system and
            other dimensions are kept.

    Raises:
        ValueError: unknown suffix, empty cloud, or values the format cannot hold.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise ValueError(f"{path}: unknown suffix '{path.suffix}'; choose from {', '.join(_WRITERS)}")
    if len(cloud) == 0:
        raise ValueError(f"{path}: cloud '{cloud.name}' has no points")
    if like is not None and suffix in (".las", ".laz") and Path(like).suffix.lower() in (".las", ".laz"):
        source = Path(like)
        _replace(path, lambda target: write_las(target, cloud, source))
        return
    _replace(path, lambda target: _WRITERS[suffix](target, cloud))
    if suffix == ".bin" and cloud.labels is not None:
        _replace(label_path(path), lambda target: write_label(target, cloud))
    elif suffix == ".bin":
        for ending in (LABELS, CONFIDENCE):  # those of another cloud; a folder `labels` may be a dataset's truth
            path.with_name(path.stem + ending).unlink(missing_ok=True)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: NumPy appends a missing one and laspy compresses by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(temporary), str(path))) from error
    finally:
        temporary.unlink(missing_ok=True)
