"""Algorithm 1 from top to bottom: pre-train, then alternate I-step and II-step, scoring after each iteration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mink_decouple.config import Config, digest, dump
from mink_decouple.data.budget import class_counts
from mink_decouple.data.classes import Classes
from mink_decouple.data.sampling import CropSampler, epoch_steps
from mink_decouple.decouple.balance import GradientRatio, select_counts
from mink_decouple.decouple.erda import Alignment
from mink_decouple.decouple.losses import class_weights, pseudo_weights
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.decouple.schedule import Stage, build_schedule, covers, learning_rate, refresh_due
from mink_decouple.engine import checkpoint
from mink_decouple.engine.batches import SceneLabels, make_sampler, training_batches
from mink_decouple.engine.ema import Networks
from mink_decouple.engine.evaluate import evaluate, make_model, predict_grid, raw_of
from mink_decouple.engine.events import Events, progress, say
from mink_decouple.engine.objective import Objective
from mink_decouple.engine.optim import apply_gradients, backward, make_optimizer, set_rate
from mink_decouple.engine.outcome import Result, final_metrics, highest
from mink_decouple.engine.pseudo import (
    labelled_counts,
    make_pseudo_labels,
    quality_record,
    scene_labels,
    segments_of,
    spread_scene_labels,
)
from mink_decouple.engine.runtime import derive_seed, environment, peak_memory, seed_torch, write_json
from mink_decouple.engine.scenes import load_split, open_dataset, reveal, training_labels
from mink_decouple.engine.second_step import cache_features, train_classifier
from mink_decouple.engine.snapshots import Snapshots, richest
from mink_decouple.engine.state import State, introduce, label_budget, require_same_run, saved_run, try_settings
from mink_decouple.metrics import ClassGroups, ConfusionMatrix, class_groups
from mink_decouple.models.segmenter import Segmenter


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
        truth = np.stack([s.truth_counts(self.count) for s in self.scenes])  # hidden labels, for reports only
        # head, waist and tail of what is visible where nothing else is known
        self.groups: ClassGroups = class_groups(truth.sum(0) if truth.any() else self.labels.counts)
        self.pictured = richest(self.eval_scenes, np.stack([s.truth_counts(self.count) for s in self.eval_scenes]))
        shown = (richest(self.scenes, truth), self.pictured)
        self.snapshots = Snapshots(output, config, self.count, device, *shown)
        self.segments = segments_of(config, self.scenes)
        self.model: Segmenter = make_model(config, self.classes, device)
        self.networks = Networks(self.model, config.ema, lambda: make_model(config, self.classes, device))
        self.alignment = self._alignment()
        self.sampler = make_sampler(config, self.scenes)
        self.optimizer: torch.optim.Optimizer | None = None
        self.state = State()
        weight = None
        if config.loss.class_weight == "inv":
            weight = class_weights(labelled_counts(self.scenes, self.count).sum(0)).to(device)
        self.weight = weight
        self.ratio = GradientRatio(self.count, config.loss.g_act)
        try_settings(config, self.model, self.scenes, self.eval_scenes, self.count)
        self.events: Events
        if saved is None:
            output.mkdir(parents=True, exist_ok=True)
            (output / "config.yaml").write_text(dump(config), encoding="utf-8")
            write_json(
                output / "environment.json", {**environment(device), "seed": config.seed, "digest": digest(config)}
            )
            self.labels.save(labels_file)
            self.events = Events(output)
        else:
            self._restore(saved)

    def run(self) -> Result:
        """Train what is left of the schedule, score, and write metrics.json."""
        say(introduce(self.config, self.labels))
        while self.state.stage < len(self.stages):
            stage = self.stages[self.state.stage]
            if stage.kind == "II":
                self._classifier_stage(stage)
            else:
                self._network_stage(stage)
            self.networks.stage_ends(stage.kind)
            self._score(stage)
            self.state.stage, self.state.epoch, self.optimizer = self.state.stage + 1, 0, None
            self.save()
        return self._finish()

    def _network_stage(self, stage: Stage) -> None:
        """Pre-training, an I-step or a joint step: epochs over crops."""
        config, state = self.config, self.state
        table_path = self.output / "pseudo_labels" / f"iter_{stage.iteration:02d}.npz"
        if stage.uses_pseudo and state.epoch == 0 and config.loss.g_reset == "iter":
            self.ratio.reset()
        labels = scene_labels(self.scenes, PseudoLabelTable.load(table_path) if self._made(stage) else None)
        if self._spreads_early(stage):
            labels = spread_scene_labels(self.scenes, self.segments)
        if isinstance(self.sampler, CropSampler):
            self.sampler.label_centred = 0.0 if stage.uses_pseudo else config.view.label_centred
        if self.optimizer is None:
            self.optimizer = self._optimizer(stage)
        steps = config.schedule.steps or self._steps()
        balance = self._balance(labels)
        for epoch in progress(range(state.epoch, stage.epochs), stage.name):
            if refresh_due(stage, epoch, 0):
                labels = self._pseudo_labels(stage, table_path)
                balance = self._balance(labels)
            started = time.perf_counter()
            objective = self._objective(stage, balance)
            seed_torch(config.seed, stage.name, epoch)
            self.model.train()
            losses = self._epoch(stage, epoch, steps, labels, objective)
            state.epoch = epoch + 1
            self._add_seconds(stage.name, started)
            self.events.scalars(f"train/{stage.kind}", losses, state.step)
            if objective.feature == "mifl":
                self.events.scalars("gamma", dict(zip(self.classes.names, objective.gamma().tolist())), state.step)
            scored_next = stage.kind == "joint" and state.epoch == stage.epochs
            if config.eval.every == "epoch" and stage.uses_pseudo and not scored_next:
                self._evaluate(stage, epoch=state.epoch, iteration=stage.iteration)
            if state.epoch < stage.epochs:
                self.save()

    def _epoch(
        self, stage: Stage, epoch: int, steps: int, labels: Mapping[str, SceneLabels], objective: Objective
    ) -> dict[str, float]:
        """One pass of `steps` optimizer steps; returns the mean of each loss term."""
        config, micro = self.config, self.config.view.accumulate
        assert self.optimizer is not None
        mix = config.view.mix if covers(config.view.mix_stages, stage) else 0.0
        drawn = config, self.count, self.by_name, labels, self.sampler
        batches = training_batches(*drawn, steps * micro, (stage.name, epoch), self.device, mix)
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
                    features = self.model.features(item.batch)
                    logits = self.model.classifier(features)
                known = None if item.present is None else item.present[item.batch.batch]
                rows = item.batch.target, item.pseudo, item.confidence
                loss, values = objective(logits, *rows, counts, features, known)
                backward(loss, where)
                for key, value in values.items():
                    sums[key] = sums.get(key, 0.0) + value / steps
            apply_gradients(config.optim, self.optimizer, where)
            self.networks.step()
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
        objective = self._objective(stage, self._balance(labels) if wants_pseudo else None)
        loss = train_classifier(self.model, config, stage, cached, objective, stage.name)
        self.events.scalars("train/II", {"loss": loss}, self.state.step)
        self._add_seconds(stage.name, started)

    def _alignment(self) -> Alignment | None:
        loss, width = self.config.loss, self.model.backbone.out_channels
        assert isinstance(width, int)
        seed = derive_seed(self.config.seed, "alignment")
        made = Alignment(width, self.count, loss.erda_momentum, loss.erda_temperature, seed) if loss.erda else None
        return None if made is None else made.to(self.device)

    def _aligned(self, stage: Stage) -> Alignment | None:
        return self.alignment if covers(self.config.loss.erda_stages, stage) else None

    def _optimizer(self, stage: Stage) -> torch.optim.Optimizer:
        """A fresh optimizer of what learns in a stage of the backbone; the rest is frozen."""
        self.model.freeze("classifier" if stage.trains == "backbone" else None)
        aligned = self._aligned(stage)
        return make_optimizer(self.config.optim, self.model, *([] if aligned is None else [aligned]))

    def _balance(self, labels: Mapping[str, SceneLabels]) -> torch.Tensor | None:
        """Class weights of the pseudo-labels, None where they have none of their own."""
        if self.config.loss.pseudo_weight == "none":
            return None
        counts = sum(class_counts(labels[s.name].pseudo, self.count) for s in self.scenes)
        return pseudo_weights(torch.as_tensor(counts)).to(self.device)

    def _objective(self, stage: Stage, balance: torch.Tensor | None) -> Objective:
        config = self.config
        rho = self.state.rho if self.state.rho is not None else torch.ones(self.count)
        if stage.kind == "II":
            labels, feature = config.ii.labels, config.ii.feature
        elif stage.uses_pseudo:
            labels, feature = "mixed", config.loss.feature
        elif self._spreads_early(stage):
            labels, feature = "mixed", "none"
        else:
            labels, feature = "gt", "none"
        tau, prior = config.ii.logit_adjust if stage.kind == "II" else 0.0, None
        if tau:
            labelled = labelled_counts(self.scenes, self.count)
            prior = select_counts(labelled, self.state.predicted, config.pseudo.rho_source)
        fixed = config.loss, labels, feature, self.weight, rho, self.ratio, tau, prior
        return Objective(*fixed, self._aligned(stage), balance)

    def _pseudo_labels(self, stage: Stage, path: Path) -> Mapping[str, SceneLabels]:
        """Make, keep and report the pseudo-labels of an iteration."""
        started = time.perf_counter()
        source = self.networks.asked("pseudo")
        selection = make_pseudo_labels(source, self.config, self.scenes, self.count, self.device, self.segments)
        checksum = selection.table.save(path)
        self.snapshots.pseudo_labels(stage.iteration, selection.table[self.snapshots.train.name])
        self.state.rho, self.state.predicted = selection.rho, selection.predicted
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

    def _spreads_early(self, stage: Stage) -> bool:
        """Whether a pre-training learns from the segments of given labels as well."""
        labels = self.config.labels
        return stage.kind == "pretrain" and labels.spread == "segments" and labels.spread_in == "all"

    def _made(self, stage: Stage) -> bool:
        """Whether a resumed stage takes up the pseudo-labels it began with."""
        return stage.uses_pseudo and self.state.epoch > 0

    def _score(self, stage: Stage) -> None:
        """Score after the pre-training and after every iteration; remember the best."""
        if stage.kind == "I":
            return
        started, network = time.perf_counter(), self.networks.asked("eval")
        self.snapshots.features(network, stage.name)
        self._add_seconds("snapshots", started)
        last_stage = self.state.stage + 1 == len(self.stages)
        by_epoch = self.config.eval.every == "epoch" and stage.kind == "joint"
        if not (self.config.eval.every_iteration or last_stage or by_epoch or stage.kind == "pretrain"):
            return
        matrix = self._evaluate(stage, **({"epoch": stage.epochs, "iteration": stage.iteration} if by_epoch else {}))
        for title in ["pre-trained"] * (stage.kind == "pretrain") + ["final"] * last_stage:
            self.state.matrices[title] = matrix
            best = predict_grid(network, self.config, self.pictured, self.count, self.device)
            self.state.predictions[title] = raw_of(best, self.pictured)
            self.snapshots.prediction(title, best)
        if matrix.miou > self.state.best["miou"]:
            self.state.best = {"stage": stage.name, "miou": matrix.miou}
            checkpoint.save(self.output / "checkpoints" / "best.pt", self._content(stage.name))

    def _evaluate(self, stage: Stage, **place: int) -> ConfusionMatrix:
        """Score the network of the moment on the evaluation split; `place` goes into the event."""
        started = time.perf_counter()
        matrix = evaluate(self.networks.asked("eval"), self.config, self.eval_scenes, self.count, self.device)
        report = matrix.report(self.classes.names, self.groups)
        self.events.record("evaluation", self.state.step, stage=stage.name, **place, **report)
        self.events.scalars(
            "eval", {k: report[k] for k in ("miou", "head_iou", "waist_iou", "tail_iou", "oa")}, self.state.step
        )
        self.events.scalars("iou", report["iou"], self.state.step)
        when = f"{stage.name}, epoch {place['epoch']}" if place else stage.name
        say(f"{when}: mIoU {100 * matrix.miou:.1f}, tail IoU {100 * (report['tail_iou'] or 0.0):.1f}")
        self._add_seconds("evaluation", started)
        return matrix

    def _finish(self) -> Result:
        state = self.state
        state.peak = highest(state.peak, peak_memory(self.device))
        metrics = final_metrics(self.config, self.classes, self.groups, state, self.labels, self.stages, self.model)
        machine = {"threads": torch.get_num_threads(), "device": str(self.device)}
        timing = {"seconds": state.seconds, "peak_memory_mib": state.peak, **machine}
        write_json(self.output / "timing.json", timing)
        write_json(self.output / "metrics.json", metrics)
        self.events.close()
        return Result(metrics, self.classes, self.groups, state.matrices, self.pictured, state.predictions)

    def save(self) -> None:
        """Write last.pt."""
        self.state.peak = highest(self.state.peak, peak_memory(self.device))
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
            "model": self.networks.asked("eval").state_dict(),  # the weights that are scored
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
            if self.networks.mean is not None:
                content["ema"] = self.networks.unscored()
            if self.alignment is not None:
                content["alignment"] = self.alignment.state_dict()
        return content

    def _restore(self, saved: dict[str, Any]) -> None:
        require_same_run(self.last, saved, self.config, self.classes.names, self.labels)
        if saved.get("engine") != self.model.engine:
            say(f"trained so far on the engine {saved.get('engine')}, going on with {self.model.engine}")
        self.networks.load(saved["model"], saved.get("ema"))
        if self.alignment is not None:
            self.alignment.load_state_dict(saved["alignment"])
        self.state = State.unpack(saved["state"])
        self.sampler.load_state_dict(saved["sampler"])
        self.ratio.load_state_dict(saved["ratio"])
        if saved["optimizer"] is not None:
            self.optimizer = self._optimizer(self.stages[self.state.stage])
            self.optimizer.load_state_dict(saved["optimizer"])
        self.events = Events(self.output, saved["events_bytes"], self.state.step + 1)
        where = self.stages[self.state.stage].name if self.state.stage < len(self.stages) else "the end"
        say(f"resuming at {where}, epoch {self.state.epoch}")

    def _steps(self) -> int:
        sizes = [len(s.grid) for s in self.scenes]
        crops = epoch_steps(sizes, self.config.view.crop_points) if self.config.view.crop_points else len(sizes)
        return max(1, -(-crops // (self.config.view.batch * self.config.view.accumulate)))

    def _add_seconds(self, name: str, started: float) -> None:
        self.state.seconds[name] = self.state.seconds.get(name, 0.0) + time.perf_counter() - started
