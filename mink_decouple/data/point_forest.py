"""A random forest on the shape of neighbourhoods: the classic point classifier, which a few dozen labels suffice for.

Features follow Weinmann et al. 2015 and Hackel et al. 2016: eigenvalues of the local covariance and heights at several
scales (`data.eigen_features`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from mink_decouple.config import ForestConfig
from mink_decouple.data.eigen_features import CHUNK, OPERATIONS, Surroundings
from mink_decouple.data.grid import GridCloud
from mink_decouple.threads import share

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier


def surroundings_of(grid: GridCloud, options: ForestConfig) -> Surroundings:
    """What a forest sees of the V points of a grid cloud: all of its features and spheres of so many grid sizes."""
    columns = [np.asarray(grid.features[key], np.float32).reshape(len(grid), -1) for key in sorted(grid.features)]
    table = np.concatenate([np.empty((len(grid), 0), np.float32), *columns], axis=1)
    return Surroundings(grid.coords, table, [grid.size * step for step in options.radii], options.neighbors)


def fit(
    surroundings: Mapping[str, Surroundings], visible: Mapping[str, np.ndarray], options: ForestConfig, seed: int
) -> RandomForestClassifier:
    """A forest of the given labels, classes weighted by inverse frequency.

    Args:
        surroundings: scene name -> what is seen of its V points; looked up one scene at a time.
        visible: scene name -> (V,) int64 given labels, -1 hidden.
        options: trees, and how many labels may take part: of classes with more than their share, some at random.
        seed: of the choice and of the trees.

    Raises:
        ValueError: no label at all.
    """
    from sklearn.ensemble import RandomForestClassifier

    given = {name: np.flatnonzero(visible[name] >= 0) for name in visible}
    target = np.concatenate([np.empty(0, np.int64), *(visible[name][points] for name, points in given.items())])
    if not len(target):
        raise ValueError("labels.spread forest: no labelled point to learn from")
    kept = np.zeros(len(target), bool)
    kept[_evenly(target, options.most, np.random.default_rng(seed))] = True
    rows, first = [], 0
    for name, points in given.items():
        chosen = points[kept[first : first + len(points)]]
        first += len(points)
        if len(chosen):
            rows.append(surroundings[name].all_rows(chosen))
    forest = RandomForestClassifier(
        options.trees, class_weight="balanced", n_jobs=torch.get_num_threads(), random_state=seed
    )
    return forest.fit(np.concatenate(rows), target[kept])


def _evenly(target: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `most` of (n,) labels at most, but one a class: rare classes whole, of the others equally many."""
    found: list[np.ndarray] = []
    classes, counts = np.unique(target, return_counts=True)
    for number, label in enumerate(classes[np.argsort(counts, kind="stable")]):
        points = np.flatnonzero(target == label)
        share = max(1, (most - sum(len(part) for part in found)) // (len(classes) - number))
        found.append(points if len(points) <= share else rng.choice(points, share, replace=False))
    return np.concatenate(found)


def vote(forest: RandomForestClassifier, surroundings: Surroundings, classes: int) -> np.ndarray:
    """(V, classes) float32 shares of the trees' votes for every point of a scene; rows sum to 1."""
    found = np.zeros((len(surroundings), classes), np.float32)

    def work(first: int, last: int) -> None:
        for start in range(first, last, CHUNK):
            points = np.arange(start, min(start + CHUNK, last))
            rows, total = surroundings.rows(points), np.zeros((len(points), len(forest.classes_)))
            # One tree after the other: scikit-learn's threads add their votes in any order, whose rounding differs.
            for tree in forest.estimators_:
                total += tree.predict_proba(rows, check_input=False)
            found[start : start + len(points), forest.classes_] = total / len(forest.estimators_)

    share(work, len(found), OPERATIONS * len(found))
    return found


def most_certain(votes: np.ndarray, part: float, possible: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The label of the points whose votes are the clearest: of each class the first `part` of its points, rounded up.

    Args:
        votes: (V, C) float32.
        part: 0 to 1.
        possible: (C,) bool classes that occur; no point is of another.
        rng: decides among points that are equally clear: by their order the first would lie on one side of the scene.

    Returns:
        (V,) int64, -1 for the other points.
    """
    votes = votes * possible
    total = votes.sum(1)
    label, certain = votes.argmax(1), votes.max(1, initial=0) / np.maximum(total, np.float32(1e-9))
    label[total == 0] = -1
    result = np.full(len(votes), -1, np.int64)
    for number in range(votes.shape[1]):
        points = np.flatnonzero(label == number)
        order = np.lexsort((rng.random(len(points)), -certain[points]))
        clearest = order[: int(np.ceil(part * len(points)))]
        result[points[clearest]] = number
    return result
