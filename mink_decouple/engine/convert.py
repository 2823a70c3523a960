"""Files of weights in MinkowskiEngine's example naming <-> checkpoints of this project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mink_decouple.config import Config, dump
from mink_decouple.data.transforms import feature_width
from mink_decouple.engine import checkpoint
from mink_decouple.engine.evaluate import make_model
from mink_decouple.engine.scenes import load_split, open_dataset
from mink_decouple.metrics import class_groups
from mink_decouple.models.convert import from_example, sizes_of, to_example


def export_weights(state: dict[str, Any], path: Path, output: Path) -> None:
    """Write the network of a loaded checkpoint as a state dict of MinkowskiEngine's example network.

    Raises:
        ValueError: its backbone or head is another one; names the checkpoint.
    """
    try:
        weights = to_example(state["model"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(output, weights)


def import_weights(raw: Any, path: Path, configure: Callable[[str], Config], output: Path) -> None:
    """Write a checkpoint from a state dict of MinkowskiEngine's example network.

    Args:
        raw: what the file held.
        path: the file, for messages.
        configure: the variant found in the weights -> the configuration that says what data the network is for.
        output: the checkpoint to write.

    Raises:
        ValueError: not such a state dict, or its input channels or classes are not those of the configuration.
    """
    try:
        weights = from_example(raw if isinstance(raw, dict) else {})
        variant, channels, count = sizes_of(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    config = configure(variant)
    wanted = feature_width(config.data.features)
    if channels != wanted:
        raise ValueError(
            f"{path}: takes {channels} input channels, but data.features {config.data.features} are {wanted}; "
            "set data.features to what it was trained on"
        )
    dataset = open_dataset(config)
    if count != len(dataset.classes.names):
        raise ValueError(f"{path}: has {count} classes, but the data has {len(dataset.classes.names)}")
    truth = np.concatenate([scene.truth for scene in load_split(config, dataset, "train")])
    groups = class_groups(np.bincount(truth[truth >= 0], minlength=count))
    model = make_model(config, dataset.classes)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(
        output,
        {
            "config": dump(config),
            "classes": checkpoint.pack_classes(dataset.classes),
            "groups": [list(group) for group in groups],
            "label_budget": None,  # the file does not say what it was trained on
            "labels_checksum": None,
            "engine": "minkowski",
            "model": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
            "after": None,
        },
    )


def read(path: Path) -> tuple[bool, Any]:
    """A file of tensors without running code from it, and whether it is a checkpoint of this project.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds more than plain data and tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    state = checkpoint.read(path, torch.device("cpu"))
    if isinstance(state, dict) and "format" in state:
        return True, checkpoint.load(path)
    return False, state
