"""One score of several folds: the sum of their confusion matrices, as S3DIS' 6-fold figure is defined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mink_decouple.engine.events import say
from mink_decouple.engine.runtime import write_json
from mink_decouple.metrics import ConfusionMatrix, class_groups, table

SAME = ("backbone", "variant", "recipe")
"""What folds of one experiment have in common, as far as their metrics.json says."""


def pool_runs(runs: Sequence[Path], output: Path) -> dict[str, Any]:
    """Add the confusion matrices of runs or evaluations, score the sum and write it as JSON.

    Head, waist and tail follow the frequency of the classes in the pooled truth, since every fold has its own training
    set.

    Args:
        runs: folders that hold metrics.json, or such files; two at least.
        output: the file to write.

    Raises:
        FileNotFoundError: a run has no metrics.json.
        ValueError: fewer than two runs, a run named twice, a file of another form, runs that differ in classes,
            backbone, recipe or label budget, or two that scored the same scenes.
    """
    if len(runs) < 2:
        raise ValueError(f"pool: {len(runs)} runs; needs at least two folds")
    files = [run / "metrics.json" if run.is_dir() else run for run in runs]
    places = [file.resolve() for file in files]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise ValueError(f"{files[index]}: named twice; a fold counts once")
    contents = [_read(file) for file in files]
    first = contents[0]
    names = list(first["iou"])
    for file, content in zip(files[1:], contents[1:], strict=True):
        if list(content["iou"]) != names:
            raise ValueError(f"{file}: classes {', '.join(content['iou'])}; {files[0]} has {', '.join(names)}")
        for key in SAME:
            if key in first and key in content and content[key] != first[key]:
                raise ValueError(f"{file}: {key} {content[key]!r}; {files[0]} has {first[key]!r}")
        if len({_budget(first), _budget(content)} - {None}) > 1:
            raise ValueError(f"{file}: label budget {_budget(content)!r}; {files[0]} has {_budget(first)!r}")
    total = ConfusionMatrix(len(names))
    scored: dict[tuple[int, ...], Path] = {}
    for file, content in zip(files, contents, strict=True):
        matrix = _matrix(file, content)
        other = scored.setdefault(tuple(matrix.true.tolist()), file)
        if other is not file:
            raise ValueError(f"{file}: has as many points of every class as {other}, hence the same scenes twice")
        total.merge(matrix)
    groups = class_groups(total.true)
    say(table(names, {f"{len(runs)} folds": total}, groups))
    result = {
        **total.report(names, groups),
        "runs": [str(run) for run in runs],
        **{key: first[key] for key in SAME if key in first},
        "confusion": total.confusion.tolist(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    return result


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a run or evaluation folder holds metrics.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("iou"), dict) or not content["iou"]:
        raise ValueError(f"{file}: not the metrics.json of a run: has no 'iou'")
    if "confusion" not in content:
        raise ValueError(f"{file}: has no 'confusion'; score the checkpoint again with evaluate")
    return content


def _budget(content: dict[str, Any]) -> str | None:
    """The label budget of a run as written; None where it is not known, as of pooled runs."""
    budget = content.get("label_budget")
    return str(budget["budget"]) if isinstance(budget, dict) and "budget" in budget else None


def _matrix(file: Path, content: dict[str, Any]) -> ConfusionMatrix:
    """The matrix of a metrics.json; its sum must be the points that were scored."""
    size = len(content["iou"])
    try:
        counts = np.array(content["confusion"])
    except ValueError:
        counts = np.empty(0)
    if counts.shape != (size, size) or counts.dtype.kind != "i" or counts.min() < 0:
        raise ValueError(f"{file}: 'confusion' must be {size} x {size} counts")
    if counts.sum() != content.get("points"):
        raise ValueError(f"{file}: 'confusion' holds {counts.sum()} points, but {content.get('points')} were scored")
    return ConfusionMatrix(size, np.pad(counts, ((0, 0), (0, 1))))
