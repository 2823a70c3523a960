"""The same run by 1, 2 and 4 processes: are the losses the same, what does a step cost, and where does its time go?

    python benchmarks/processes.py --backbones minkunet randla --steps 25

Trains the main job cut short: so many steps of the pre-training and of one I-step, each of four micro-batches of one
sample, and a II-step, on `gloo` and one core. For each backbone and number of processes: the largest relative
difference of a step's loss from that of one process, and the final scores. The line "rounding" is one process whose
first weights are multiplied by 1 + 1e-7: how far rounding alone drives a run, which no exact sharding can be below.

Then seconds of a step and its parts: one process with one and with two threads, and two processes with one each.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from stopwatch import Stopwatch

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("waiting for data", "forward", "backward, gradients averaged in it", "telling each other", "optimizer")


def settings(steps: int, optimizer: str) -> dict[str, Any]:
    """What differs from the main job."""
    short = {"epochs": 1}
    return {
        "schedule": {"steps": steps, "iterations": 1, "pretrain": short, "i_step": short},
        "view": {"accumulate": 4, "batch": 1},
        "optim": {"name": optimizer} if optimizer else {},
    }


def work(args: argparse.Namespace) -> None:
    """One process: train, and leave losses, seconds and scores in `args.output`.json."""
    from mink_decouple.config import load_config
    from mink_decouple.engine import train
    from mink_decouple.engine.processes import Processes, joined
    from mink_decouple.engine.runtime import keep_freed_memory
    from mink_decouple.models.segmenter import ForwardPass

    keep_freed_memory()
    torch.set_num_threads(args.threads)
    watch, losses, spent = Stopwatch(), list[float](), list[dict[str, float]]()
    original, batches = train.Trainer._gradients, train.training_batches

    def gradients(self: Any, *given: Any) -> dict[str, float]:
        terms = original(self, *given)
        losses.append(sum(terms.values()))
        spent.append(watch.take())  # a step from here to the next
        return terms

    train.Trainer._gradients = gradients  # type: ignore[method-assign]  # a measurement looks on
    train.training_batches = lambda *given: watch.iterate(batches(*given), PARTS[0])  # type: ignore[assignment]  # as above
    changes = settings(args.steps, args.optimizer)
    config = load_config(backbone=args.worker, overrides=changes)
    places = (
        (ForwardPass, "forward", PARTS[1]),
        (train, "backward", PARTS[2]),
        (Processes, "_reduced", PARTS[3]),
        (train, "apply_gradients", PARTS[4]),
    )
    with joined(torch.device("cpu")) as processes:
        torch.set_num_threads(args.threads)
        trainer = train.Trainer(config, args.output, torch.device("cpu"), processes=processes)
        if args.nudge:
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter *= 1 + args.nudge
        with watch.watching(*places):
            result = trainer.run()
        seconds = trainer.state.seconds
    if result is not None:
        found = {key: result.metrics[key] for key in ("miou", "tail_iou", "points")}
        written = {"losses": losses, "spent": spent, "seconds": seconds, **found}
        args.output.with_suffix(".json").write_text(json.dumps(written))


def launch(args: argparse.Namespace, backbone: str, count: int, threads: int, folder: Path, **more: Any) -> Any:
    """What the first of so many processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    output = folder / "-".join(str(part) for part in (backbone, count, threads, *more.values()))
    command = [sys.executable, __file__, "--worker", backbone, "--steps", str(args.steps), "--output", str(output)]
    command += ["--threads", str(threads)]
    for key, value in more.items():
        command += [f"--{key}", str(value)]
    started = []
    for rank in range(count):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
        env |= {"OMP_WAIT_POLICY": "passive"}
        known = {**os.environ, **{key: str(value) for key, value in env.items()}}
        started.append(subprocess.Popen(command, env=known, stdout=subprocess.DEVNULL))
    if any(process.wait() for process in started):
        sys.exit(f"{backbone}, {count} processes: failed")
    return json.loads(output.with_suffix(".json").read_text())


def sameness(args: argparse.Namespace, folder: Path) -> None:
    """Losses and scores of several processes against those of one."""
    for optimizer in args.optimizers:
        print(f"\n*Losses, {optimizer}*, {2 * args.steps} steps of four micro-batches: largest relative difference\n")
        print("| backbone | processes | steps 1 to 10 | pre-training | I-step | mIoU | tail IoU | points |")
        print("|---|---|---|---|---|---|---|---|")
        for backbone in args.backbones:
            one = launch(args, backbone, 1, 1, folder, optimizer=optimizer)
            rows = [(1, one)]
            rows += [(count, launch(args, backbone, count, 1, folder, optimizer=optimizer)) for count in (2, 4)]
            rows.append(("1, rounding", launch(args, backbone, 1, 1, folder, optimizer=optimizer, nudge=1e-7)))
            for name, found in rows:
                off = [abs(a - b) / abs(b) for a, b in zip(found["losses"], one["losses"], strict=True)]
                parts = (off[:10], off[: args.steps], off[args.steps :])
                told = " | ".join(f"{max(part):.1e}" for part in parts)
                scores = f"{100 * found['miou']:.2f} | {100 * found['tail_iou']:.2f} | {found['points']:,}"
                print(f"| {backbone} | {name} | {told} | {scores} |", flush=True)


def throughput(args: argparse.Namespace, folder: Path) -> None:
    """Milliseconds of a step and its parts."""
    for backbone in args.backbones:
        columns = {}
        for count, threads in ((1, 1), (1, 2), (2, 1)):
            name = f"{count} process{'es' if count > 1 else ''}, {threads} thread{'s' if threads > 1 else ''} each"
            columns[name] = launch(args, backbone, count, threads, folder, optimizer="adam")
        print(f"\n*{backbone}, ms a step of four micro-batches, the mean of {args.steps - 2} of the pre-training*\n")
        print(f"| | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
        for part in PARTS:
            values = [[step.get(part, 0.0) for step in found["spent"][2 : args.steps]] for found in columns.values()]
            print(f"| {part} | {' | '.join(f'{1e3 * sum(row) / len(row):.1f}' for row in values)} |")
        rows = {"pre-training, s": "pretrain", "pseudo-labels, s": "iter_00_I_pseudo_labels", "I-step, s": "iter_00_I"}
        rows |= {"II-step, s": "iter_00_II", "evaluation, s": "evaluation"}
        for title, key in rows.items():
            print(f"| {title} | {' | '.join(format(found['seconds'][key], '.1f') for found in columns.values())} |")


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["minkunet", "randla"])
    parser.add_argument("--steps", type=int, default=25, help="of the pre-training, and of the I-step")
    parser.add_argument("--only", choices=("sameness", "throughput"))
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adam"], help="of the comparison of losses")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--optimizer", default="", help=argparse.SUPPRESS)
    parser.add_argument("--nudge", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        from mink_decouple.engine.leave import leave

        work(args)
        leave(0)
    with tempfile.TemporaryDirectory() as name:
        for part in (sameness, throughput):
            if args.only in (None, part.__name__):
                (Path(name) / part.__name__).mkdir()
                part(args, Path(name) / part.__name__)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
