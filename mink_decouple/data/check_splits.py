"""What is wrong between scenes: classes that a split lacks, and points that two splits share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from mink_decouple.data.check import Finding, Wanted
from mink_decouple.data.hash_sample import common
from mink_decouple.data.scene_stats import SceneStats

Splits = Mapping[str, Sequence[SceneStats]]

LEAST_COMMON = 8
"""Points of their samples that two scenes must share before it is no chance: scanners' coordinates are millimetres."""
LEAST_SHARE = 0.01
UNEVEN = 100.0


def class_counts(scenes: Sequence[SceneStats], classes: int) -> np.ndarray:
    """(C,) int64 labelled points per class."""
    counts = np.zeros(classes, np.int64)
    for scene in scenes:
        if scene.labelled is not None:
            counts += scene.labelled
    return counts


def imbalance(counts: np.ndarray) -> float | None:
    """Points of the largest class per point of the smallest that occurs; None without points."""
    there = counts[counts > 0]
    return float(there.max() / there.min()) if len(there) else None


def split_findings(splits: Splits, classes: Sequence[str], wanted: Wanted) -> Iterator[Finding]:
    """Everything to say of the splits and of pairs of scenes."""
    yield from _class_findings(splits, classes, wanted)
    yield from _same_names(splits)
    if wanted.train == wanted.scored:
        yield Finding("note", "overlap", "", "the training split is scored", "such figures say nothing of other scenes")
    same = list(_same_contents(splits))
    yield from (finding for _, finding in same)
    yield from _common_points(splits, {pair for pair, _ in same})


def _class_findings(splits: Splits, classes: Sequence[str], wanted: Wanted) -> Iterator[Finding]:
    for split in dict.fromkeys((wanted.train, wanted.scored)):
        scenes = [scene for scene in splits.get(split, ()) if scene.labelled is not None]
        if not scenes:
            if splits.get(split) and split == wanted.train and not wanted.labels_in_file:
                advice = "add some, or name a label file (labels.budget)"
                yield Finding("error", "unlabelled", "", f"no scene of '{split}' has labels", advice)
            continue
        counts = class_counts(scenes, len(classes))
        missing = ", ".join(name for name, count in zip(classes, counts) if count == 0)
        if missing and split == wanted.train:
            level = "error" if wanted.all_classes else "warning"
            advice = "label some, or take it out of the classes" if wanted.all_classes else "nothing can learn it"
            yield Finding(level, "classes", "", f"no point of class {missing} in '{split}'", advice)
        elif missing:
            found = f"no point of class {missing} in '{split}'"
            yield Finding("warning", "classes", "", found, "it has no IoU there; the mean is over the others")
        ratio = imbalance(counts)
        if ratio is not None and ratio >= UNEVEN and split == wanted.train:
            most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max() + 1).argmin())
            found = f"{ratio:,.0f} points of {classes[most]} per point of {classes[least]} in '{split}'"
            yield Finding("note", "imbalance", "", found, "read the IoU of each class beside the mean")


def _same_names(splits: Splits) -> Iterator[Finding]:
    owners: dict[str, list[str]] = {}
    for split, scenes in splits.items():
        for scene in scenes:
            owners.setdefault(scene.name, []).append(split)
    for name, found in owners.items():
        if len(found) > 1:
            where = " and ".join(f"'{split}'" for split in found)
            yield Finding("error", "overlap", name, f"is listed in {where}", "keep it in one split, once")


def _same_contents(splits: Splits) -> Iterator[tuple[tuple[str, str], Finding]]:
    """Pairs of scenes of the same points, and the finding on each."""
    first: dict[str, tuple[str, SceneStats]] = {}
    for split, scenes in splits.items():
        for scene in scenes:
            if scene.points == scene.bad:
                continue
            before, other = first.setdefault(scene.content, (split, scene))
            if other.name == scene.name:
                continue
            level = "warning" if before == split else "error"
            found = f"has the same points as {other.name} in '{before}'"
            pair = (other.name, scene.name)
            yield pair, Finding(level, "overlap", scene.name, f"'{split}' scene {found}", "remove one of the two")


def _common_points(splits: Splits, done: set[tuple[str, str]]) -> Iterator[Finding]:
    for (one, left), (other, right) in combinations(splits.items(), 2):
        for a, b in _pairs(left, right):
            if a.name == b.name or (a.name, b.name) in done:
                continue
            found, share = common(a.world, b.world)
            if found < LEAST_COMMON or share < LEAST_SHARE:
                continue
            yield Finding(
                "error" if share >= 0.5 else "warning",
                "overlap",
                b.name,
                f"'{other}' scene shares {share:.0%} of the smaller one's points with {a.name} in '{one}', and their "
                f"boxes {_box_share(a, b):.0%}",
                "cut the scenes apart, or keep both in one split",
            )


def _pairs(left: Sequence[SceneStats], right: Sequence[SceneStats]) -> Iterator[tuple[SceneStats, SceneStats]]:
    """Pairs whose samples share `LEAST_COMMON` keys; time and memory follow the keys, not the pairs."""
    if not left or not right:
        return
    keys = np.concatenate([scene.world.keys for scene in right])
    owner = np.repeat(np.arange(len(right)), [len(scene.world.keys) for scene in right])
    order = np.argsort(keys)
    keys, owner = keys[order], owner[order]
    for a in left:
        begin, end = (np.searchsorted(keys, a.world.keys, side) for side in ("left", "right"))
        hits = [owner[begin[at] : end[at]] for at in np.flatnonzero(end > begin)]
        if hits:
            counts = np.bincount(np.concatenate(hits), minlength=len(right))
            yield from ((a, right[int(index)]) for index in np.flatnonzero(counts >= LEAST_COMMON))


def _box_share(a: SceneStats, b: SceneStats) -> float:
    """Volume that two bounding boxes have in common, as a share of the smaller; flat boxes count as 1 mm thick."""
    sides = np.minimum(a.high, b.high) - np.maximum(a.low, b.low) + 0.001
    volumes = [float(np.prod(scene.extent + 0.001)) for scene in (a, b)]
    return float(np.prod(np.maximum(sides, 0))) / min(volumes)
