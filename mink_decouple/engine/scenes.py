"""Scenes ready for training and scoring: raw cloud -> grid cloud, visible labels, hidden truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mink_decouple.config import Config
from mink_decouple.data import load_dataset
from mink_decouple.data.budget import LabelSet, check, class_counts, collect, draw, parse_budget, visible
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.grid import GridCloud, subsample
from mink_decouple.data.packed import PackedIds, pack_ids
from mink_decouple.data.prepared import PreparedDataset
from mink_decouple.engine.derive import derive_features
from mink_decouple.engine.events import progress, say
from mink_decouple.engine.grids import open_grid, ready_grid
from mink_decouple.engine.processes import Processes

BLOCK_POINTS = 1 << 22
"""Raw points that scoring looks at together."""

MOSTLY = 0.5
"""Share of a scene's grid points that must have a label for its labels to tell which classes it lacks."""


class Source(Protocol):
    """Where the arrays of a scene come from; each call may make them anew."""

    @property
    def name(self) -> str:
        """The scene's name."""

    @property
    def labelled(self) -> bool:
        """Whether the raw cloud has labels."""

    def cloud(self, features: bool) -> PointCloud:
        """The raw cloud, with its features or without."""

    def grid(self) -> GridCloud:
        """The grid cloud."""

    def labels(self, rows: slice) -> np.ndarray:
        """(n,) int64 train ids of some raw points of a labelled scene."""


@dataclass(frozen=True)
class Held:
    """A scene in memory."""

    raw: PointCloud
    reduced: GridCloud

    @property
    def name(self) -> str:
        """The scene's name."""
        return self.raw.name

    @property
    def labelled(self) -> bool:
        """Whether the raw cloud has labels."""
        return self.raw.labels is not None

    def cloud(self, features: bool) -> PointCloud:
        """The raw cloud."""
        return self.raw

    def grid(self) -> GridCloud:
        """The grid cloud."""
        return self.reduced

    def labels(self, rows: slice) -> np.ndarray:
        """(n,) int64 train ids of some raw points."""
        assert self.raw.labels is not None
        return self.raw.labels[rows]


@dataclass(frozen=True)
class Stored:
    """A scene on disk: a file of a prepared dataset, and one of its grid cloud. Nothing stays open between calls."""

    dataset: PreparedDataset
    name: str
    path: Path
    size: float

    @property
    def labelled(self) -> bool:
        """Whether the raw cloud has labels."""
        return self.dataset.record(self.name).labelled is not None

    def cloud(self, features: bool) -> PointCloud:
        """The raw cloud, its coordinates mapped."""
        return self.dataset.open(self.name).cloud(features)

    def grid(self) -> GridCloud:
        """The grid cloud, mapped."""
        return open_grid(self.path, self.name, self.size)

    def labels(self, rows: slice) -> np.ndarray:
        """(n,) int64 train ids of some raw points."""
        return self.dataset.open(self.name).labels(rows)


@dataclass(frozen=True)
class Scene:
    """One scene: its grid cloud and what is known of its labels. Arrays are made when asked for; keep what you re-use.

    Attributes:
        source: where its arrays come from.
        given: the labels that training may see, packed; None for none.
        occurring: (C,) bool classes that occur in the scene, where its labels tell (`reveal`); else None.
    """

    source: Source
    given: PackedIds | None = None
    occurring: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The scene's name."""
        return self.source.name

    @property
    def cloud(self) -> PointCloud:
        """The raw cloud, N points, labels as train ids (-1 ignored) or None."""
        return self.source.cloud(features=True)

    @property
    def bare(self) -> PointCloud:
        """The raw cloud where only coordinates and labels are needed."""
        return self.source.cloud(features=False)

    @property
    def grid(self) -> GridCloud:
        """The grid cloud, V points; the unit of sampling, pseudo-labels and voting."""
        return self.source.grid()

    @property
    def labelled(self) -> bool:
        """Whether the raw cloud has labels."""
        return self.source.labelled

    @property
    def visible(self) -> np.ndarray:
        """(V,) int64 labels that training may see, -1 elsewhere."""
        return np.full(len(self.grid), -1, np.int64) if self.given is None else self.given.unpack()

    @property
    def truth(self) -> np.ndarray:
        """(V,) int64 majority label of each grid point, -1 where there is none. For reports only."""
        grid = self.grid
        return np.full(len(grid), -1, np.int64) if grid.labels is None else grid.labels

    def possible(self, classes: int) -> np.ndarray:
        """(C,) bool classes that a point of the scene may be of: all unless the labels tell."""
        return np.ones(classes, bool) if self.occurring is None else self.occurring

    def truth_counts(self, classes: int) -> np.ndarray:
        """(C,) int64 grid points of each true class. For reports only."""
        return class_counts(self.truth, classes)

    def point_blocks(self) -> Iterator[np.ndarray]:
        """Grid point of the raw points, some (n,) int64 at a time."""
        inverse = self.grid.inverse
        for begin in range(0, len(inverse), BLOCK_POINTS):
            yield inverse[begin : begin + BLOCK_POINTS]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Grid point and true train id of the raw points of a labelled scene, some (n,) int64 at a time."""
        begin = 0
        for points in self.point_blocks():
            yield points, self.source.labels(slice(begin, begin + len(points)))
            begin += len(points)


def prepare(cloud: PointCloud, config: Config) -> Scene:
    """The scene of one raw cloud, nothing visible yet."""
    return Scene(Held(cloud, subsample(derive_features(cloud, config), config.data.grid)))


def load_split(config: Config, dataset: Any, split: str) -> list[Scene]:
    """Every scene of a split; those of a prepared dataset stay on disk."""
    names = progress(dataset.scenes(split), f"loading {split}")
    return [load_scene(config, dataset, name) for name in names]


def load_scene(config: Config, dataset: Any, name: str) -> Scene:
    """One scene, nothing visible yet; that of a prepared dataset stays on disk."""
    if isinstance(dataset, PreparedDataset):
        return Scene(Stored(dataset, name, ready_grid(dataset, name, config), config.data.grid))
    return prepare(dataset.load(name), config)


def reveal(scenes: list[Scene], labels: LabelSet) -> list[Scene]:
    """The scenes with the labels of `labels` visible; a scene it does not name has none.

    A budget that draws from every class tells which classes a scene lacks (`Scene.occurring`), unless most of the scene
    has no label to draw from: its annotator may have left out whole objects.
    """

    def occurring(scene: Scene) -> np.ndarray | None:
        found = class_counts(labels.label.get(scene.name, np.empty(0, np.int64)), len(labels.classes)) > 0
        return found if labels.complete and found.any() and mostly_labelled(scene) else None

    return [replace(s, given=pack_ids(visible(labels, s.grid)), occurring=occurring(s)) for s in scenes]


def mostly_labelled(scene: Scene) -> bool:
    """Whether at least `MOSTLY` of the grid points have a label, shown or hidden.

    Of a cloud without any labels those of a file stand for whatever cloud they were drawn from: True.
    """
    return not scene.labelled or float((scene.truth >= 0).mean()) >= MOSTLY


def training_labels(config: Config, dataset: Any, scenes: list[Scene], file: Path | None = None) -> LabelSet:
    """The label set of a run: the file of a resumed run, the file the budget names, or a seeded draw.

    A class without a labelled point is refused where the classes are the user's own. Those of a benchmark are given,
    and a part of it may lack some; and a `uniform` or listed budget is blind to classes by its protocol. There it is
    named on the terminal instead.

    Raises:
        ValueError: the budget is wrong, a file is of other classes or clouds, no point at all is labelled, or a class
            has no labelled point.
    """
    names = dataset.classes.names
    by_name = {s.name: s for s in scenes}

    def load(name: str) -> tuple[PointCloud, GridCloud]:
        return by_name[name].bare, by_name[name].grid

    budget = parse_budget(config.labels.budget) if file is None else None
    if budget is None or budget.kind == "file":
        labels = labels_of_file(file if budget is None else budget.path, by_name, names)
    else:
        seed = config.seed if config.labels.seed is None else config.labels.seed
        labels = draw(list(by_name), load, budget, names, seed, config.labels.unit)
    missing, where = labels.missing, f"labels.budget {config.labels.budget!r}"
    if len(missing) == len(names):
        raise ValueError(f"{where}: no labelled point in the training split")
    if missing:
        found = f"{where}: no labelled point of class {', '.join(missing)} in the training split"
        blind = str(labels.meta["budget"]).startswith(("uniform:", "list:"))
        if config.data.dataset in ("synthetic", "folder") and not blind:
            raise ValueError(f"{found}; label one, or leave the class out of the classes")
        say(f"{found}; the network cannot learn what it is never shown")
    return labels


def labels_of_file(path: Path | None, scenes: dict[str, Scene], names: tuple[str, ...]) -> LabelSet:
    """A label file, compared with the clouds it is used on and counted on their grids.

    Raises:
        ValueError: it has other classes, lacks a scene with labels of its own, or contradicts a cloud.
    """
    assert path is not None
    labels = LabelSet.load(path, classes=names)
    none = {s.name: np.empty(0, np.int64) for s in scenes.values() if not s.labelled and s.name not in labels.index}
    labels = replace(labels, index={**labels.index, **none}, label={**labels.label, **none})
    for scene in scenes.values():
        try:
            check(labels, scene.name, scene.bare)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if not all(s.labelled for s in scenes.values()):
        return labels  # the file alone knows the labels of such clouds
    return collect(
        list(scenes),
        lambda name: (scenes[name].bare, scenes[name].grid),
        lambda cloud, grid: labels.index[cloud.name],
        names,
        {key: labels.meta[key] for key in ("budget", "seed", "unit", "ignored_points") if key in labels.meta},
    )


def open_dataset(config: Config) -> Any:
    """The dataset of a configuration."""
    return load_dataset(config.data)


def owners(scenes: Sequence[Scene], processes: Processes) -> list[int]:
    """The process that each scene belongs to."""
    # a process by itself need not look at the scenes
    return processes.owners([len(s.grid) for s in scenes]) if processes.size > 1 else [0] * len(scenes)


def owned(scenes: Sequence[Scene], processes: Processes) -> list[Scene]:
    """The scenes of this process among all, in their order."""
    return [s for s, owner in zip(scenes, owners(scenes, processes), strict=True) if owner == processes.rank]
