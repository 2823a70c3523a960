"""One raw scene to one prepared file, chunk by chunk: memory does not grow with the scene."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mink_decouple.data.cloud import check_finite, choose_offset
from mink_decouple.data.manifest import SceneRecord, Source
from mink_decouple.data.raw import Chunk, RawDataset, RawScene, Repair
from mink_decouple.data.tensors import SUFFIX, TensorWriter

IGNORED = 255
"""What stands for an ignored label in a prepared file; so at most 255 classes fit."""

RESERVED = ("coords", "offset", "labels")
_FEATURES = {"rgb": (np.uint8, (3,)), "intensity": (np.float32, ()), "remission": (np.float32, ())}


def sources(raw: RawDataset, scene: RawScene) -> tuple[Source, ...]:
    """The fingerprint of a scene: its files' names relative to the root, their sizes and times.

    Raises:
        FileNotFoundError: one of them is gone.
    """
    found = []
    for path in scene.files:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; scene '{scene.name}' is read from it")
        name = path.relative_to(raw.root) if path.is_relative_to(raw.root) else path
        state = path.stat()
        found.append(Source(name.as_posix(), state.st_size, state.st_mtime_ns))
    return tuple(found)


class _Totals:
    """What the record says of the points, gathered while they pass."""

    def __init__(self, name: str, classes: int) -> None:
        self.name, self.classes = name, classes
        self.points = self.ignored = 0
        self.labelled: np.ndarray | None = None
        self.columns: set[str] | None = None
        self.low, self.high = np.full(3, np.inf), np.full(3, -np.inf)

    def add(self, chunk: Chunk) -> None:
        """Check a chunk and count it; ValueError where an adapter breaks its contract or the data are no numbers."""
        xyz, labels, where = chunk.xyz, chunk.labels, f"{self.name}, points from {self.points:,}"
        if xyz.ndim != 2 or xyz.shape[1] != 3 or xyz.dtype != np.float64:
            raise ValueError(f"{where}: xyz must be (n, 3) float64, found {xyz.shape} {xyz.dtype}")
        check_finite(where, xyz)
        columns = {*chunk.features, *(() if labels is None else ("labels",))}
        if self.columns is not None and columns != self.columns:
            raise ValueError(f"{where}: columns {sorted(columns)} after {sorted(self.columns)}")
        for key, column in chunk.features.items():
            dtype, width = _FEATURES.get(key, (column.dtype, column.shape[1:]))
            if key in RESERVED or (column.dtype, column.shape) != (dtype, (len(xyz), *width)):
                raise ValueError(
                    f"{where}: feature '{key}' must be {(len(xyz), *width)} {np.dtype(dtype)} and not named one of "
                    f"{', '.join(RESERVED)}; found {column.shape} {column.dtype}"
                )
        if labels is not None:
            self._count(labels, len(xyz), where)
        self.columns = columns
        self.points += len(xyz)
        if len(xyz):
            self.low, self.high = np.minimum(self.low, xyz.min(axis=0)), np.maximum(self.high, xyz.max(axis=0))

    def _count(self, labels: np.ndarray, points: int, where: str) -> None:
        if labels.shape != (points,) or labels.dtype != np.int64:
            raise ValueError(f"{where}: labels must be ({points},) int64, found {labels.shape} {labels.dtype}")
        if points and not (labels.min() >= -1 and labels.max() < self.classes):
            raise ValueError(
                f"{where}: train ids must lie in -1..{self.classes - 1}, found {labels.min()}..{labels.max()}"
            )
        counts = np.bincount(labels + 1, minlength=self.classes + 1)
        self.ignored += int(counts[0])
        self.labelled = counts[1:] if self.labelled is None else self.labelled + counts[1:]


def write_scene(raw: RawDataset, scene: RawScene, folder: Path) -> SceneRecord:
    """Read a raw scene and write `folder/NAME.safetensors` in one step.

    Columns: `coords` (N, 3) float32 relative to `offset` (3,) float64 (rule and precision of `cloud.from_world`),
    `labels` (N,) uint8 train ids with 255 = ignored where the scene has any, and the features as the adapter gives
    them. The bytes depend on the points alone, not on their chunks.

    Returns:
        The record of the manifest.

    Raises:
        ValueError: the scene has no points, is longer than a cloud may be, or cannot be read.
        FileNotFoundError: a file of the scene is gone.
    """
    fingerprint = sources(raw, scene)
    repairs: list[Repair] = []
    totals = _Totals(scene.name, len(raw.classes))
    with TensorWriter(folder / f"{scene.name}{SUFFIX}") as writer:
        for chunk in raw.read(scene, repairs.append):
            totals.add(chunk)
            # The offset is known when the last point is, so world coordinates wait on disk in full precision.
            writer.append("coords", chunk.xyz)
            for key, column in chunk.features.items():
                writer.append(key, column)
            if chunk.labels is not None:
                writer.append("labels", np.where(chunk.labels < 0, IGNORED, chunk.labels).astype(np.uint8))
        if totals.points == 0:
            raise ValueError(f"{', '.join(map(str, scene.files)) or scene.name}: no points")
        offset = choose_offset(scene.name, totals.low, totals.high)
        writer.convert("coords", lambda xyz: (xyz - offset).astype(np.float32))
        writer.append("offset", offset)
        written = writer.finish({"name": scene.name, "dataset": raw.name, "adapter": json.dumps(raw.version)})
    low, high = ((float(x), float(y), float(z)) for x, y, z in (totals.low, totals.high))
    return SceneRecord(
        name=scene.name,
        split=scene.split,
        group=scene.group,
        points=totals.points,
        labelled=None if totals.labelled is None else tuple(totals.labelled.tolist()),
        ignored=totals.ignored,
        low=low,
        high=high,
        checksum=written.checksum,
        bytes=written.bytes,
        sources=fingerprint,
        repairs=tuple(repairs),
    )
