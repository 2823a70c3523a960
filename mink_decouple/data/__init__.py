"""Everything before a tensor reaches a network."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from mink_decouple.config import PREPARED, DataConfig
from mink_decouple.data.classes import Classes
from mink_decouple.data.cloud import PointCloud


class Dataset(Protocol):
    """Scenes with labels as train ids."""

    @property
    def classes(self) -> Classes:
        """The classes in train-id order."""

    def scenes(self, split: str) -> list[str]:
        """Names of the scenes of a split; ValueError for an unknown or empty one."""

    def load(self, name: str) -> PointCloud:
        """One scene; its labels are train ids with -1 ignored, or None."""


def load_dataset(config: DataConfig) -> Dataset:
    """The dataset that a configuration names.

    Raises:
        ValueError: no `data.root`, or one that was not prepared from this dataset.
        FileNotFoundError: the folder or its classes file is missing.
    """
    if config.dataset == "synthetic":
        from mink_decouple.data.synthetic import SyntheticBuildings

        s = config.synthetic
        return SyntheticBuildings(
            areas=s.areas, rooms_per_area=s.rooms_per_area, points_per_room=s.points_per_room, seed=s.seed
        )
    from mink_decouple.data.folder import FolderDataset
    from mink_decouple.data.prepared import PreparedDataset, is_prepared

    root = root_of(config)
    if config.dataset in PREPARED or is_prepared(root):
        if config.classes is not None:
            raise ValueError(
                f"data.classes: {config.classes!r}, but a prepared dataset has its classes; leave it out, "
                "or --set data.classes=null"
            )
        return PreparedDataset(root, config.dataset, config.splits)
    return FolderDataset(root, classes=config.classes, splits=config.splits)


def root_of(config: DataConfig) -> Path:
    """The folder of a dataset that has one. Raises ValueError where none is set."""
    if config.root is None:
        needs = "a prepared dataset" if config.dataset in PREPARED else "a folder dataset"
        raise ValueError(f"data.root: not set; {needs} needs the folder of its clouds: --set data.root=DIR")
    return Path(config.root)
