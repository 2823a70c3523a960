"""The result of a check, as a table for people and as plain data for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mink_decouple.data.check import LEVELS, Finding, Wanted
from mink_decouple.data.check_splits import class_counts, imbalance
from mink_decouple.data.raw import Repair
from mink_decouple.data.scene_stats import SceneStats

SHOWN = 5
"""Findings of one kind, and repairs, that the table prints; JSON has all."""
SHOWN_SCENES = 40


@dataclass(frozen=True)
class Mended:
    """Equal repairs of one file: what was done, how often, and what stood there first."""

    scene: str
    file: str
    done: str
    count: int
    found: str
    line: int | None


@dataclass(frozen=True, eq=False)
class Report:
    """What a check found.

    Attributes:
        source: dataset and folder, as text.
        wanted: what the configuration asks for.
        classes: class names in train-id order.
        splits: split -> its scenes that could be read.
        findings: everything found, errors first.
        mended: what `prepare` repaired.
        left_out: scenes of the download that were not prepared.
    """

    source: str
    wanted: Wanted
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[SceneStats]]
    findings: tuple[Finding, ...]
    mended: tuple[Mended, ...] = ()
    left_out: int = 0

    def of(self, level: str) -> list[Finding]:
        """The findings of a level."""
        return [finding for finding in self.findings if finding.level == level]


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors, warnings, notes; within them as found."""
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


def count_repairs(repairs: Iterable[tuple[str, Repair]]) -> tuple[Mended, ...]:
    """(scene, repair) pairs, equal ones of one file counted."""
    groups: dict[tuple[str, str, str], list[Repair]] = {}
    for scene, repair in repairs:
        groups.setdefault((scene, repair.file, repair.done), []).append(repair)
    return tuple(
        Mended(scene, file, done, len(found), found[0].found, found[0].line)
        for (scene, file, done), found in groups.items()
    )


def lines(findings: Sequence[Finding], prefix: str = "") -> list[str]:
    """A line per finding; of one kind no more than `SHOWN`, then how many more there are."""
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    result = []
    for kind, found in kinds.items():
        result += [f"{prefix}{finding}" for finding in found[:SHOWN]]
        if len(found) > SHOWN:
            result.append(f"{prefix}{len(found) - SHOWN} more findings on {kind}; --output FILE.json lists them")
    return result


def describe(report: Report) -> str:
    """Tables of splits, classes and scenes, repairs, warnings and notes. Errors are only counted."""
    wanted = report.wanted
    text = [f"{report.source}, grid {wanted.grid:g} m, features {', '.join(wanted.features)}", ""]
    text += [*_split_table(report), "", *_class_table(report), "", *_scene_table(report)]
    if report.mended or report.left_out:
        text.append("")
    if report.left_out:
        text.append(f"{report.left_out} scenes of the download are left out; prepare without --scenes adds them")
    for item in report.mended[:SHOWN]:
        line = "" if item.line is None else f" line {item.line}"
        text.append(f"repaired {item.count} x {item.file}{line}: {item.found} -> {item.done}")
    if len(report.mended) > SHOWN:
        files = len({item.file for item in report.mended})
        total = sum(item.count for item in report.mended)
        text.append(f"repaired {total} places in {files} files in all; --output FILE.json lists them")
    for level in ("warning", "note"):
        found = lines(report.of(level), f"{level}: ")
        text += ["", *found] if found else []
    counts = ", ".join(f"{len(report.of(level))} {level}s" for level in LEVELS)
    return "\n".join([*text, "", counts])


def as_data(report: Report) -> dict[str, Any]:
    """The report as plain data: every number finite, None where there is none."""
    return {
        "source": report.source,
        "grid": report.wanted.grid,
        "features": list(report.wanted.features),
        "found": {level: len(report.of(level)) for level in LEVELS},
        "findings": [asdict(finding) for finding in report.findings],
        "splits": {split: _split_data(scenes, report.classes) for split, scenes in report.splits.items()},
        "scenes": [_scene_data(scene, split) for split, scenes in report.splits.items() for scene in scenes],
        "repairs": [asdict(item) for item in report.mended],
        "left_out": report.left_out,
    }


def _split_data(scenes: Sequence[SceneStats], classes: Sequence[str]) -> dict[str, Any]:
    counts = class_counts(scenes, len(classes))
    return {
        "scenes": len(scenes),
        "unlabelled_scenes": sum(scene.labelled is None for scene in scenes),
        "points": sum(scene.points for scene in scenes),
        "labelled": int(counts.sum()),
        "ignored": sum(scene.ignored for scene in scenes),
        "classes": dict(zip(classes, counts.tolist())),
        "imbalance": imbalance(counts),
    }


def _scene_data(scene: SceneStats, split: str) -> dict[str, Any]:
    return {
        "name": scene.name,
        "split": split,
        "points": scene.points,
        "not_finite": scene.bad,
        "low": _numbers(scene.low),
        "high": _numbers(scene.high),
        "columns": {key: asdict(column) for key, column in scene.columns.items()},
        "labelled": None if scene.labelled is None else scene.labelled.tolist(),
        "ignored": scene.ignored,
        "outside_classes": scene.strange,
        "duplicates": scene.duplicates,
        "duplicates_seen_on_one_in": scene.duplicates_seen,
        "cells": scene.cells,
        "spacing": scene.spacing,
        "height": scene.height,
        "step": scene.step,
        "content": scene.content,
    }


def _numbers(values: np.ndarray) -> list[float] | None:
    return values.tolist() if np.isfinite(values).all() else None


def _split_table(report: Report) -> list[str]:
    rows: list[tuple[str, ...]] = [("split", "scenes", "points", "labelled", "ignored", "imbalance")]
    for split, scenes in report.splits.items():
        data = _split_data(scenes, report.classes)
        ratio = "-" if data["imbalance"] is None else f"{data['imbalance']:,.1f}"
        numbers = (f"{data[key]:,}" for key in ("scenes", "points", "labelled", "ignored"))
        rows.append((split, *numbers, ratio))
    return _align(rows)


def _class_table(report: Report) -> list[str]:
    counts = {split: class_counts(scenes, len(report.classes)) for split, scenes in report.splits.items()}
    rows = [("class", *(column for split in counts for column in (split, "share")))]
    for index, name in enumerate(report.classes):
        cells = []
        for count in counts.values():
            cells += [f"{count[index]:,}", f"{count[index] / max(count.sum(), 1):.3%}"]
        rows.append((name, *cells))
    return _align(rows)


def _scene_table(report: Report) -> list[str]:
    scenes = [(split, scene) for split, found in report.splits.items() for scene in found]
    if len(scenes) > SHOWN_SCENES:
        return [f"{len(scenes)} scenes; --output FILE.json lists each"]
    rows = [("scene", "split", "points", "size in m", "spacing", "points/cell", "ignored", "duplicates")]
    for split, scene in scenes:
        size = " x ".join(f"{side:.1f}" for side in scene.extent) if np.isfinite(scene.extent).all() else "-"
        rows.append(
            (
                scene.name,
                split,
                f"{scene.points:,}",
                size,
                f"{scene.spacing:.3g}",
                f"{(scene.points - scene.bad) / max(scene.cells, 1):.2f}",
                f"{scene.ignored / max(scene.points, 1):.1%}",
                f"{scene.duplicates:.2%}",
            )
        )
    return _align(rows)


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in rows]
