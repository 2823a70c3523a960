"""Networks of finished runs scored again with other `eval` settings: what voting and smoothing change.

    python benchmarks/rescore.py runs/main/minkunet-1pt-decoupled-seed* --set eval.smooth=segments

A table of every run as it ended and as it is scored again, and their means. Training does not depend on `eval`, so
these are the scores that runs with these settings would have ended with.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from mink_decouple import config as configuration
from mink_decouple.config import override, parse_overrides
from mink_decouple.engine.evaluate import evaluate, restore
from mink_decouple.engine.export import load_network
from mink_decouple.engine.runtime import keep_freed_memory
from mink_decouple.engine.scenes import load_split, open_dataset

CPU = torch.device("cpu")
SCORES = ("miou", "head_iou", "waist_iou", "tail_iou")


def again(folder: Path, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's own report and the new one, of `ConfusionMatrix`."""
    unknown = set(changes) - {"eval"}
    if unknown:
        raise SystemExit(f"--set {min(unknown)}: a trained network can be scored with other settings of eval only")
    state = load_network(folder / "checkpoints" / "last.pt")
    config = override(configuration.loads(state["config"], str(folder)), changes)
    dataset = open_dataset(config)
    scenes = load_split(config, dataset, config.data.eval_split)
    model = restore(state, config, CPU)
    matrix = evaluate(model, config, scenes, len(dataset.classes), CPU)
    own = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return own, matrix.report(dataset.classes.names, [tuple(group) for group in state["groups"]])


def row(name: str, values: torch.Tensor) -> str:
    """A line of the table, of (n, scores) percent."""
    spread = values.std(0) if len(values) > 1 else None
    cells = (f"{m:.1f}" + ("" if spread is None else f" ± {spread[i]:.1f}") for i, m in enumerate(values.mean(0)))
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="eval.B=C", required=True)
    args = parser.parse_args()
    keep_freed_memory()
    found = [again(folder, parse_overrides(args.set)) for folder in args.runs]
    own, new = (torch.tensor([[100 * pair[i][key] for key in SCORES] for pair in found]) for i in (0, 1))
    told = " ".join(args.set)
    print("\n| run | mIoU | head | waist | tail |\n|---|---|---|---|---|")
    for number, folder in enumerate(args.runs):
        print(row(folder.name, own[number : number + 1]))
        print(row(f"{folder.name}, {told}", new[number : number + 1]))
    if len(found) > 1:
        print(row(f"mean of {len(found)}", own))
        print(row(f"mean of {len(found)}, {told}", new))
        print(row("by run, new - old", new - own))


if __name__ == "__main__":
    main()
