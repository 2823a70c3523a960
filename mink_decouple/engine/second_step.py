"""The II-step: the classifier alone, trained on cached features of a frozen backbone (Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mink_decouple.config import Config
from mink_decouple.data.sampling import SampleIndex
from mink_decouple.data.transforms import compose
from mink_decouple.decouple.losses import merge_targets
from mink_decouple.decouple.schedule import Stage, learning_rate
from mink_decouple.engine.batches import Labelled, SceneLabels, make_batch, prefetch, pyramid_later
from mink_decouple.engine.events import progress
from mink_decouple.engine.objective import Objective
from mink_decouple.engine.optim import make_optimizer, set_rate, take_step
from mink_decouple.engine.predict import crops
from mink_decouple.engine.processes import ALONE, Processes
from mink_decouple.engine.runtime import derive_seed, generator
from mink_decouple.engine.scenes import Scene, owners
from mink_decouple.models.segmenter import Segmenter


@dataclass(frozen=True)
class Features:
    """Cached rows: features (m, D) float32, labels, pseudo-labels and their confidence (m,).

    Where the II-step learns from given labels and what they spread to, `target` holds both.
    """

    feats: Tensor
    target: Tensor
    pseudo: Tensor
    confidence: Tensor

    def label(self, kind: str) -> Tensor:
        """(m,) int64 class that each row is trained on, -1 none, with labels of this kind (`ii.labels`)."""
        if kind == "mixed":
            return merge_targets(self.target, self.pseudo)
        return self.pseudo if kind == "pseudo" else self.target

    def counts(self, kind: str, classes: int) -> Tensor:
        """(C,) int64 rows trained on per class."""
        label = self.label(kind)
        return torch.bincount(label[label >= 0], minlength=classes)


@torch.no_grad()
def cache_features(
    model: Segmenter,
    config: Config,
    scenes: Sequence[Scene],
    labels: Mapping[str, SceneLabels],
    classes: int,
    device: torch.device,
    key: str,
    kind: str,
    processes: Processes = ALONE,
) -> Features:
    """Features of the labelled rows of several augmented passes over the training set.

    The backbone is frozen and in evaluation mode, so a row's features depend on its view alone and every epoch of the
    II-step may re-use them. Unlabelled rows (`ii.context` a view) are kept for a head with batch norm only: its
    statistics belong to all rows.

    `kind` is that of `Stage.labels`. With "spread", `labels` hold for pseudo-labels those that given labels spread to,
    of which a view keeps `ii.spread_rows` at random: whole segments are too many rows for large training sets.

    `processes` share the scenes out, and each gets the rows of all, in the order that one process would have them in.
    """
    model.freeze("backbone").eval()
    augment, later = compose(config.augment), pyramid_later(config, device)
    has_norm = any(isinstance(m, _BatchNorm) for m in model.classifier.modules())

    pairs = list(zip(scenes, owners(scenes, processes), strict=True))
    visits = [(turn, *pair) for turn in range(config.ii.cache_passes) for pair in pairs]
    places: list[tuple[int, str, int]] = []  # turn, scene and crop of every part

    def jobs() -> Iterator[Callable[[], Labelled]]:
        for turn, scene, owner in visits:
            if owner != processes.rank:
                continue
            for number, index in enumerate(crops(config, scene, f"{key}/{turn}")):
                places.append((turn, scene.name, number))
                rng = generator(config.seed, key, scene.name, turn, number)

                def job(scene: Scene = scene, index: SampleIndex = index, rng: np.random.Generator = rng) -> Labelled:
                    return make_batch(config, classes, [(scene, labels[scene.name], index)], augment, rng, later)

                yield job

    parts: list[tuple[Tensor, ...]] = []
    for item in progress(prefetch(jobs(), config.view.workers), "features"):
        place, found = places[len(parts)], item.pseudo >= 0
        rows = item.batch.target >= 0
        if kind == "spread":
            found &= ~rows
            rows[_some(found, config.ii.spread_rows, derive_seed(config.seed, key, "spread", *place))] = True
        elif kind != "gt":
            rows |= found
        if has_norm:
            rest = ~(rows | found) if kind == "spread" else ~rows
            rows[_some(rest, config.ii.context, derive_seed(config.seed, key, "context", *place))] = True
        moved = item.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.optim.precision == "bf16"):
            feats = model.features(moved.batch)
        rows = rows.to(device)
        parts.append((feats[rows].float(), moved.batch.target[rows], moved.pseudo[rows], moved.confidence[rows]))
    if processes.size > 1:
        own: dict[tuple[int, str], list[tuple[Tensor, ...]]] = {}
        for part, (turn, name, _) in zip(parts, places, strict=True):
            own.setdefault((turn, name), []).append(part)
        parts = [_handed(own.get((turn, s.name), []), owner, processes, device) for turn, s, owner in visits]
    features = Features(*(torch.cat(column) for column in zip(*parts)))
    if kind == "spread":
        merged = merge_targets(features.target, features.pseudo)
        features = replace(features, target=merged, pseudo=torch.full_like(merged, -1))
    return features


def _some(rows: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` of the rows of a (n,) bool mask, drawn at random."""
    which = torch.nonzero(rows).flatten()
    return which[torch.randperm(len(which), generator=torch.Generator().manual_seed(seed))[:count]]


def _handed(
    own: Sequence[tuple[Tensor, ...]], owner: int, processes: Processes, device: torch.device
) -> tuple[Tensor, ...]:
    """The cached rows of one visit to a scene, from the process that made it to all; the others have none."""
    columns = [torch.cat(column).cpu().numpy() for column in zip(*own)] if own else 4 * [None]
    return tuple(torch.from_numpy(processes.handed(column, owner)).to(device) for column in columns)


def balanced_order(label: Tensor, order: torch.Generator) -> Tensor:
    """Rows of one epoch in which every class with labels occurs as often as any other, cRT's class-balanced sampling.

    (Kang et al., "Decoupling representation and classifier", ICLR 2020; not part of the paper.) As many labelled rows
    as there are, each by a class drawn uniformly and then a row of it, with replacement; and every unlabelled row once,
    for batch norm.

    Args:
        label: (m,) int64 class that a row is trained on, -1 none.
        order: source of the draws.

    Returns:
        (m,) int64 rows in random order.
    """
    label = label.cpu()
    rest, held = (label < 0).nonzero().flatten(), (label >= 0).nonzero().flatten()
    held = held[torch.argsort(label[held], stable=True)]
    size = torch.bincount(label[held])
    begin = size.cumsum(0) - size
    present = size.nonzero().flatten()
    if len(held):
        chosen = present[torch.randint(len(present), (len(held),), generator=order)]
        place = (torch.rand(len(held), generator=order, dtype=torch.float64) * size[chosen]).long()
        held = held[begin[chosen] + place]
    rows = torch.cat([held, rest])
    return rows[torch.randperm(len(rows), generator=order)]


def train_classifier(
    model: Segmenter, config: Config, stage: Stage, cached: Features, objective: Objective, key: str
) -> float:
    """Train the classifier for the stage's epochs; returns the mean loss of the last one."""
    optimizer = make_optimizer(config.optim, model.classifier)
    model.train()
    count = len(cached.target)
    steps = -(-count // config.ii.rows)
    label = cached.label(config.ii.labels)
    order = torch.Generator().manual_seed(derive_seed(config.seed, key, "order"))
    mean = 0.0
    for epoch in progress(range(stage.epochs), stage.name):
        losses = []
        balanced = config.ii.sampler == "balanced"
        shuffled = balanced_order(label, order) if balanced else torch.randperm(count, generator=order)
        for step, rows in enumerate(shuffled.chunk(steps)):
            rows = rows.to(cached.feats.device)
            target, pseudo = cached.target[rows], cached.pseudo[rows]
            counts = objective.counts(target, pseudo)
            if len(rows) < 2 or not (counts["seg"] or (counts["feature"] and objective.feature != "none")):
                continue
            set_rate(optimizer, learning_rate(stage, epoch, step, steps))
            logits = model.classifier(cached.feats[rows])
            loss, _ = objective(
                logits, target, pseudo, cached.confidence[rows], {k: float(v) for k, v in counts.items()}
            )
            take_step(config.optim, optimizer, loss, f"cached features, {stage.name}")
            losses.append(float(loss.detach()))
        mean = sum(losses) / max(len(losses), 1)
    return mean
