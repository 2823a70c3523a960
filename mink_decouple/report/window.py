"""A cloud in open3d's viewer, where there is a screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mink_decouple.data.classes import Classes
from mink_decouple.report.export import confidence_colors
from mink_decouple.report.figures import error_colors, label_colors


def colors_of(columns: Mapping[str, NDArray], classes: Classes, layer: str | None) -> tuple[str, NDArray[np.uint8]]:
    """The layer that is shown, the last one unless asked for, and its (N, 3) uint8 colours.

    Raises:
        ValueError: no such layer; names those there are.
    """
    names = [*columns, *(["error"] if {"truth", "prediction"} <= set(columns) else [])]
    name = layer or ("prediction" if "prediction" in names else names[-1])
    if name not in names:
        raise ValueError(f"--layer {name}: choose from {', '.join(names)}")
    if name == "error":
        return name, error_colors(columns["truth"], columns["prediction"])
    if name == "colour":
        return name, np.rint(np.clip(columns[name], 0, 1) * 255).astype(np.uint8)
    return name, confidence_colors(columns[name]) if name == "confidence" else label_colors(columns[name], classes)


def show(
    title: str, coords: NDArray[np.floating], columns: Mapping[str, NDArray], classes: Classes, layer: str | None = None
) -> None:
    """Open a window and wait until it is closed; layers as in `viewer.viewer_page`.

    Raises:
        ValueError: no screen, no open3d, or no such layer.
    """
    name, colors = colors_of(columns, classes, layer)
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ValueError("--window: no screen here (DISPLAY is not set); write a page with --output FILE.html instead")
    try:
        import open3d
    except ImportError as error:
        raise ValueError("--window: needs open3d; run: pip install open3d, or write --output FILE.html") from error
    cloud = open3d.geometry.PointCloud()
    cloud.points = open3d.utility.Vector3dVector(np.asarray(coords, np.float64) - coords.mean(axis=0))
    cloud.colors = open3d.utility.Vector3dVector(colors / 255.0)
    open3d.visualization.draw_geometries([cloud], window_name=f"{title}: {name}")
