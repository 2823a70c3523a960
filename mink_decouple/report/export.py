"""Coloured PLY files of a scene for any point-cloud viewer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mink_decouple.report.figures import error_colors, label_colors

if TYPE_CHECKING:
    from mink_decouple.data.classes import Classes
    from mink_decouple.data.cloud import PointCloud


def confidence_colors(confidence: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colour of each confidence in 0..1 from dark violet (unsure) to yellow (sure), (N, 3) uint8; NaN counts as 0."""
    from matplotlib import colormaps

    steps = np.asarray(colormaps["viridis"](np.linspace(0, 1, 256)))[:, :3]
    level = np.clip(np.nan_to_num(np.asarray(confidence, dtype=np.float64)), 0, 1)
    return np.round(255 * steps[np.round(255 * level).astype(np.int64)]).astype(np.uint8)


def write_views(
    folder: str | Path,
    cloud: PointCloud,
    classes: Classes,
    prediction: NDArray[np.integer] | None = None,
    confidence: NDArray[np.floating] | None = None,
    pseudo_labels: NDArray[np.integer] | None = None,
) -> dict[str, Path]:
    """Write one coloured cloud per thing there is to see, in world coordinates.

    ``truth`` and ``prediction`` carry the palette, ``error`` is grey (right), red (wrong) and pale mint (no truth),
    ``confidence`` runs from dark violet to yellow, ``pseudo_labels`` carry the palette where a point was selected. Each
    file keeps its numbers, too: train ids as ``label``, confidences as ``confidence``, errors as ``error`` (1 wrong, 0
    right, -1 no truth).

    Args:
        folder: made when missing; files are called ``SCENE_VIEW.ply``.
        cloud: N points; its labels are the truth (train ids), if any.
        classes: the palette.
        prediction: (N,) train ids.
        confidence: (N,) in 0..1.
        pseudo_labels: (N,) train ids, -1 where none was given.

    Returns:
        View name -> file, in the order truth, prediction, error, confidence, pseudo_labels.

    Raises:
        ValueError: a column of another length, an id outside the classes, or nothing to write.
    """
    given = {"prediction": prediction, "confidence": confidence, "pseudo_labels": pseudo_labels}
    for name, column in given.items():
        if column is not None and np.shape(column) != (len(cloud.coords),):
            raise ValueError(f"{cloud.name}: {name} has shape {np.shape(column)} for {len(cloud.coords)} points")
    truth = cloud.labels
    views: dict[str, tuple[NDArray[np.uint8], NDArray | None, dict[str, NDArray]]] = {}
    if truth is not None:
        views["truth"] = (label_colors(truth, classes), truth, {})
    if prediction is not None:
        views["prediction"] = (label_colors(prediction, classes), prediction, {})
    if truth is not None and prediction is not None:
        error = np.where(truth < 0, -1, truth != prediction).astype(np.float32)
        views["error"] = (error_colors(truth, prediction), None, {"error": error})
    if confidence is not None:
        views["confidence"] = (confidence_colors(confidence), None, {"confidence": np.asarray(confidence, np.float32)})
    if pseudo_labels is not None:
        views["pseudo_labels"] = (label_colors(pseudo_labels, classes), pseudo_labels, {})
    if not views:
        raise ValueError(f"{cloud.name}: nothing to write, the scene has neither labels nor a prediction")
    return {view: _write(Path(folder), view, cloud, *content) for view, content in views.items()}


def _write(
    folder: Path,
    view: str,
    cloud: PointCloud,
    colors: NDArray[np.uint8],
    labels: NDArray | None,
    columns: dict[str, NDArray],
) -> Path:
    from mink_decouple.data.io import write_cloud

    # Scene names may hold the separators of folders, as in Area_5/office_1.
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', cloud.name)}_{view}.ply"
    features = {"rgb": colors.astype(np.float32) / np.float32(255), **columns}
    kept = None if labels is None else np.asarray(labels, dtype=np.int64)
    write_cloud(path, replace(cloud, features=features, labels=kept))
    return path
