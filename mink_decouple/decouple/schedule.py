"""Algorithm 1 as plain records: pre-training, then I-step and II-step in turn, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

KINDS = ("pretrain", "I", "II", "joint")
MODES = ("decoupled", "joint", "supervised")
PARTS = ("all", "backbone", "classifier")
LR_POLICIES = ("exp", "cosine", "constant")
LABELS = ("gt", "spread", "pseudo", "mixed")
REFRESHES = ("iter", "epoch", "batch")
WHERE = {"all": ("pretrain", "I", "joint"), "pretrain": ("pretrain",), "i_step": ("I", "joint")}
"""Stages that a switch beyond the paper may be on in, by the word of the configuration: kinds of stage."""

# (pre-training, I- and II-step): the paper prints both 0.01 and 0.001 as initial rate. A ends the pre-training at
# 0.0013, where the steps go on with 0.001; B restarts every step at 0.01.
LR_READINGS = {"A": (1e-2, 1e-3), "B": (1e-3, 1e-2)}


@dataclass(frozen=True)
class Stage:
    """One stage of training: what is trained, on which labels, for how long. Each stage starts with a fresh optimizer.

    Attributes:
        name: unique, usable as a file name: `pretrain`, `iter_03_I`, `iter_03_II`, `iter_03_joint`.
        kind: "pretrain", "I", "II" or "joint".
        iteration: outer iteration from 0; -1 for the pre-training.
        epochs: length.
        lr: initial learning rate.
        lr_policy: "exp" (`lr * lr_decay ** epoch`), "cosine" (to 0 at the end of the stage) or "constant".
        lr_decay: factor per epoch of "exp".
        trains: "all", "backbone" (the classifier is frozen, its batch norm in eval mode) or "classifier" (the backbone
            is).
        labels: "gt", "spread" (gt and what it spreads to within segments), "pseudo" or "mixed" (gt and pseudo).
        refresh: when pseudo-labels are made anew: "iter" (once, before the stage), "epoch", "batch"; None where they
            are not.
        warmup_epochs: linear rise of the learning rate over the first epochs.
    """

    name: str
    kind: str
    iteration: int
    epochs: int
    lr: float
    lr_policy: str
    lr_decay: float
    trains: str
    labels: str
    refresh: str | None = None
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        _check("kind", self.kind, KINDS)
        _check("lr_policy", self.lr_policy, LR_POLICIES)
        _check("trains", self.trains, PARTS)
        _check("labels", self.labels, LABELS)
        if self.refresh is not None:
            _check("refresh", self.refresh, REFRESHES)
        _at_least("epochs", self.epochs, 1)
        _at_least("warmup_epochs", self.warmup_epochs, 0)
        if not self.lr > 0:
            raise ValueError(f"lr: {self.lr}, expected a positive rate")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"lr_decay: {self.lr_decay}, expected a factor in (0, 1]")

    @property
    def uses_pseudo(self) -> bool:
        """Whether the stage needs pseudo-labels."""
        return self.labels in ("pseudo", "mixed")


def build_schedule(
    mode: str = "decoupled",
    pretrain_epochs: int = 100,
    iterations: int = 10,
    i_epochs: int = 30,
    ii_epochs: int = 100,
    pretrain_lr: float = LR_READINGS["A"][0],
    i_lr: float = LR_READINGS["A"][1],
    ii_lr: float = LR_READINGS["A"][1],
    lr_policy: str = "exp",
    lr_decay: float = 0.98,
    warmup_epochs: int = 0,
    refresh: str = "iter",
    ii_labels: str = "gt",
) -> tuple[Stage, ...]:
    """Stages of a training (Algorithm 1); the defaults are the paper's 100 + 10 * (30 + 100) = 1400 epochs.

    Args:
        mode: "decoupled" is pre-training, then [I, II] * iterations. "joint" (Tab. 5 "w/o") is pre-training, then the
            I-step's loss, labels and epochs with all parameters. "supervised" is pre-training only, lengthened to the
            same number of backbone epochs, `pretrain_epochs + iterations * i_epochs`.
        pretrain_epochs: at least 1.
        iterations: outer iterations; with 0 every mode is the pre-training alone.
        i_epochs: epochs of an I-step (or joint step).
        ii_epochs: epochs of a II-step.
        pretrain_lr: initial rate of the pre-training.
        i_lr: initial rate of each I-step (or joint step), which restarts it.
        ii_lr: initial rate of each II-step, which restarts it.
        lr_policy: see `Stage`.
        lr_decay: see `Stage`. "supervised" stretches it over its longer training, which so ends at the same rate.
        warmup_epochs: of the pre-training only.
        refresh: when pseudo-labels are made anew, see `Stage`; the paper's text says once per iteration.
        ii_labels: labels of the II-step, "gt" (the paper), "pseudo" or "mixed" (Tab. 6), or "spread" (ours).

    Raises:
        ValueError: unknown choice or a number out of range.
    """
    _check("mode", mode, MODES)
    _check("refresh", refresh, REFRESHES)
    _check("ii_labels", ii_labels, LABELS)
    _at_least("pretrain_epochs", pretrain_epochs, 1)
    _at_least("iterations", iterations, 0)
    _at_least("i_epochs", i_epochs, 1)
    _at_least("ii_epochs", ii_epochs, 1)
    first_epochs, first_decay = pretrain_epochs, lr_decay
    if mode == "supervised":
        first_epochs += iterations * i_epochs
        first_decay = lr_decay ** (pretrain_epochs / first_epochs)
    pretrain = Stage(
        "pretrain", "pretrain", -1, first_epochs, pretrain_lr, lr_policy, first_decay, "all", "gt", None, warmup_epochs
    )
    stages = [pretrain]
    for i in range(0 if mode == "supervised" else iterations):
        kind, trains = ("I", "backbone") if mode == "decoupled" else ("joint", "all")
        stages.append(
            Stage(f"iter_{i:02d}_{kind}", kind, i, i_epochs, i_lr, lr_policy, lr_decay, trains, "mixed", refresh)
        )
        if mode == "decoupled":
            stages.append(
                Stage(f"iter_{i:02d}_II", "II", i, ii_epochs, ii_lr, lr_policy, lr_decay, "classifier", ii_labels)
            )
    return tuple(stages)


def learning_rate(stage: Stage, epoch: int, step: int, steps: int) -> float:
    """Learning rate of one optimizer step; a function of the position only, so a resumed run needs no scheduler state.

    Args:
        stage: the stage.
        epoch: from 0, below `stage.epochs`.
        step: from 0, below `steps`.
        steps: optimizer steps per epoch.

    Raises:
        ValueError: position outside the stage.
    """
    _at_least("steps", steps, 1)
    if not 0 <= epoch < stage.epochs:
        raise ValueError(f"epoch: {epoch}, stage {stage.name} has epochs 0..{stage.epochs - 1}")
    if not 0 <= step < steps:
        raise ValueError(f"step: {step}, an epoch has steps 0..{steps - 1}")
    done = epoch * steps + step
    rate = stage.lr
    if stage.lr_policy == "exp":
        rate *= stage.lr_decay**epoch
    elif stage.lr_policy == "cosine":
        rate *= 0.5 * (1.0 + math.cos(math.pi * done / (stage.epochs * steps)))
    warmup = stage.warmup_epochs * steps
    return rate * min(1.0, (done + 1) / warmup) if warmup else rate


def refresh_due(stage: Stage, epoch: int, step: int) -> bool:
    """Whether pseudo-labels are made anew before this step (epoch and step from 0) of the stage."""
    if stage.refresh is None:
        return False
    return {"iter": epoch == 0 and step == 0, "epoch": step == 0, "batch": True}[stage.refresh]


def covers(where: str, stage: Stage) -> bool:
    """Whether a switch that is on in `where` (a key of `WHERE`) is on in this stage; never in a II-step.

    Raises:
        ValueError: unknown word.
    """
    _check("stages", where, tuple(WHERE))
    return stage.kind in WHERE[where]


def average_decay(decay: float, updates: int | Tensor) -> float | Tensor:
    """Decay of a moving average that has been updated so often, `min(decay, (1 + t) / (10 + t))`.

    A constant decay would keep the start in the average for some `1 / (1 - decay)` updates; this one begins at 0.1, so
    that an average of few updates is one of recent values (as `tf.train.ExponentialMovingAverage` with `num_updates`).

    Args:
        decay: in the long run.
        updates: t, those made before this one; a tensor gives one decay for each.
    """
    early = (1.0 + updates) / (10.0 + updates)
    return early.clamp_max(decay) if isinstance(early, Tensor) else min(decay, early)


def _check(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key}: '{value}' is not one of {', '.join(choices)}")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{key}: {value}, expected at least {least}")
