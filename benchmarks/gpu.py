"""Both backbones on a GPU: MinkUNet34C on a real scan, the network of spconv's benchmark, RandLA-Net.

    python benchmarks/gpu.py --samples ../shared/data

Kernel maps are made anew in every run. Without the real scan rooms of about as many voxels take its place. The network
of spconv's benchmark runs on as many voxels of rooms as its published table (125,562) has, which are not the same
voxels. Without a GPU this is one line and exit code 2; `--device cpu --quick` runs everything small.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator

import torch
from harness import Case, agree, parser, race, run, say
from network import CHANNELS, CLASSES, OURS, compare, networks
from peers import peer
from pooled_network import ENTRY, PooledNetwork, SpconvPooledNetwork, work
from randla import cases_on, options
from torch import Tensor
from voxel_scenes import Voxels, network_work, rooms, scan

from mink_decouple.models.minkunet import VARIANTS

PUBLISHED_VOXELS = 125_562
ENTRANTS = (*OURS, "MinkowskiEngine", "spconv", "spconv float16")


def minkunet_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Inference and training step of MinkUNet34C."""
    variant = "tiny" if args.quick else "34C"
    real = None if args.quick else scan(args.samples)
    scene = real or rooms(1000 if args.quick else 92_000)
    entrants = networks(scene, variant, ENTRANTS if args.device == "cuda" else ENTRANTS[:4], args.device)
    total = network_work(scene.coords, VARIANTS[variant], CHANNELS, CLASSES)
    facts = f"{len(scene):,} voxels, {total / 1e9:.0f} GFLOP forward"
    case = Case(f"MinkUNet{variant}, {scene.name}: inference", facts, OURS, 0, total, clock=True)
    trained = Case(f"MinkUNet{variant}, {scene.name}: training step", facts, OURS, 0, 3 * total, clock=True)
    compare(case, trained, entrants, variant)
    yield race(case, {name: network.infer for name, network in entrants.items()}, args, device=args.device)
    yield race(trained, {name: network.train for name, network in entrants.items()}, args, device=args.device)


def pooled_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Forward, and forward with backward, of the network of spconv's benchmark."""
    scene = rooms(1000 if args.quick else PUBLISHED_VOXELS)
    total = work(scene)
    facts = f"{len(scene):,} voxels, {total / 1e9:.0f} GFLOP forward"
    title = f"spconv's benchmark network, {scene.name}: "
    case = Case(f"{title}forward", facts, OURS, 0, total, clock=True)
    trained = Case(f"{title}forward and backward", facts, OURS, 0, 3 * total, clock=True)
    runs = pooled_runs(scene, args.device)
    wanted = sorted_rows(runs["oracle"]())
    del runs["oracle"]
    for name, forward in list(runs.items()):
        try:
            found = sorted_rows(forward())
        except RuntimeError as error:
            if name in OURS:
                raise
            say(f"{name} fails: {' '.join(str(error).split())[:160]}")
            del runs[name]
            continue
        agree(case, name, found, wanted, 0.1 if "16" in name else 1e-3)
    yield race(case, {name: without_gradients(forward) for name, forward in runs.items()}, args, device=args.device)
    steps: dict[str, Callable[[], object]] = {
        name: lambda forward=forward: forward().float().sum().backward()  # type: ignore[misc] # mypy infers no defaults
        for name, forward in runs.items()
    }
    yield race(trained, steps, args, device=args.device)


def pooled_runs(scene: Voxels, device: str) -> dict[str, Callable[[], Tensor]]:
    """Competitor -> its forward; "oracle" is ours in float64."""
    ours, exact = PooledNetwork().to(device), PooledNetwork()
    exact.load_state_dict(ours.state_dict())
    exact.to(device, torch.float64)
    coords, feats = scene.coords.to(device), scene.feats(ENTRY).to(device)
    shape = [-(-extent // 64) * 64 for extent in scene.shape]

    def native(half: torch.dtype | None) -> Tensor:
        with torch.autocast(device, half, enabled=half is not None):
            rows: Tensor = ours(coords.clone(), feats).feats
        return rows

    runs: dict[str, Callable[[], Tensor]] = {
        "oracle": lambda: exact(coords.clone(), feats.double()).feats.detach(),
        "ours float32": lambda: native(None),
        "ours bfloat16": lambda: native(torch.bfloat16),
    }
    sp = peer("spconv")
    if sp is not None:
        theirs = SpconvPooledNetwork(sp, ours).to(device)

        def foreign(half: torch.dtype | None) -> Tensor:
            with torch.autocast(device, half, enabled=half is not None):
                rows: Tensor = theirs(coords.clone(), feats, shape).features
            return rows

        runs["spconv"] = lambda: foreign(None)
        if device == "cuda":
            runs["spconv float16"] = lambda: foreign(torch.float16)
    return runs


def sorted_rows(rows: Tensor) -> Tensor:
    """The rows (m, C) in an order that does not depend on the engine: each channel sorted."""
    return rows.detach().double().sort(dim=0).values


def without_gradients(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The forward as inference runs it."""

    def infer() -> Tensor:
        with torch.no_grad():
            return forward()

    return infer


def measure(args: argparse.Namespace) -> Iterator[Case]:
    """All cases."""
    yield from minkunet_cases(args)
    yield from pooled_cases(args)
    yield from cases_on(args.device, args)


def main() -> int:
    """Measure and print the tables; the exit code is 2 without a GPU."""
    made = parser(__doc__, threads=[os.cpu_count() or 1], rounds=30)
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options(made, crops=8)
    if made.parse_args().device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a GPU: torch finds no CUDA device here", file=sys.stderr)
        return 2
    return run(made, measure, pin=False)


if __name__ == "__main__":
    sys.exit(main())
