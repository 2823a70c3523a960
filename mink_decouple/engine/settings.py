"""Checks of a configuration that need no cloud: before one is read, and before a study trains its first run."""

from __future__ import annotations

import torch

from mink_decouple.config import Config
from mink_decouple.data import root_of
from mink_decouple.data.budget_forms import parse_budget
from mink_decouple.data.transforms import compose, feature_width
from mink_decouple.engine.initial import network_to_begin_with
from mink_decouple.engine.pseudo import selection_options
from mink_decouple.engine.stages import stages_of
from mink_decouple.models.segmenter import build_model


def check_settings(config: Config) -> None:
    """Try the settings that need no data beyond their types and ranges: names, sizes, and which go together.

    Raises:
        ValueError: a setting that is wrong by itself or beside another.
        FileNotFoundError: the budget names a file that is not there.
    """
    if config.data.dataset != "synthetic":
        root_of(config.data)
    stages_of(config)
    parse_budget(config.labels.budget)
    try:
        compose(config.augment)
    except ValueError as error:
        raise ValueError(f"augment: {error}") from None
    selection_options(config)
    if config.loss.pseudo_weight != "none" and config.loss.seg_norm != "split":
        raise ValueError(
            f"loss.pseudo_weight {config.loss.pseudo_weight}: the pseudo-labels need a mean of their own; "
            "set loss.seg_norm split"
        )
    if config.ii.labels == "spread" and config.labels.spread == "none":
        raise ValueError(
            "ii.labels spread: the given labels do not; set labels.spread segments or forest, or ii.labels gt"
        )
    if config.ii.labels == "spread" and config.ii.feature != "none":
        raise ValueError(f"ii.feature {config.ii.feature}: is of pseudo-labels; set ii.labels mixed in place of spread")
    if not config.forest.radii or min(config.forest.radii) <= 0:
        raise ValueError(f"forest.radii {config.forest.radii}: grid sizes; need at least one, each above 0")
    voxel = config.view.voxel
    if voxel is not None and (len(voxel) != 3 or min(voxel) <= 0):
        raise ValueError(f"view.voxel {voxel}: edges along x, y and z in metres; need three, each above 0")
    network_to_begin_with(config)
    model, width = config.model, feature_width(config.data.features)
    with torch.device("meta"):  # names and sizes without the weights
        build_model(config.backbone, model.variant, width, 2, model.head, engine=model.engine)
