"""Labels of ScanNet's vertices: nyu40 ids from `labels.ply`, or from segments, their aggregation and the label map."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mink_decouple.data.classes import Classes
from mink_decouple.data.raw import Repair

HIGHEST = 40
"""Highest nyu40 id; known files hold 50 and 149."""

# nyu40 id -> name and colour of the benchmark (ScanNet's util.py, create_color_palette).
_BENCHMARK = {
    1: ("wall", (174, 199, 232)),
    2: ("floor", (152, 223, 138)),
    3: ("cabinet", (31, 119, 180)),
    4: ("bed", (255, 187, 120)),
    5: ("chair", (188, 189, 34)),
    6: ("sofa", (140, 86, 75)),
    7: ("table", (255, 152, 150)),
    8: ("door", (214, 39, 40)),
    9: ("window", (197, 176, 213)),
    10: ("bookshelf", (148, 103, 189)),
    11: ("picture", (196, 156, 148)),
    12: ("counter", (23, 190, 207)),
    14: ("desk", (247, 182, 210)),
    16: ("curtain", (219, 219, 141)),
    24: ("refrigerator", (255, 127, 14)),
    28: ("shower curtain", (158, 218, 229)),
    33: ("toilet", (44, 160, 44)),
    34: ("sink", (112, 128, 144)),
    36: ("bathtub", (227, 119, 194)),
    39: ("otherfurniture", (82, 84, 163)),
}

#: The 20 classes of the benchmark (Dai et al., CVPR 2017); raw ids are nyu40 ids, all others are ignored.
SCANNET = Classes(
    names=tuple(name for name, _ in _BENCHMARK.values()),
    colors=np.array([color for _, color in _BENCHMARK.values()], dtype=np.uint8),
    raw_ids={raw: train for train, raw in enumerate(_BENCHMARK)},
    ignored=frozenset(set(range(HIGHEST + 1)) - set(_BENCHMARK)),
)


def encode(ids: np.ndarray, where: str, report: Callable[[Repair], None]) -> np.ndarray:
    """Train ids of nyu40 ids (V,); ids outside 0..40 count as 0, unannotated, one repair per such id.

    Args:
        ids: (V,) integers.
        where: the file, for the report.
        report: told of every id outside.
    """
    outside = (ids < 0) | (ids > HIGHEST)
    for value in np.unique(ids[outside]):
        vertices = np.flatnonzero(ids == value)
        found = f"label {value}, not of nyu40, at {len(vertices)} vertices (this is the first)"
        report(Repair(where, int(vertices[0]) + 1, found, "taken as 0, unannotated"))
    return SCANNET.encode(np.where(outside, 0, ids))


def read_label_map(path: Path) -> dict[str, int]:
    """Raw category -> nyu40 id from `scannetv2-labels.combined.tsv`, its columns found by name.

    Raises:
        ValueError: a column is missing, or an id is not a whole number; names the file and the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a tab-separated table: {error}") from None
    found = list(rows[0]) if rows else []
    for column in ("raw_category", "nyu40id"):
        if column not in found:
            raise ValueError(f"{path}: no column {column!r}; found: {', '.join(map(str, found)) or 'none'}")
    result: dict[str, int] = {}
    for line, row in enumerate(rows, start=2):
        raw, text = row["raw_category"], row["nyu40id"]
        if not raw or text is None or not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(
                f"{path}: line {line}: raw_category {raw!r} with nyu40id {text!r}, expected a whole number"
            )
        if result.setdefault(raw, int(text)) != int(text):
            raise ValueError(f"{path}: line {line}: raw_category {raw!r} has two ids, {result[raw]} and {text}")
    return result


def segment_labels(
    segments: Path, aggregation: Path, label_map: dict[str, int], where: str, report: Callable[[Repair], None]
) -> np.ndarray:
    """nyu40 id of every vertex, as ScanNet's own scripts derive it.

    Every object of the aggregation lists segments; its raw category goes to their vertices, 0 elsewhere. Where objects
    of two categories share a segment, the category that appears later in the file stands, as there.

    Args:
        segments: `..._vh_clean_2.0.010000.segs.json`.
        aggregation: `....aggregation.json`.
        label_map: raw category -> nyu40 id.
        where: the aggregation file, for the report.
        report: told of every segment of two categories.

    Returns:
        (V,) int64.

    Raises:
        ValueError: files of another form, a category that the map lacks, or a segment that no vertex has.
    """
    of_vertex = _whole(_json(segments).get("segIndices"), f"{segments}: segIndices")
    found, inverse = np.unique(of_vertex, return_inverse=True)
    place = {int(segment): row for row, segment in enumerate(found)}
    groups = _json(aggregation).get("segGroups")
    if not isinstance(groups, list):
        raise ValueError(f"{aggregation}: segGroups must be a list of objects, found {groups!r:.80}")
    by_category: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        category = group.get("label") if isinstance(group, dict) else None
        if not isinstance(category, str) or category not in label_map:
            raise ValueError(f"{aggregation}: object {number}: the label map has no category {category!r:.80}")
        listed = _whole(group.get("segments"), f"{aggregation}: segments of object {number}").tolist()
        unknown = [segment for segment in listed if segment not in place]
        if unknown:
            raise ValueError(f"{aggregation}: object {number}: no vertex has segment {unknown[0]} in {segments.name}")
        by_category.setdefault(category, []).extend(listed)
    ids = np.zeros(len(found), np.int64)
    owner: dict[int, str] = {}
    for category, listed in by_category.items():
        for segment in listed:
            before = owner.setdefault(segment, category)
            if label_map[before] != label_map[category]:
                report(Repair(where, None, f"segment {segment} is of {before!r} and {category!r}", "the later stands"))
            owner[segment] = category
            ids[place[segment]] = label_map[category]
    return ids[inverse]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError is that of JSON and of text that is not UTF-8
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _whole(value: Any, where: str) -> np.ndarray:
    """A list of whole numbers as (n,) int64."""
    wrong = [item for item in value if type(item) is not int] if isinstance(value, list) else [value]
    if wrong:
        raise ValueError(f"{where} must be a list of whole numbers, found {wrong[0]!r:.80}")
    largest = max(value, key=abs, default=0)
    if abs(largest) >= 2**63:
        raise ValueError(f"{where}: {largest} is no id of a segment")
    return np.array(value, np.int64)
