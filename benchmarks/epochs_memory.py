"""Does a training grow over its epochs? Resident memory after every so many of them.

    python benchmarks/epochs_memory.py --epochs 200

Trains the main job with two steps an epoch, with loader threads, checkpoints and events. Freed memory stays with the
process, as in `tools/train.py`, unless `--return-freed` or `--trim`: a slope that goes away with them is fragmentation,
no leak. The kernels that oneDNN keeps, one for each shape and layer, are bounded by ONEDNN_PRIMITIVE_CACHE_CAPACITY.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from pathlib import Path
from typing import Any

import torch

from mink_decouple.config import load_config, merge, parse_overrides
from mink_decouple.engine.runtime import keep_freed_memory
from mink_decouple.engine.train import Trainer

STATUS = Path("/proc/self/status")


def resident() -> float:
    """Resident memory of this process, MiB; Linux only."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def measure(
    backbone: str, settings: dict[str, Any], epochs: int, every: int, folder: Path, trim: bool
) -> list[tuple[int, float]]:
    """(epoch, MiB) of one training."""
    changes: dict[str, Any] = {
        "schedule": {"pretrain": {"epochs": epochs}, "iterations": 0, "steps": 2},
        "view": {"workers": 2},
    }
    config = load_config(backbone=backbone, overrides=merge(settings, changes))
    found: list[tuple[int, float]] = []
    trainer = Trainer(config, folder / backbone, torch.device("cpu"))
    original = trainer.save

    def save() -> None:
        original()
        if trainer.state.stage == 0 and trainer.state.epoch % every == 0 and trainer.state.epoch:
            if trim:
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            found.append((trainer.state.epoch, resident()))

    trainer.save = save  # type: ignore[method-assign]  # a measurement looks on
    trainer.run()
    return found


def main() -> None:
    """Print a table, one column for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--backbones", nargs="+", default=["minkunet", "randla"])
    parser.add_argument(
        "--return-freed", action="store_true", help="hand freed memory back, as tools/train.py does not"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="settings of the main job")
    parser.add_argument(
        "--trim", action="store_true", help="the same, and all that is free before each reading (glibc)"
    )
    args = parser.parse_args()
    if not (args.return_freed or args.trim):
        keep_freed_memory()
    settings = parse_overrides(args.set)
    with tempfile.TemporaryDirectory() as name:
        columns = {
            backbone: dict(measure(backbone, settings, args.epochs, args.every, Path(name), args.trim))
            for backbone in args.backbones
        }
    print(f"\n| epoch | {' | '.join(f'{backbone}, MiB' for backbone in columns)} |\n|{'---|' * (1 + len(columns))}")
    for epoch in range(args.every, args.epochs + 1, args.every):
        print(f"| {epoch} | {' | '.join(f'{column[epoch]:,.1f}' for column in columns.values())} |")


if __name__ == "__main__":
    main()
