"""A folder of point clouds with a `classes.yaml` as a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mink_decouple.data.classes import Classes, classes_from_mapping, read_yaml
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import SUFFIXES, clouds_of, read_cloud

CLASSES_FILE = "classes.yaml"


class FolderDataset:
    """Clouds of one folder, named by their file stems.

    `classes.yaml` holds (see also `classes.classes_from_mapping`):

        classes:                  # order = train ids
          ground: {raw: [2], color: [170, 120, 70]}
          low_vegetation: {raw: [3]}
        ignore: [0, 65, 66, 67]   # raw ids that become -1
        splits: {train: [tile_a, tile_b], val: [tile_c]}          # optional: may be given as an argument
        columns: [x, y, z, red, green, blue, label]               # optional: text and .npy files without names

    Files may have labels, colours or intensity, or not.

    Attributes:
        root: the folder.
        classes: the classes.
        splits: split name -> scene names.
        files: scene name -> file.
    """

    def __init__(
        self,
        root: str | Path,
        classes: Classes | str | Path | None = None,
        splits: Mapping[str, Sequence[str]] | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        """Look through the folder; no cloud is read yet.

        Args:
            root: the folder; its sub-folders are left out.
            classes: the classes, or their file; None for `classes.yaml` in the folder.
            splits: split name -> file stems; None for the key `splits` of the classes file.
            columns: names for bare columns, as in `io.read_cloud`; None for the key `columns` of the classes file.

        Raises:
            FileNotFoundError: no such folder, no classes file, or a scene of a split has no file.
            ValueError: no clouds, two files of one stem, a scene in two splits, or a classes file of another form.
        """
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder")
        settings: Mapping[str, Any] = {}
        source = f"{self.root}"
        if isinstance(classes, Classes):
            self.classes = classes
        else:
            path = Path(classes) if classes is not None else self.root / CLASSES_FILE
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file; it names the classes of the clouds in {self.root}")
            source, settings = str(path), read_yaml(path)
            self.classes = classes_from_mapping(settings, source)
            unknown = sorted(set(map(str, settings)) - {"classes", "ignore", "splits", "columns"})
            if unknown:
                raise ValueError(f"{path}: unknown keys {unknown}; choose from classes, ignore, splits, columns")
        if columns is None:
            columns = settings.get("columns")
        self.columns = None if columns is None else tuple(_names(columns, f"{source}: columns"))
        self.files = _files(self.root)
        self.splits = self._check_splits(settings.get("splits") if splits is None else splits, source)

    def scenes(self, split: str) -> list[str]:
        """Scene names of a split in the given order.

        Raises:
            ValueError: the split is unknown or empty.
        """
        if split not in self.splits:
            choices = ", ".join(self.splits) or "none (name them under 'splits' in the classes file)"
            raise ValueError(f"{self.root}: unknown split '{split}'; choose from {choices}")
        if not self.splits[split]:
            raise ValueError(f"{self.root}: split '{split}' is empty; choose from the files {', '.join(self.files)}")
        return list(self.splits[split])

    def load(self, name: str) -> PointCloud:
        """Read a scene, labels as train ids (-1 ignored) or None where the file has none.

        Raises:
            FileNotFoundError: no file of this name.
            ValueError: the file is damaged, or holds a raw id that is neither a class nor ignored.
        """
        if name not in self.files:
            raise FileNotFoundError(f"{self.root}: no cloud named '{name}'; choose from {', '.join(self.files)}")
        path = self.files[name]
        cloud = read_cloud(path, self.columns)
        if cloud.labels is None:
            return cloud
        try:
            return replace(cloud, labels=self.classes.encode(cloud.labels))
        except ValueError as error:
            raise ValueError(
                f"{path}: {error}; give it a class, or put it under ignore, in the classes file"
            ) from error

    def _check_splits(self, splits: Any, source: str) -> dict[str, list[str]]:
        if splits is None:
            return {}
        if not isinstance(splits, Mapping):
            raise ValueError(f"{source}: splits must map split names to lists of file stems, found {splits!r}")
        owner: dict[str, str] = {}
        result = {}
        for split, names in splits.items():
            result[str(split)] = _names(names if names is not None else [], f"{source}: split '{split}'")
            for name in result[str(split)]:
                if name not in self.files:
                    raise FileNotFoundError(
                        f"{source}: split '{split}' names '{name}', but {self.root} has no such cloud "
                        f"(stems without suffix); choose from {', '.join(self.files)}"
                    )
                if name in owner:
                    where = (
                        f"twice in split '{split}'" if owner[name] == split else f"in splits '{owner[name]}', '{split}'"
                    )
                    raise ValueError(f"{source}: scene '{name}' is {where}")
                owner[name] = split
        return result


def _files(root: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in clouds_of(root):
        if path.stem in files:
            raise ValueError(
                f"{root}: '{files[path.stem].name}' and '{path.name}' have the same stem; remove one of them"
            )
        files[path.stem] = path
    if not files:
        raise ValueError(f"{root}: no point clouds; known suffixes: {', '.join(SUFFIXES)}")
    return files


def _names(value: Any, where: str) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{where} must be a list of names, found {value!r}")
    wrong = [item for item in value if not isinstance(item, str)]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]!r} is not text; put it in quotes")
    return list(value)
