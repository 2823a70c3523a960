"""A prepared dataset: one memory-mapped file per scene and a manifest.

DIR/manifest.json                    see `data.manifest`
DIR/scenes/NAME.safetensors          see `data.prepare_scene.write_scene`
DIR/grids/KEY/NAME.safetensors       grid clouds, made when first needed, see `engine.grids`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mink_decouple.data.classes import Classes
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.manifest import MANIFEST, UNFINISHED, SceneRecord, read_manifest
from mink_decouple.data.prepare_scene import IGNORED, RESERVED
from mink_decouple.data.tensors import SUFFIX, checksum, open_tensors

SCENES = "scenes"


def is_prepared(root: Path) -> bool:
    """Whether a folder is the output of `prepare`, finished or not."""
    return (root / SCENES).is_dir() and ((root / MANIFEST).is_file() or (root / UNFINISHED).is_file())


class StoredScene:
    """The columns of a prepared scene, mapped: what is not touched is not read.

    Attributes:
        name: of the scene.
        coords: (N, 3) float32 metres, relative to `offset`.
        offset: (3,) float64 metres.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Map `path`; ValueError naming it where it is damaged or no scene."""
        stored = open_tensors(path)
        self.name = name
        self._arrays = stored.arrays
        coords, offset = (stored.arrays.get(key) for key in ("coords", "offset"))
        if coords is None or offset is None or offset.shape != (3,) or offset.dtype != np.float64:
            raise ValueError(f"{path}: not a prepared scene; it has {', '.join(sorted(self._arrays)) or 'no columns'}")
        self.coords, self.offset = coords, offset
        if coords.shape[1:] != (3,) or coords.dtype != np.float32:
            raise ValueError(f"{path}: coords must be (N, 3) float32, found {coords.shape} {coords.dtype}")
        for key in (*self.features, *(("labels",) if self.labelled else ())):
            if len(self._arrays[key]) != len(coords):
                raise ValueError(f"{path}: column '{key}' has {len(self._arrays[key])} rows for {len(coords)} points")

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def labelled(self) -> bool:
        """Whether the scene has labels."""
        return "labels" in self._arrays

    @property
    def features(self) -> tuple[str, ...]:
        """Names of its features."""
        return tuple(key for key in self._arrays if key not in RESERVED)

    def feature(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of a feature, as `PointCloud` holds it: `rgb` float32 in 0..1, others as stored."""
        column = self._arrays[name][rows]
        return _UNIT[column] if name == "rgb" else column

    def labels(self, rows: slice = slice(None)) -> np.ndarray:
        """(n,) int64 train ids of `rows`, -1 ignored. KeyError for a scene without labels."""
        stored = self._arrays["labels"][rows]
        labels = stored.astype(np.int64)
        labels[stored == IGNORED] = -1
        return labels

    def cloud(self, features: bool = True) -> PointCloud:
        """The scene as a cloud; coordinates stay mapped, labels and colours take memory. `features` False: none."""
        return PointCloud(
            self.name,
            self.coords,
            self.offset,
            {key: self.feature(key) for key in self.features} if features else {},
            self.labels() if self.labelled else None,
            finite=True,  # `prepare` has looked at every one
        )


# The division that readers of 8-bit colours do, done once for each of the values.
_UNIT = (np.arange(256) / 255.0).astype(np.float32)


class PreparedDataset:
    """The scenes of a prepared folder.

    Args:
        root: the folder that `prepare` wrote.
        expected_name: the dataset it must be of; None for any.
        splits: split name -> names of scenes or of groups; None for the manifest's own.

    Attributes:
        root: the folder.
        manifest: its manifest.
        classes: the classes.
        splits: split name -> scene names.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not prepared, prepared half, of another dataset, or splits that name unknown or repeated scenes.
    """

    def __init__(
        self,
        root: str | Path,
        expected_name: str | None = None,
        splits: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder")
        name = expected_name or "DATASET"
        if (self.root / UNFINISHED).is_file():
            raise ValueError(f"{self.root}: not all of its scenes are prepared; run the same prepare command again")
        if not (self.root / MANIFEST).is_file():
            raise ValueError(
                f"{self.root}: has no {MANIFEST}; prepare the download first (tools/prepare.py --dataset {name} "
                f"--root {self.root} --output DIR), then use data.root=DIR"
            )
        self.manifest = read_manifest(self.root)
        found = self.manifest.head.dataset
        if expected_name is not None and found != expected_name:
            raise ValueError(f"{self.root}: prepared from {found!r}, but data.dataset is {expected_name!r}")
        self.splits = self._by_default() if splits is None else self._by_request(splits)

    @property
    def classes(self) -> Classes:
        """The classes in train-id order."""
        return self.manifest.head.classes

    def scenes(self, split: str) -> list[str]:
        """Scene names of a split, sorted, or in the order of the configuration.

        Raises:
            ValueError: the split is unknown or empty.
        """
        if not self.splits.get(split):
            state = "empty" if split in self.splits else "unknown"
            choices = ", ".join(f"{key} ({len(names)} scenes)" for key, names in self.splits.items()) or "none"
            raise ValueError(f"{self.root}: split '{split}' is {state}; it has {choices}")
        return list(self.splits[split])

    def record(self, name: str) -> SceneRecord:
        """What the manifest says of a scene; ValueError for an unknown one."""
        if name not in self.manifest.scenes:
            raise ValueError(f"{self.root}: no scene '{name}'; {MANIFEST} lists {len(self.manifest.scenes)} others")
        return self.manifest.scenes[name]

    def path(self, name: str) -> Path:
        """The file of a scene."""
        return self.root / SCENES / f"{name}{SUFFIX}"

    def open(self, name: str) -> StoredScene:
        """Map a scene.

        Raises:
            FileNotFoundError: its file is gone.
            ValueError: unknown scene, or a file that the manifest does not speak of.
        """
        record, path = self.record(name), self.path(name)
        if path.is_file() and path.stat().st_size != record.bytes:
            raise ValueError(
                f"{path}: {path.stat().st_size} bytes, the manifest says {record.bytes}; truncated or changed: "
                "run the same prepare command again"
            )
        scene = StoredScene(path, name)
        if len(scene) != record.points or scene.labelled != (record.labelled is not None):
            raise ValueError(f"{path}: other points or labels than the manifest says; delete it and prepare it again")
        return scene

    def load(self, name: str) -> PointCloud:
        """One scene; its labels are train ids with -1 ignored, or None. Raises as `open`."""
        return self.open(name).cloud()

    def verify(self, name: str) -> None:
        """Raises ValueError where a scene's file is not byte for byte what `prepare` wrote."""
        if checksum(self.path(name)) != self.record(name).checksum:
            raise ValueError(f"{self.path(name)}: its checksum is not the manifest's; delete it and prepare it again")

    def _by_default(self) -> dict[str, list[str]]:
        splits: dict[str, list[str]] = {}
        for record in self.manifest.scenes.values():
            if record.split:
                splits.setdefault(record.split, []).append(record.name)
        return splits

    def _by_request(self, asked: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for record in self.manifest.scenes.values():
            groups.setdefault(record.group, []).append(record.name)
        groups.pop("", None)
        owner: dict[str, str] = {}
        splits: dict[str, list[str]] = {}
        for split, entries in asked.items():
            splits[split] = []
            for entry in entries:
                names = [entry] if entry in self.manifest.scenes else groups.get(entry)
                if names is None:
                    choices = f"groups {', '.join(groups)}" if groups else "scene names"
                    raise ValueError(f"data.splits.{split}: {self.root} has no scene or group '{entry}'; use {choices}")
                for name in names:
                    if name in owner:
                        raise ValueError(f"data.splits: scene '{name}' is in '{owner[name]}' and again in '{split}'")
                    owner[name] = split
                splits[split] += names
        return splits
