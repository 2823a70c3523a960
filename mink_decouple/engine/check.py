"""Look at the data of a configuration before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mink_decouple.config import Config
from mink_decouple.data.budget import parse_budget
from mink_decouple.data.check import Finding, Wanted, scene_findings
from mink_decouple.data.check_report import Report, count_repairs, in_order
from mink_decouple.data.check_splits import split_findings
from mink_decouple.data.prepared import PreparedDataset
from mink_decouple.data.scene_stats import SceneStats, measure, view_of
from mink_decouple.engine.events import progress
from mink_decouple.engine.scenes import open_dataset
from mink_decouple.engine.settings import check_settings


def check_data(config: Config) -> Report:
    """Read every scene of the training, the scored and the test split once; one of them is in memory at a time.

    Scenes of a prepared dataset stay on disk and are read in blocks, after their checksum is compared.

    Raises:
        ValueError: a setting is wrong (`check_settings`), or the dataset cannot be opened.
        FileNotFoundError: its folder, or the label file, is missing.
    """
    check_settings(config)
    dataset = open_dataset(config)
    wanted = what_is_wanted(config)
    names, findings = _scenes(dataset, wanted)
    splits: dict[str, list[SceneStats]] = {split: [] for split in names}
    todo = [(split, name) for split, found in names.items() for name in found]
    for split, name in progress(todo, "checking", delay=1.0):
        try:
            stats = _measure(dataset, name, config)
        except (ValueError, OSError) as error:
            findings.append(Finding("error", "unreadable", name, " ".join(str(error).split()), "see the file named"))
            continue
        findings += scene_findings(stats, split, wanted)
        splits[split].append(stats)
    findings += split_findings(splits, dataset.classes.names, wanted)
    prepared = dataset if isinstance(dataset, PreparedDataset) else None
    return Report(
        source=config.data.dataset if config.data.root is None else f"{config.data.dataset} in {config.data.root}",
        wanted=wanted,
        classes=dataset.classes.names,
        splits=splits,
        findings=in_order(findings),
        mended=() if prepared is None else count_repairs(_repairs(prepared)),
        left_out=0 if prepared is None else prepared.manifest.missing,
    )


def what_is_wanted(config: Config) -> Wanted:
    """What a configuration asks of its data; raises as `parse_budget`."""
    budget = parse_budget(config.labels.budget)
    return Wanted(
        grid=config.data.grid,
        features=tuple(config.data.features),
        factors=config.data.factors,
        scored=config.data.eval_split,
        labels_in_file=budget.kind == "file",
        # As `training_labels`: the classes of a benchmark are given, and blind budgets may miss some.
        all_classes=config.data.dataset in ("synthetic", "folder") and budget.kind not in ("uniform", "list", "file"),
    )


def _scenes(dataset: Any, wanted: Wanted) -> tuple[dict[str, list[str]], list[Finding]]:
    """Split -> names of its scenes, and what is wrong with the splits themselves; a test split may be missing."""
    names: dict[str, list[str]] = {}
    findings = []
    for split in dict.fromkeys((wanted.train, wanted.scored, "test")):
        try:
            names[split] = list(dataset.scenes(split))
        except ValueError as error:
            if split in (wanted.train, wanted.scored):
                findings.append(Finding("error", "splits", "", str(error), "name its scenes under data.splits"))
    return names, findings


def _measure(dataset: Any, name: str, config: Config) -> SceneStats:
    if not isinstance(dataset, PreparedDataset):
        return measure(view_of(dataset.load(name)), config.data.grid, len(dataset.classes))
    scene = dataset.open(name)
    dataset.verify(name)
    lowest = (np.array(dataset.record(name).low) - scene.offset).astype(np.float32)
    return measure(view_of(scene), config.data.grid, len(dataset.classes), lowest)


def _repairs(dataset: PreparedDataset) -> Iterator[tuple[str, Any]]:
    for name, record in dataset.manifest.scenes.items():
        yield from ((name, repair) for repair in record.repairs)
