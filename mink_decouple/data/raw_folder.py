"""A folder of clouds with a `classes.yaml` as a raw dataset that can be prepared."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.folder import FolderDataset
from mink_decouple.data.io_kitti import label_path
from mink_decouple.data.raw import Chunk, RawScene, Repair


class RawFolder:
    """`FolderDataset`, offered as an adapter: a scene per file, splits as in its `classes.yaml`.

    A file is read whole: the readers of `data.io` do not stream. Colours are rounded to 8 bits.

    Args:
        root: the folder.
        classes: the classes file; None for `classes.yaml` in the folder.

    Attributes:
        name: "folder".
        version: of the output; differs between names of the columns.
        root: the folder.
        classes: of its classes file.

    Raises:
        FileNotFoundError, ValueError: as `FolderDataset`.
    """

    name = "folder"

    def __init__(self, root: Path, classes: str | None = None) -> None:
        self._folder = FolderDataset(root, classes)
        columns = self._folder.columns  # prepared files of other columns are never to be mixed
        self.version = 2 if columns is None else 3 + zlib.crc32(" ".join(columns).encode())
        self.root = self._folder.root
        self.classes = self._folder.classes

    def scenes(self) -> list[RawScene]:
        """Every cloud of the folder; one that no split names has the split ""."""
        owner = {name: split for split, names in self._folder.splits.items() for name in names}
        found = []
        for name, path in sorted(self._folder.files.items()):
            labels = label_path(path) if path.suffix.lower() == ".bin" else path
            files = (path,) if labels == path or not labels.is_file() else (path, labels)
            found.append(RawScene(name, owner.get(name, ""), "", files, True))
        return found

    def lacking(self) -> list[str]:
        """No line: a folder is what there is."""
        return []

    def read(self, scene: RawScene, report: Callable[[Repair], None], chunk_points: int = 2_000_000) -> Iterator[Chunk]:
        """The points of a cloud in order.

        Raises:
            FileNotFoundError, ValueError: as `FolderDataset.load`.
        """
        cloud = self._folder.load(scene.name)
        rgb = _eight_bits(cloud, lambda *told: report(Repair(scene.files[0].name, None, *told)))
        features = {**cloud.features, **({} if rgb is None else {"rgb": rgb})}
        for key in ("intensity", "remission"):
            if key in features:
                features[key] = features[key].astype(np.float32)
        for begin in range(0, len(cloud), chunk_points):
            rows = slice(begin, begin + chunk_points)
            yield Chunk(
                cloud.coords[rows].astype(np.float64) + cloud.offset,
                {key: column[rows] for key, column in features.items()},
                None if cloud.labels is None else cloud.labels[rows],
            )


def _eight_bits(cloud: PointCloud, report: Callable[[str, str], None]) -> np.ndarray | None:
    """Colours as (N, 3) uint8; reports what was found and done where that changes them by more than float32 does."""
    if "rgb" not in cloud.features:
        return None
    scaled = np.clip(cloud.features["rgb"], 0, 1) * np.float32(255)
    holes = np.isnan(scaled)
    if holes.any():
        report(f"{np.count_nonzero(holes.any(axis=1))} points with NaN for a colour", "0 in its place")
        scaled[holes] = 0
    rounded = np.rint(scaled)
    if np.abs(scaled - rounded).max(initial=0) > 1e-3:
        report("colours finer than 8 bits", "rounded to 8 bits")
    return rounded.astype(np.uint8)
