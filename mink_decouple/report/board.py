"""Pictures, clouds and features for TensorBoard, beside the scalars that a training writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mink_decouple.data.classes import Classes
from mink_decouple.report.figures import error_colors, label_colors

MESH_POINTS = 30_000
"""Points of a cloud; TensorBoard's viewer becomes slow beyond."""


def write_board(
    folder: Path,
    step: int,
    pictures: Mapping[str, Path],
    coords: NDArray[np.floating],
    labels: Mapping[str, NDArray[np.integer]],
    classes: Classes,
    features: Mapping[str, tuple[NDArray[np.floating], NDArray[np.integer]]] | None = None,
) -> None:
    """Add to an event folder: images, one cloud per column of labels and the errors, embeddings to project.

    Args:
        folder: of the events.
        step: that they belong to.
        pictures: tag -> PNG file.
        coords: (N, 3) metres.
        labels: `truth`, `prediction` or any other column -> (N,) train ids, -1 none.
        classes: names and palette.
        features: tag -> (n, D) features and their (n,) true train ids, -1 unknown.
    """
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    untyped: Any = SummaryWriter  # torch has no types for it
    with untyped(str(folder)) as writer:
        for tag, path in pictures.items():
            image = np.asarray(imread(path))[..., :3]
            writer.add_image(tag, image, step, dataformats="HWC")
        kept = np.sort(np.random.default_rng(0).permutation(len(coords))[:MESH_POINTS])
        place = (coords[kept] - coords[kept].mean(axis=0)).astype(np.float32)
        # TensorBoard's camera takes y for up
        place = np.stack([place[:, 0], place[:, 2], -place[:, 1]], axis=1)
        colors = {name: label_colors(np.asarray(column)[kept], classes) for name, column in labels.items()}
        if {"truth", "prediction"} <= set(labels):
            found = (np.asarray(labels[name])[kept] for name in ("truth", "prediction"))
            colors["error"] = error_colors(*found)
        for name, color in colors.items():
            writer.add_mesh(f"scene/{name}", place[None], color[None], global_step=step)
        for tag, (rows, truth) in (features or {}).items():
            names = [classes.names[c] if c >= 0 else "unknown" for c in truth.tolist()]
            table = np.asarray(rows, np.float32)
            writer.add_embedding(table, names, global_step=step, tag=tag)


def last_step(run: Path) -> int:
    """The optimizer step of the last line of a run's `metrics.jsonl`; 0 where there is none."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0
