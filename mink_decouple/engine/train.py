"""Algorithm 1 from top to bottom: pre-train, then alternate I-step and II-step, scoring after each iteration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mink_decouple.config import Config, dump
from mink_decouple.data.budget import describe
from mink_decouple.data.classes import Classes
from mink_decouple.data.sampling import CropSampler, epoch_steps
from mink_decouple.data.transforms import assemble_features, compose
from mink_decouple.decouple.balance import GradientRatio
from mink_decouple.decouple.losses import class_weights
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.decouple.schedule import Stage, build_schedule, learning_rate, refresh_due
from mink_decouple.engine import checkpoint
from mink_decouple.engine.batches import SceneLabels, make_batch, make_sampler, training_batches
from mink_decouple.engine.evaluate import evaluate, make_model, predict_raw
from mink_decouple.engine.events import Events, progress, say
from mink_decouple.engine.objective import Objective
from mink_decouple.engine.optim import apply_gradients, backward, make_optimizer, set_rate
from mink_decouple.engine.predict import crops
from mink_decouple.engine.pseudo import (
    labelled_counts,
    make_pseudo_labels,
    quality_record,
    scene_labels,
    selection_options,
)
from mink_decouple.engine.runtime import environment, generator, seed_torch, write_json
from mink_decouple.engine.scenes import Scene, load_split, open_dataset, reveal, training_labels
from mink_decouple.engine.second_step import cache_features, train_classifier
from mink_decouple.engine.state import State, label_budget, require_same_run, saved_run
from mink_decouple.metrics import ClassGroups, ConfusionMatrix, class_groups
from mink_decouple.models.segmenter import Segmenter


@dataclass(frozen=True)
class Result:
    """What a finished run leaves for reports.

    Attributes:
        metrics: the content of metrics.json.
        classes: of the data.
        groups: head, waist and tail class ids.
        matrices: "pre-trained" and "final" confusion matrices on raw points.
        scene: one evaluation scene.
        predictions: its (N,) predicted train ids, by the same names.
    """

    metrics: dict[str, Any]
    classes: Classes
    groups: ClassGroups
    matrices: dict[str, ConfusionMatrix]
    scene: Scene
    predictions: dict[str, np.ndarray]


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The schedule of a configuration."""
    s = config.schedule
    return build_schedule(
        s.mode,
        s.pretrain.epochs,
        s.iterations,
        s.i_step.epochs,
        s.ii_step.epochs,
        s.pretrain.lr,
        s.i_step.lr,
        s.ii_step.lr,
        s.policy,
        s.decay,
        s.warmup,
        config.pseudo.refresh,
        "mixed" if config.ii.feature != "none" else config.ii.labels,
    )


class Trainer:
    """One run: `run()` from the beginning or from a checkpoint to metrics.json.

    Args:
        config: of the run.
        output: the run folder; must not hold a run unless `resume`.
        device: where to train.
        resume: continue from `output/checkpoints/last.pt`.

    Raises:
        ValueError: the folder holds a run already, or the checkpoint is of another configuration or class list.
    """

    def __init__(self, config: Config, output: Path, device: torch.device, resume: bool = False) -> None:
        self.config, self.output, self.device = config, output, device
        self.last = output / "checkpoints" / "last.pt"
        saved = saved_run(output, resume)
        self.stages = stages_of(config)
        self.dataset = open_dataset(config)
        self.classes: Classes = self.dataset.classes
        self.count = len(self.classes.names)
        train = load_split(config, self.dataset, "train")
        self.eval_scenes = load_split(config, self.dataset, config.data.eval_split)
        labels_file = output / "labels.npz"
        self.labels = training_labels(config, self.dataset, train, labels_file if saved else None)
        self.scenes = reveal(train, self.labels)
        self.by_name = {s.name: s for s in self.scenes}
        self.groups = self._groups()
        self.model: Segmenter = make_model(config, self.classes, device)
        self.sampler = make_sampler(config, self.scenes)
        self.optimizer: torch.optim.Optimizer | None = None
        self.state = State()
        weight = None
        if config.loss.class_weight == "inv":
            weight = class_weights(labelled_counts(self.scenes, self.count).sum(0)).to(device)
        self.weight = weight
        self.ratio = GradientRatio(self.count, config.loss.g_act)
        self._try_settings()
        self.events: Events
        if saved is None:
            output.mkdir(parents=True, exist_ok=True)
            (output / "config.yaml").write_text(dump(config), encoding="utf-8")
            write_json(output / "environment.json", {**environment(device), "seed": config.seed})
            self.labels.save(labels_file)
            self.events = Events(output)
        else:
            self._restore(saved)

    def run(self) -> Result:
        """Train what is left of the schedule, score, and write metrics.json."""
        say(describe(self.labels))
        while self.state.stage < len(self.stages):
            stage = self.stages[self.state.stage]
            if stage.kind == "II":
                self._classifier_stage(stage)
            else:
                self._network_stage(stage)
            self._score(stage)
            self.state.stage, self.state.epoch, self.optimizer = self.state.stage + 1, 0, None
            self.save()
        return self._finish()

    def _network_stage(self, stage: Stage) -> None:
        """Pre-training, an I-step or a joint step: epochs over crops."""
        config, state = self.config, self.state
        self.model.freeze("classifier" if stage.trains == "backbone" else None)
        table_path = self.output / "pseudo_labels" / f"iter_{stage.iteration:02d}.npz"
        if stage.uses_pseudo and state.epoch == 0 and config.loss.g_reset == "iter":
            self.ratio.reset()
        labels = scene_labels(self.scenes, PseudoLabelTable.load(table_path) if self._made(stage) else None)
        if isinstance(self.sampler, CropSampler):
            self.sampler.label_centred = 0.0 if stage.uses_pseudo else config.view.label_centred
        if self.optimizer is None:
            self.optimizer = make_optimizer(config.optim, self.model)
        steps = config.schedule.steps or self._steps()
        for epoch in progress(range(state.epoch, stage.epochs), stage.name):
            if refresh_due(stage, epoch, 0):
                labels = self._pseudo_labels(stage, table_path)
            started = time.perf_counter()
            objective = self._objective(stage)
            seed_torch(config.seed, stage.name, epoch)
            self.model.train()
            losses = self._epoch(stage, epoch, steps, labels, objective)
            state.epoch = epoch + 1
            self._add_seconds(stage.name, started)
            self.events.scalars(f"train/{stage.kind}", losses, state.step)
            if objective.feature == "mifl":
                self.events.scalars("gamma", dict(zip(self.classes.names, objective.gamma().tolist())), state.step)
            if state.epoch < stage.epochs:
                self.save()

    def _epoch(
        self, stage: Stage, epoch: int, steps: int, labels: Mapping[str, SceneLabels], objective: Objective
    ) -> dict[str, float]:
        """One pass of `steps` optimizer steps; returns the mean of each loss term."""
        config, micro = self.config, self.config.view.accumulate
        assert self.optimizer is not None
        batches = training_batches(
            config, self.count, self.by_name, labels, self.sampler, steps * micro, (stage.name, epoch), self.device
        )
        sums: dict[str, float] = {}
        for step in range(steps):
            items = [next(batches).to(self.device) for _ in range(micro)]
            parts = [objective.counts(item.batch.target, item.pseudo) for item in items]
            counts = {key: float(sum(part[key] for part in parts)) for key in parts[0]}
            if counts["seg"] == 0:
                continue  # nothing in this step carries a label
            set_rate(self.optimizer, learning_rate(stage, epoch, step, steps))
            self.optimizer.zero_grad(set_to_none=True)
            names = ", ".join(name for item in items for name in item.batch.names)
            where = f"{stage.name}, epoch {epoch}, scenes {names}"
            for item in items:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=config.optim.precision == "bf16"):
                    logits = self.model(item.batch)
                loss, values = objective(logits, item.batch.target, item.pseudo, item.confidence, counts)
                backward(loss, where)
                for key, value in values.items():
                    sums[key] = sums.get(key, 0.0) + value / steps
            apply_gradients(config.optim, self.optimizer, where)
            self.state.step += 1
        batches.close()
        return sums

    def _classifier_stage(self, stage: Stage) -> None:
        """A II-step: cache features, train the classifier."""
        config, started = self.config, time.perf_counter()
        wants_pseudo = stage.uses_pseudo
        path = self.output / "pseudo_labels" / f"iter_{stage.iteration:02d}.npz"
        labels = scene_labels(self.scenes, PseudoLabelTable.load(path) if wants_pseudo else None)
        seed_torch(config.seed, stage.name)
        cached = cache_features(
            self.model, config, self.scenes, labels, self.count, self.device, stage.name, wants_pseudo
        )
        objective = self._objective(stage)
        loss = train_classifier(self.model, config, stage, cached, objective, stage.name)
        self.events.scalars("train/II", {"loss": loss}, self.state.step)
        self._add_seconds(stage.name, started)

    def _objective(self, stage: Stage) -> Objective:
        config = self.config
        rho = self.state.rho if self.state.rho is not None else torch.ones(self.count)
        if stage.kind == "II":
            labels, feature = config.ii.labels, config.ii.feature
        elif stage.uses_pseudo:
            labels, feature = "mixed", config.loss.feature
        else:
            labels, feature = "gt", "none"
        return Objective(config.loss, labels, feature, self.weight, rho, self.ratio)

    def _pseudo_labels(self, stage: Stage, path: Path) -> Mapping[str, SceneLabels]:
        """Make, keep and report the pseudo-labels of an iteration."""
        started = time.perf_counter()
        selection = make_pseudo_labels(self.model, self.config, self.scenes, self.count, self.device)
        checksum = selection.table.save(path)
        self.state.rho = selection.rho
        record = quality_record(selection, self.classes.names)
        self.events.record(
            "pseudo_labels", self.state.step, stage=stage.name, iteration=stage.iteration, checksum=checksum, **record
        )
        for key in ("certain", "uncertain", "precision", "recall"):
            self.events.scalars(f"pseudo_{key}", record.get(key, {}), self.state.step)
        total = selection.table.counts().sum(1).tolist()
        correct = ""
        if selection.quality is not None:
            q = selection.quality
            correct = f", {100 * float(q.correct.sum()) / max(int(q.selected.sum()), 1):.1f} % of them right"
        say(f"{stage.name}: {total[0]} certain and {total[1]} uncertain pseudo-labels{correct}")
        self._add_seconds(f"{stage.name}_pseudo_labels", started)
        return scene_labels(self.scenes, selection.table)

    def _made(self, stage: Stage) -> bool:
        """Whether a resumed stage takes up the pseudo-labels it began with."""
        return stage.uses_pseudo and self.state.epoch > 0

    def _score(self, stage: Stage) -> None:
        """Score after the pre-training and after every iteration; remember the best."""
        last_stage = self.state.stage + 1 == len(self.stages)
        ends_iteration = stage.kind in ("pretrain", "II", "joint")
        if not ends_iteration or not (self.config.eval.every_iteration or last_stage or stage.kind == "pretrain"):
            return
        started = time.perf_counter()
        matrix = evaluate(self.model, self.config, self.eval_scenes, self.count, self.device)
        report = matrix.report(self.classes.names, self.groups)
        self.events.record("evaluation", self.state.step, stage=stage.name, **report)
        self.events.scalars(
            "eval", {k: report[k] for k in ("miou", "head_iou", "waist_iou", "tail_iou", "oa")}, self.state.step
        )
        self.events.scalars("iou", report["iou"], self.state.step)
        say(f"{stage.name}: mIoU {100 * matrix.miou:.1f}, tail IoU {100 * (report['tail_iou'] or 0.0):.1f}")
        for title in ["pre-trained"] * (stage.kind == "pretrain") + ["final"] * last_stage:
            self.state.matrices[title] = matrix
            scene = self._picture_scene()
            self.state.predictions[title] = predict_raw(self.model, self.config, scene, self.count, self.device)
        if matrix.miou > self.state.best["miou"]:
            self.state.best = {"stage": stage.name, "miou": matrix.miou}
            checkpoint.save(self.output / "checkpoints" / "best.pt", self._content(stage.name))
        self._add_seconds("evaluation", started)

    def _finish(self) -> Result:
        final = self.state.matrices["final"]
        metrics = {
            **final.report(self.classes.names, self.groups, self.config.data.dataset),
            "pretrained": self.state.matrices["pre-trained"].report(self.classes.names, self.groups),
            "best": self.state.best,
            "parameters": self.model.parameter_counts(),
            "label_budget": label_budget(self.labels),
            "seconds": {"file": "timing.json"},  # a clock has no place in figures that repeat to the byte
            "seed": self.config.seed,
            "backbone": self.config.backbone,
            "variant": self.config.model.variant,
            "engine": self.model.engine,
            "recipe": self.config.recipe,
            "stages": [s.name for s in self.stages],
            "confusion": final.confusion.tolist(),
        }
        write_json(self.output / "timing.json", {"seconds": self.state.seconds})
        write_json(self.output / "metrics.json", metrics)
        self.events.close()
        return Result(
            metrics, self.classes, self.groups, self.state.matrices, self._picture_scene(), self.state.predictions
        )

    def save(self) -> None:
        """Write last.pt."""
        checkpoint.save(self.last, self._content(None))

    def _content(self, stage: str | None) -> dict[str, Any]:
        """A checkpoint: the network and what it takes to use it; with `stage` None also what it takes to go on."""
        content: dict[str, Any] = {
            "config": dump(self.config),
            "classes": checkpoint.pack_classes(self.classes),
            "groups": [list(g) for g in self.groups],
            "label_budget": label_budget(self.labels),
            "labels_checksum": self.labels.checksum,
            "engine": self.model.engine,
            "model": self.model.state_dict(),
            "after": stage,
        }
        if stage is None:
            content |= {
                "state": self.state.pack(),
                "optimizer": self.optimizer.state_dict() if self.optimizer is not None else None,
                "sampler": checkpoint.tensors(self.sampler.state_dict()),
                "ratio": self.ratio.state_dict(),
                "events_bytes": self.events.bytes,
            }
        return content

    def _restore(self, saved: dict[str, Any]) -> None:
        require_same_run(self.last, saved, self.config, self.classes.names, self.labels)
        if saved.get("engine") != self.model.engine:
            say(f"trained so far on the engine {saved.get('engine')}, going on with {self.model.engine}")
        self.model.load_state_dict(saved["model"])
        self.state = State.unpack(saved["state"])
        self.sampler.load_state_dict(saved["sampler"])
        self.ratio.load_state_dict(saved["ratio"])
        if saved["optimizer"] is not None:
            stage = self.stages[self.state.stage]
            self.model.freeze("classifier" if stage.trains == "backbone" else None)
            self.optimizer = make_optimizer(self.config.optim, self.model)
            self.optimizer.load_state_dict(saved["optimizer"])
        self.events = Events(self.output, saved["events_bytes"], self.state.step + 1)
        where = self.stages[self.state.stage].name if self.state.stage < len(self.stages) else "the end"
        say(f"resuming at {where}, epoch {self.state.epoch}")

    def _try_settings(self) -> None:
        """Use every setting and look at every scene once, so that a mistake shows before anything is written."""
        config = self.config
        selection_options(config)
        make_optimizer(config.optim, self.model)
        for scene in (*self.scenes, *self.eval_scenes):
            grid = scene.grid
            if len(grid) == 0:
                raise ValueError(f"{scene.name}: has no points")
            assemble_features({**grid.features, "offset": grid.coords}, grid.coords, config.data.features)
        for scene in self.eval_scenes:
            if not scene.labelled or not (scene.truth >= 0).any():
                raise ValueError(f"{scene.name}: has no labels to score against, but stands in the evaluation split")
        first = self.scenes[0]
        item = (first, SceneLabels.given(first), crops(config, first)[0])
        make_batch(config, self.count, [item], compose(config.augment), generator(config.seed, "try"))

    def _steps(self) -> int:
        sizes = [len(s.grid) for s in self.scenes]
        crops = epoch_steps(sizes, self.config.view.crop_points) if self.config.view.crop_points else len(sizes)
        return max(1, -(-crops // (self.config.view.batch * self.config.view.accumulate)))

    def _groups(self) -> ClassGroups:
        """Head, waist and tail by the hidden truth of the training set where there is one; reports only."""
        counts = np.sum([s.truth_counts(self.count) for s in self.scenes], axis=0)
        return class_groups(counts if counts.any() else self.labels.counts)

    def _picture_scene(self) -> Scene:
        """The evaluation scene with the most classes; the first of several."""
        return max(self.eval_scenes, key=lambda s: np.count_nonzero(s.truth_counts(self.count)))

    def _add_seconds(self, name: str, started: float) -> None:
        self.state.seconds[name] = self.state.seconds.get(name, 0.0) + time.perf_counter() - started
