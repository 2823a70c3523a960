"""Algorithm 1 from top to bottom: pre-train, then alternate I-step and II-step, scoring after each iteration."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from mink_decouple.data.budget import class_counts
from mink_decouple.data.sampling import CropSampler, epoch_batches
from mink_decouple.decouple.balance import select_counts
from mink_decouple.decouple.losses import class_weights, pseudo_weights
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.decouple.schedule import Stage, covers, learning_rate, refresh_due
from mink_decouple.engine import checkpoint
from mink_decouple.engine.batches import Labelled, SceneLabels, training_batches
from mink_decouple.engine.evaluate import evaluate, predict_grid, raw_of
from mink_decouple.engine.events import progress, say
from mink_decouple.engine.interrupt import Stopped
from mink_decouple.engine.objective import Objective
from mink_decouple.engine.optim import Diverged, apply_gradients, backward, set_rate
from mink_decouple.engine.outcome import Result, final_metrics, highest
from mink_decouple.engine.pseudo import (
    labelled_counts,
    make_pseudo_labels,
    quality_record,
    scene_labels,
    spread_scene_labels,
)
from mink_decouple.engine.run import Run
from mink_decouple.engine.runtime import peak_memory, seed_torch, write_json
from mink_decouple.engine.second_step import cache_features, train_classifier
from mink_decouple.engine.state import introduce
from mink_decouple.engine.statistics import RunningStatistics
from mink_decouple.metrics import ConfusionMatrix
from mink_decouple.models.segmenter import ForwardPass


class Trainer(Run):
    """One run from its beginning, or from a checkpoint, to metrics.json: `run()`. Made like `Run`."""

    def run(self) -> Result | None:
        """Train what is left of the schedule, score, and write metrics.json.

        Returns:
            What the run leaves; None in all processes but the first.

        Raises:
            Stopped: SIGINT or SIGTERM came; the run can be resumed.
        """
        say(introduce(self.config, self.labels, self.scenes))
        try:
            with self.interrupt.handled():
                return self._run()
        except RuntimeError:
            if self.processes.size > 1 and self.interrupt.asked:  # waited for one that had stopped already
                raise Stopped(self.interrupt.asked, "with the other processes") from None
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                f"{self.output}: {os.strerror(error.errno)}; the last checkpoint is untouched, go on with --resume "
                "when there is room"
            ) from error
        finally:
            self.release()

    def _run(self) -> Result | None:
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
            labels = spread_scene_labels(self.scenes, self.reach)
        if isinstance(self.sampler, CropSampler):
            self.sampler.label_centred = 0.0 if stage.uses_pseudo else config.view.label_centred
        if self.optimizer is None:
            self.optimizer = self._optimizer(stage)
        self.forward = self.processes.averaged(ForwardPass(self.model))  # all processes are here, resumed or not
        steps, balance = config.schedule.steps or self._steps(), None
        if state.epoch < stage.epochs:  # else the stage was taken over, or only its score is missing
            started = time.perf_counter()
            balance = self._balance(labels)  # may make segments and grow a forest
            self._add_seconds(stage.name, started)
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
                self._agree()
                self.interrupt.stop_if_asked(f"after epoch {state.epoch} of {stage.epochs} of {stage.name}, saved")

    def _epoch(
        self, stage: Stage, epoch: int, steps: int, labels: Mapping[str, SceneLabels], objective: Objective
    ) -> dict[str, float]:
        """One pass of `steps` optimizer steps, or what is left of it; returns the mean of each loss term."""
        config, micro, state, processes = self.config, self.config.view.accumulate, self.state, self.processes
        assert self.optimizer is not None
        self.model.train()
        first, sums = 0, dict[str, float]()
        if state.within is not None:
            first, sums = state.within["step"], dict(state.within["sums"])
        started = time.perf_counter()
        mix = config.view.mix if covers(config.view.mix_stages, stage) else 0.0
        drawn = config, self.count, self.by_name, labels, self.sampler
        own = range(processes.rank, micro, processes.size)
        place = stage.name, epoch
        batches = training_batches(
            *drawn, steps * micro, place, self.device, mix, lambda i: i >= first * micro and i % micro in own
        )
        for step in range(first, steps):
            items = [next(batches).to(self.device) for _ in own]
            parts = [objective.counts(item.batch.target, item.pseudo) for item in items]
            total = processes.total(torch.tensor([[part[key] for key in parts[0]] for part in parts]).sum(0))
            counts = dict(zip(parts[0], total.double().tolist()))
            if counts["seg"] == 0:
                continue  # nothing in this step carries a label
            set_rate(self.optimizer, learning_rate(stage, epoch, step, steps))
            self.optimizer.zero_grad(set_to_none=True)
            names = ", ".join(name for item in items for name in item.batch.names)
            where = f"{stage.name}, epoch {epoch}, scenes {names}"
            taken = self._gradients(items, own, (*place, step), objective, counts, where)
            for key, value in taken.items():
                sums[key] = sums.get(key, 0.0) + value / steps
            apply_gradients(config.optim, self.optimizer, where)
            self.networks.step()
            state.step += 1
            if step + 1 < steps and self._agree(self._save_due()):
                state.within = {"step": step + 1, "sums": dict(sums)}
                started = self._add_seconds(stage.name, started)
                self.save()
                self.interrupt.stop_if_asked(f"at {stage.name}, epoch {epoch}, step {step + 1} of {steps}, saved")
        next(batches, None)  # to its end: draws for other processes may be left, and they move the sampler
        self._add_seconds(stage.name, started)
        return sums

    def _gradients(
        self,
        items: Sequence[Labelled],
        own: Sequence[int],
        place: tuple[int | str, ...],
        objective: Objective,
        counts: dict[str, float],
        where: str,
    ) -> dict[str, float]:
        """Gradients of a step, summed over its micro-batches and processes; returns the sum of each loss term.

        Whatever a micro-batch leaves behind is the same whichever process it is in: dropout is drawn from its place in
        the run, all have the focusing factors of the beginning of the step, and batch norm ends the step with the
        statistics of all.
        """
        config, processes = self.config, self.processes
        gamma = objective.gamma() if objective.feature == "mifl" else None
        gradients, statistics = (
            self.ratio.accumulators(),
            RunningStatistics(self.model, processes, config.view.accumulate),
        )
        values = dict[str, float]()
        broken: Diverged | None = None
        for number, item in zip(own, items, strict=True):
            seed_torch(config.seed, *place, number)
            alone = isinstance(self.forward, DistributedDataParallel) and number != own[-1]
            with self.forward.no_sync() if alone else nullcontext():  # type: ignore[operator]  # of DistributedDataParallel
                statistics.begin()
                with torch.autocast(self.device.type, torch.bfloat16, enabled=config.optim.precision == "bf16"):
                    features, logits = self.forward(item.batch)
                statistics.end()
                known = None if item.present is None else item.present[item.batch.batch]
                rows = item.batch.target, item.pseudo, item.confidence
                loss, terms = objective(logits, *rows, counts, features, known, gamma)
                try:
                    backward(loss * processes.size, where)  # the processes' gradients are averaged
                except Diverged as error:
                    if processes.size == 1:
                        raise
                    broken = error
                    loss.backward()  # the others wait for it
            for key, value in terms.items():
                values[key] = values.get(key, 0.0) + value
        statistics.settle()
        if processes.size == 1:
            return values
        keys, added = list(values), (self.ratio.accumulators() - gradients).flatten().cpu()
        told = torch.tensor([*values.values(), float(broken is not None)], dtype=torch.float64)
        told = processes.total(torch.cat([told, added]))
        if broken is not None or told[len(keys)] > 0:
            raise broken or Diverged("stopped: another process met a loss that is not finite")
        summed = told[len(keys) + 1 :].reshape(gradients.shape).to(gradients.device)
        self.ratio.load_state_dict({"sums": gradients + summed})
        return dict(zip(keys, told.tolist()))

    def _agree(self, due: bool = False) -> bool:
        """Let all processes know of a signal that one has got; whether to save now, `due` or because of that."""
        if self.processes.size > 1:
            told = self.processes.largest(torch.tensor([self.interrupt.asked, int(due)])).tolist()
            self.interrupt.asked, due = told[0], bool(told[1])
        return due or self.interrupt.asked > 0

    def _classifier_stage(self, stage: Stage) -> None:
        """A II-step: cache features, train the classifier."""
        config, started = self.config, time.perf_counter()
        wants_pseudo = stage.uses_pseudo
        path = self.output / "pseudo_labels" / f"iter_{stage.iteration:02d}.npz"
        labels = scene_labels(self.scenes, self._table(path) if wants_pseudo else None)
        if stage.labels == "spread":
            labels = spread_scene_labels(self.scenes, self.reach)
        seed_torch(config.seed, stage.name)
        cached = cache_features(
            self.model, config, self.scenes, labels, self.count, self.device, stage.name, stage.labels, self.processes
        )
        objective = self._objective(stage, self._balance(labels) if wants_pseudo else None)
        if config.ii.class_weight == "inv":
            objective.weight = class_weights(cached.counts(config.ii.labels, self.count)).to(self.device)
        loss = train_classifier(self.model, config, stage, cached, objective, stage.name)
        self.processes.level(self.model.classifier)
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
            labels, feature = "gt" if stage.labels == "spread" else config.ii.labels, config.ii.feature
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
        fixed = self.config, self.scenes, self.count, self.device, self.segments, self.reach, self.processes
        selection = make_pseudo_labels(source, *fixed)
        if self.processes.first:
            checksum = selection.table.save(path)
            self.snapshots.pseudo_labels(stage.iteration, selection.table[self.snapshots.train.name])
        else:
            checksum = selection.table.checksum
        self.state.table = checksum
        self.state.rho, self.state.predicted = selection.rho, selection.predicted
        record = quality_record(selection, self.classes.names)
        self.events.record(
            "pseudo_labels", self.state.step, stage=stage.name, iteration=stage.iteration, checksum=checksum, **record
        )
        for key in ("certain", "uncertain", "precision", "recall"):
            self.events.scalars(f"pseudo_{key}", record.get(key, {}), self.state.step)
        total = selection.table.counts().sum(1).tolist()
        correct = ""
        if (q := selection.quality) is not None and q.selected.any():
            correct = f", {100 * float(q.correct.sum()) / int(q.selected.sum()):.1f} % of them right"
        say(f"{stage.name}: {total[0]} certain and {total[1]} uncertain pseudo-labels{correct}")
        self._add_seconds(f"{stage.name}_pseudo_labels", started)
        return scene_labels(self.scenes, selection.table)

    def _spreads_early(self, stage: Stage) -> bool:
        """Whether a pre-training learns from where given labels reach as well."""
        labels = self.config.labels
        return stage.kind == "pretrain" and labels.spread != "none" and labels.spread_in == "all"

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
        if self.processes.first:
            self.snapshots.features(network, stage.name)
        self._add_seconds("snapshots", started)
        last_stage = self.state.stage + 1 == len(self.stages)
        by_epoch = self.config.eval.every == "epoch" and stage.kind == "joint"
        if not (self.config.eval.every_iteration or last_stage or by_epoch or stage.kind == "pretrain"):
            return
        matrix = self._evaluate(stage, **({"epoch": stage.epochs, "iteration": stage.iteration} if by_epoch else {}))
        for title in ["pre-trained"] * (stage.kind == "pretrain") + ["final"] * last_stage:
            self.state.matrices[title] = matrix
            if not self.processes.first:
                continue
            best = predict_grid(network, self.config, self.pictured, self.count, self.device)
            self.state.predictions[title] = raw_of(best, self.pictured)
            self.snapshots.prediction(title, best)
        if matrix.miou > self.state.best["miou"]:
            self.state.best = {"stage": stage.name, "miou": matrix.miou}
            if self.processes.first:
                checkpoint.save(self.last.with_name("best.pt"), self._content(stage.name))
        if self.config.checkpoints.stages and self.processes.first:
            content = self._pretrained() if stage.kind == "pretrain" else self._content(stage.name)
            checkpoint.save(self.last.with_name(f"{stage.name}.pt"), content)

    def _evaluate(self, stage: Stage, **place: int) -> ConfusionMatrix:
        """Score the network of the moment on the evaluation split; `place` goes into the event."""
        started = time.perf_counter()
        fixed = self.config, self.eval_scenes, self.count, self.device, self.processes
        matrix = evaluate(self.networks.asked("eval"), *fixed)
        report = matrix.report(self.classes.names, self.groups)
        self.events.record("evaluation", self.state.step, stage=stage.name, **place, **report)
        self.events.scalars(
            "eval", {k: report[k] for k in ("miou", "head_iou", "waist_iou", "tail_iou", "oa")}, self.state.step
        )
        self.events.scalars("iou", report["iou"], self.state.step)
        when = f"{stage.name}, epoch {place['epoch']}" if place else stage.name
        tail = "" if report["tail_iou"] is None else f", tail IoU {100 * report['tail_iou']:.1f}"
        say(f"{when}: mIoU {100 * matrix.miou:.1f}{tail}")
        self._add_seconds("evaluation", started)
        return matrix

    def _finish(self) -> Result | None:
        state = self.state
        peak = self.processes.most(highest(state.peak, peak_memory(self.device)) or -1.0)
        if not self.processes.first:
            return None
        state.peak = peak if peak >= 0 else None
        metrics = final_metrics(self.config, self.classes, self.groups, state, self.labels, self.stages, self.model)
        machine = {"threads": torch.get_num_threads(), "device": str(self.device), "processes": self.processes.size}
        timing = {"seconds": state.seconds, "peak_memory_mib": state.peak, **machine}
        write_json(self.output / "timing.json", timing)
        write_json(self.output / "metrics.json", metrics)
        self.events.close()
        return Result(metrics, self.classes, self.groups, state.matrices, self.pictured, state.predictions)

    def _steps(self) -> int:
        view = self.config.view
        sizes = [len(s.grid) for s in self.scenes]
        return -(-epoch_batches(sizes, view.crop_points, view.batch, view.max_points) // view.accumulate)
