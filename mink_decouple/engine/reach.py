"""How far given labels reach (`labels.spread`): to the rest of their segments, or to where a forest is sure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from mink_decouple.config import Config
from mink_decouple.data import point_forest
from mink_decouple.data.packed import PackedIds, pack_ids
from mink_decouple.data.point_forest import surroundings_of
from mink_decouple.data.segments import over_segment, pool, spread_labels
from mink_decouple.engine.events import progress, say
from mink_decouple.engine.lazy import Kept, PerScene
from mink_decouple.engine.runtime import derive_seed
from mink_decouple.engine.scenes import Scene


def segments_of(config: Config, scenes: Sequence[Scene]) -> Mapping[str, np.ndarray]:
    """(V,) int32 segments of every scene (`over_segment`), made when first asked for and kept: 4 bytes a grid point."""
    return Kept(scenes, lambda scene: over_segment(scene.grid, config.segments))


def reach_of(config: Config, scenes: Sequence[Scene], segments: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """(V,) int64 label that reaches each grid point of every scene, -1 for none and where a label is given.

    Made when first asked for and kept packed. A forest is one for all scenes; the points of a segment vote together,
    and segments whose given labels agree have that label.

    Args:
        config: `labels.spread` says how; `forest` of the forest, whose seed is that of the run.
        scenes: of the training set, with the labels that it may see.
        segments: those of `segments_of`.
    """
    if config.labels.spread == "forest":
        grown = cache(lambda: _forest_labels(config, scenes, segments))
        return PerScene(scenes, lambda scene: grown()[scene.name].unpack())
    held = Kept(scenes, lambda scene: pack_ids(_near(scene.visible, segments[scene.name])))
    return PerScene(scenes, lambda scene: held[scene.name].unpack())


def _near(visible: np.ndarray, segments: np.ndarray) -> np.ndarray:
    return np.where(visible < 0, spread_labels(visible, segments), -1)


def _forest_labels(config: Config, scenes: Sequence[Scene], segments: Mapping[str, np.ndarray]) -> dict[str, PackedIds]:
    options, started = config.forest, time.perf_counter()
    visible = PerScene(scenes, lambda scene: scene.visible)
    forest = point_forest.fit(
        PerScene(scenes, lambda scene: surroundings_of(scene.grid, options)), visible, options, config.seed
    )
    classes = int(forest.classes_.max()) + 1
    found, reached, known, right = {}, 0, 0, 0
    for scene in progress(scenes, "forest"):
        votes = point_forest.vote(forest, surroundings_of(scene.grid, options), classes)
        votes = pool(votes, segments[scene.name])
        rng = np.random.default_rng(derive_seed(config.seed, "forest", scene.name))
        sure = point_forest.most_certain(votes, options.share, scene.possible(classes)[:classes], rng)
        shown = scene.visible
        near = _near(shown, segments[scene.name])
        labels = np.where((near >= 0) | (shown >= 0), near, sure)
        found[scene.name] = pack_ids(labels)
        told = labels >= 0
        truth = scene.truth[told]  # hidden labels, for the report only
        reached += len(truth)
        known += int((truth >= 0).sum())
        right += int((truth == labels[told]).sum())
    correct = f", {100 * right / known:.1f} % of them right" if known else ""
    say(f"forest: given labels reach {reached:,} more points{correct}; {time.perf_counter() - started:.0f} s")
    return found
