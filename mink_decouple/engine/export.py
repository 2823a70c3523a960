"""A trained network as plain files for others: `model.safetensors` with its weights, `card.json` with all else.

The card holds the classes with names, colours and raw ids, the preprocessing (grid, features, view: the resolved
configuration), the label budget, scores, versions and licence. Neither file runs code, and no other library of ours is
needed to read them. `predict`, `evaluate`, `view`, `submit` and `model.weights` take the folder for a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mink_decouple import __version__
from mink_decouple import config as configuration
from mink_decouple.data.classes import Classes, classes_from_mapping
from mink_decouple.data.tensors import TensorWriter, checksum, open_tensors
from mink_decouple.engine import checkpoint
from mink_decouple.engine.runtime import write_json

CARD, WEIGHTS = "card.json", "model.safetensors"
FORMAT = 1
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of what a batch norm keeps beside its parameters."""
SCORES = ("miou", "head_iou", "waist_iou", "tail_iou", "oa", "macc", "iou", "classes_counted", "points")


def export_network(path: Path, output: Path, licence: str | None = None) -> dict[str, Any]:
    """Write a checkpoint's network to a new folder.

    Args:
        path: the checkpoint; scores are taken from the `metrics.json` of its run where it is the last one.
        output: the folder; must not hold an export.
        licence: of the weights, as a name or a sentence; the licence of the data they were trained on may bind them.

    Returns:
        The card.

    Raises:
        FileNotFoundError, ValueError: see `checkpoint.load`; `output` holds an export already.
    """
    if (output / CARD).exists() or (output / WEIGHTS).exists():
        raise ValueError(f"{output}: holds an exported network already; choose another --output")
    state = checkpoint.load(path)
    config = configuration.loads(state["config"], str(path))
    classes = checkpoint.classes_of(state)
    output.mkdir(parents=True, exist_ok=True)
    with TensorWriter(output / WEIGHTS) as writer:
        for name, tensor in state["model"].items():
            # a scalar becomes one row: the card says which
            writer.append(name, np.atleast_1d(tensor.detach().cpu().numpy()))
        writer.finish({"format": "pt", "card": CARD})
    card = {
        "format": FORMAT,
        "made_by": f"mink_decouple {__version__}",
        "backbone": config.backbone,
        "variant": config.model.variant,
        "head": config.model.head,
        "parameters": sum(t.numel() for name, t in state["model"].items() if not name.endswith(STATISTICS)),
        "scalars": sorted(name for name, tensor in state["model"].items() if tensor.ndim == 0),
        "classes": _packed(classes),
        "groups": state["groups"],
        "features": list(config.data.features),
        "grid_metres": config.data.grid,
        "label_budget": state["label_budget"],
        "scores": _scores(path),
        "recipe": config.recipe,
        "seed": config.seed,
        "after": state.get("after"),
        "licence": licence,
        "weights": {"file": WEIGHTS, "sha256": checksum(output / WEIGHTS)},
        "config": state["config"],
    }
    write_json(output / CARD, card)
    return card


def load_network(path: Path) -> dict[str, Any]:
    """What `checkpoint.load` gives, of a checkpoint or of an exported folder.

    Raises:
        FileNotFoundError, ValueError: no such file or folder; damaged; weights that are not those of the card.
    """
    if not path.is_dir():
        return checkpoint.load(path)
    card, weights = _card(path), path / WEIGHTS
    stored = open_tensors(weights)
    if checksum(weights) != card["weights"]["sha256"]:
        raise ValueError(f"{weights}: its checksum is not the one in {CARD}; damaged, or of another network")
    scalars = set(card["scalars"])
    model = {
        name: torch.from_numpy(np.array(array)).reshape(() if name in scalars else array.shape)
        for name, array in stored.arrays.items()
    }
    return {
        "config": card["config"],
        "classes": checkpoint.pack_classes(_classes(path / CARD, card["classes"])),
        "groups": card["groups"],
        "label_budget": card["label_budget"],
        "model": model,
        "after": card["after"],
    }


def _card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: neither a checkpoint nor an exported network, it has no {CARD}")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    kinds: dict[str, Any] = {"config": str, "classes": dict, "weights": dict, "scalars": list, "groups": list}
    kinds["label_budget"] = (dict, type(None))  # None: of imported weights nobody knows it
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"{path}: not the card of an exported network (format {FORMAT})")
    wrong = [key for key, kind in kinds.items() if not isinstance(card.get(key, ...), kind)]
    if wrong or "after" not in card or not isinstance(card["weights"].get("sha256"), str):
        raise ValueError(f"{path}: damaged card: {', '.join(wrong) or 'weights'}")
    return card


def _packed(classes: Classes) -> dict[str, Any]:
    raw = [[key for key, train in classes.raw_ids.items() if train == number] for number in range(len(classes))]
    entries = zip(classes.names, raw, classes.colors.tolist(), strict=True)
    return {
        "classes": {name: {"raw": ids, "color": color} for name, ids, color in entries},
        "ignore": sorted(classes.ignored),
    }


def _classes(path: Path, packed: Mapping[str, Any]) -> Classes:
    return classes_from_mapping(packed, str(path))


def _scores(path: Path) -> dict[str, Any] | None:
    """Scores of the run that the checkpoint is the end of."""
    metrics = path.parent.parent / "metrics.json"
    if path.name != "last.pt" or not metrics.is_file():
        return None
    found = json.loads(metrics.read_text(encoding="utf-8"))
    return {key: found[key] for key in SCORES if key in found}
