"""The II-step of finished runs made again with other settings, and scored: what the classifier alone can change.

    python benchmarks/second_step.py runs/main/randla-1pct-decoupled-seed0 --set ii.sampler=balanced --weights none inv

A run of one iteration ends with its II-step, so its last checkpoint holds the backbone that the step began with. The
step begins with the classifier of the pre-training, where pretrain.pt is kept or best.pt is of it; else with the one
that the run ended with, which is said. Rows: the classifier that the step begins with, the run's own end, and the step
made again with each weighting of the classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rescore import SCORES, row

from mink_decouple import config as configuration
from mink_decouple.config import override, parse_overrides
from mink_decouple.data.budget import LabelSet
from mink_decouple.decouple.balance import GradientRatio
from mink_decouple.decouple.losses import class_weights
from mink_decouple.engine import checkpoint
from mink_decouple.engine.evaluate import evaluate, make_model
from mink_decouple.engine.objective import Objective
from mink_decouple.engine.pseudo import labelled_counts, scene_labels, spread_scene_labels
from mink_decouple.engine.reach import reach_of, segments_of
from mink_decouple.engine.runtime import keep_freed_memory, seed_torch
from mink_decouple.engine.scenes import load_split, open_dataset, reveal
from mink_decouple.engine.second_step import cache_features, train_classifier
from mink_decouple.engine.stages import stages_of

CPU = torch.device("cpu")


def again(folder: Path, changes: dict[str, Any], weights: list[str]) -> dict[str, Any]:
    """Row -> report of `ConfusionMatrix` of one run."""
    last, best = (checkpoint.load(folder / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    own = configuration.loads(last["config"], str(folder))
    config = override(own, changes)
    dataset = open_dataset(config)
    names, groups = dataset.classes.names, [tuple(group) for group in last["groups"]]
    train = reveal(load_split(config, dataset, "train"), LabelSet.load(folder / "labels.npz"))
    scored = load_split(config, dataset, config.data.eval_split)
    stages = [stage for stage in stages_of(config) if stage.kind == "II"]
    if len(stages) != 1:
        raise SystemExit(
            f"{folder}: {len(stages)} II-steps; only the last backbone is kept, so only runs of one can be redone"
        )
    began, kept = dict(last["model"]), folder / "checkpoints" / "pretrain.pt"
    pretrained = checkpoint.load(kept) if kept.is_file() else best
    if pretrained is not best or best["after"] == "pretrain":
        began |= {key: value for key, value in pretrained["model"].items() if key.startswith("classifier")}
    else:
        print(f"{folder.name}: best.pt is of {best['after']}; the step begins with the classifier it ended with")

    def report(state: dict[str, Any]) -> dict[str, Any]:
        model.load_state_dict(state)
        return evaluate(model, config, scored, len(names), CPU).report(names, groups)

    model = make_model(config, dataset.classes, CPU)
    rows = {"classifier it begins with": report(began), "the run's end": report(last["model"])}
    model.load_state_dict(began)
    kind, key = config.ii.labels, stages[0].name
    if kind not in ("gt", "spread"):
        raise SystemExit(f"ii.labels {kind}: pseudo-labels are not made again; choices: gt, spread")
    reach = reach_of(config, train, segments_of(config, train))
    labels = scene_labels(train, None) if kind == "gt" else spread_scene_labels(train, reach)
    cached = cache_features(model, config, train, labels, len(names), CPU, key, kind)
    prior = labelled_counts(train, len(names)).sum(0)
    counts = prior if kind == "gt" else cached.counts(kind, len(names))
    for weighting in weights:
        model.load_state_dict(began)
        seed_torch(config.seed, key)
        weight = class_weights(counts) if weighting == "inv" else None
        fixed = weight, torch.ones(len(names)), GradientRatio(len(names)), config.ii.logit_adjust, prior
        train_classifier(model, config, stages[0], cached, Objective(config.loss, "gt", "none", *fixed), key)
        trained = {key: value.clone() for key, value in model.state_dict().items()}
        rows[f"again, labels {kind}, sampler {config.ii.sampler}, weights {weighting}"] = report(trained)
    return rows


def main() -> None:
    """A table of all runs, and the mean of each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="ii.B=C", help="settings of the II-step")
    parser.add_argument("--weights", nargs="+", choices=("none", "inv"), default=["none"])
    args = parser.parse_args()
    keep_freed_memory()
    found = {folder.name: again(folder, parse_overrides(args.set), args.weights) for folder in args.runs}
    print("\n| run | classifier | mIoU | head | waist | tail |\n|---|---|---|---|---|---|")

    def scores(runs: Iterable[str], name: str) -> torch.Tensor:
        return torch.tensor([[100 * found[run][name][key] for key in SCORES] for run in runs])

    for run, rows in found.items():
        for name in rows:
            print(row(f"{run} | {name}", scores([run], name)))
    for name in next(iter(found.values())):
        print(row(f"mean of {len(found)} | {name}", scores(found, name)))


if __name__ == "__main__":
    main()
