"""A random forest on classic eigen-features: what a practitioner would try before any network.

Features follow Weinmann et al. 2015 and Hackel et al. 2016 (shape of the local covariance at several scales, height
statistics), the neighbourhoods follow Thomas et al. 2018 (spheres on a cloud thinned to a fifth of the radius, so the
number of neighbours stays bounded at every scale), plus height above ground and what the scanner recorded (intensity,
echo number, colour). It sees exactly the visible labels a network sees and is scored on every raw point with the same
rule.

    python benchmarks/random_forest.py --config configs/X.yaml --labels labels.npz --seeds 0 1 2 --output DIR
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from tqdm import tqdm

from mink_decouple.config import Config, load_config, parse_overrides
from mink_decouple.data import Dataset, load_dataset
from mink_decouple.data.budget import LabelSet, check, draw, parse_budget
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.eigen_features import CHUNK, Array, Surroundings
from mink_decouple.data.grid import subsample
from mink_decouple.data.ground import default_cell, height_above_ground, planar_spacing
from mink_decouple.metrics import ConfusionMatrix

POINT_FEATURES = ("rgb", "intensity", "remission", "return_number", "number_of_returns")


@dataclass(frozen=True)
class Settings:
    """How the forest is built.

    Attributes:
        radii: radii of the spheres, metres.
        max_neighbors: the nearest this many points of a sphere are used.
        trees: number of trees.
        min_samples_leaf: candidates; the best cross-validated mIoU wins.
        class_weights: candidates; the best cross-validated mIoU wins.
        folds: of the cross-validation.
        ground: add the height above ground (outdoor scenes) on a grid of twice the spacing of the points, where a cell
            holds about four of them, and on one twice as coarse.
    """

    radii: tuple[float, ...]
    max_neighbors: int = 64
    trees: int = 300
    min_samples_leaf: tuple[int, ...] = (1, 3)
    class_weights: tuple[str | None, ...] = (None, "balanced", "balanced_subsample")
    folds: int = 3
    ground: bool = True


def default_radii(coords: NDArray[np.floating], ground: bool) -> tuple[float, ...]:
    """Furniture-sized spheres indoors; outdoors 1, 2, 4 and 8 times the spacing in plan, from half a metre up."""
    if not ground:
        return 0.15, 0.4, 1.0
    unit = max(0.5, round(planar_spacing(coords), 1))
    return unit, 2 * unit, 4 * unit, 8 * unit


def features(
    coords: NDArray[np.floating],
    point_features: Mapping[str, NDArray],
    settings: Settings,
    rows: NDArray[np.int64] | None = None,
) -> Array:
    """Feature rows of a cloud.

    Args:
        coords: (N, 3) metres.
        point_features: name -> (N,) or (N, k); the names of ``POINT_FEATURES`` are used.
        settings: radii and neighbour cap.
        rows: which points to describe (their neighbours come from the whole cloud); all when None.

    Returns:
        (len(rows), F) float32.
    """
    rows = np.arange(len(coords)) if rows is None else rows
    attributes = [np.asarray(point_features[n], dtype=np.float32) for n in POINT_FEATURES if n in point_features]
    attributes = [a.reshape(len(coords), -1) for a in attributes]
    if "return_number" in point_features and "number_of_returns" in point_features:
        number = np.asarray(point_features["return_number"], dtype=np.float32)
        returns = np.asarray(point_features["number_of_returns"], dtype=np.float32)
        attributes.append((number / np.maximum(returns, np.float32(1)))[:, None])
    if settings.ground:
        cell = default_cell(coords)
        attributes += [height_above_ground(coords, cell=c).reshape(-1, 1) for c in (cell, 2 * cell)]
    table = np.concatenate(attributes, axis=1) if attributes else np.zeros((len(coords), 0), dtype=np.float32)
    return Surroundings(coords, table, settings.radii, settings.max_neighbors).all_rows(rows)


def fit(
    rows: Array, target: NDArray[np.int64], seed: int, settings: Settings
) -> tuple[RandomForestClassifier, dict[str, float]]:
    """Choose among the candidates by cross-validated mIoU on the visible labels alone, then fit on all of them.

    Folds rather than out-of-bag votes: newer scikit-learn draws the bootstrap by class weight, which leaves points of
    the rare classes in every bag and their out-of-bag votes undefined.

    Args:
        rows: (n, F) features of the labelled points.
        target: (n,) train ids.
        seed: of the folds and the forests.
        settings: number of trees and the candidates.

    Returns:
        The forest and the cross-validated mIoU of each candidate (none when a class has a single label: then the first
        candidate is taken).

    Raises:
        ValueError: no labelled point or no candidate.
    """
    candidates = [(weight, leaf) for weight in settings.class_weights for leaf in settings.min_samples_leaf]
    if not len(target) or not candidates:
        raise ValueError(f"random forest: {len(target)} labelled points and {len(candidates)} candidates to fit")
    scores: dict[str, float] = {}
    best = candidates[0]
    fewest = np.bincount(target)[np.unique(target)].min()
    if len(candidates) > 1 and fewest >= 2:
        folds = StratifiedKFold(int(min(settings.folds, fewest)), shuffle=True, random_state=seed)
        for weight, leaf in candidates:
            voted = cross_val_predict(_forest(settings, weight, leaf, seed), rows, target, cv=folds)
            score = _miou(target, voted)
            if score > max(scores.values(), default=-1.0):
                best = (weight, leaf)
            scores[f"class_weight={weight} min_samples_leaf={leaf}"] = score
    return _forest(settings, *best, seed).fit(rows, target), scores


def _miou(target: NDArray[np.int64], voted: NDArray[np.int64]) -> float:
    confusion = ConfusionMatrix(int(target.max()) + 1)
    confusion.update(voted, target)
    return confusion.miou


def _forest(settings: Settings, weight: str | None, leaf: int, seed: int) -> RandomForestClassifier:
    return RandomForestClassifier(
        settings.trees, class_weight=weight, min_samples_leaf=leaf, n_jobs=-1, random_state=seed
    )


def predict(forest: RandomForestClassifier, rows: Array) -> tuple[NDArray[np.int64], Array]:
    """Train id (N,) and its vote share (N,) float32 of each row."""
    votes = [forest.predict_proba(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
    share = np.concatenate(votes) if votes else np.zeros((0, len(forest.classes_)))
    return forest.classes_[share.argmax(axis=1)].astype(np.int64), share.max(axis=1, initial=0).astype(np.float32)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value) over the seeds, NaN values left out."""
    known = np.asarray([v for v in values if not np.isnan(v)], dtype=np.float64)
    if not len(known):
        return float("nan"), float("nan")
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def visible_labels(config: Config, dataset: Dataset, clouds: Sequence[PointCloud], seed: int) -> LabelSet:
    """The label file of the configuration, or the draw of this seed if it names a budget."""
    names = dataset.classes.names
    budget = parse_budget(config.labels.budget)
    if budget.kind == "file":
        labels = LabelSet.load(budget.path, names)
    else:
        scenes = {cloud.name: cloud for cloud in clouds}
        labels = draw(
            list(scenes),
            lambda name: (scenes[name], subsample(scenes[name], config.data.grid)),
            budget,
            names,
            seed,
            config.labels.unit,
        )
    for cloud in clouds:
        check(labels, cloud.name, cloud)
    return labels


def run(config: Config, seeds: Sequence[int], radii: Sequence[float] | None = None, trees: int = 300) -> dict[str, Any]:
    """Fit and score one forest per seed.

    Args:
        config: its ``data`` and ``labels`` are used; ``data.height: ground`` adds the height above ground.
        seeds: of the forests, and of the label draws where ``labels.budget`` is not a file.
        radii: of the spheres, metres; None: :func:`default_radii`.
        trees: of a forest.

    Returns:
        JSON-ready: ``runs`` (a report per seed as in metrics.json; ``miou_present`` leaves out classes that are only
        predicted), ``mean`` and ``spread`` over the seeds of the scores and of the IoU of each class, ``seconds``,
        ``settings``.
    """
    dataset = load_dataset(config.data)
    train = [dataset.load(name) for name in dataset.scenes("train")]
    test = [dataset.load(name) for name in dataset.scenes(config.data.eval_split)]
    ground = config.data.height == "ground"
    settings = Settings(tuple(radii or default_radii(train[0].coords, ground)), trees=trees, ground=ground)
    names = dataset.classes.names
    shared = set.intersection(*(set(cloud.features) for cloud in [*train, *test]))  # a forest needs the same columns

    def described(cloud: PointCloud, rows: NDArray[np.int64] | None = None) -> Array:
        kept = {name: values for name, values in cloud.features.items() if name in shared}
        return features(cloud.coords, kept, settings, rows)

    started = time.perf_counter()
    tables = [described(cloud) for cloud in tqdm(test, desc="features", unit="scene", disable=None)]
    seconds = {"test_features": time.perf_counter() - started}
    runs = []
    for seed in tqdm(seeds, desc="forests", unit="seed", disable=None):
        labels = visible_labels(config, dataset, train, seed)
        begun = time.perf_counter()
        rows = [described(cloud, labels.index[cloud.name]) for cloud in train]
        forest, scores = fit(
            np.concatenate(rows), np.concatenate([labels.label[cloud.name] for cloud in train]), seed, settings
        )
        fitted = time.perf_counter()
        confusion = ConfusionMatrix(len(names))
        for cloud, table in zip(test, tables):
            if cloud.labels is None:
                raise ValueError(f"{cloud.name}: has no labels to score against")
            confusion.update(predict(forest, table)[0], cloud.labels)
        report = confusion.report(names)
        present = [value for value, points in zip(confusion.iou, confusion.true) if points]
        runs.append(
            {
                **report,
                "miou_present": float(np.mean(present)),
                "seed": seed,
                "labels": labels.checksum,
                "labelled_points": int(labels.counts.sum()),
                "cross_validation": scores,
                "seconds": {"fit": fitted - begun, "predict": time.perf_counter() - fitted},
            }
        )
    columns = {key: [run[key] for run in runs] for key in ("miou", "miou_present", "oa", "macc")}
    columns |= {f"iou.{name}": [run["iou"][name] for run in runs] for name in names}
    over = {key: spread([np.nan if v is None else v for v in values]) for key, values in columns.items()}
    return {
        "mean": {key: None if np.isnan(mean) else mean for key, (mean, _) in over.items()},
        "spread": {key: None if np.isnan(deviation) else deviation for key, (_, deviation) in over.items()},
        "runs": runs,
        "seconds": seconds,
        "settings": asdict(settings),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(description="Random forest on eigen-features, the baseline to beat.")
    parser.add_argument(
        "--config", help="a configuration; its data and labels are used (default: the embedded data set)"
    )
    parser.add_argument("--labels", help="a label file or a budget such as 1%% (default: that of the configuration)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--radii", type=float, nargs="+", help="metres (default: by the spacing of the points)")
    parser.add_argument("--trees", type=int, default=300)
    parser.add_argument("--set", nargs="+", default=[], metavar="A.B=C", help="changes to the configuration")
    parser.add_argument("--output", type=Path, required=True, help="folder for random_forest.json")
    given = parser.parse_args(arguments)
    try:
        changes = parse_overrides(given.set)
        if given.labels:
            changes.setdefault("labels", {})["budget"] = given.labels
        config = load_config(given.config, overrides=changes)
        result = run(config, given.seeds, given.radii, given.trees)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "random_forest.json"
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    for key, mean in result["mean"].items():
        deviation = result["spread"][key]
        beside = "" if deviation is None else f" +- {100 * deviation:.2f}"
        print(f"{key:<24}", "-" if mean is None else f"{100 * mean:6.2f}{beside}")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
