"""Scenes ready for training and scoring: raw cloud -> grid cloud, visible labels, hidden truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mink_decouple.config import Config
from mink_decouple.data import load_dataset
from mink_decouple.data.budget import LabelSet, check, collect, draw, parse_budget, visible
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.grid import GridCloud, subsample
from mink_decouple.data.ground import height_above_ground, planar_spacing
from mink_decouple.engine.events import progress, say


@dataclass(frozen=True)
class Scene:
    """One scene: its grid cloud and what is known of its labels.

    Attributes:
        cloud: the raw cloud, N points, labels as train ids (-1 ignored) or None.
        grid: the grid cloud, V points; the unit of sampling, pseudo-labels and voting.
        visible: (V,) int64 labels that training may see, -1 elsewhere.
        truth: (V,) int64 majority label of each grid point, -1 where there is none. For reports only.
    """

    cloud: PointCloud
    grid: GridCloud
    visible: np.ndarray
    truth: np.ndarray

    @property
    def name(self) -> str:
        """The scene's name."""
        return self.grid.name


def derive_features(cloud: PointCloud, config: Config) -> PointCloud:
    """`cloud` with the features the configuration asks for that follow from others.

    `height` (N,) metres above the lowest points of the scene or above the local ground; `height_wide` (N,) metres above
    a ground estimated on cells twice as wide, which sees wide roofs as roofs; `log_intensity` (N,) in 0..1, since
    intensities spread over orders of magnitude and differ between sensors.

    Raises:
        ValueError: `log_intensity` is asked for and the cloud has no intensity.
    """
    features = dict(cloud.features)
    if "height" in config.data.features and "height" not in features:
        if config.data.height == "ground":
            features["height"] = height_above_ground(cloud.coords)
        else:
            features["height"] = cloud.coords[:, 2] - np.percentile(cloud.coords[:, 2], 1).astype(np.float32)
    if "height_wide" in config.data.features:
        features["height_wide"] = height_above_ground(cloud.coords, cell=2 * max(2.0, 2 * planar_spacing(cloud.coords)))
    if "log_intensity" in config.data.features:
        if "intensity" not in features:
            have = ", ".join(sorted(features)) or "none"
            raise ValueError(f"data.features: log_intensity needs the column intensity; {cloud.name} has {have}")
        values = np.maximum(features["intensity"].astype(np.float32), 0)
        features["log_intensity"] = np.log1p(values) / np.float32(np.log(65536))
    kept = {name: column for name, column in features.items() if name in config.data.features}
    return replace(cloud, features=kept)


def prepare(cloud: PointCloud, config: Config) -> Scene:
    """The scene of one raw cloud, nothing visible yet."""
    grid = subsample(derive_features(cloud, config), config.data.grid)
    none = np.full(len(grid.coords), -1, dtype=np.int64)
    return Scene(cloud, grid, none, none if grid.labels is None else grid.labels)


def load_split(config: Config, dataset: Any, split: str) -> list[Scene]:
    """Every scene of a split."""
    names = dataset.scenes(split)
    return [prepare(dataset.load(name), config) for name in progress(names, f"loading {split}")]


def reveal(scenes: list[Scene], labels: LabelSet) -> list[Scene]:
    """The scenes with the labels of `labels` visible; a scene it does not name has none."""
    return [replace(s, visible=visible(labels, s.grid)) for s in scenes]


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
        return by_name[name].cloud, by_name[name].grid

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
        ValueError: it has other classes, lacks a scene, or contradicts a cloud.
    """
    assert path is not None
    labels = LabelSet.load(path, classes=names)
    for scene in scenes.values():
        try:
            check(labels, scene.name, scene.cloud)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if any(s.cloud.labels is None for s in scenes.values()):
        return labels  # the file alone knows the labels of such clouds
    return collect(
        list(scenes),
        lambda name: (scenes[name].cloud, scenes[name].grid),
        lambda cloud, grid: labels.index[cloud.name],
        names,
        {key: labels.meta[key] for key in ("budget", "seed", "unit", "ignored_points") if key in labels.meta},
    )


def open_dataset(config: Config) -> Any:
    """The dataset of a configuration."""
    return load_dataset(config.data)
