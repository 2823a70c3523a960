"""What a finished run leaves: the final figures, and what reports are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mink_decouple.config import Config
from mink_decouple.data.budget import LabelSet
from mink_decouple.data.classes import Classes
from mink_decouple.decouple.schedule import Stage
from mink_decouple.engine.scenes import Scene
from mink_decouple.engine.state import State, label_budget
from mink_decouple.metrics import GROUPS, ClassGroups, ConfusionMatrix
from mink_decouple.models.segmenter import Segmenter


@dataclass(frozen=True)
class Result:
    """What a finished run leaves for reports.

    Attributes:
        metrics: the content of metrics.json.
        classes: of the data.
        groups: head, waist and tail class ids.
        matrices: "pre-trained" and "final" confusion matrices on raw points.
        scene: one evaluation scene.
        predictions: its (N,) predicted train ids, by the same names.
    """

    metrics: dict[str, Any]
    classes: Classes
    groups: ClassGroups
    matrices: dict[str, ConfusionMatrix]
    scene: Scene
    predictions: dict[str, np.ndarray]


def final_metrics(
    config: Config,
    classes: Classes,
    groups: ClassGroups,
    state: State,
    labels: LabelSet,
    stages: Sequence[Stage],
    model: Segmenter,
) -> dict[str, Any]:
    """The content of metrics.json: nothing that another run of the same settings on the same machine would change."""
    final = state.matrices["final"]
    return {
        **final.report(classes.names, groups, config.data.dataset),
        "pretrained": state.matrices["pre-trained"].report(classes.names, groups),
        "best": state.best,
        "parameters": model.parameter_counts(),
        "label_budget": label_budget(labels),
        "seconds": {"file": "timing.json"},  # a clock has no place in figures that repeat to the byte
        "seed": config.seed,
        "backbone": config.backbone,
        "variant": config.model.variant,
        "engine": model.engine,
        "recipe": config.recipe,
        "stages": [s.name for s in stages],
        "confusion": final.confusion.tolist(),
        "classes": list(classes.names),
        "colors": classes.colors.tolist(),
        "groups": {name: list(group) for name, group in zip(GROUPS, groups, strict=True)},
    }


def highest(*values: float | None) -> float | None:
    """The largest of the values that are known, or None."""
    return max((value for value in values if value is not None), default=None)
