"""A cloud to turn around in a browser: one HTML file that works offline, drawn without WebGL or any library."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mink_decouple.data.classes import Classes
from mink_decouple.report.export import confidence_colors
from mink_decouple.report.figures import UNLABELLED

MOST_POINTS = 400_000
"""Points of a page unless asked otherwise."""
INDOOR_CUT = 0.82
"""Share of the height that is shown at first where there is a class `ceiling`, which would hide the room."""
NONE = 255
CLASS_LAYERS = ("truth", "prediction", "pre-trained", "pseudo-labels", "labels")
"""Layers of train ids, -1 for none; the others are `colour` and `confidence`."""

STYLE = """
* { box-sizing: border-box; } html, body { height: 100%; margin: 0; }
body { font: 14px/1.45 system-ui, sans-serif; color: #1b1b1b; display: flex; }
main { flex: 1; min-width: 0; position: relative; } canvas { display: block; position: absolute; touch-action: none; }
aside { width: 250px; padding: .8rem; border-left: 1px solid #ddd; overflow-y: auto; background: #fafafa; }
h1 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
#layers { display: flex; flex-wrap: wrap; gap: .3rem; margin-bottom: .7rem; }
button { font: inherit; padding: .2rem .55rem; border: 1px solid #bbb; border-radius: 4px; background: #fff; }
button { cursor: pointer; } button[aria-pressed=true] { background: #1f5fa8; color: #fff; border-color: #1f5fa8; }
#legend label { display: flex; align-items: center; gap: .4rem; padding: .1rem 0; cursor: pointer; }
.swatch { width: .9em; height: .9em; border: 1px solid #777; flex: none; }
.share { margin-left: auto; white-space: nowrap; color: #595959; font-variant-numeric: tabular-nums; }
.bar { margin: .7rem 0; } .bar label { display: block; } .bar input { width: 100%; }
.quiet { color: #595959; font-size: .85rem; }
@media (max-width: 640px) { body { flex-direction: column; } aside { width: auto; max-height: 45%; border: 0; } }
"""


def viewer_page(
    title: str,
    coords: NDArray[np.floating],
    columns: Mapping[str, NDArray],
    classes: Classes,
    most: int = MOST_POINTS,
) -> str:
    """The page of a cloud, with a button for each thing there is to see and a legend that hides classes.

    With `truth` and `prediction` there is a layer `error` as well.

    Args:
        title: of the page.
        coords: (N, 3) metres.
        columns: layer -> (N,) train ids (`CLASS_LAYERS`), (N,) `confidence` in 0..1, or (N, 3) `colour` in 0..1.
        classes: names and palette.
        most: points of the page; of more, every n-th in a shuffled order is shown.

    Raises:
        ValueError: no points, no layer, an unknown layer, another number of rows, or more than 254 classes.
    """
    count = len(coords)
    if count == 0 or not columns:
        raise ValueError(f"{title}: nothing to show, {count} points and {len(columns)} layers")
    if len(classes) >= NONE:
        raise ValueError(f"{title}: {len(classes)} classes; a page holds up to {NONE - 1}")
    kept = np.arange(count)
    if count > most:
        kept = np.sort(np.random.default_rng(0).permutation(count)[:most])
    packed, layers = {}, []
    for name, values in columns.items():
        if len(values) != count:
            raise ValueError(f"{title}: layer '{name}' has {len(values)} rows for {count} points")
        kind, drawn = _packed(name, np.asarray(values)[kept], len(classes))
        packed[name] = _text(drawn)
        layers.append({"name": name, "kind": kind})
    if {"truth", "prediction"} <= set(columns):
        layers.append({"name": "error", "kind": "error"})
    low = np.asarray(coords[kept], np.float64).min(axis=0)
    extent = np.asarray(coords[kept], np.float64).max(axis=0) - low
    cells = np.rint((coords[kept] - low) / np.where(extent > 0, extent, 1.0) * 65535).astype("<u2")
    data = {
        "count": len(kept),
        "extent": extent.tolist(),
        "coords": _text(cells),
        "columns": packed,
        "layers": layers,
        "cut": INDOOR_CUT if "ceiling" in classes.names else 1.0,
        "classes": [{"name": n, "color": c} for n, c in zip(classes.names, classes.colors.tolist(), strict=True)],
        "none": UNLABELLED,
        "ramp": confidence_colors(np.linspace(0, 1, 256)).tolist(),
    }
    thinned = "" if len(kept) == count else f" {len(kept):,} of {count:,} points are in this page."
    script = resources.files("mink_decouple.report").joinpath("viewer.js").read_text(encoding="utf-8")
    content = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{STYLE}</style></head>
<body><main><canvas role="img" tabindex="0" aria-label="point cloud: {escape(title)}"></canvas></main>
<aside><h1>{escape(title)}</h1><div id="layers"></div><div id="legend"></div>
<p><button id="all">show all</button> <button id="home">first view</button></p>
<div class="bar"><label>cut off from above<input id="cut" type="range" min="0" max="100" value="100"></label></div>
<div class="bar"><label>size of a point<input id="size" type="range" min="1" max="6" value="2"></label></div>
<p id="shown"></p>
<p class="quiet">Drag to turn, right button or Shift to move, wheel to zoom, 1 to {len(layers)} to switch;
on the picture arrows and + and - do, too.{thinned}</p>
</aside>
<script id="data" type="application/json">{content}</script>
<script>{script}</script></body></html>
"""


def write_page(
    path: Path,
    title: str,
    coords: NDArray[np.floating],
    columns: Mapping[str, NDArray],
    classes: Classes,
    most: int = MOST_POINTS,
) -> None:
    """Write `viewer_page`, in one step; missing folders are made. ValueError also for another suffix than `.html`."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{path}: must end in .html, or .png for a still picture")
    text = viewer_page(title, coords, columns, classes, most)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _packed(name: str, values: NDArray, classes: int) -> tuple[str, NDArray[np.uint8]]:
    """How a layer is drawn, and its bytes."""
    if name == "colour":
        return "colour", np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    if name == "confidence":
        return "level", np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    if name not in CLASS_LAYERS:
        raise ValueError(f"layer '{name}': choose from {', '.join((*CLASS_LAYERS, 'colour', 'confidence'))}")
    if values.size and not (values.min() >= -1 and values.max() < classes):
        raise ValueError(f"layer '{name}': ids {values.min()}..{values.max()}, there are {classes} classes")
    return "classes", np.where(values < 0, NONE, values).astype(np.uint8)


def _text(array: NDArray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
