"""Kill a training at random moments, resume it, and compare what it leaves with an undisturbed run, byte by byte.

    python benchmarks/chaos.py --kills 50 -- --set schedule.pretrain.epochs=20

What follows `--` are arguments of `tools/train.py`. Two kills of three are `kill -9`, the others SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
COMPARED = ("metrics.json", "metrics.jsonl", "labels.npz", "config.yaml")


def train(arguments: list[str], output: Path) -> subprocess.Popen[str]:
    """A training into a folder, resumed where it holds one."""
    command = [sys.executable, str(ROOT / "tools" / "train.py"), *arguments, "--output", str(output), "--device", "cpu"]
    command += ["--resume"] if (output / "config.yaml").is_file() else []
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a training; one that failed by itself ends the experiment."""
    _, told = process.communicate()
    if process.returncode:
        sys.exit(f"a training failed by itself with exit code {process.returncode}:\n{told}")


def disturbed(arguments: list[str], output: Path, kills: int, longest: float, rng: random.Random) -> Counter[str]:
    """Train to the end with up to so many kills; returns the signals that came before it."""
    signals = Counter[str]()
    while signals.total() < kills:
        process = train(arguments, output)
        try:
            _, told = process.communicate(timeout=rng.uniform(0.0, longest))
        except subprocess.TimeoutExpired:
            number = rng.choice(SIGNALS)
            process.send_signal(number)
            process.communicate()
            signals[number.name] += 1
            continue
        if process.returncode:
            sys.exit(f"after {signals.total()} kills a training failed by itself:\n{told}")
        return signals
    finish(train(arguments, output))
    return signals


def main() -> None:
    """Kill, resume, compare; exit code 1 where a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all; a run that ends before them is begun anew")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds that a training lives at most")
    parser.add_argument("arguments", nargs="*", help="of tools/train.py, after --")
    args = parser.parse_args()
    rng, signals, unlike = random.Random(args.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        whole, number = Path(name) / "whole", 0
        started = time.perf_counter()
        finish(train(args.arguments, whole))
        print(f"undisturbed: {time.perf_counter() - started:.0f} s", flush=True)
        while signals.total() < args.kills:
            number += 1
            cut, started = Path(name) / f"cut{number}", time.perf_counter()
            came = disturbed(args.arguments, cut, args.kills - signals.total(), args.longest, rng)
            signals += came
            differ = [file for file in COMPARED if (whole / file).read_bytes() != (cut / file).read_bytes()]
            unlike += len(differ)
            found = f"{', '.join(differ)} DIFFER" if differ else f"{', '.join(COMPARED)} the same bytes"
            seconds = time.perf_counter() - started
            print(f"run {number}: {came.total()} kills ({dict(came)}), {seconds:.0f} s: {found}", flush=True)
    print(f"{signals.total()} kills in {number} runs, {unlike} files differ")
    sys.exit(1 if unlike else 0)


if __name__ == "__main__":
    main()
