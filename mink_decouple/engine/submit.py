"""Predictions of a test split for a benchmark server, scene by scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from mink_decouple import config as configuration
from mink_decouple.config import Config
from mink_decouple.data import Dataset
from mink_decouple.data.prepared import PreparedDataset
from mink_decouple.data.submission import write_submission
from mink_decouple.data.submission_servers import SERVERS, find_server, match_scenes
from mink_decouple.engine import checkpoint
from mink_decouple.engine.evaluate import predict_blocks, restore
from mink_decouple.engine.events import progress
from mink_decouple.engine.export import load_network
from mink_decouple.engine.memory import named_settings
from mink_decouple.engine.scenes import load_scene, open_dataset
from mink_decouple.models.segmenter import Segmenter


def predictions(
    model: Segmenter, config: Config, dataset: Dataset, names: Sequence[str], device: torch.device
) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """(scene, blocks of (n,) train ids of its raw points in their order), one scene at a time.

    Of a scene of a prepared dataset the grid cloud's probabilities are in memory, its raw points and the way back to
    them on disk.
    """
    for name in progress(names, "predicting"):
        yield name, predict_blocks(model, config, load_scene(config, dataset, name), len(dataset.classes), device)


def count_points(dataset: Dataset, names: Sequence[str]) -> dict[str, int]:
    """Raw points of every scene; the manifest of a prepared dataset knows them."""
    if isinstance(dataset, PreparedDataset):
        return {name: dataset.record(name).points for name in names}
    return {name: len(dataset.load(name)) for name in progress(names, "counting")}


def submit_checkpoint(
    path: Path,
    choose: Callable[[Config], Config],
    output: Path,
    device: torch.device,
    server: str | None = None,
    description: str | None = None,
) -> None:
    """Predict the test split of the configured dataset and write the zip of its server.

    Args:
        path: the checkpoint, or the folder of an exported network.
        choose: as for `evaluate_checkpoint`.
        output: the zip; must not exist.
        device: where to run.
        server: a name in `SERVERS`, whose scenes alone are predicted; None for the server of `data.dataset`.
        description: text for SemanticKITTI's optional description.txt.

    Raises:
        FileNotFoundError, ValueError: see `load_network` and `write_submission`.
        ValueError: the output exists, the dataset has no server, or the checkpoint was trained on other classes.
    """
    if output.exists():
        raise ValueError(f"{output}: exists; submissions are not overwritten, choose another --output")
    state = load_network(path)
    own = configuration.loads(state["config"], str(path))
    own = configuration.replace_data(own, choose(own))
    dataset = open_dataset(own)
    checkpoint.require_classes(path, state, dataset.classes.names)
    names = list(dataset.scenes("test"))
    if server is None:
        if own.data.dataset not in (*SERVERS, "semantic3d"):
            raise ValueError(
                f"data.dataset {own.data.dataset!r}: has no benchmark server; name one with --server: "
                f"{', '.join(SERVERS)}"
            )
        wanted = find_server(own.data.dataset, names)
    else:
        wanted = find_server(server, names)
        names = [name for name in names if wanted.entry(name) in wanted.entries]
    match_scenes(wanted, names)
    points = count_points(dataset, names)
    model = restore(state, own, device)
    found = predictions(model, own, dataset, names, device)
    with named_settings(own, training=False):
        write_submission(wanted.name, found, points, output, dataset.classes, description)
