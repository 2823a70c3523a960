"""A network that begins with the weights of another one: fine-tuning, on other data or with other labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mink_decouple import config as configuration
from mink_decouple.config import Config
from mink_decouple.data.classes import Classes
from mink_decouple.data.tensors import checksum
from mink_decouple.engine import checkpoint
from mink_decouple.engine.events import say
from mink_decouple.engine.export import WEIGHTS, load_network
from mink_decouple.models.segmenter import Segmenter


def network_to_begin_with(config: Config) -> dict[str, Any] | None:
    """What `load_network` gives of `model.weights`, compared with the configuration; None without.

    Raises:
        FileNotFoundError, ValueError: see `load_network`; another backbone, size or features.
    """
    if config.model.weights is None:
        return None
    path = Path(config.model.weights)
    if not path.exists():
        raise FileNotFoundError(f"model.weights: {path}: no such checkpoint or exported network")
    state = load_network(path)
    own = configuration.loads(state["config"], str(path))
    for key, theirs, ours in (
        ("backbone", own.backbone, config.backbone),
        ("model.variant", own.model.variant, config.model.variant),
        ("data.features", own.data.features, config.data.features),
    ):
        if theirs != ours:
            raise ValueError(
                f"model.weights {path}: was trained with {key} {theirs}, this run has {ours}; set it alike"
            )
    return state


def take_weights(model: Segmenter, config: Config, classes: Classes) -> None:
    """Load `model.weights` into a network: the backbone, and the classifier as far as the names of classes agree.

    A class that the other network does not know keeps its fresh row of the classifier's last layer; where the
    classifiers are of different kinds, or no name agrees, all of it stays fresh.

    Args:
        model: with fresh weights.
        config: `model.weights` is a checkpoint or the folder of an exported network; None leaves the network as it is.
        classes: of the model.

    Raises:
        FileNotFoundError, ValueError: see `network_to_begin_with`.
    """
    state, path = network_to_begin_with(config), config.model.weights
    if state is None:
        return
    own = configuration.loads(state["config"], str(path))
    for part in ("grid", "height", "factors", "centre"):
        theirs, ours = getattr(own.data, part), getattr(config.data, part)
        if theirs != ours:
            say(f"weights of {path}: trained with data.{part} {theirs}, this run has {ours}")
    weights: dict[str, torch.Tensor] = state["model"]
    model.backbone.load_state_dict(_part(weights, "backbone"))
    known = _take_classifier(model.classifier, _part(weights, "classifier"), checkpoint.classes_of(state), classes)
    say(f"begins with the weights of {path}: the backbone, and the classifier of {known} of {len(classes)} classes")


def checksum_of(path: Path) -> str:
    """SHA-256 of the file with the weights."""
    return checksum(path / WEIGHTS if path.is_dir() else path)


def _part(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def _take_classifier(classifier: nn.Module, weights: dict[str, torch.Tensor], theirs: Classes, ours: Classes) -> int:
    """Load what the names of classes allow; returns how many of them agree."""
    fresh: dict[str, Any] = classifier.state_dict()
    rows = [(theirs.names.index(name), place) for place, name in enumerate(ours.names) if name in theirs.names]
    if weights.keys() != fresh.keys() or not rows:
        return 0
    old, new = (list(places) for places in zip(*rows, strict=True))
    last = [name for name, module in classifier.named_modules() if isinstance(module, nn.Linear)][-1]
    for name, value in weights.items():
        if name in (f"{last}.weight", f"{last}.bias"):
            fresh[name][new] = value[old].to(fresh[name])
        else:
            fresh[name].copy_(value)
    return len(rows)
