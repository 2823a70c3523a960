"""Pictures of a comparison from the arrays that a run keeps: rooms, pseudo-labels, features in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mink_decouple.data.classes import Classes
from mink_decouple.data.io import read_table
from mink_decouple.report.charts import PALETTE, new_figure, picture, png
from mink_decouple.report.figures import below_ceiling, error_colors, label_colors
from mink_decouple.report.raster import draw_panels

PANEL = 360
"""Width of a panel, pixels."""
FEATURE_POINTS = 1000
"""Points of a projection."""
Arrays = Mapping[str, NDArray]


def arrays_of(folder: Path, kind: str) -> dict[str, dict[str, NDArray]]:
    """Scene -> arrays of the files in `features/` or `views/` of a run folder; scene names may hold folders.

    Raises:
        ValueError: one of them is damaged.
    """
    files = sorted((folder / kind).rglob("*.npz"))
    return {file.relative_to(folder / kind).with_suffix("").as_posix(): read_table(file) for file in files}


def room_panels(views: Mapping[str, Arrays], classes: Classes) -> list[tuple[str, str]]:
    """The same scene by several runs: truth, each one's prediction, each one's errors (Fig. 3 to 6).

    Args:
        views: title -> arrays `coords` (V, 3), `truth` (V,), `final` (V,) of one scene; those of the first decide which
            points are drawn, and others of another number are left out.
        classes: names and palette.

    Returns:
        Caption and data URI of each panel.
    """
    first = next(iter(views.values()))
    coords, truth = first["coords"], first["truth"].astype(np.int64)
    kept = below_ceiling(coords, truth, classes.names)
    columns = {"truth": label_colors(truth[kept], classes)}
    for title, arrays in views.items():
        if len(arrays["final"]) == len(coords):
            found = arrays["final"].astype(np.int64)
            columns[title] = label_colors(found[kept], classes)
            columns[f"{title}: wrong in red"] = error_colors(truth[kept], found[kept])
    return _panels(coords[kept], columns, classes)


def pseudo_label_panels(view: Arrays, classes: Classes) -> list[tuple[str, str]]:
    """Truth, given labels, and pseudo-labels of each iteration, the certain ones alone and all (Fig. 8).

    Given labels are few: they are drawn larger than the points, before all others.
    """
    coords, truth = view["coords"], view["truth"].astype(np.int64)
    kept = below_ceiling(coords, truth, classes.names)
    columns, given = {"truth": truth}, view["visible"].astype(np.int64)
    for key in sorted(key for key in view if key.endswith("_label")):
        number = int(key.split("_")[1])
        label, round_ = view[key].astype(np.int64), view[key.replace("_label", "_round")]
        columns[f"iteration {number}: certain"] = np.where(round_ == 1, label, -1)
        columns[f"iteration {number}: certain and uncertain"] = label
    drawn = _panels(coords[kept], {name: label_colors(c[kept], classes) for name, c in columns.items()}, classes)
    marked = _panels(coords[kept], {"given labels": label_colors(given[kept], classes)}, classes, given[kept] >= 0)
    return [*drawn[:1], *marked, *drawn[1:]]


def projection(
    features: Arrays, stages: Sequence[str], classes: Classes, groups: Mapping[str, Sequence[int]], method: str
) -> tuple[str, list[str]]:
    """Penultimate features of a scene after several stages in two dimensions (Fig. 7).

    Args:
        features: arrays of a file of `features/`.
        stages: which of them.
        classes: names and palette.
        groups: head, waist, tail; a head class and the two rarest that the scene holds are coloured.
        method: "tsne" or "pca".

    Returns:
        Data URI, and the names of the coloured classes.
    """
    truth, visible = features["truth"], features["visible"]
    rows = np.flatnonzero(truth >= 0)[:: max(1, int((truth >= 0).sum()) // FEATURE_POINTS)]
    rows = np.union1d(rows, np.flatnonzero(visible >= 0))
    truth, visible = truth[rows], visible[rows]
    shown = _shown_classes(truth, groups, len(classes.names))
    figure = new_figure(3.1 * len(stages), 3.4)
    for place, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), place + 1)
        flat = flatten(features[stage][rows].astype(np.float64), method)
        rest = ~np.isin(truth, shown)
        axes.scatter(flat[rest, 0], flat[rest, 1], s=3, color="0.8", linewidths=0)
        for number, c in enumerate(shown):
            mine = truth == c
            axes.scatter(
                flat[mine, 0],
                flat[mine, 1],
                s=9,
                marker="os^D"[number % 4],
                color=PALETTE[number],
                linewidths=0,
                label=classes.names[c],
            )
        given = visible >= 0
        axes.scatter(
            flat[given, 0],
            flat[given, 1],
            s=42,
            facecolors="none",
            edgecolors="black",
            linewidths=1.1,
            label="given label",
        )
        axes.set_title(stage, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(len(labels), 2 * len(stages)), fontsize=8, frameon=False
    )
    return png(figure), [classes.names[c] for c in shown]


def flatten(rows: NDArray[np.float64], method: str) -> NDArray[np.float64]:
    """(n, 2) places of (n, D) rows: principal components, or t-SNE begun from them with a fixed seed."""
    centred = rows - rows.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(rows), 2))
    plane[:, : min(2, len(s))] = (u * s)[:, :2]
    if method == "pca" or len(rows) < 10:
        return plane
    from sklearn.manifold import TSNE

    begun = plane / max(plane[:, 0].std(), 1e-12) * 1e-4
    perplexity = min(30.0, (len(rows) - 1) / 3)
    result: NDArray[np.float64] = TSNE(2, init=begun, random_state=0, perplexity=perplexity).fit_transform(centred)
    return result


def _shown_classes(truth: NDArray, groups: Mapping[str, Sequence[int]], count: int) -> list[int]:
    counts = np.bincount(truth[truth >= 0], minlength=count)
    enough = [c for c in np.argsort(-counts, kind="stable").tolist() if counts[c] >= 8]
    head = [c for c in enough if c in groups.get("head", ())] or enough
    return list(dict.fromkeys([*head[:1], *enough[-2:]]))


def _panels(
    coords: NDArray[np.floating],
    columns: Mapping[str, NDArray[np.uint8]],
    classes: Classes,
    marked: NDArray[np.bool_] | None = None,
) -> list[tuple[str, str]]:
    images = draw_panels(coords, columns.values(), PANEL, "ceiling" in classes.names, marked)
    return [(name, picture(image)) for name, image in zip(columns, images, strict=True)]
