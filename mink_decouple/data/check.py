"""What is wrong with a scene, or odd: rules over the numbers of `data.scene_stats`, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from mink_decouple.data.scene_stats import SceneStats
from mink_decouple.data.transforms import feature_width

LEVELS = ("error", "warning", "note")

FAR_METRES = 100_000.0
"""Scenes farther from the origin than this are in projected coordinates, which are metres."""
TALL_METRES = 150.0
"""Higher than scanned rooms, stations and streets are; read as centimetres it is 1.5 m."""
WIDE_METRES = 0.1
"""Points of the tall scenes that are in metres lie closer; read as millimetres it is 0.1 mm."""
SMALL_METRES = 0.2
"""Longest side of a scene that is no scene in metres."""

_DERIVED = {"log_intensity": "intensity"}
_FREE = ("xyz", "one", "offset", "height", "height_wide")


@dataclass(frozen=True)
class Finding:
    """One line of a check.

    Attributes:
        level: "error" (stops or poisons training), "warning" (look at it) or "note" (know of it).
        kind: the rule, one word.
        scene: its name; "" for what concerns the dataset.
        found: what was found.
        advice: what to do.
    """

    level: str
    kind: str
    scene: str
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{f'{self.scene}: ' if self.scene else ''}{self.found}; {self.advice}"


@dataclass(frozen=True)
class Wanted:
    """What a configuration asks of its data.

    Attributes:
        grid: edge length of a cell, metres.
        features: names of the network's inputs.
        factors: feature -> its factor.
        train: the training split.
        scored: the split that is scored.
        labels_in_file: whether a label file gives the training labels, so that scenes need none.
        all_classes: whether training stops where a class has no label.
    """

    grid: float
    features: tuple[str, ...]
    factors: Mapping[str, float] = field(default_factory=dict)
    train: str = "train"
    scored: str = "val"
    labels_in_file: bool = False
    all_classes: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that every scene must have, derived features by what they are derived from."""
        return tuple(_DERIVED.get(name, name) for name in self.features if name not in _FREE)


def scene_findings(stats: SceneStats, split: str, wanted: Wanted) -> Iterator[Finding]:
    """Everything to say of one scene."""
    if stats.points == stats.bad:
        found = "no points" if stats.points == 0 else f"all {stats.points:,} points have NaN or infinite coordinates"
        yield Finding("error", "empty", stats.name, found, "leave the scene out of the split, or export it again")
        return
    for rule in (_coordinates, _units, _grid):
        yield from rule(stats, wanted)
    yield from _labels(stats, split, wanted)
    yield from _features(stats, wanted)


def _coordinates(stats: SceneStats, wanted: Wanted) -> Iterator[Finding]:
    if stats.bad:
        found = f"{stats.bad:,} of {stats.points:,} points have NaN or infinite coordinates"
        yield Finding("error", "nan", stats.name, found, "remove them from the file")
    if stats.duplicates >= 0.001:
        seen = "" if stats.duplicates_seen == 1 else f" (seen on one point in {stats.duplicates_seen})"
        found = f"{stats.duplicates:.1%} of the points repeat another exactly{seen}"
        level = "warning" if stats.duplicates >= 0.1 else "note"
        yield Finding(level, "duplicates", stats.name, found, "cells weigh them as more points; remove them if unmeant")
    flat = [axis for axis, side in zip("xyz", stats.extent) if side == 0]
    if flat and stats.points > 1:
        found = f"all points have the same {' and '.join(flat)}"
        yield Finding("warning", "flat", stats.name, found, "look for swapped or lost columns")
    if stats.step >= 0.02:
        yield Finding(
            "warning",
            "precision",
            stats.name,
            f"x and y come in steps of {stats.step:g} m",
            "digits were lost, in float16 or in float32 of projected coordinates; export it again as float64",
        )


def _units(stats: SceneStats, wanted: Wanted) -> Iterator[Finding]:
    """Whether centimetres or millimetres were taken for metres.

    A scene is suspected where it is taller than `TALL_METRES` between the 1st and 99th percentile of z, its points lie
    farther apart than `WIDE_METRES`, and no coordinate is beyond `FAR_METRES`: in millimetres from ten times that
    height on, else in centimetres. Mountains in local coordinates look the same; hence a warning.
    """
    if float(max(np.abs(stats.low).max(), np.abs(stats.high).max())) > FAR_METRES:
        return
    size = f"{stats.height:,.0f} m high with points {stats.spacing:.2g} m apart"
    if stats.height >= TALL_METRES and stats.spacing >= WIDE_METRES:
        unit, factor = ("millimetres", 0.001) if stats.height >= 10 * TALL_METRES else ("centimetres", 0.01)
        advice = f"if these are {unit}, multiply the coordinates by {factor:g}"
        yield Finding("warning", "units", stats.name, f"{size}: {unit} taken for metres?", advice)
    elif stats.points > 1 and stats.extent.max() < SMALL_METRES:
        found = f"only {stats.extent.max():.2g} m long: kilometres, or scaled to unit size?"
        yield Finding("warning", "units", stats.name, found, "bring the coordinates to metres")


def _grid(stats: SceneStats, wanted: Wanted) -> Iterator[Finding]:
    different = (1 - stats.duplicates) * (stats.points - stats.bad)
    if stats.cells < 100 <= different / 10:
        found = f"{stats.points:,} points fall into {stats.cells} cells of {wanted.grid:g} m"
        advice = f"choose a data.grid near twice the spacing of the points, {2 * stats.spacing:.2g} m, or mend the unit"
        yield Finding("error", "grid", stats.name, found, advice)
    elif stats.cells >= 0.95 * different and different >= 1000:
        found = (
            f"nearly every point has a cell of {wanted.grid:g} m to itself: {stats.cells:,} cells for {different:,.0f} "
            f"points {stats.spacing:.2g} m apart"
        )
        level = "warning" if stats.spacing > 3 * wanted.grid else "note"
        yield Finding(
            level, "grid", stats.name, found, f"a data.grid of {2 * stats.spacing:.2g} m would join neighbours"
        )


def _labels(stats: SceneStats, split: str, wanted: Wanted) -> Iterator[Finding]:
    used = [name for name in (wanted.train, wanted.scored) if split == name]
    if stats.labelled is None:
        if wanted.scored in used:
            found = f"no labels, but it is in the split '{split}'"
            yield Finding("error", "unlabelled", stats.name, found, "leave it out, or add its labels")
        elif used and not wanted.labels_in_file:
            yield Finding("note", "unlabelled", stats.name, "no labels", "its points can only get pseudo-labels")
        return
    if stats.strange:
        found = f"{stats.strange:,} points have a train id outside -1..{len(stats.labelled) - 1}"
        yield Finding("error", "labels", stats.name, found, "correct the labels, or name their classes")
    share = stats.ignored / stats.points
    if used and not stats.labelled.any():
        found = "not one point has a class"
        advice = "it scores nothing; see the ignored ids"
        if wanted.scored not in used:
            advice = "it gives no labels; its points can only get pseudo-labels"
        yield Finding("warning", "ignored", stats.name, found, advice)
    elif share >= 0.5:
        yield Finding(
            "note", "ignored", stats.name, f"{share:.0%} of the points are ignored", "see the ignored ids if unmeant"
        )


def _features(stats: SceneStats, wanted: Wanted) -> Iterator[Finding]:
    have = ", ".join(sorted(stats.columns)) or "none"
    for name in wanted.columns:
        if name not in stats.columns:
            found = f"lacks '{name}' of data.features; it has {have}"
            yield Finding("error", "features", stats.name, found, "choose other data.features, or export the column")
    for name, column in stats.columns.items():
        asked = name in wanted.columns
        if column.bad:
            found = f"'{name}' has {column.bad:,} NaN or infinite values"
            yield Finding("error" if asked else "warning", "nan", stats.name, found, "replace them in the file")
        if name == "rgb":
            yield from _colours(stats.name, column.low, column.high, asked)
        elif asked and column.low == column.high and stats.points > 1:
            found = f"'{name}' is {column.low:g} everywhere"
            yield Finding("warning", "constant", stats.name, found, "leave it out of data.features")
        if asked and column.width != feature_width([name]) and name in wanted.features:
            found = f"'{name}' has {column.width} values a point, {feature_width([name])} expected"
            yield Finding("error", "features", stats.name, found, "choose other data.features")
        largest = max(abs(column.low), abs(column.high)) * wanted.factors.get(name, 1.0)
        if name in wanted.features and largest > 1000:
            found = f"'{name}' reaches {largest:g} at the network's input"
            yield Finding("warning", "scale", stats.name, found, f"set data.factors.{name} to bring it near 1")


def _colours(scene: str, low: float, high: float, asked: bool) -> Iterator[Finding]:
    level = "warning" if asked else "note"
    if low < 0 or high > 1:
        found = f"colours span {low:g}..{high:g}, not 0..1"
        yield Finding("error" if asked else "warning", "colours", scene, found, "store 8 bits, 16 bits or 0..1")
    elif high == 0:
        found = "all colours are 0"
        yield Finding(level, "colours", scene, found, "leave rgb out of data.features, or export the colours")
    elif low == high:
        found = f"all colours are {low:g}"
        yield Finding(level, "colours", scene, found, "leave rgb out of data.features, or export the colours")
    elif high < 0.05:
        found = f"no colour is brighter than {high:.2g} of 1"
        advice = "0..1 was taken for 0..255, or 8 bits for 16; store 8 bits, 16 bits or 0..1"
        yield Finding(level, "colours", scene, found, advice)
