"""What changes during a run, and the checks before a run folder is written to or taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mink_decouple.config import Config, dump, loads
from mink_decouple.data.budget import LabelSet, describe
from mink_decouple.data.transforms import assemble_features, compose
from mink_decouple.engine import checkpoint, kept
from mink_decouple.engine.batches import SceneLabels, make_batch
from mink_decouple.engine.events import say
from mink_decouple.engine.optim import make_optimizer
from mink_decouple.engine.predict import crops
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.scenes import Scene
from mink_decouple.metrics import ConfusionMatrix
from mink_decouple.models.segmenter import Segmenter

PLAIN = ("stage", "epoch", "within", "step", "rho", "predicted", "table", "best", "seconds", "peak")
"""Attributes of `State` that a checkpoint holds as they are."""
FREE = ("engine", "workers")
"""Settings that may change when a run goes on, beside `checkpoints`: no figure depends on them."""


@dataclass
class State:
    """Where a run is and what it has found so far.

    Attributes:
        stage: index of the stage in the schedule.
        epoch: epochs of it that are done; all of them where only the score is missing.
        within: the place within the next epoch, None at its beginning: its steps that are done and the sums of their
            losses.
        step: optimizer steps done in all.
        rho: (C,) imbalance ratio of the current pseudo-labels.
        predicted: (C,) unlabelled grid points predicted as each class when they were made.
        table: checksum of the current pseudo-labels.
        matrices: confusion matrices to show: "pre-trained", "final".
        predictions: by the same names, (N,) predicted train ids of the pictured scene.
        best: stage and mIoU of the best evaluation.
        seconds: wall-clock time by stage.
        peak: most memory that a process of the run has had, MiB; None where unknown.
    """

    stage: int = 0
    epoch: int = 0
    within: dict[str, Any] | None = None
    step: int = 0
    rho: torch.Tensor | None = None
    predicted: torch.Tensor | None = None
    table: str | None = None
    matrices: dict[str, ConfusionMatrix] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=lambda: {"stage": None, "miou": -1.0})
    seconds: dict[str, float] = field(default_factory=dict)
    peak: float | None = None

    def pack(self) -> dict[str, Any]:
        """Plain data and tensors for a checkpoint."""
        return {
            **{key: getattr(self, key) for key in PLAIN},
            "matrices": {k: torch.from_numpy(m.counts.copy()) for k, m in self.matrices.items()},
            "predictions": {k: torch.from_numpy(v.astype(np.int16)) for k, v in self.predictions.items()},
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> State:
        """The inverse of `pack`."""
        matrices = {k: v.numpy() for k, v in packed["matrices"].items()}
        predictions = {k: v.numpy().astype(np.int64) for k, v in packed["predictions"].items()}
        rest = {k: packed[k] for k in PLAIN if k in packed}
        return cls(
            **rest, matrices={k: ConfusionMatrix(len(v), v) for k, v in matrices.items()}, predictions=predictions
        )


def saved_run(output: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from; None for a new run, or for one that ended before its first checkpoint.

    Raises:
        ValueError: a new run into a folder that holds something, or a resume where no run can be taken up.
        FileNotFoundError: a resume of a folder that does not exist.
    """
    held = output.exists() and (not output.is_dir() or any(not p.name.startswith(".") for p in output.iterdir()))
    if not resume:
        if held:
            raise ValueError(f"{output}: not empty; continue its run with --resume or choose another --output")
        return None
    saved = kept.load(output / "checkpoints")
    if saved is not None:
        return saved
    if not held:
        raise FileNotFoundError(f"{output}: no run to resume")
    if not (output / "config.yaml").is_file():
        raise ValueError(f"{output}: holds files but no run to resume; choose another --output")
    say(f"{output}: its run ended before the first checkpoint; starting it from the beginning")
    return None


def require_same_run(
    path: Path,
    saved: dict[str, Any],
    config: Config,
    classes: Sequence[str],
    labels: LabelSet,
    advice: str = "resume with the same settings",
) -> None:
    """Raises ValueError where a checkpoint was made with other settings, classes or labels than those at hand.

    `FREE` settings may differ: weights and optimizer state are the same with each.
    """
    require_same_settings(path, saved["config"], config, advice)
    checkpoint.require_classes(path, saved, tuple(classes))
    if saved["labels_checksum"] != labels.checksum:
        raise ValueError(f"{path.parents[1] / 'labels.npz'}: not the labels this run began with")


def require_shares(config: Config, processes: int) -> None:
    """Raises ValueError where several processes cannot share the steps of a configuration."""
    view = config.view
    if processes > view.accumulate:
        batch = max(1, view.batch * view.accumulate // processes)
        raise ValueError(
            f"view.accumulate {view.accumulate}: {processes} processes share the micro-batches of a step, one or more "
            f"each; --set view.accumulate={processes} --set view.batch={batch} keeps a step near its {view.batch} x "
            f"{view.accumulate} samples"
        )
    if processes > 1 and config.loss.erda:
        raise ValueError(f"loss.erda {config.loss.erda}: its prototypes follow one process; set it to 0 or start one")


def try_scenes(
    config: Config, model: Segmenter, scenes: Sequence[Scene], eval_scenes: Sequence[Scene], classes: int
) -> None:
    """Make an optimizer, look at every scene and make a batch, so that a mistake shows before anything is written.

    Raises:
        ValueError: names the setting or the scene.
    """
    make_optimizer(config.optim, model)
    limit, crop = config.view.max_points, config.view.crop_points
    for scene in scenes if limit else ():
        size = min(len(scene.grid), crop) if crop else len(scene.grid)
        if size > limit:
            taken = f"a crop of {scene.name}" if crop else f"{scene.name}, taken whole,"
            raise ValueError(
                f"view.max_points {limit}: {taken} has {size} points; set view.crop_points to {limit} or less"
            )
    for scene in (*scenes, *eval_scenes):
        grid = scene.grid
        if len(grid) == 0:
            raise ValueError(f"{scene.name}: has no points")
        assemble_features({**grid.features, "offset": grid.coords}, grid.coords, config.data.features)
    for scene in eval_scenes:
        if not scene.labelled or not (scene.truth >= 0).any():
            raise ValueError(f"{scene.name}: has no labels to score against, but stands in the evaluation split")
    first = scenes[0]
    item = (first, SceneLabels.given(first), crops(config, first)[0])
    make_batch(config, classes, [item], compose(config.augment), generator(config.seed, "try"))


def require_same_settings(path: Path, text: str, config: Config, advice: str = "resume with the same settings") -> None:
    """Raises ValueError where the resolved configuration `text` of `path` differs from `config` in more than `FREE`."""
    before, after = _settings(dump(loads(text, str(path)))), _settings(dump(config))  # the first may lack new settings
    if before != after:
        pairs = zip(before, after, strict=False)
        then, now = next(((a.strip(), b.strip()) for a, b in pairs if a != b), ("shorter", "longer"))
        raise ValueError(f"{path}: the configuration changed since ({then!r} became {now!r}); {advice}")


def _settings(text: str) -> list[str]:
    """The lines of a resolved configuration without those of free settings."""
    lines, free = [], False
    for line in text.splitlines():
        if not line.startswith(" "):
            free = line.startswith("checkpoints:")
        if not free and not line.startswith(tuple(f"  {name}: " for name in FREE)):
            lines.append(line)
    return lines


def introduce(config: Config, labels: LabelSet, scenes: Sequence[Scene]) -> str:
    """What a run says of its labels, revealed in `scenes`, when it begins."""
    asked = {"loss.absent": config.loss.absent > 0, "pseudo.within": config.pseudo.within == "labelled"}
    names = [key for key, on in asked.items() if on]
    silent = [s.name for s in scenes if s.occurring is None and len(labels.label.get(s.name, ()))]
    if not names or not silent:
        return describe(labels)
    if labels.complete:
        more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
        why = f"{silent[0]}{more}: most points have no label, so the labels do not tell which classes are there"
    else:
        why = f"labels {labels.meta['budget']} do not tell which classes a scene has"
    return f"{describe(labels)}\n{why}: {' and '.join(names)} without effect"


def label_budget(labels: LabelSet) -> dict[str, Any]:
    """The budget in figures: labelled points and their shares of the raw points and of the view."""
    meta = labels.meta
    return {
        "budget": meta["budget"],
        "seed": meta["seed"],
        "unit": meta["unit"],
        "labelled": int(labels.counts.sum()),
        "share_of_raw": meta["raw_share"],
        "share_of_view": meta["grid_share"],
        "checksum": labels.checksum,
    }


def free_folder(config: Config) -> Path:
    """The first `runs/NAME` that does not exist; a run never writes into another's folder."""
    budget = Path(config.labels.budget).stem if config.labels.budget.endswith(".npz") else config.labels.budget
    source = Path(config.data.root).name if config.data.root else config.data.dataset
    parts = (source, config.backbone, budget, config.recipe, f"seed{config.seed}")
    name = "-".join(parts).replace("%", "pct").replace("/", "-").replace(":", "-")
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder
