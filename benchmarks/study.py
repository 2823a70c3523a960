"""Mean and spread of recipes over seeds: run what is missing of a grid of trainings, then print one table.

    python benchmarks/study.py --output runs/study --recipes supervised table5/row3 --labels 1pt 1% --seeds 0 1 2

Every run is its own folder and its own process with its share of the cores. A finished run is not run again, one that
was cut off is resumed (from its first checkpoint on; an earlier one is reported as failed).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from tqdm import tqdm

from mink_decouple.config import load_config, merge, parse_overrides

FULL = "fully_supervised"  # sees every label, whatever --labels says
ROOT = Path(__file__).resolve().parents[1]
SCORES = ("miou", "head_iou", "waist_iou", "tail_iou")
Cell = tuple[str, str, str, int]


def folder(output: Path, cell: Cell) -> Path:
    """Run folder of (backbone, labels, recipe, seed)."""
    backbone, labels, recipe, seed = cell
    return output / f"{backbone}-{labels.replace('%', 'pct')}-{recipe.replace('/', '-')}-seed{seed}"


def run(cell: Cell, args: argparse.Namespace) -> int:
    """Train one cell unless its metrics.json is there; the exit code of the training."""
    backbone, labels, recipe, seed = cell
    target = folder(args.output, cell)
    require_settings(target / "config.yaml", cell, args)
    if (target / "metrics.json").is_file():
        return 0
    resume = ["--resume"] if (target / "checkpoints" / "last.pt").is_file() else []
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(args.config), "--output", str(target)]
    command += ["--backbone", backbone, "--recipe", recipe, "--seed", str(seed), *resume]
    command += [] if recipe == FULL else ["--labels", labels]
    command += [part for pair in args.set for part in ("--set", pair)]
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    log = args.output / f"{target.name}.log"
    with log.open("a", encoding="utf-8") as file:
        return subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": threads}, check=False
        ).returncode


def require_settings(file: Path, cell: Cell, args: argparse.Namespace) -> None:
    """Raises ValueError where the cell's folder holds a run of other settings: its scores belong to another table."""
    backbone, labels, recipe, seed = cell
    overrides = merge({"seed": seed}, parse_overrides(args.set))
    if recipe != FULL:
        overrides = merge({"labels": {"budget": labels}}, overrides)
    wanted = load_config(args.config, backbone=backbone, recipe=recipe, overrides=overrides)
    if file.is_file() and load_config(file) != wanted:
        raise ValueError(f"{file.parent}: holds a run of other settings; choose another --output")


def figures(output: Path, cells: Sequence[Cell]) -> Iterator[str]:
    """A table row for each (backbone, labels, recipe): mean and sample deviation over seeds, in percent."""
    yield "| backbone | labels | recipe | mIoU | head | waist | tail | pre-trained mIoU | seeds |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for key, group in itertools.groupby(cells, key=lambda cell: cell[:3]):
        files = [folder(output, cell) / "metrics.json" for cell in group]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        if found:
            columns = [[100 * m[score] for m in found] for score in SCORES]
            columns.append([100 * m["pretrained"]["miou"] for m in found])
            yield f"| {' | '.join(key)} | {' | '.join(map(spread, columns))} | {len(found)} |"


def spread(values: Sequence[float]) -> str:
    """Mean and sample deviation, `12.3 ± 0.4`."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{mean(values):.1f}"


def main() -> int:
    """Run the grid and print the table; the exit code is 1 where a training failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "synthetic.yaml")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--backbones", nargs="+", default=["minkunet", "randla"])
    parser.add_argument("--recipes", nargs="+", default=["supervised", "table5/row2", "table5/row3"])
    parser.add_argument("--labels", nargs="+", default=["1pt", "1%"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    cells = list(itertools.product(args.backbones, args.labels, args.recipes, args.seeds))
    # seed by seed, so that an unfinished study already compares every recipe
    order = sorted(cells, key=lambda cell: cell[3])
    started = time.perf_counter()
    with ThreadPoolExecutor(args.jobs) as pool:
        codes = list(tqdm(pool.map(lambda cell: run(cell, args), order), total=len(order), disable=None))
    print("\n".join(figures(args.output, cells)))
    print(f"{len(cells)} runs in {(time.perf_counter() - started) / 60:.0f} minutes")
    failed = [folder(args.output, cell).name for cell, code in zip(order, codes, strict=True) if code]
    for name in failed:
        print(f"failed: {name}, see {args.output / (name + '.log')}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
