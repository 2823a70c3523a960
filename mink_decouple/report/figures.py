"""Still pictures that need no display: scenes side by side, confusion matrices, bars of per-class IoU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mink_decouple.metrics import ConfusionMatrix
from mink_decouple.report.raster import draw_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mink_decouple.data.classes import Classes

Labels = NDArray[np.integer]
Colors = NDArray[np.uint8]

UNLABELLED = (200, 255, 215)
"""Points without a label, in every picture: a pale mint, from which the palettes of all shipped datasets are far."""
CORRECT = (165, 170, 175)
WRONG = (215, 25, 28)
DPI = 100


def label_colors(labels: Labels, classes: Classes) -> Colors:
    """Palette colour of each train id, (N, 3) uint8; -1 is `UNLABELLED`.

    Raises:
        ValueError: a train id outside -1..C-1.
    """
    labels = np.asarray(labels)
    count = len(classes.names)
    if labels.size and (labels.min() < -1 or labels.max() >= count):
        raise ValueError(f"labels must lie in -1..{count - 1}, found {int(labels.min())}..{int(labels.max())}")
    palette = np.vstack([classes.colors, np.asarray([UNLABELLED], dtype=np.uint8)])
    return palette[labels]


def error_colors(truth: Labels, prediction: Labels) -> Colors:
    """Grey where right, red where wrong, `UNLABELLED` where the truth is -1; (N, 3) uint8."""
    palette = np.asarray([UNLABELLED, CORRECT, WRONG], dtype=np.uint8)
    return palette[np.where(truth < 0, 0, np.where(truth == prediction, 1, 2))]


def below_ceiling(coords: NDArray[np.floating], labels: Labels, names: Sequence[str]) -> NDArray[np.bool_]:
    """Which points stay when the ceiling is cut away, (N,) bool; all of them where no class is called ceiling.

    Points higher than 10 cm below the middle of the ceiling go too, else lamps and the tops of the walls would float
    above the room.
    """
    if "ceiling" not in names:
        return np.ones(len(coords), dtype=bool)
    ceiling = np.asarray(labels) == names.index("ceiling")
    if not ceiling.any():
        return np.ones(len(coords), dtype=bool)
    return ~ceiling & (coords[:, 2] < np.median(coords[ceiling, 2]) - 0.1)


def room_picture(
    coords: NDArray[np.floating],
    truth: Labels | None,
    prediction: Labels | None,
    classes: Classes,
    path: str | Path,
    extra: Mapping[str, Labels] | None = None,
    title: str = "",
    width: int = 1600,
) -> Path:
    """Draw a scene from above at an angle: truth | extra columns | prediction | error, with a legend of its classes.

    Where a class is called ceiling, the ceiling and the walls towards the camera are cut away. The title ends with the
    mIoU of this scene, which counts every point.

    Args:
        coords: (N, 3) metres, in any order.
        truth: (N,) train ids, -1 = unlabelled; None: no truth and no error panel.
        prediction: (N,) train ids, -1 = none; None: only the truth.
        classes: names and palette.
        path: PNG file to write; its folder is made.
        extra: further columns of labels by title, e.g. ``{"pre-trained": ...}``.
        title: text above the panels.
        width: of the picture, pixels.

    Returns:
        The path.

    Raises:
        ValueError: no point, no column to draw, or columns of unequal length.
    """
    columns = {"truth": truth, **(extra or {}), "prediction": prediction}
    drawn = {name: np.asarray(labels) for name, labels in columns.items() if labels is not None}
    if len(coords) == 0 or not drawn:
        raise ValueError(f"{path}: nothing to draw ({len(coords)} points, {len(drawn)} columns of labels)")
    for name, labels in drawn.items():
        if labels.shape != (len(coords),):
            raise ValueError(f"{path}: column '{name}' has shape {labels.shape} for {len(coords)} points")
    kept = below_ceiling(coords, next(iter(drawn.values())), classes.names)
    if not kept.any():
        kept[:] = True
    colors = {name: label_colors(labels[kept], classes) for name, labels in drawn.items()}
    heading = title
    if truth is not None and prediction is not None:
        colors["error"] = error_colors(drawn["truth"][kept], drawn["prediction"][kept])
        heading = "   ".join(
            part for part in (title, _score(drawn["truth"], drawn["prediction"], len(classes.names))) if part
        )
    gap = width // 100
    panel_width = (width - gap * (len(colors) + 1)) // len(colors)
    panels = draw_panels(coords[kept], colors.values(), panel_width, indoors="ceiling" in classes.names)
    present = np.unique(np.concatenate([labels[kept] for labels in drawn.values()]))
    entries = [(classes.names[i], classes.colors[i]) for i in present if i >= 0]
    entries += [("unlabelled", np.asarray(UNLABELLED))] if (present < 0).any() else []
    entries += [("correct", np.asarray(CORRECT)), ("wrong", np.asarray(WRONG))] if "error" in colors else []
    return _compose(list(colors), panels, entries, heading, Path(path), width, gap)


def _score(truth: Labels, prediction: Labels, count: int) -> str:
    confusion = ConfusionMatrix(count)
    confusion.update(prediction, truth)
    if not confusion.points:
        return ""
    return f"mIoU {100 * confusion.miou:.1f} % over {confusion.classes_counted} classes"


def _compose(
    names: list[str],
    panels: list[NDArray[np.float32]],
    entries: list[tuple[str, NDArray]],
    heading: str,
    path: Path,
    width: int,
    gap: int,
) -> Path:
    """Titles above the panels, the legend below them, one pixel of a panel to one pixel of the picture."""
    from matplotlib.patches import Patch

    font = max(9.0, width / 125)
    line = int(font * 2.2)
    per_row = max(1, width // int(font * 14))
    rows = math.ceil(len(entries) / per_row)
    top = line * (3 if heading else 2)
    panel_height, panel_width = panels[0].shape[:2]
    height = top + panel_height + gap + line * rows
    figure = _figure(width, height)
    if heading:
        figure.text(0.5, 1 - 0.8 * line / height, heading, ha="center", va="center", fontsize=font * 1.2)
    for i, (name, panel) in enumerate(zip(names, panels)):
        left = gap + i * (panel_width + gap)
        bottom = (gap + line * rows) / height
        axes = figure.add_axes((left / width, bottom, panel_width / width, panel_height / height))
        axes.imshow(panel, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        axes.set_title(name, fontsize=font, pad=font / 3)
    handles = [
        Patch(facecolor=tuple((color / 255.0).tolist()), edgecolor="0.5", linewidth=0.5, label=name)
        for name, color in entries
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=min(per_row, len(handles)), fontsize=font, frameon=False,
        handlelength=1.2, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip
    return _save(figure, path)


def confusion_picture(confusion: NDArray[np.integer], names: Sequence[str], path: str | Path, title: str = "") -> Path:
    """Draw a confusion matrix, each row (true class) in per cent of its points, beside the number of points.

    Args:
        confusion: (C, C) counts, rows true, columns predicted; or (C, C + 1) as in ``ConfusionMatrix.counts``.
        names: C class names.
        path: PNG file to write.
        title: text above it.

    Raises:
        ValueError: the shape does not fit the names.
    """
    count = len(names)
    if confusion.shape not in ((count, count), (count, count + 1)):
        raise ValueError(f"{path}: confusion has shape {confusion.shape} for {count} classes")
    totals = confusion.sum(axis=1)
    share = 100.0 * confusion[:, :count] / np.maximum(totals, 1)[:, None]
    side = int(np.clip(52 * count, 320, 1400))
    figure = _figure(side + 330, side + 160)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(count), names, rotation=45, ha="right")
    axes.set_yticks(range(count), [f"{name} ({_short(int(n))})" for name, n in zip(names, totals)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (points)")
    axes.set_title(title or "per cent of the points of each true class")
    for i, j in zip(*np.nonzero(share >= 0.5)):
        axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", color="white" if share[i, j] > 60 else "black")
    figure.set_layout_engine("constrained")
    return _save(figure, Path(path))


def bars(
    runs: Mapping[str, NDArray[np.floating]],
    names: Sequence[str],
    path: str | Path,
    spread: Mapping[str, NDArray[np.floating]] | None = None,
    title: str = "",
) -> Path:
    """Draw the IoU of each class, one bar per run, the mean over its classes last.

    Args:
        runs: run name -> (C,) IoU in 0..1, NaN for a class that does not occur (drawn as a gap, left out of the mean).
        names: C class names.
        path: PNG file to write.
        spread: run name -> (C,) standard deviation over seeds, drawn as a whisker.
        title: text above it.

    Raises:
        ValueError: no run, or a run whose length is not C.
    """
    if not runs:
        raise ValueError(f"{path}: no run to draw")
    for name, values in runs.items():
        if np.shape(values) != (len(names),):
            raise ValueError(f"{path}: run '{name}' has shape {np.shape(values)} for {len(names)} classes")
    figure = _figure(int(np.clip(160 + (len(names) + 1) * (30 + 26 * len(runs)), 700, 2400)), 520)
    axes = figure.add_subplot()
    step = 0.8 / len(runs)
    for k, (name, values) in enumerate(runs.items()):
        known = np.asarray(values, dtype=np.float64)
        mean = np.nanmean(known) if np.isfinite(known).any() else np.nan
        at = np.arange(len(names) + 1) + (k - (len(runs) - 1) / 2) * step
        heights = 100 * np.append(known, mean)
        error = None if spread is None or name not in spread else 100 * np.append(spread[name], np.nan)
        drawn = axes.bar(at, heights, step * 0.92, yerr=error, label=name, error_kw={"elinewidth": 1, "capsize": 2})
        if len(runs) <= 4:
            texts = ["" if math.isnan(h) else f"{h:.0f}" for h in heights]
            axes.bar_label(drawn, labels=texts, fontsize=8, padding=1)
    axes.axvline(len(names) - 0.5, color="0.7", linewidth=1)
    axes.set_xticks(range(len(names) + 1), [*names, "mean"], rotation=30, ha="right")
    axes.set_ylim(0, 105)
    axes.set_ylabel("IoU, %")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(4, len(runs)), frameon=False)
    axes.set_title(title)
    figure.set_layout_engine("constrained")
    return _save(figure, Path(path))


def _short(n: int) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n / 1e3:.1f} k" if n >= 1e4 else str(n)


def _figure(width: int, height: int) -> Figure:
    """An empty white figure of so many pixels that belongs to no window and to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)
    return path
