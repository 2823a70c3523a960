"""Runs side by side: one page and one JSON file from run folders and files of records."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mink_decouple.report import words
from mink_decouple.report.page import MARK, Page
from mink_decouple.report.records import Record, add, load, read_run, run_folders
from mink_decouple.report.sections import (
    classes_section,
    confusion_section,
    cost_section,
    curves_section,
    features_section,
    main_section,
    origin_section,
    pseudo_label_maps_section,
    pseudo_labels_section,
    rooms_section,
)
from mink_decouple.report.statistics import Setting, by_seed, compared, deviation_of, grouped, mean_of

SCORES = ("miou", "head_iou", "waist_iou", "tail_iou", "oa")
DEFAULTS = ("supervised", "decoupled")
"""Titles that the others are compared with where nobody says which."""


def compare(
    paths: Sequence[Path],
    output: Path,
    reference: str | None = None,
    title: str | None = None,
    records: Path | None = None,
    projection: str = "tsne",
) -> list[str]:
    """Write the page `output`, and its figures as JSON beside it.

    Args:
        paths: run folders, folders that hold run folders, files of records.
        output: the .html file; one that is there is overwritten where it is such a page, and the .json file beside it
            where it holds such figures.
        reference: title that the others are compared with; None: the first of `DEFAULTS` that there is, else the title
            of the first run.
        title: of the page.
        records: file to add the records to, too.
        projection: "tsne" or "pca".

    Returns:
        What a user should know: runs that stood there twice, settings that differ between the seeds of a row.

    Raises:
        FileNotFoundError, ValueError: nothing to compare, runs over different classes or data, an unknown reference, or
            a file in the way.
    """
    _require_free(paths, output, records)
    folders: dict[tuple[str, int, str], Path] = {}
    for path in paths:
        for folder in run_folders(path) if path.is_dir() else ():
            one = read_run(folder)
            folders.setdefault((one.digest, one.seed, one.title), folder)
    found, notes = _distinct(load(paths))
    _require_one_kind(found)
    titles = list(dict.fromkeys(record.title for record in found))
    chosen = reference or next((title for title in DEFAULTS if title in titles), titles[0])
    if chosen not in titles:
        raise ValueError(f"--reference {chosen!r}: no run is called so; choices: {', '.join(titles)}")
    groups = dict(sorted(grouped(found).items(), key=lambda pair: (pair[0][0], pair[0][1], pair[0][2] != chosen)))
    places = {
        setting: [(r, folders[key]) for r in runs if (key := (r.digest, r.seed, r.title)) in folders]
        for setting, runs in groups.items()
    }
    page = Page(title or f"{words.listed(titles)} on {found[0].dataset}")
    page.add("In words", words.summary(groups, chosen, asked=reference is not None))
    page.add("Scores", main_section(groups, chosen))
    page.add("Classes", classes_section(groups))
    page.add("Course of training", curves_section(groups))
    page.add("Pseudo-labels", pseudo_labels_section(groups))
    page.add("Pseudo-labels in a room", pseudo_label_maps_section(groups, places))
    page.add("Rooms", rooms_section(groups, places))
    page.add("Features", features_section(places, projection))
    page.add("Confusion", confusion_section(groups))
    page.add("Cost", cost_section(groups))
    page.add("How it was made", origin_section(groups))
    output.parent.mkdir(parents=True, exist_ok=True)
    if records is not None:
        add(records, *found)
    _write(output.with_suffix(".json"), json.dumps(figures(groups, chosen), indent=1, allow_nan=False) + "\n")
    _write(output, page.html())
    return [*notes, *words.mixed(groups)]


def figures(groups: Mapping[Setting, Sequence[Record]], reference: str) -> dict[str, Any]:
    """The numbers of the page as plain data, percent."""
    gaps = {score: compared(groups, score, reference) for score in SCORES}
    rows = []
    for setting, runs in groups.items():
        labels, backbone, title = setting
        row: dict[str, Any] = {"labels": labels, "backbone": backbone, "title": title}
        row["seeds"] = [record.seed for record in runs]
        for score in SCORES:
            values = list(by_seed(runs, score).values())
            row[score] = {"mean": mean_of(values), "deviation": deviation_of(values)}
            if (gap := gaps[score].get(setting)) is not None:
                row[score] |= {"difference": gap.mean, "low": gap.low, "high": gap.high, "p": gap.p}
        row["seconds"] = mean_of([sum(record.cost["seconds"].values()) for record in runs])
        rows.append(row)
    return {"format": 1, "reference": reference, "settings": rows}


def _distinct(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Each run once, the first of its kind; and a line where others were left out for it."""
    found: dict[tuple[str, str, str, int], Record] = {}
    again = 0
    for record in records:
        key = (record.labels, record.backbone, record.title, record.seed)
        if key not in found:
            found[key] = record
        elif found[key].digest != record.digest:
            name = f"{record.backbone}, {record.labels}, {record.title}, seed {record.seed}"
            raise ValueError(f"{name}: two runs of different settings are called so; give one another recipe name")
        else:
            again += 1
    return list(found.values()), [f"{again} runs stand there twice; each counts once"] * (again > 0)


def _require_free(paths: Sequence[Path], output: Path, records: Path | None) -> None:
    """Nothing but an earlier page and its figures may be overwritten, and a file that is added to holds records."""
    if output.suffix != ".html":
        raise ValueError(f"--output {output}: expected a name that ends in .html")
    if output.exists() and MARK not in output.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise ValueError(f"{output}: exists and is no comparison; choose another --output")
    beside = output.with_suffix(".json")
    advice = f"the page's figures would go to {beside}; choose another --output"
    if beside.resolve() in {path.resolve() for path in paths}:
        raise ValueError(f"{beside}: is to be compared, and {advice}")
    if records is not None and records.resolve() in (beside.resolve(), output.resolve()):
        raise ValueError(f"--records {records}: is a file of the page; choose another name")
    if beside.exists() and not _figures_of_a_page(beside):
        raise ValueError(f"{beside}: exists and holds no figures of a page, and {advice}")
    if records is not None and records.exists():
        load([records])


def _figures_of_a_page(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "settings" in content


def _require_one_kind(records: Sequence[Record]) -> None:
    if not records:
        raise ValueError("no run to compare")
    first = records[0]
    for other in records[1:]:
        if other.dataset != first.dataset:
            raise ValueError(f"runs on different data do not compare: {first.dataset} and {other.dataset}")
        if other.classes != first.classes:
            raise ValueError(
                f"runs over different classes do not compare: {', '.join(first.classes)}; "
                f"and {', '.join(other.classes)}"
            )
    # scores are on raw points, whatever the grid: equal scenes have equal sums
    truths = [(one, [sum(row) for row in one.metrics["confusion"]]) for one in records if "confusion" in one.metrics]
    for record, points in truths[1:]:
        if points != truths[0][1]:
            both = (truths[0], (record, points))
            number = next(i for i, (ours, theirs) in enumerate(zip(truths[0][1], points)) if ours != theirs)
            told = [f"{one.title}, seed {one.seed}: {own[number]:,} points" for one, own in both]
            where = record.classes[number]
            raise ValueError(f"runs scored on different scenes do not compare: of {where}, {'; '.join(told)}")


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
