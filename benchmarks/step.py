"""Where a training step of each backbone spends its time, in the configuration that `tools/train.py` takes by default.

    python benchmarks/step.py --backbones minkunet randla --steps 12

One table for each backbone and stage: pre-training and I-step. Labels with "beside" are the time of loader threads,
which is not part of a step. Half of the points carry their true class as a pseudo-label, in place of a network's. The
backward of one more step is listed by autograd function, as torch.profiler sees it.

Then an epoch of the I-step is set against 100 epochs of the II-step, which trains the classifier on cached features, of
the given labels alone (the paper); with `ii.labels: spread` there are up to `ii.spread_rows` more rows a view.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from harness import Case, parser, run, say
from stopwatch import BESIDE, Stopwatch, watched_layers
from torch.profiler import ProfilerActivity, profile

from mink_decouple.config import Config, load_config
from mink_decouple.data.sampling import epoch_steps
from mink_decouple.decouple.balance import GradientRatio
from mink_decouple.decouple.schedule import Stage, learning_rate
from mink_decouple.engine import batches as batches_module
from mink_decouple.engine.batches import Labelled, SceneLabels, make_sampler, training_batches
from mink_decouple.engine.evaluate import make_model
from mink_decouple.engine.objective import Objective
from mink_decouple.engine.optim import apply_gradients, backward, make_optimizer, set_rate
from mink_decouple.engine.scenes import Scene, load_split, open_dataset, reveal, training_labels
from mink_decouple.engine.second_step import cache_features, train_classifier
from mink_decouple.engine.stages import stages_of
from mink_decouple.sparse.tensor import MapCache

LAYERS = {
    "Conv3d": "forward: convolutions",
    "ConvTranspose3d": "forward: convolutions",
    "BatchNorm": "forward: batch norm, addition, ReLU",
    "Dense": "forward: dense layers with their norm",
    "AttentivePooling": "forward: attentive pooling",
    "DilatedResidualBlock": "forward: positions, gathers, concatenations",
    "LinearHead": "forward: head",
    "MLPHead": "forward: head",
    "Segmenter": "forward: the rest",
}
HEAD = "forward: head"
MAPS = "forward: kernel maps"
LISTED = 8


class Job:
    """Data, network and labels of a training run.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        dataset = open_dataset(config)
        self.classes = dataset.classes
        self.count = len(self.classes.names)
        train = load_split(config, dataset, "train")
        self.scenes = reveal(train, training_labels(config, dataset, train))
        self.by_name = {scene.name: scene for scene in self.scenes}
        self.model = make_model(config, self.classes)
        self.labels = {scene.name: with_pseudo(scene) for scene in self.scenes}
        sizes = [len(scene.grid) for scene in self.scenes]
        crops = epoch_steps(sizes, config.view.crop_points) if config.view.crop_points else len(sizes)
        self.steps = max(1, -(-crops // (config.view.batch * config.view.accumulate)))

    def stage(self, kind: str) -> Stage:
        """The first stage of a kind."""
        return next(stage for stage in stages_of(self.config) if stage.kind == kind)

    def objective(self, stage: Stage) -> Objective:
        """The losses of a stage."""
        loss, mixed = self.config.loss, stage.kind == "I"
        labels, feature = ("mixed", loss.feature) if mixed else ("gt", "none")
        return Objective(
            loss, labels, feature, None, torch.ones(self.count), GradientRatio(self.count, self.config.loss.g_act)
        )

    def batches(self, stage: Stage, count: int) -> Iterator[Labelled]:
        """Batches as the trainer draws them."""
        labels = self.labels
        if stage.kind == "pretrain":
            labels = {scene.name: SceneLabels.given(scene) for scene in self.scenes}
        sampler = make_sampler(self.config, self.scenes)
        return training_batches(
            self.config, self.count, self.by_name, labels, sampler, count, ("benchmark", stage.name)
        )


def with_pseudo(scene: Scene) -> SceneLabels:
    """Half of the points with their true class as a pseudo-label of confidence 0.8."""
    chosen = np.random.default_rng(0).random(len(scene.grid)) < 0.5
    pseudo = np.where(chosen, scene.truth, -1)
    return SceneLabels(scene.visible, pseudo, np.where(pseudo >= 0, 0.8, 0.0).astype(np.float32))


class Loop:
    """The trainer's steps of one stage, each part timed."""

    def __init__(self, job: Job, stage: Stage, watch: Stopwatch) -> None:
        self.job, self.stage, self.watch = job, stage, watch
        self.objective = job.objective(stage)
        job.model.freeze("classifier" if stage.trains == "backbone" else None)
        job.model.train()
        self.optimizer = make_optimizer(job.config.optim, job.model)

    def step(self, number: int, steps: int, items: Sequence[Labelled], traced: bool = False) -> str:
        """One optimizer step; what autograd did, where `traced`."""
        job, config, watch, table = self.job, self.job.config, self.watch, ""
        with watch("counts of labels"):
            parts = [self.objective.counts(item.batch.target, item.pseudo) for item in items]
            counts = {key: float(sum(part[key] for part in parts)) for key in parts[0]}
        if counts["seg"] == 0:
            return table
        with watch("optimizer"):
            set_rate(self.optimizer, learning_rate(self.stage, 0, number, steps))
            self.optimizer.zero_grad(set_to_none=True)
        for item in items:
            with torch.autocast("cpu", torch.bfloat16, enabled=config.optim.precision == "bf16"):
                logits = job.model(item.batch)
            with watch("loss"):
                loss, _ = self.objective(logits, item.batch.target, item.pseudo, item.confidence, counts)
            with watch("backward"):
                if traced:
                    table = traced_backward(loss)
                else:
                    backward(loss, "benchmark")
        with watch("optimizer"):
            apply_gradients(config.optim, self.optimizer, "benchmark")
        return table


def traced_backward(loss: torch.Tensor) -> str:
    """Backward, and the share of each autograd function in it."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        backward(loss, "benchmark")
    start = "autograd::engine::evaluate_function: "
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.key.startswith(start):
            spent[event.key.removeprefix(start)] = event.cpu_time_total
    total = sum(spent.values()) or 1.0
    largest = sorted(spent, key=lambda name: -spent[name])[:LISTED]
    return ", ".join(f"{name} {100 * spent[name] / total:.0f} %" for name in largest)


def steps_case(job: Job, stage: Stage, steps: int) -> Case:
    """Milliseconds of a step by part: the median over steps, the first two left out."""
    watch, micro = Stopwatch(), job.config.view.accumulate
    maps = [(MapCache, name, MAPS) for name in ("__init__", "submanifold", "strided")]
    found: list[dict[str, float]] = []
    table = ""
    with (
        watch.watching((batches_module, "make_batch", "preparation of a batch"), *maps),
        watched_layers(watch, job.model, LAYERS, HEAD),
    ):
        loop = Loop(job, stage, watch)
        source = watch.iterate(job.batches(stage, (steps + 3) * micro), "waiting for data")
        for number in range(steps + 3):
            began = time.perf_counter()
            items = [next(source) for _ in range(micro)]
            table = loop.step(number, steps + 3, items, traced=number == steps + 2)
            spent = watch.take()
            spent["whole step"] = time.perf_counter() - began
            found.append(spent)
    rows = sum(len(item.batch.target) for item in items)
    timed = found[2:-1]
    names = dict.fromkeys(name for spent in timed for name in spent)
    values = {name: 1e3 * median(spent.get(name, 0.0) for spent in timed) for name in names}
    title = f"{job.config.backbone} {job.config.model.variant}, a step of {stage.kind}, ms"
    case = Case(title, f"{rows:,} rows in the last step; backward: {table}")
    whole, beside = values.pop("whole step"), {name: values.pop(name) for name in list(values) if BESIDE in name}
    case.values = dict(sorted(values.items(), key=lambda item: -item[1]))
    case.values["whole step"] = whole
    case.values |= beside
    return case


def epochs_case(job: Job, epochs: int) -> Case:
    """Seconds of an I-step epoch and of the II-step's epochs."""
    first, second = job.stage("I"), replace(job.stage("II"), epochs=epochs)
    watch, micro = Stopwatch(), job.config.view.accumulate
    began = time.perf_counter()
    loop, source = Loop(job, first, watch), job.batches(first, job.steps * micro)
    for number in range(job.steps):
        loop.step(number, job.steps, [next(source) for _ in range(micro)])
    i_step = time.perf_counter() - began
    began = time.perf_counter()
    cached = cache_features(
        job.model, job.config, job.scenes, job.labels, job.count, torch.device("cpu"), "benchmark", "gt"
    )
    caching = time.perf_counter() - began
    began = time.perf_counter()
    train_classifier(job.model, job.config, second, cached, job.objective(second), "benchmark")
    classifier = time.perf_counter() - began
    case = Case(f"{job.config.backbone} {job.config.model.variant}, epochs", f"{job.steps} steps in an I-step epoch")
    case.values = {
        "I-step, one epoch, s": i_step,
        f"II-step, features of {job.config.ii.cache_passes} passes ({len(cached.target):,} rows), s": caching,
        f"II-step, {epochs} epochs, s": classifier,
        f"{epochs} epochs of the II-step over one of the I-step": classifier / i_step,
    }
    return case


def measure(args: argparse.Namespace) -> Iterator[Case]:
    """Steps of both stages and epochs, for each backbone."""
    small: dict[str, Any] = {"data": {"synthetic": {"areas": 5, "rooms_per_area": 1, "points_per_room": 2000}}}
    for backbone in args.backbones:
        config = load_config(args.config, backbone=backbone, overrides=small if args.quick else {})
        job = Job(config)
        for kind in ("pretrain", "I"):
            say(f"  {backbone}, {kind}")
            yield steps_case(job, job.stage(kind), 2 if args.quick else args.steps)
        say(f"  {backbone}, epochs")
        yield epochs_case(job, 2 if args.quick else 100)


def main() -> int:
    """Measure and print the tables."""
    made = parser(__doc__)
    made.add_argument("--config", help="by default the one of tools/train.py")
    made.add_argument("--backbones", nargs="+", default=["minkunet", "randla"])
    made.add_argument("--steps", type=int, default=12)
    return run(made, measure, pin=False)


if __name__ == "__main__":
    sys.exit(main())
