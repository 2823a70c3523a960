"""What an adapter of a raw dataset offers: scenes by name, read in chunks, with every repair reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from mink_decouple.data.classes import Classes


@dataclass(frozen=True)
class RawScene:
    """One scene of a raw dataset: a room, a scan, a station.

    Attributes:
        name: unique in the dataset, a valid file name (S3DIS: ``Area_5_office_1``; SemanticKITTI: ``08_000123``).
        split: the split it belongs to by default, "train", "val" or "test".
        group: the part of the dataset that splits are made of (S3DIS: ``Area_5``; SemanticKITTI: ``08``; else "").
        files: the files it is read from; their names, sizes and times are its fingerprint.
        labelled: whether it has labels.
    """

    name: str
    split: str
    group: str
    files: tuple[Path, ...]
    labelled: bool


@dataclass(frozen=True)
class Repair:
    """One known corruption that was mended, or one oddity that a user should know of.

    Attributes:
        file: where, relative to the dataset's root.
        line: 1-based line or row, None for a whole file.
        found: what stood there, printable and short.
        done: what was made of it.
    """

    file: str
    line: int | None
    found: str
    done: str


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive points of a scene, in the order of the raw file.

    Attributes:
        xyz: (n, 3) float64 world coordinates, metres.
        features: name -> array; `rgb` (n, 3) uint8, `intensity` and `remission` (n,) float32.
        labels: (n,) int64 train ids, -1 ignored; None for an unlabelled scene.
    """

    xyz: np.ndarray
    features: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None


class RawDataset(Protocol):
    """A raw dataset as downloaded. Making one lists its scenes; nothing else is read yet.

    Attributes:
        name: "s3dis", "scannet", "semantic3d" or "semantickitti".
        version: raised whenever the adapter's output changes, so that prepared files of two versions are never mixed.
        root: the folder of the download.
        classes: names, colours and ids in train-id order.

    Raises:
        FileNotFoundError: the folder or a part of the layout is missing; names what was looked for.
    """

    name: str
    version: int
    root: Path
    classes: Classes

    def scenes(self) -> list[RawScene]:
        """Every scene of the download, sorted by name. ValueError where there is none."""

    def lacking(self) -> list[str]:
        """What the download lacks of the benchmark, a line each; no line for a user's own folder."""

    def read(self, scene: RawScene, report: Callable[[Repair], None], chunk_points: int = 2_000_000) -> Iterator[Chunk]:
        """The points of a scene in order, in chunks of at most `chunk_points`.

        Raises:
            ValueError: a corruption that is not a known one; names file, line and content.
        """
