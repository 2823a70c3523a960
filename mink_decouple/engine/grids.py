"""Grid clouds of prepared scenes, kept on disk beside them: made once for each set of settings, then mapped."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from mink_decouple.config import Config
from mink_decouple.data.grid import GridCloud
from mink_decouple.data.grid_stream import COORDS, FEATURE, LABELS, Rows, stream_columns
from mink_decouple.data.prepared import PreparedDataset, StoredScene
from mink_decouple.data.tensors import PART, SUFFIX, TensorFile, TensorWriter, open_tensors
from mink_decouple.engine import derive

FORMAT = 1
CHUNK_POINTS = 1 << 20
ABANDONED_SECONDS = 3600.0
"""A temporary file that nobody has written to for so long is of a process that was killed."""


def settings(config: Config) -> str:
    """All that a grid cloud depends on beside its scene, as text."""
    return json.dumps({"format": FORMAT, "grid": config.data.grid, **derive.settings(config)}, sort_keys=True)


def grid_path(dataset: PreparedDataset, name: str, config: Config) -> Path:
    """Where the grid cloud of a scene is kept: `DIR/grids/KEY/NAME.safetensors`."""
    digest = hashlib.sha256(settings(config).encode()).hexdigest()[:12]
    return dataset.root / "grids" / f"{config.data.grid:g}m-{digest}" / f"{name}{SUFFIX}"


def ready_grid(dataset: PreparedDataset, name: str, config: Config) -> Path:
    """The file of a scene's grid cloud, made first where there is none, or one that is stale or damaged.

    Raises:
        ValueError: the scene cannot be sub-sampled; or its file is damaged.
        OSError: the folder cannot be written.
    """
    path = grid_path(dataset, name, config)
    if not _sound(path, dataset, name, config):
        _write(path, dataset, name, config)
    return path


def open_grid(path: Path, name: str, size: float) -> GridCloud:
    """Map a grid cloud: the arrays of `GridCloud`, read when touched.

    Raises:
        FileNotFoundError, ValueError: see `tensors.open_tensors`; or it is no grid cloud.
    """
    arrays = open_tensors(path).arrays
    try:
        coords, inverse = arrays[COORDS], arrays["inverse"]
    except KeyError as error:
        raise ValueError(f"{path}: not a grid cloud, has no {error}; delete it") from None
    features = {key[len(FEATURE) :]: column for key, column in arrays.items() if key.startswith(FEATURE)}
    return GridCloud(name, coords, features, arrays.get(LABELS), inverse, float(size))


def _sound(path: Path, dataset: PreparedDataset, name: str, config: Config) -> bool:
    """Whether a file is whole, of this scene and of these settings.

    The inverse map is held to its length only: reading it whole would cost as much as the raw points at every start.
    """
    try:
        stored = open_tensors(path)
        sums = json.loads(stored.metadata["crc"])
        made_of = (stored.metadata["source"], stored.metadata["settings"], len(stored.arrays["inverse"]))
    except (FileNotFoundError, KeyError, ValueError):
        return False
    record = dataset.record(name)
    if made_of != (record.checksum, settings(config), record.points):
        return False
    return all(_crc(stored, key) == sums.get(key) for key in stored.arrays if key != "inverse")


def _crc(stored: TensorFile, key: str) -> int:
    return zlib.crc32(stored.arrays[key].reshape(-1).view(np.uint8).data)


def _write(path: Path, dataset: PreparedDataset, name: str, config: Config) -> None:
    scene = dataset.open(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in path.parent.glob(f".{name}.*{PART}"):  # another training may be making the same grid cloud
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                part.unlink()
    stored = {key: _stored_column(scene, key) for key in scene.features}
    columns = derive.feature_columns(name, scene.coords, stored, config)

    def read(wanted: Collection[str]) -> Iterator[Rows]:
        for begin in range(0, len(scene), CHUNK_POINTS):
            rows = slice(begin, begin + CHUNK_POINTS)
            features = {key: columns[key](rows) for key in wanted}
            yield Rows(scene.coords[rows], features, scene.labels(rows) if scene.labelled else None)

    with TensorWriter(path) as writer:
        crcs = {}
        widths = {key: column(slice(0, 1)).shape[1:] for key, column in columns.items()}
        put = partial(writer.append, "inverse")
        for key, array in stream_columns(name, read, widths, config.data.grid, put):
            writer.append(key, array)
            crcs[key] = writer.crc(key)
        crc = json.dumps(crcs)
        source = dataset.record(name).checksum
        writer.finish({"name": name, "source": source, "settings": settings(config), "crc": crc})


def _stored_column(scene: StoredScene, key: str) -> derive.Column:
    return lambda rows: scene.feature(key, rows)
