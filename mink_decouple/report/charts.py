"""Charts of a comparison as inline SVG or PNG: curves, pseudo-labels, confusion matrices, cost against accuracy."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mink_decouple.report.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; dashes tell them apart in grey.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


MOST_BANDS = 4
"""Settings whose spread is drawn as a band; those of more would merge."""


def seeds(count: int) -> str:
    """`3 seeds`, for captions."""
    return f"{count} seed{'s' * (count != 1)}"


def look(number: int) -> dict[str, Any]:
    """Colour and dashes of the line of a setting."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "linestyle": DASHES[(number // len(PALETTE) + number) % len(DASHES)],
    }


def mark(number: int) -> dict[str, Any]:
    """Colour and shape of the point of a setting; no two of the first 64 look alike."""
    shapes = "osD^vP*X"
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": shapes[(number // len(PALETTE) + number) % len(shapes)],
    }


def iou_curves(groups: Mapping[str, Sequence[Record]], classes: Sequence[str]) -> str:
    """IoU of each class and mIoU after each scored stage, a line for each setting.

    The spread over seeds is a band, of up to `MOST_BANDS` settings.
    """
    panels = ["mIoU", *classes]
    figure, axes = _grid(len(panels), 4, 3.0, 1.9)
    for number, (name, records) in enumerate(groups.items()):
        curves = [_curve(record, classes) for record in records]
        curves = [curve for curve in curves if len(curve)]
        if not curves:
            continue
        length = min(map(len, curves))
        stack = np.stack([curve[:length] for curve in curves])
        for place in range(len(panels)):
            values = stack[:, :, place]
            known = np.isfinite(values).all(0)
            at = np.arange(length)[known]
            middle = values[:, known].mean(0)
            label = f"{name}, {seeds(len(curves))}"
            axes[place].plot(at, middle, label=label, linewidth=1.4, marker="o", markersize=2.5, **look(number))
            if len(curves) > 1 and len(groups) <= MOST_BANDS:
                spread = values[:, known].std(0, ddof=1)
                axes[place].fill_between(at, middle - spread, middle + spread, color=look(number)["color"], alpha=0.15)
    for place, title in enumerate(panels):
        _plain(axes[place], title)
        axes[place].set_xlabel("evaluation", fontsize=8)
        axes[place].xaxis.get_major_locator().set_params(integer=True)
    return _svg(_with_legend(figure, axes[0]), "curves")


def pseudo_label_chart(records: Sequence[Record], classes: Sequence[str]) -> str:
    """Pseudo-labels of each class by iteration, certain and uncertain ones, with precision and recall (Fig. 9).

    Means over the seeds of one setting.
    """
    found = [[line for line in record.history if line["event"] == "pseudo_labels"] for record in records]
    length = min(map(len, found))
    figure, axes = _grid(len(classes), 4, 3.0, 1.9)
    for place, name in enumerate(classes):
        certain, uncertain = (
            np.array([[line[key].get(name, 0) for line in lines[:length]] for lines in found], float).mean(0)
            for key in ("certain", "uncertain")
        )
        at = np.arange(length)
        axes[place].bar(at, certain, 0.6, color="#9ecae1", edgecolor="#3182bd", linewidth=0.5, label="certain")
        axes[place].bar(
            at,
            uncertain,
            0.6,
            certain,
            color="#fdd0a2",
            edgecolor="#e6550d",
            linewidth=0.5,
            hatch="//",
            label="uncertain",
        )
        _plain(axes[place], name)
        axes[place].set_xticks(at)
        axes[place].set_ylim(0, 1.1 * max(1.0, float((certain + uncertain).max())))
        share = axes[place].twinx()
        for key, mark, color in (("precision", "o", "#111111"), ("recall", "^", "#7a0177")):
            values = [
                [np.nan if line.get(key, {}).get(name) is None else line[key][name] for line in lines[:length]]
                for lines in found
            ]
            known = np.array(values, float)
            middle = [float(np.mean(c[np.isfinite(c)])) if np.isfinite(c).any() else np.nan for c in known.T]
            share.plot(at, middle, marker=mark, markersize=4, linewidth=1, color=color, label=key)
        share.set_ylim(0, 1.05)
        share.tick_params(labelsize=7)
        if place == 0:
            handles = [*axes[0].get_legend_handles_labels()[0], *share.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return _svg(figure, "pseudo")


def confusion_chart(confusion: NDArray[np.integer], classes: Sequence[str], title: str) -> str:
    """A confusion matrix, rows (truth) in per cent, as a PNG."""
    totals = np.maximum(confusion.sum(1), 1)[:, None]
    share = 100.0 * confusion / totals
    side = 1.6 + 0.34 * len(classes)
    figure = new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.set_xlabel("predicted", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    axes.set_title(title, fontsize=9)
    for i, j in zip(*np.nonzero(share >= 0.5)):
        color = "white" if share[i, j] > 60 else "black"
        axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=6, color=color)
    return png(figure)


def cost_chart(points: Mapping[str, tuple[float, float]]) -> str:
    """Accuracy over cost, a point for each setting: name -> (minutes of training, mIoU in percent)."""
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    for number, (name, (minutes, score)) in enumerate(points.items()):
        axes.scatter([minutes], [score], s=45, label=name, **mark(number))
    axes.set_xlabel("minutes of training, pseudo-labels and scoring", fontsize=9)
    axes.set_ylabel("mIoU, %", fontsize=9)
    # room for a whole mark at either end, however close the points lie
    axes.set_xlim(0, 1.05 * max(minutes for minutes, _ in points.values()))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return _svg(figure, "cost")


def picture(image: NDArray[np.floating]) -> str:
    """An `<img>` of a (H, W, 3) picture in 0..1, without its alternative text: a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _curve(record: Record, classes: Sequence[str]) -> NDArray[np.float64]:
    """(evaluations, 1 + C) mIoU and IoU in percent of the scored stages of a run."""
    lines = [line for line in record.history if line["event"] == "evaluation"]
    rows = [[line["miou"], *(line["iou"].get(name) for name in classes)] for line in lines]
    return 100 * np.array([[np.nan if value is None else value for value in row] for row in rows], float)


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of so many inches that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    rows = -(-count // columns)
    figure = new_figure(columns * width, rows * height + 0.6)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes


def _with_legend(figure: Figure, axes: Any) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def _svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element; equal figures give equal text, and ids of different ones do not meet."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> str:
    """The figure as a data URI."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
