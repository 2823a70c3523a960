"""Algorithm 1 from top to bottom: pre-train, then alternate I-step and II-step, scoring after each iteration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from mink_decouple.data.budget import class_counts
from mink_decouple.data.sampling import CropSampler, epoch_steps
from mink_decouple.decouple.balance import select_counts
from mink_decouple.decouple.losses import pseudo_weights
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.decouple.schedule import Stage, covers, learning_rate, refresh_due
from mink_decouple.engine import checkpoint
from mink_decouple.engine.batches import SceneLabels, training_batches
from mink_decouple.engine.evaluate import evaluate, predict_grid, raw_of
from mink_decouple.engine.events import progress, say
from mink_decouple.engine.objective import Objective
from mink_decouple.engine.optim import apply_gradients, backward, set_rate
from mink_decouple.engine.outcome import Result, final_metrics, highest
from mink_decouple.engine.pseudo import (
    labelled_counts,
    make_pseudo_labels,
    quality_record,
    scene_labels,
    spread_scene_labels,
)
from mink_decouple.engine.run import Run
from mink_decouple.engine.runtime import peak_memory, random_state, seed_torch, set_random_state, write_json
from mink_decouple.engine.second_step import cache_features, train_classifier
from mink_decouple.engine.state import introduce
from mink_decouple.metrics import ConfusionMatrix


class Trainer(Run):
    """One run from its beginning, or from a checkpoint, to metrics.json: `run()`. Made like `Run`."""

    def run(self) -> Result:
        """Train what is left of the schedule, score, and write metrics.json.

        Raises:
            Stopped: SIGINT or SIGTERM came; the run can be resumed.
        """
        say(introduce(self.config, self.labels))
        try:
            with self.interrupt.handled():
                return self._run()
        finally:
            self.release()

    def _run(self) -> Result:
        while self.state.stage < len(self.stages):
            stage = self.stages[self.state.stage]
            if stage.kind != "II":
                self._network_stage(stage)
            elif self.state.epoch == 0:
                self._classifier_stage(stage)
                self.state.epoch = 1
                self.save()
            self.networks.stage_ends(stage.kind)
            self._score(stage)
            self.state.stage, self.state.epoch, self.optimizer = self.state.stage + 1, 0, None
            self.save()
        return self._finish()

    def _network_stage(self, stage: Stage) -> None:
        """Pre-training, an I-step or a joint step: epochs over crops."""
        config, state = self.config, self.state
        table_path = self.output / "pseudo_labels" / f"iter_{stage.iteration:02d}.npz"
        begins = state.epoch == 0 and state.within is None
        if begins and stage.uses_pseudo and config.loss.g_reset == "iter":
            self.ratio.reset()
        made = stage.uses_pseudo and not self._renews(stage, state.epoch)
        labels = scene_labels(self.scenes, self._table(table_path) if made else None)
        if self._spreads_early(stage):
            labels = spread_scene_labels(self.scenes, self.segments)
        if isinstance(self.sampler, CropSampler):
            self.sampler.label_centred = 0.0 if stage.uses_pseudo else config.view.label_centred
        if self.optimizer is None:
            self.optimizer = self._optimizer(stage)
        steps = config.schedule.steps or self._steps()
        balance = self._balance(labels)
        for epoch in progress(range(state.epoch, stage.epochs), stage.name):
            if self._renews(stage, epoch):
                labels = self._pseudo_labels(stage, table_path)
                balance = self._balance(labels)
            with self.interrupt.until_saved():
                objective = self._objective(stage, balance)
                losses = self._epoch(stage, epoch, steps, labels, objective)
                state.epoch, state.within = epoch + 1, None
                self.events.scalars(f"train/{stage.kind}", losses, state.step)
                if objective.feature == "mifl":
                    self.events.scalars("gamma", dict(zip(self.classes.names, objective.gamma().tolist())), state.step)
                scored_next = stage.kind == "joint" and state.epoch == stage.epochs
                if config.eval.every == "epoch" and stage.uses_pseudo and not scored_next:
                    self._evaluate(stage, epoch=state.epoch, iteration=stage.iteration)
                self.save()
                self.interrupt.stop_if_asked(f"after epoch {state.epoch} of {stage.epochs} of {stage.name}, saved")

    def _epoch(
        self, stage: Stage, epoch: int, steps: int, labels: Mapping[str, SceneLabels], objective: Objective
    ) -> dict[str, float]:
        """One pass of `steps` optimizer steps, or what is left of it; returns the mean of each loss term."""
        config, micro, state = self.config, self.config.view.accumulate, self.state
        assert self.optimizer is not None
        seed_torch(config.seed, stage.name, epoch)
        self.model.train()
        first, sums = 0, dict[str, float]()
        if state.within is not None:
            first, sums = state.within["step"], dict(state.within["sums"])
            set_random_state(state.within["random"], self.device)
        started = time.perf_counter()
        mix = config.view.mix if covers(config.view.mix_stages, stage) else 0.0
        drawn = config, self.count, self.by_name, labels, self.sampler
        batches = training_batches(*drawn, steps * micro, (stage.name, epoch), self.device, mix, first * micro)
        for step in range(first, steps):
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
            state.step += 1
            if step + 1 < steps and (self.interrupt.asked or self._save_due()):
                state.within = {"step": step + 1, "sums": dict(sums), "random": random_state(self.device)}
                started = self._add_seconds(stage.name, started)
                self.save()
                self.interrupt.stop_if_asked(f"at {stage.name}, epoch {epoch}, step {step + 1} of {steps}, saved")
        batches.close()
        self._add_seconds(stage.name, started)
        return sums

    def _classifier_stage(self, stage: Stage) -> None:
        """A II-step: cache features, train the classifier."""
        config, started = self.config, time.perf_counter()
        wants_pseudo = stage.uses_pseudo
        path = self.output / "pseudo_labels" / f"iter_{stage.iteration:02d}.npz"
        labels = scene_labels(self.scenes, self._table(path) if wants_pseudo else None)
        seed_torch(config.seed, stage.name)
        cached = cache_features(
            self.model, config, self.scenes, labels, self.count, self.device, stage.name, wants_pseudo
        )
        objective = self._objective(stage, self._balance(labels) if wants_pseudo else None)
        loss = train_classifier(self.model, config, stage, cached, objective, stage.name)
        self.events.scalars("train/II", {"loss": loss}, self.state.step)
        self._add_seconds(stage.name, started)

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
        checksum = self.state.table = selection.table.save(path)
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

    def _renews(self, stage: Stage, epoch: int) -> bool:
        """Whether pseudo-labels are made before an epoch; not again where a resumed run is in its midst."""
        return refresh_due(stage, epoch, 0) and self.state.within is None

    def _table(self, path: Path) -> PseudoLabelTable:
        """The pseudo-labels that a stage began with."""
        table = PseudoLabelTable.load(path)
        if self.state.table not in (None, table.checksum):
            raise ValueError(f"{path}: not the pseudo-labels that the checkpoint was trained with")
        return table

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
            checkpoint.save(self.last.with_name("best.pt"), self._content(stage.name))
        if self.config.checkpoints.stages:
            checkpoint.save(self.last.with_name(f"{stage.name}.pt"), self._content(stage.name))

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

    def _steps(self) -> int:
        sizes = [len(s.grid) for s in self.scenes]
        crops = epoch_steps(sizes, self.config.view.crop_points) if self.config.view.crop_points else len(sizes)
        return max(1, -(-crops // (self.config.view.batch * self.config.view.accumulate)))
