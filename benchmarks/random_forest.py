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
from scipy.spatial import cKDTree
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from tqdm import tqdm

from mink_decouple.config import Config, load_config, parse_overrides
from mink_decouple.data import Dataset, load_dataset
from mink_decouple.data.budget import LabelSet, check, draw, parse_budget
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.grid import subsample
from mink_decouple.data.ground import height_above_ground
from mink_decouple.metrics import ConfusionMatrix

Array = NDArray[np.float32]

SHAPE_NAMES = (
    "linearity",
    "planarity",
    "sphericity",
    "omnivariance",
    "anisotropy",
    "eigenentropy",
    "surface_variation",
    "eigenvalue_sum",
    "verticality",
    "axis_verticality",
    "neighbors",
    "distance_to_mean",
    "z_range",
    "z_above_min",
    "z_below_max",
    "z_std",
    "z_to_mean",
)
"""Columns of :func:`eigen_features`, in order; means and deviations of the attributes follow them."""

POINT_FEATURES = ("rgb", "intensity", "remission", "return_number", "number_of_returns")
THINNING = 5.0
CHUNK = 32_768


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


def thin(coords: NDArray[np.floating], cell: float) -> NDArray[np.int64]:
    """Index of one point per occupied cell of a grid of ``cell`` metres, in ascending order."""
    cells = np.floor((coords - coords.min(axis=0)) / cell).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    return np.sort(first)


def planar_spacing(coords: NDArray[np.floating]) -> float:
    """Metres between neighbours in plan: the root of the occupied area over the number of points."""
    cell = 10.0
    cells = np.floor(coords[:, :2] / cell).astype(np.int64)
    return cell * float(np.sqrt(len(np.unique(cells, axis=0)) / len(coords)))


def default_radii(coords: NDArray[np.floating], ground: bool) -> tuple[float, ...]:
    """Furniture-sized spheres indoors; outdoors 1, 2, 4 and 8 times the spacing in plan, from half a metre up."""
    if not ground:
        return 0.15, 0.4, 1.0
    unit = max(0.5, round(planar_spacing(coords), 1))
    return unit, 2 * unit, 4 * unit, 8 * unit


def eigen_features(
    coords: NDArray[np.floating],
    queries: NDArray[np.floating],
    radius: float,
    max_neighbors: int = 64,
    attributes: NDArray[np.floating] | None = None,
) -> Array:
    """Describe the sphere around each query by the eigenvalues of its covariance and by its heights.

    With eigenvalues ``a >= b >= c``: linearity ``(a-b)/a``, planarity ``(b-c)/a``, sphericity ``c/a``, omnivariance
    ``(abc)^(1/3)``, anisotropy ``(a-c)/a``, eigenentropy ``-sum p ln p`` and surface variation ``c/(a+b+c)`` with ``p``
    the eigenvalues over their sum (Weinmann et al. 2015); verticality ``1 - |n_z|`` of the normal. A sphere of fewer
    than three points has no shape: its shape columns are zero.

    Args:
        coords: (N, 3) metres, the cloud whose points are the neighbours.
        queries: (Q, 3) metres, where to compute.
        radius: metres.
        max_neighbors: only the nearest this many points of a sphere are used.
        attributes: (N, A) per point; their neighbourhood means and standard deviations are appended.

    Returns:
        (Q, len(SHAPE_NAMES) + 2 A) float32.

    Raises:
        ValueError: the cloud is empty or the radius is not positive.
    """
    if len(coords) == 0:
        raise ValueError("eigen_features: the cloud has no point")
    if radius <= 0:
        raise ValueError(f"radius: {radius} is not positive")
    tree = cKDTree(coords)
    points = np.asarray(coords, dtype=np.float64)
    values = np.zeros((len(coords), 0)) if attributes is None else np.asarray(attributes, dtype=np.float64)
    out = np.empty((len(queries), len(SHAPE_NAMES) + 2 * values.shape[1]), dtype=np.float32)
    k = min(max_neighbors, len(coords))
    for start in range(0, len(queries), CHUNK):
        centres = np.asarray(queries[start : start + CHUNK], dtype=np.float64)
        _, index = tree.query(centres, k=[*range(1, k + 1)], distance_upper_bound=radius, workers=-1)
        out[start : start + CHUNK] = _describe(points, values, centres, index)
    return out


def _describe(
    points: NDArray[np.float64], values: NDArray[np.float64], centres: NDArray[np.float64], index: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Columns of eigen_features for a chunk; ``index`` (Q, k) holds ``len(points)`` where a neighbour is missing."""
    valid = index < len(points)
    index = np.where(valid, index, 0)
    count = valid.sum(axis=1)
    n = np.maximum(count, 1)[:, None]
    # Offsets from the query keep the covariance accurate far from the origin.
    offsets = (points[index] - centres[:, None]) * valid[..., None]
    mean = offsets.sum(axis=1) / n
    centred = (offsets - mean[:, None]) * valid[..., None]
    covariance = np.einsum("qki,qkj->qij", centred, centred) / n[..., None]
    eigenvalues, vectors = np.linalg.eigh(covariance)
    c, b, a = np.clip(eigenvalues, 0.0, None).T
    shaped = (count >= 3) & (a > 0)
    top = np.where(shaped, a, 1.0)
    total = np.where(shaped, a + b + c, 1.0)
    p = np.stack([a, b, c], axis=1) / total[:, None]
    entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1)
    shape = np.stack(
        [
            (a - b) / top,
            (b - c) / top,
            c / top,
            np.cbrt(a * b * c),
            (a - c) / top,
            entropy,
            c / total,
            a + b + c,
            1.0 - np.abs(vectors[:, 2, 0]),
            np.abs(vectors[:, 2, 2]),
        ],
        axis=1,
    )
    shape[~shaped] = 0.0
    z = offsets[..., 2]
    empty = count == 0
    low = np.where(empty, 0.0, np.where(valid, z, np.inf).min(axis=1))
    high = np.where(empty, 0.0, np.where(valid, z, -np.inf).max(axis=1))
    z_std = np.sqrt(np.clip(covariance[:, 2, 2], 0.0, None))
    heights = np.stack([high - low, -low, high, z_std, mean[:, 2]], axis=1)
    columns = [shape, count[:, None], np.linalg.norm(mean, axis=1)[:, None], heights]
    if values.shape[1]:
        near = values[index] * valid[..., None]
        average = near.sum(axis=1) / n
        spread = ((near - average[:, None]) * valid[..., None]) ** 2
        columns += [average, np.sqrt(spread.sum(axis=1) / n)]
    return np.concatenate(columns, axis=1)


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
        cell = max(2.0, 2.0 * planar_spacing(coords))
        attributes += [height_above_ground(coords, cell=c).reshape(-1, 1) for c in (cell, 2 * cell)]
    table = np.concatenate(attributes, axis=1) if attributes else np.zeros((len(coords), 0), dtype=np.float32)
    columns = [table[rows]]
    for radius in settings.radii:
        kept = thin(coords, radius / THINNING)
        columns.append(eigen_features(coords[kept], coords[rows], radius, settings.max_neighbors, table[kept]))
    return np.concatenate(columns, axis=1, dtype=np.float32)


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
    """Mean and sample standard deviation (0 for a single value) over the seeds, NaN values left out."""
    known = np.asarray([v for v in values if not np.isnan(v)], dtype=np.float64)
    if not len(known):
        return float("nan"), float("nan")
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else 0.0


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
    started = time.perf_counter()
    tables = [
        features(cloud.coords, cloud.features, settings)
        for cloud in tqdm(test, desc="features", unit="scene", disable=None)
    ]
    seconds = {"test_features": time.perf_counter() - started}
    runs = []
    for seed in tqdm(seeds, desc="forests", unit="seed", disable=None):
        labels = visible_labels(config, dataset, train, seed)
        begun = time.perf_counter()
        rows = [features(cloud.coords, cloud.features, settings, labels.index[cloud.name]) for cloud in train]
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
        print(f"{key:<24}", "-" if mean is None else f"{100 * mean:6.2f} +- {100 * deviation:.2f}")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
