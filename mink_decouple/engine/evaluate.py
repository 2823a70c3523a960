"""Scores on every raw point: vote on the grid cloud, carry the prediction back through the inverse map, count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mink_decouple import config as configuration
from mink_decouple.config import Config
from mink_decouple.data.classes import Classes
from mink_decouple.data.transforms import feature_width
from mink_decouple.engine import checkpoint
from mink_decouple.engine.events import progress, say
from mink_decouple.engine.export import load_network
from mink_decouple.engine.memory import named_settings
from mink_decouple.engine.predict import decide
from mink_decouple.engine.processes import ALONE, Processes
from mink_decouple.engine.runtime import write_json
from mink_decouple.engine.scenes import Scene, load_split, open_dataset, owned
from mink_decouple.metrics import ConfusionMatrix, table
from mink_decouple.models.segmenter import Segmenter, build_model
from mink_decouple.sparse.engines import require_device


def evaluate(
    model: Segmenter,
    config: Config,
    scenes: Sequence[Scene],
    classes: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> ConfusionMatrix:
    """Confusion matrix over all raw points of `scenes` that have a label; `processes` share the scenes out.

    Raises:
        ValueError: a scene has no labels to score against.
    """
    matrix = ConfusionMatrix(classes)
    for scene in progress(owned(scenes, processes), "evaluating"):
        if not scene.labelled:
            raise ValueError(f"{scene.name}: has no labels to score against; use predict for unlabelled clouds")
        best = predict_grid(model, config, scene, classes, device)
        for points, truth in scene.blocks():
            matrix.update(best[points], truth)
    return ConfusionMatrix(classes, processes.total(torch.from_numpy(matrix.counts)).numpy())


def make_model(config: Config, classes: Classes, device: torch.device | None = None) -> Segmenter:
    """The configured network with fresh weights drawn from the run's seed, on `device` (None: the CPU).

    Raises:
        ValueError: see `build_model`; the engine cannot compute on the device.
    """
    model = build_model(
        config.backbone,
        config.model.variant,
        feature_width(config.data.features),
        len(classes.names),
        head=config.model.head,
        seed=config.seed,
        engine=config.model.engine,
    )
    if device is None:
        return model
    require_device(model.engine, device)
    return model.to(device)


def restore(state: dict[str, Any], config: Config, device: torch.device) -> Segmenter:
    """The network of a checkpoint, on the engine that `config` names."""
    model = make_model(config, checkpoint.classes_of(state), device)
    model.load_state_dict(state["model"])
    return model


def evaluate_checkpoint(
    path: Path,
    choose: Callable[[Config], Config],
    output: Path,
    device: torch.device,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Score a checkpoint on the evaluation split and write `output/metrics.json`.

    Args:
        path: the checkpoint.
        choose: the checkpoint's own configuration -> the one that says where the data is, how to vote and which engine
            computes. The network and its view of the data are always those of the checkpoint.
        output: folder of metrics.json.
        device: where to run.
        processes: share the scenes out; the first one writes.

    Raises:
        FileNotFoundError, ValueError: see `checkpoint.load`.
        ValueError: the checkpoint was trained on other classes than the data has.
    """
    state = load_network(path)
    own = configuration.loads(state["config"], str(path))
    own = configuration.replace_data(own, choose(own))
    model = restore(state, own, device)
    dataset = open_dataset(own)
    names = dataset.classes.names
    checkpoint.require_classes(path, state, names)
    if not processes.first:
        processes.wait()  # the grid clouds that the first one writes are read by the rest
    scenes = load_split(own, dataset, own.data.eval_split)
    if processes.first:
        processes.wait()
    with named_settings(own, training=False):
        matrix = evaluate(model, own, scenes, len(names), device, processes)
    groups = [tuple(g) for g in state["groups"]]
    say(table(names, {"checkpoint": matrix}, groups))
    result = {
        **matrix.report(names, groups, own.data.dataset),
        "checkpoint": path.name,
        "backbone": own.backbone,
        "engine": model.engine,
        "recipe": own.recipe,
        "seed": own.seed,
        "parameters": model.parameter_counts(),
        "label_budget": state["label_budget"],
        "confusion": matrix.confusion.tolist(),
    }
    if processes.first:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "metrics.json", result)
    return result


def predict_blocks(
    model: Segmenter, config: Config, scene: Scene, classes: int, device: torch.device
) -> Iterator[np.ndarray]:
    """Train ids of the raw points of a scene in their order, (n,) int64 of `scenes.BLOCK_POINTS` at a time."""
    best = predict_grid(model, config, scene, classes, device)
    for points in scene.point_blocks():
        yield best[points]


def predict_grid(model: Segmenter, config: Config, scene: Scene, classes: int, device: torch.device) -> np.ndarray:
    """(V,) int64 train ids of every grid point of a scene."""
    return decide(model, config, scene, classes, device, config.eval.votes)[0]


def raw_of(best: np.ndarray, scene: Scene) -> np.ndarray:
    """(N,) int64 train ids of every raw point of a scene, from those of its (V,) grid points."""
    return np.concatenate([np.empty(0, np.int64), *(best[points] for points in scene.point_blocks())])


def predict_raw(model: Segmenter, config: Config, scene: Scene, classes: int, device: torch.device) -> np.ndarray:
    """(N,) int64 train ids of every raw point of a scene."""
    return raw_of(predict_grid(model, config, scene, classes, device), scene)
