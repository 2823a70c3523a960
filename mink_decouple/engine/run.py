"""A run: what it is made of, its folder, and the checkpoints it goes on from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mink_decouple.config import Config, digest, dump, loads, pretraining
from mink_decouple.data.classes import Classes
from mink_decouple.decouple.balance import GradientRatio
from mink_decouple.decouple.erda import Alignment
from mink_decouple.decouple.losses import class_weights
from mink_decouple.decouple.schedule import Stage, covers
from mink_decouple.engine import checkpoint, kept
from mink_decouple.engine.batches import make_sampler
from mink_decouple.engine.ema import Networks
from mink_decouple.engine.evaluate import make_model
from mink_decouple.engine.events import Events, Silent, say
from mink_decouple.engine.initial import checksum_of, take_weights
from mink_decouple.engine.interrupt import Interrupt
from mink_decouple.engine.lock import RunLock
from mink_decouple.engine.optim import make_optimizer
from mink_decouple.engine.outcome import highest
from mink_decouple.engine.processes import ALONE, Processes
from mink_decouple.engine.pseudo import labelled_counts
from mink_decouple.engine.reach import reach_of, segments_of
from mink_decouple.engine.runtime import derive_seed, environment, peak_memory, write_json, write_text
from mink_decouple.engine.scenes import load_split, open_dataset, reveal, training_labels
from mink_decouple.engine.settings import check_settings
from mink_decouple.engine.snapshots import Snapshots, richest
from mink_decouple.engine.stages import stages_of
from mink_decouple.engine.state import (
    State,
    label_budget,
    require_same_run,
    require_same_settings,
    require_shares,
    saved_run,
    try_scenes,
)
from mink_decouple.metrics import ClassGroups, class_groups
from mink_decouple.models.segmenter import Segmenter

PRETRAINED = "pretrain"
"""The stage that runs can share, and its checkpoint."""


class Run:
    """One run: its data, networks and state, from the beginning or from a checkpoint.

    Args:
        config: of the run.
        output: the run folder; must not hold a run unless `resume`.
        device: where to train.
        resume: continue from `output/checkpoints/last.pt`.
        processes: of the run; each makes one with the same arguments.
        pretrained: run folder, or its `checkpoints/pretrain.pt`, whose pre-training a new run takes over; None trains
            one. Nothing comes out differently.

    Raises:
        ValueError: a setting or a scene is wrong, the folder holds a run already, another process trains into it, the
            checkpoint is of another configuration or class list, or the pre-training is none of these settings and
            labels.
        FileNotFoundError: the data or a file of labels is missing.
    """

    def __init__(
        self,
        config: Config,
        output: Path,
        device: torch.device,
        resume: bool = False,
        processes: Processes = ALONE,
        pretrained: Path | None = None,
    ) -> None:
        self.config, self.output, self.device, self.processes = config, output, device, processes
        self.last = output / "checkpoints" / "last.pt"
        self.interrupt = Interrupt()
        self.lock: RunLock | None = None
        require_shares(config, processes.size)
        if processes.first:
            self._open(resume, pretrained)
            processes.wait()
        else:  # the first one has prepared the data, drawn the labels and written a checkpoint: go on from that
            processes.wait()
            saved = kept.load(self.last.parent)
            assert saved is not None
            self._make(saved)
            self._restore(saved)
        processes.wait()

    def _open(self, resume: bool, pretrained: Path | None) -> None:
        """Begin the run, after the pre-training of another one where given, or take it up again."""
        begun = self.output / "config.yaml"
        held = begun.is_file() or self.last.parent.is_dir()
        self.lock = RunLock(self.output) if resume and held else None
        try:
            saved = saved_run(self.output, resume)
            if resume and saved is None:
                require_same_settings(begun, begun.read_text(encoding="utf-8"), self.config)
            self._make(saved)
            if saved is None:
                self._begin(None if pretrained is None else self._take_over(pretrained))
            else:
                self._restore(saved)
                self._note_environment()
        except BaseException:
            self.release()
            raise

    def _make(self, saved: dict[str, Any] | None) -> None:
        """All that follows from the configuration; nothing is written."""
        config, output, device = self.config, self.output, self.device
        if saved is None:  # a begun run goes on, whatever is refused since, and without the file of its budget
            check_settings(config)
        self.stages = stages_of(config)
        self.dataset = open_dataset(config)
        self.classes: Classes = self.dataset.classes
        self.count = len(self.classes.names)
        train = load_split(config, self.dataset, "train")
        self.eval_scenes = load_split(config, self.dataset, config.data.eval_split)
        self.labels = training_labels(config, self.dataset, train, output / "labels.npz" if saved else None)
        self.scenes = reveal(train, self.labels)
        self.by_name = {s.name: s for s in self.scenes}
        truth = np.stack([s.truth_counts(self.count) for s in self.scenes])  # hidden labels, for reports only
        # head, waist and tail of what is visible where nothing else is known
        self.groups: ClassGroups = class_groups(truth.sum(0) if truth.any() else self.labels.counts)
        self.pictured = richest(self.eval_scenes, np.stack([s.truth_counts(self.count) for s in self.eval_scenes]))
        shown = (richest(self.scenes, truth), self.pictured)
        self.snapshots = Snapshots(output, config, self.count, device, *shown)
        self.segments = segments_of(config, self.scenes)
        self.reach = reach_of(config, self.scenes, self.segments)
        self.model: Segmenter = make_model(config, self.classes, device)
        if saved is None:
            take_weights(self.model, config, self.classes)
        self.networks = Networks(self.model, config.ema, lambda: make_model(config, self.classes, device))
        self.alignment = self._alignment()
        self.sampler = make_sampler(config, self.scenes)
        self.epoch_began: dict[str, Any]  # the sampler's state then
        self.optimizer: torch.optim.Optimizer | None = None
        self.state = State()
        weight = None
        if config.loss.class_weight == "inv":
            weight = class_weights(labelled_counts(self.scenes, self.count).sum(0)).to(device)
        self.weight = weight
        self.ratio = GradientRatio(self.count, config.loss.g_act, device=device)
        try_scenes(config, self.model, self.scenes, self.eval_scenes, self.count)
        self.events: Events | Silent

    def _begin(self, pretrained: Path | None) -> None:
        """Write what a run folder begins with."""
        self.output.mkdir(parents=True, exist_ok=True)
        if self.lock is None:
            self.lock = RunLock(self.output)
            saved_run(self.output, resume=False)  # another process may have begun a run since the first look
        write_text(self.output / "config.yaml", dump(self.config))
        about = {**environment(self.device), "seed": self.config.seed, "digest": digest(self.config)}
        if pretrained is not None:
            about["pretrained"] = str(pretrained)
        if self.config.model.weights is not None:
            about["weights_sha256"] = checksum_of(Path(self.config.model.weights))
        write_json(self.output / "environment.json", about)
        self.labels.save(self.output / "labels.npz")
        self.events = Events(self.output)
        self.save()

    def _note_environment(self) -> None:
        """Add to environment.json where the run goes on, if with another commit, library or machine than before."""
        path = self.output / "environment.json"
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            before = (about.get("resumed") or [about])[-1]
        except (OSError, ValueError, AttributeError):
            return  # gone or damaged: that is no reason to stop
        now = environment(self.device)
        if any(before.get(key) != value for key, value in now.items()):
            write_json(path, {**about, "resumed": [*about.get("resumed", []), {"step": self.state.step, **now}]})

    def release(self) -> None:
        """Let another process go on with the run."""
        if self.lock is not None:
            self.lock.release()

    def save(self) -> None:
        """Write last.pt; the one before it is kept."""
        if not self.processes.first:
            return
        self.state.peak = highest(self.state.peak, peak_memory(self.device))
        kept.save(self.last.parent, self._content(None), self.config.checkpoints.keep)
        self.saved_at = time.monotonic()

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
            if self.state.within is None:  # within an epoch loader threads have drawn ahead: it is drawn anew
                self.epoch_began = checkpoint.tensors(self.sampler.state_dict())
            content |= {
                "state": self.state.pack(),
                "optimizer": self.optimizer.state_dict() if self.optimizer is not None else None,
                "sampler": self.epoch_began,
                "ratio": self.ratio.state_dict(),
                "events_bytes": self.events.bytes,
            }
            if self.networks.mean is not None:
                content["ema"] = self.networks.unscored()
            if self.alignment is not None:
                content["alignment"] = self.alignment.state_dict()
        return content

    def _pretrained(self) -> dict[str, Any]:
        """A checkpoint at the end of the pre-training, which other runs can begin after."""
        return {**self._content(None), "optimizer": None, "after": PRETRAINED}

    def _take_over(self, source: Path) -> Path:
        """Go to the end of the pre-training of another run, before its score; returns the checkpoint's file."""
        path = source / "checkpoints" / f"{PRETRAINED}.pt" if source.is_dir() else source
        advice = "give the checkpoints/pretrain.pt of a run with --set checkpoints.stages=true"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {advice}")
        saved = checkpoint.load(path)
        if saved.get("after") != PRETRAINED or "state" not in saved:
            raise ValueError(f"{path}: is no pre-training to go on from; {advice}")
        theirs = {**saved, "config": dump(pretraining(loads(saved["config"], str(path))))}
        fixed = pretraining(self.config), self.classes.names, self.labels
        require_same_run(path, theirs, *fixed, advice="take a pre-training of the same settings, or none")
        self._load(saved)
        found = State.unpack(saved["state"])
        seconds = {key: value for key, value in found.seconds.items() if key == PRETRAINED}
        self.state = State(epoch=found.epoch, step=found.step, seconds=seconds, peak=found.peak)
        say(f"pre-training of {path}")
        return path

    def _load(self, saved: dict[str, Any]) -> None:
        """Take weights, and what else the steps so far have moved, from a checkpoint."""
        if saved.get("engine") != self.model.engine:
            say(f"trained so far on the engine {saved.get('engine')}, going on with {self.model.engine}")
        self.networks.load(saved["model"], saved.get("ema"))
        if self.alignment is not None:
            self.alignment.load_state_dict(saved["alignment"])
        self.sampler.load_state_dict(saved["sampler"])
        self.ratio.load_state_dict(saved["ratio"])

    def _restore(self, saved: dict[str, Any]) -> None:
        require_same_run(self.last, saved, self.config, self.classes.names, self.labels)
        self._load(saved)
        self.epoch_began = saved["sampler"]
        self.state = State.unpack(saved["state"])
        if saved["optimizer"] is not None:
            self.optimizer = self._optimizer(self.stages[self.state.stage])
            self.optimizer.load_state_dict(saved["optimizer"])
        written = saved["events_bytes"], self.state.step + 1
        self.events = Events(self.output, *written) if self.processes.first else Silent()
        where = self.stages[self.state.stage].name if self.state.stage < len(self.stages) else "the end"
        step = f", step {self.state.within['step']}" if self.state.within is not None else ""
        say(f"resuming at {where}, epoch {self.state.epoch}{step}")
        self.saved_at = time.monotonic()

    def _save_due(self) -> bool:
        minutes = self.config.checkpoints.minutes
        return self.processes.first and minutes > 0 and time.monotonic() - self.saved_at > 60 * minutes

    def _optimizer(self, stage: Stage) -> torch.optim.Optimizer:
        """A fresh optimizer of what learns in a stage of the backbone; the rest is frozen."""
        self.model.freeze("classifier" if stage.trains == "backbone" else None)
        aligned = self._aligned(stage)
        return make_optimizer(self.config.optim, self.model, *([] if aligned is None else [aligned]))

    def _alignment(self) -> Alignment | None:
        loss, width = self.config.loss, self.model.backbone.out_channels
        assert isinstance(width, int)
        seed = derive_seed(self.config.seed, "alignment")
        made = Alignment(width, self.count, loss.erda_momentum, loss.erda_temperature, seed) if loss.erda else None
        return None if made is None else made.to(self.device)

    def _aligned(self, stage: Stage) -> Alignment | None:
        return self.alignment if covers(self.config.loss.erda_stages, stage) else None

    def _add_seconds(self, name: str, started: float) -> float:
        now = time.perf_counter()
        self.state.seconds[name] = self.state.seconds.get(name, 0.0) + now - started
        return now
