"""One point file as a raw dataset of one scene without labels: to be prepared and predicted in little memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from mink_decouple.data.classes import Classes
from mink_decouple.data.io import read_cloud
from mink_decouple.data.io_las import LAS, las_chunks, las_points
from mink_decouple.data.raw import Chunk, RawScene, Repair


def streams(path: Path, at_least: int) -> bool:
    """Whether a file is read in chunks: LAS and LAZ of so many points or more."""
    return path.suffix.lower() in LAS and las_points(path) >= at_least


class RawFile:
    """A file, offered as an adapter. LAS and LAZ are read in chunks, other formats whole.

    Attributes:
        name: "file".
        version: of the adapter.
        root: the folder it lies in.
        classes: what it will be predicted as; its own labels are not read.
    """

    name = "file"
    version = 1

    def __init__(
        self, path: Path, classes: Classes, columns: Sequence[str] | None = None, wanted: Collection[str] | None = None
    ) -> None:
        """`columns`: see `io.read_cloud`. `wanted`: columns to take along, as `PointCloud` names them; None for all."""
        self.path, self.root, self.classes = path, path.parent, classes
        self._columns, self._wanted = columns, wanted

    def scenes(self) -> list[RawScene]:
        """The one scene, named by the file's stem."""
        return [RawScene(self.path.stem, "", "", (self.path,), False)]

    def lacking(self) -> list[str]:
        """No line: a file is what there is."""
        return []

    def read(self, scene: RawScene, report: Callable[[Repair], None], chunk_points: int = 2_000_000) -> Iterator[Chunk]:
        """Its points in order.

        Raises:
            FileNotFoundError, ValueError: see `io.read_cloud`.
        """
        if self.path.suffix.lower() in LAS:
            for xyz, features in las_chunks(self.path, chunk_points):
                yield Chunk(xyz, self._kept(features))
            return
        cloud = read_cloud(self.path, self._columns)
        for begin in range(0, len(cloud), chunk_points):
            part = cloud.select(np.arange(begin, min(begin + chunk_points, len(cloud))))
            yield Chunk(part.world(), self._kept(part.features))

    def _kept(self, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kept = {key: value for key, value in features.items() if self._wanted is None or key in self._wanted}
        if "rgb" in kept:
            kept["rgb"] = np.rint(np.clip(kept["rgb"], 0, 1) * 255).astype(np.uint8)
        return kept
