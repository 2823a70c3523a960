"""What there is to see of a file or a run: its points and layers, for pages and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mink_decouple import config as configuration
from mink_decouple.data.annotate import LABELS, side_file
from mink_decouple.data.classes import Classes, default_palette, load_classes
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import read_cloud, read_table
from mink_decouple.data.io_kitti import CONFIDENCE, read_label
from mink_decouple.data.io_las import LAS
from mink_decouple.engine import checkpoint
from mink_decouple.engine.export import load_network


@dataclass
class Sight:
    """Points and what is known of them.

    Attributes:
        title: the file's or scene's name.
        coords: (N, 3) float32 metres.
        classes: names and palette.
        layers: name -> rows, as `report.viewer` draws them.
    """

    title: str
    coords: np.ndarray
    classes: Classes
    layers: dict[str, np.ndarray] = field(default_factory=dict)


def sight_of_file(
    path: Path, truth: Path | None = None, classes: Classes | None = None, columns: Sequence[str] | None = None
) -> Sight:
    """Layers of a file: `colour`, `truth`, `prediction`, `confidence`, as far as it has them.

    The labels of a file are `prediction` where it was written by `predict` in place of them (LAS with a `confidence`),
    and where `truth` is given and it has no other prediction; else `truth`.

    Args:
        path: a file that `read_cloud` reads.
        truth: a file of the same points whose labels are the truth.
        classes: names, colours and raw ids; None for those of the ids that occur.
        columns: see `read_cloud`.

    Raises:
        FileNotFoundError, ValueError: see `read_cloud`; other points in `truth`; ids that are none of the classes'.
    """
    cloud = read_cloud(path, columns)
    raw, layers = _raw_labels(path, cloud), {}
    if truth is not None:
        other = read_cloud(truth, columns)
        if len(other) != len(cloud):
            raise ValueError(f"{truth}: {len(other)} points, {path} has {len(cloud)}")
        if other.labels is None:
            raise ValueError(f"{truth}: has no labels")
        found = raw.get("prediction", cloud.labels)
        raw = {"truth": other.labels} if found is None else {"prediction": found, "truth": other.labels}
    known = classes or _classes_of_ids(raw)
    if "rgb" in cloud.features:
        layers["colour"] = cloud.features["rgb"]
    for name in ("truth", "prediction"):
        if name in raw:
            layers[name] = _encoded(path, known, raw[name], classes is not None)
    confidence = cloud.features.get("confidence", _side_confidence(path))
    if confidence is not None:
        layers["confidence"] = np.asarray(confidence, np.float32)
    if not layers:
        raise ValueError(f"{path}: has neither colours nor labels nor a prediction to show")
    return Sight(path.name, cloud.coords, known, layers)


def sights_of_run(folder: Path) -> list[Sight]:
    """The scenes that a run keeps arrays of: predictions of one of evaluation, pseudo-labels of one of training.

    Raises:
        FileNotFoundError, ValueError: no run folder, or a checkpoint that cannot be read.
    """
    files = sorted((folder / "views").rglob("*.npz"))
    if not files:
        raise FileNotFoundError(f"{folder}: no run folder, it has no views/*.npz")
    classes = classes_of_checkpoint(folder / "checkpoints" / "last.pt")
    found = []
    for file in files:
        arrays = read_table(file)
        layers = {"truth": arrays["truth"]}
        names = {"final": "prediction", "pretrained": "pre-trained", "visible": "labels"}
        layers |= {shown: arrays[key].astype(np.int64) for key, shown in names.items() if key in arrays}
        iterations = sorted(key for key in arrays if key.endswith("_label"))
        if iterations:
            layers["pseudo-labels"] = arrays[iterations[-1]].astype(np.int64)
        found.append(Sight(file.stem, arrays["coords"], classes, layers))
    return found


def classes_of_checkpoint(path: Path) -> Classes:
    """The classes that a network was trained on."""
    state = load_network(path)
    configuration.loads(state["config"], str(path))  # refuses what is no checkpoint of a run
    return checkpoint.classes_of(state)


def classes_of(path: Path) -> Classes:
    """The classes of a checkpoint or of a `classes.yaml`."""
    return load_classes(path) if path.suffix.lower() in (".yaml", ".yml") else classes_of_checkpoint(path)


def _raw_labels(path: Path, cloud: PointCloud) -> dict[str, np.ndarray]:
    if "prediction" in cloud.features:
        found = {"prediction": np.asarray(cloud.features["prediction"], np.int64)}
        return found if cloud.labels is None else {**found, "truth": cloud.labels}
    if path.suffix.lower() == ".bin" and _side_confidence(path) is not None:
        return {"prediction": read_label(side_file(path, LABELS), len(cloud))}
    if cloud.labels is None:
        return {}
    predicted = path.suffix.lower() in LAS and "confidence" in cloud.features
    return {"prediction" if predicted else "truth": cloud.labels}


def _side_confidence(path: Path) -> np.ndarray | None:
    file = side_file(path, CONFIDENCE)
    return np.load(file, allow_pickle=False) if path.suffix.lower() == ".bin" and file.is_file() else None


def _classes_of_ids(raw: Mapping[str, np.ndarray]) -> Classes:
    ids = sorted({int(value) for column in raw.values() for value in np.unique(column)} - {-1})
    if not ids:
        return Classes(("class 0",), default_palette(1), {0: 0}, frozenset({-1}))
    table = {raw: number for number, raw in enumerate(ids)}
    return Classes(tuple(f"class {raw}" for raw in ids), default_palette(len(ids)), table, frozenset({-1}))


def _encoded(path: Path, classes: Classes, raw: np.ndarray, asked: bool) -> np.ndarray:
    try:
        return classes.encode(raw)
    except ValueError as error:
        hint = "; leave the classes out to see the ids as they are" if asked else ""
        raise ValueError(f"{path}: {error}{hint}") from None
