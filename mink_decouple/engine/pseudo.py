"""Pseudo-labels of the whole training set: predict every scene, rank the classes, select by scene (Eq. 2 and 3)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mink_decouple.config import Config
from mink_decouple.data.segments import smooth
from mink_decouple.decouple.balance import imbalance_ratio, select_counts
from mink_decouple.decouple.pseudo_labels import (
    PseudoLabels,
    Quality,
    SelectionOptions,
    cloud_thresholds,
    give_spread,
    predicted_counts,
    quality,
    select,
    tail_classes,
)
from mink_decouple.decouple.pseudo_table import Packed, PseudoLabelTable
from mink_decouple.engine.batches import SceneLabels
from mink_decouple.engine.events import progress
from mink_decouple.engine.lazy import PerScene
from mink_decouple.engine.predict import probabilities
from mink_decouple.engine.processes import ALONE, Processes
from mink_decouple.engine.reach import reach_of, segments_of
from mink_decouple.engine.scenes import Scene, owned, owners
from mink_decouple.models.segmenter import Segmenter

HELD_BYTES = 1 << 30
"""Up to this much the probabilities of a training set stay in memory."""


@dataclass(frozen=True)
class Selection:
    """Pseudo-labels of one iteration and what they were chosen by.

    Attributes:
        table: pseudo-labels of every scene.
        rho: (C,) imbalance ratio.
        predicted: (C,) unlabelled grid points predicted as each class.
        tail: class ids of the tail.
        quality: against the hidden truth where there is any; None elsewhere. For logs only.
        spread: (C,) points that given labels spread to; None where they do not.
    """

    table: PseudoLabelTable
    rho: Tensor
    predicted: Tensor
    tail: Tensor
    quality: Quality | None
    spread: Tensor | None = None


def labelled_counts(scenes: Sequence[Scene], classes: int) -> Tensor:
    """(S, C) visible grid points of every scene and class."""
    return torch.stack([torch.from_numpy(np.bincount(s.visible[s.visible >= 0], minlength=classes)) for s in scenes])


def selection_options(config: Config) -> SelectionOptions:
    """The options of the configuration."""
    p = config.pseudo
    if p.rho_mode == "literal" and p.tail_rule == "all":
        raise ValueError(
            "pseudo.rho_mode literal: gives head classes the lowest threshold, so pseudo.tail_rule all floods them; "
            "use half or below_mean"
        )
    if p.rho_mode == "literal" and p.uncertain == "rate":
        raise ValueError(
            "pseudo.uncertain rate: needs pseudo.rho_mode repaired; the literal ratio keeps least of the tail"
        )
    return SelectionOptions(
        delta_len=p.delta_len,
        delta_d=p.delta_d,
        beta=p.beta,
        mode=p.uncertain,
        floor=p.floor,
        tail_rule=p.tail_rule,
        tail_frac=p.tail_frac,
    )


def make_pseudo_labels(
    model: Segmenter,
    config: Config,
    scenes: Sequence[Scene],
    classes: int,
    device: torch.device,
    segments: Mapping[str, np.ndarray] | None = None,
    reach: Mapping[str, np.ndarray] | None = None,
    processes: Processes = ALONE,
) -> Selection:
    """Predict every training scene in evaluation mode and select pseudo-labels.

    `segments` are those of `segments_of`, for `pseudo.smooth`, and `reach` is that of `reach_of`, for `labels.spread`;
    None makes them where needed.
    `processes` share the scenes out, and each gets the labels of all.
    """
    p, options = config.pseudo, selection_options(config)
    segments = segments_of(config, scenes) if segments is None else segments
    reach = reach_of(config, scenes, segments) if reach is None else reach
    own = owned(scenes, processes)
    visible = PerScene(own, lambda scene: torch.from_numpy(scene.visible))
    probs = _room(own, classes)
    found = torch.zeros(classes, dtype=torch.int64)
    for s in progress(own, "pseudo-labels"):
        voted = probabilities(model, config, s, classes, device, p.votes)
        voted = smooth(voted, segments[s.name]) if p.smooth == "segments" else voted
        if p.within == "labelled":
            voted = voted * s.possible(classes)
        probs[s.name].copy_(torch.from_numpy(voted))
        found += predicted_counts(probs[s.name], visible[s.name])
    predicted = processes.total(found)
    rho = imbalance_ratio(select_counts(labelled_counts(scenes, classes), predicted, p.rho_source), p.rho_mode)
    tail = tail_classes(predicted, options.tail_rule, options.tail_frac)
    certain = uncertain = None
    if p.scope == "global":
        certain, uncertain = _global_thresholds(probs, visible, rho, options, processes)
    known = 0
    total = Quality(*(torch.zeros(shape, dtype=torch.int64) for shape in ((2, classes), (2, classes), (classes,))))
    reached = torch.zeros(classes, dtype=torch.int64) if config.labels.spread != "none" else None

    def choose() -> Iterator[tuple[str, PseudoLabels]]:
        nonlocal known, total, reached
        for scene in own:
            shown, truth = visible[scene.name], scene.truth
            labels = select(probs[scene.name], shown, rho, tail, options, certain, uncertain)
            if reached is not None:
                spread = torch.from_numpy(reach[scene.name])
                labels = give_spread(labels, shown, spread)
                reached = reached + torch.bincount(spread[spread >= 0], minlength=classes)
            compared = quality(labels, torch.from_numpy(truth), classes, shown)
            if compared.hidden.any():  # some truth beside the given labels
                total, known = total + compared, 1
            yield scene.name, labels

    table = _gathered(PseudoLabelTable(classes, choose()), scenes, processes)  # packs each before the next is chosen
    if reached is not None:
        reached = processes.total(reached)
    parts = (processes.total(part) for part in (total.selected, total.correct, total.hidden))
    total = Quality(*parts)
    return Selection(table, rho, predicted, tail, total if processes.most(known) else None, reached)


def _gathered(table: PseudoLabelTable, scenes: Sequence[Scene], processes: Processes) -> PseudoLabelTable:
    """The table of all scenes from those of the processes."""
    if processes.size == 1:
        return table

    def parts() -> Iterator[tuple[str, Packed]]:
        for scene, owner in zip(scenes, owners(scenes, processes), strict=True):
            held = table.packed(scene.name) if owner == processes.rank else (None, None)
            code, confidence = (processes.handed(column, owner) for column in held)
            yield scene.name, (code, confidence)

    return PseudoLabelTable.of_packed(table.classes, parts())


def _room(scenes: Sequence[Scene], classes: int) -> dict[str, Tensor]:
    """Room for the (V, C) float32 probabilities of every scene: in memory, or in a temporary file where they are many.

    They are needed twice: thresholds follow from the predictions of the whole training set.
    """
    ends = np.cumsum([0, *(len(s.grid) for s in scenes)])
    shape = (int(ends[-1]), classes)
    if 4 * shape[0] * shape[1] <= HELD_BYTES:
        table = np.empty(shape, np.float32)
    else:
        with tempfile.TemporaryFile() as file:  # the map keeps it; TMPDIR says where it lies
            _reserve(file.fileno(), 4 * shape[0] * shape[1])
            table = np.memmap(file, np.float32, "w+", shape=shape).view(np.ndarray)
    return {s.name: torch.from_numpy(table[a:b]) for s, a, b in zip(scenes, ends, ends[1:])}


def _reserve(file: int, size: int) -> None:
    """Take the bytes of a file now: a map of a file that finds its disk full ends the process without a word."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        raise OSError(
            f"{tempfile.gettempdir()}: no room for {size / 1e9:,.1f} GB of probabilities ({error.strerror}); "
            "set TMPDIR to a folder on a larger disk and go on with --resume"
        ) from None


def _global_thresholds(
    probs: Mapping[str, Tensor],
    visible: Mapping[str, Tensor],
    rho: Tensor,
    options: SelectionOptions,
    processes: Processes,
) -> tuple[Tensor, Tensor]:
    """Thresholds over the whole training set: the element-wise maximum of those of the scenes."""
    least = torch.full_like(rho, float("-inf"))  # a process may have no scene
    first = [cloud_thresholds(probs[n], visible[n], rho, options)[0] for n in probs]
    certain = processes.largest(torch.stack([least, *first]).amax(0))
    rest = [cloud_thresholds(probs[n], visible[n], rho, options, certain)[1] for n in probs]
    return certain, processes.largest(torch.stack([least, *rest]).amax(0))


def scene_labels(scenes: Sequence[Scene], table: PseudoLabelTable | None) -> Mapping[str, SceneLabels]:
    """Labels of every scene: the given ones, and those of a table. Unpacked at every look-up."""
    if table is None:
        return PerScene(scenes, SceneLabels.given)

    def labels(scene: Scene) -> SceneLabels:
        pseudo, shown = table[scene.name], scene.visible
        if len(pseudo.label) != len(shown):
            raise ValueError(
                f"pseudo-labels of {scene.name}: {len(pseudo.label)} points, the scene has {len(shown)}; "
                "they were made for other data"
            )
        return SceneLabels(shown, pseudo.label.numpy(), pseudo.confidence.numpy())

    return PerScene(scenes, labels)


def spread_scene_labels(scenes: Sequence[Scene], reach: Mapping[str, np.ndarray]) -> Mapping[str, SceneLabels]:
    """Labels of every scene: the given ones, and for pseudo-labels those that reach further, with confidence 1."""

    def labels(scene: Scene) -> SceneLabels:
        spread = reach[scene.name]
        return SceneLabels(scene.visible, spread, (spread >= 0).astype(np.float32))

    return PerScene(scenes, labels)


def quality_record(selection: Selection, names: Sequence[str]) -> dict[str, Any]:
    """Counts, precision and recall per class and round for metrics.jsonl; None where undefined."""
    counts = selection.table.counts()
    record: dict[str, Any] = {
        "certain": dict(zip(names, counts[0].tolist())),
        "uncertain": dict(zip(names, counts[1].tolist())),
        "predicted": dict(zip(names, selection.predicted.tolist())),
        "rho": {n: round(float(r), 6) for n, r in zip(names, selection.rho)},
        "tail": [names[int(c)] for c in selection.tail],
    }
    if selection.spread is not None:
        record["spread"] = dict(zip(names, selection.spread.tolist()))
    if selection.quality is not None:
        q = selection.quality
        for key, values in (
            ("precision", q.precision()),
            ("precision_certain", q.precision(1)),
            ("precision_uncertain", q.precision(2)),
            ("recall", q.recall()),
        ):
            record[key] = {n: None if v != v else float(v) for n, v in zip(names, values)}
    return record
