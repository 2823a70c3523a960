"""Published lists of labelled points, such as ScanNet's limited annotations: raw point indices per scene."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mink_decouple.data.cloud import PointCloud

_ADVICE = "keep it as .npz, one array of raw point indices per scene: numpy.savez(FILE, **lists)"


def read_lists(path: str | Path) -> dict[str, np.ndarray]:
    """Read lists of points.

    Args:
        path: an ``.npz`` with one array per scene, or a file of ``torch.save`` with a mapping of them, as ScanNet
            publishes its ``points20`` to ``points200``. The latter is read without running any code of it.

    Returns:
        Scene name -> (m,) int64 raw point indices in the order of the list.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another form, or indices that are not whole numbers from 0.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"list of points {path}: no such file")
    content = _read_npz(path) if path.suffix == ".npz" else _read_torch(path)
    lists = {}
    for name, value in content.items():
        try:
            index = np.asarray(value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"list of points {path}: scene {name}: {error}") from None
        if index.ndim != 1 or index.dtype.kind not in "iu" or index.min(initial=0) < 0:
            raise ValueError(
                f"list of points {path}: scene {name}: needs one row of whole numbers from 0, found "
                f"{index.shape} {index.dtype}: {index.ravel()[:5].tolist()}"
            )
        lists[str(name)] = index.astype(np.int64)
    if not lists:
        raise ValueError(f"list of points {path}: names no scene")
    return lists


def listed_points(lists: Mapping[str, np.ndarray], cloud: PointCloud, source: str) -> np.ndarray:
    """The listed raw points of a scene.

    Args:
        lists: as read.
        cloud: the scene.
        source: the file, for messages.

    Returns:
        (m,) int64.

    Raises:
        ValueError: the list lacks the scene, or points outside it.
    """
    if cloud.name not in lists:
        raise ValueError(f"list of points {source}: has no scene {cloud.name}, but {len(lists)} others")
    index = lists[cloud.name]
    if index.max(initial=-1) >= len(cloud):
        raise ValueError(
            f"list of points {source}: scene {cloud.name}: names point {index.max()}, but the cloud has {len(cloud)} "
            "points; the list is of the raw points of another file"
        )
    return index


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if {"names", "index", "label"} <= set(stored.files):
                raise ValueError("it is a label file of this program; name it without 'list:'")
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # NumPy, zipfile and zlib raise a dozen types, by the place of the damage
        raise ValueError(f"list of points {path}: {' '.join(str(error).split())}; {_ADVICE}") from None


def _read_torch(path: Path) -> Mapping[str, Any]:
    import torch

    # the first that lets a name be allowed that the file writes differently
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise ValueError(f"list of points {path}: needs torch 2.6 or newer, found {torch.__version__}; {_ADVICE}")
    reconstruct = np.empty(0).__reduce__()[0]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    allowed: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.int64)), type(np.dtype(np.int32))]
    allowed += [(reconstruct, name) for name in names]
    try:
        # What an integer array is made of, and nothing else; the parser refuses every other name.
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types, by the place of the damage
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"list of points {path}: torch cannot read it without running code ({first}); {_ADVICE}"
        ) from None
    if not isinstance(content, Mapping):
        raise ValueError(f"list of points {path}: holds a {type(content).__name__}, not scenes; {_ADVICE}")
    return content
