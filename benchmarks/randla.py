"""A training step of RandLA-Net: ours against a plain port, on prepared data, and with the preparation of every batch.

    python benchmarks/randla.py --crops 4 --points 40960

The port (conv2d_randla.py) is written as public PyTorch ports are and has the same weights; its logits are compared
with ours before anything is timed. Its neighbours come from scipy's cKDTree, on as many threads as torch has, in the
process that trains; ours come from the project's own search, in that process (0 loader threads) or beside it (1). A
step is forward, cross-entropy, backward and Adam.

Ours is trained with freed memory kept in the process; the port leaves the allocator as it is. Both are measured both
ways, and the last line compares each as it comes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from conv2d_randla import Conv2dRandLANet, DenseLevel, levels_of, prepare
from harness import Case, agree, finish, parser, race, run
from point_scenes import building
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional as F

from mink_decouple.data.collate import Batch, View, collate, point_view
from mink_decouple.data.grid import subsample
from mink_decouple.engine.batches import prefetch
from mink_decouple.models.randlanet import VARIANTS
from mink_decouple.models.segmenter import build_model

K = 16
CLASSES = 13
GRID = 0.04
STEP = "training step"
READY, WITHIN, BESIDE = "data prepared", "data prepared within", "data prepared beside"
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw_crops(count: int, points: int, scene_points: int) -> list[Arrays]:
    """Coordinates (n, 3), features (n, 4) and labels (n,) of crops about random centres, centred."""
    cloud = subsample(building(scene_points), GRID)
    rng, tree = np.random.default_rng(0), cKDTree(cloud.coords)
    assert cloud.labels is not None
    crops = []
    for centre in rng.choice(len(cloud.coords), count, replace=False):
        rows = tree.query(cloud.coords[centre], k=points)[1]
        coords = cloud.coords[rows] - cloud.coords[centre]
        feats = np.concatenate([cloud.features["rgb"][rows], coords[:, 2:]], axis=1)
        crops.append((coords, feats, cloud.labels[rows]))
    return crops


def view(crop: Arrays, ratios: Sequence[int], rng: np.random.Generator) -> View:
    """Our view of a crop."""
    coords, feats, labels = crop
    return point_view("crop", coords, feats, labels, ratios, K, rng)


class Ours:
    """Our network, its batches and its step."""

    def __init__(self, variant: str, dtype: torch.dtype, device: str = "cpu") -> None:
        self.device = device
        self.ratios = VARIANTS[variant]["ratios"]
        self.model = build_model("randla", variant, 4, CLASSES, head="mlp").to(device)
        self.step_of = Step(self.model, dtype, device)

    def batch(self, crops: Sequence[Arrays]) -> Batch:
        """Shuffle, search and collate."""
        rng = np.random.default_rng(0)
        return collate([view(crop, self.ratios, rng) for crop in crops]).to(self.device)

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        self.step_of(lambda: self.model(batch), batch.target)


class Port:
    """The port with our weights, its batches and its step."""

    def __init__(self, variant: str, dtype: torch.dtype, device: str = "cpu") -> None:
        self.device = device
        sizes = VARIANTS[variant]
        self.ratios = sizes["ratios"]
        ours = build_model("randla", variant, 4, CLASSES, head="mlp")
        self.model = Conv2dRandLANet(4, sizes["d_out"], CLASSES).load(ours).to(device)
        self.step_of = Step(self.model, dtype, device)

    def batch(self, crops: Sequence[Arrays]) -> tuple[Tensor, list[DenseLevel], Tensor]:
        """Shuffle, search and stack."""
        rng = np.random.default_rng(0)
        orders = [rng.permutation(len(coords)) for coords, _, _ in crops]
        shuffled = [tuple(array[order] for array in crop) for crop, order in zip(crops, orders, strict=True)]
        levels = prepare([coords for coords, _, _ in shuffled], self.ratios, K, torch.get_num_threads())
        feats, labels = (torch.from_numpy(np.stack([crop[i] for crop in shuffled])).to(self.device) for i in (1, 2))
        return feats, [level.to(self.device) for level in levels], labels

    def step(self, batch: tuple[Tensor, list[DenseLevel], Tensor]) -> None:
        """One optimizer step."""
        feats, levels, target = batch
        self.step_of(lambda: self.model(feats, levels), target)


class Step:
    """Forward, cross-entropy, backward and Adam."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: str) -> None:
        self.model, self.dtype, self.device = model, dtype, device
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def __call__(self, forward: Callable[[], Tensor], target: Tensor) -> None:
        """Logits (n, C) or (B, C, N), target (n,) or (B, N)."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = forward()
        F.cross_entropy(logits.float(), target, ignore_index=-1).backward()
        self.optimizer.step()


def compare(case: Case, entrants: dict[str, Ours | Port], batch: Batch, variant: str) -> None:
    """Logits of each network in evaluation mode against those of the port in float64."""
    crops, levels, device = len(batch.names), levels_of(batch), str(batch.feats.device.type)
    feats = batch.feats.view(crops, -1, batch.feats.shape[1])
    oracle = Port(variant, torch.float64, device).model.double().eval()
    exact = [replace(level, coords=level.coords.double()) for level in levels]
    with torch.no_grad():
        wanted = oracle(feats.double(), exact)
        for name, entrant in entrants.items():
            entrant.model.eval()
            with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in name):
                if isinstance(entrant, Ours):
                    logits = entrant.model(batch).view(crops, -1, CLASSES).transpose(1, 2)
                else:
                    logits = entrant.model(feats, levels)
            agree(case, name, logits, wanted, 0.1 if "bfloat16" in name else 1e-3)


def epoch(entrant: Any, crops: Sequence[Arrays], steps: int, workers: int) -> tuple[float, float]:
    """Wall and CPU seconds of a step, batches being prepared by `workers` threads; the first one is not counted."""
    batches = prefetch((partial(entrant.batch, crops) for _ in range(steps + 1)), workers)
    batch = next(batches)
    finish(entrant.device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        entrant.step(batch)
        batch = next(batches)
    finish(entrant.device)
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


def prepared(entrant: Any, batch: Any, steps: int) -> tuple[float, float]:
    """Wall and CPU seconds of a step on one batch."""
    finish(entrant.device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        entrant.step(batch)
    finish(entrant.device)
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


def measure(args: argparse.Namespace) -> Iterator[Case]:
    """The preparation of a batch, then a step on prepared data and with its preparation."""
    yield from cases_on("cpu", args)


def cases_on(device: str, args: argparse.Namespace) -> Iterator[Case]:
    """As `measure`, on a device."""
    count, points, scene = (2, 1024, 10_000) if args.quick else (args.crops, args.points, 2_000_000)
    variant = "4" if args.quick else args.variant
    crops = draw_crops(count, points, scene)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    entrants: dict[str, Ours | Port] = {}
    for kind, dtype in dtypes.items():
        entrants[f"ours {kind}"], entrants[f"port {kind}"] = Ours(variant, dtype, device), Port(variant, dtype, device)
    title = f"RandLA-Net, {count} crops of {points:,} points: "
    ours, port = entrants["ours float32"], entrants["port float32"]
    case = Case(f"{title}preparation of a batch", "shuffle, neighbours of every level, collation", ("ours",))
    yield race(case, {"ours": lambda: ours.batch(crops), "port": lambda: port.batch(crops)}, args, device=device)

    case = Case(f"{title}{STEP}", "", tuple(f"ours {kind}, {BESIDE}" for kind in dtypes), clock=True)
    batch = ours.batch(crops)
    assert isinstance(batch, Batch)
    compare(case, entrants, batch, variant)
    steps = 1 if args.quick else args.steps
    runs: dict[str, Callable[[], object]] = {}
    for name, entrant in entrants.items():
        ready = entrant.batch(crops)
        runs[f"{name}, {READY}"] = partial(prepared, entrant, ready, steps)
        runs[f"{name}, {WITHIN}"] = partial(epoch, entrant, crops, steps, 0)
        if isinstance(entrant, Ours):
            runs[f"{name}, {BESIDE}"] = partial(epoch, entrant, crops, steps, 1)
    yield race(case, runs, args, own_clock=True, device=device)


def summary(cases: Sequence[Case]) -> Iterator[str]:
    """Whether preparation is hidden, and each side with the allocator it comes with."""
    found = [case for case in cases if case.title.endswith(STEP)]
    for case in found:
        for kind in ("float32", "bfloat16"):
            ready, beside, within = (median(case.wall[f"ours {kind}, {way}"]) for way in (READY, BESIDE, WITHIN))
            yield (
                f"- {case.threads} threads, allocator {case.allocator}, ours {kind}: preparation adds "
                f"{1e3 * (within - ready):.0f} ms to a step of {1e3 * ready:.0f} ms within the process that trains, "
                f"{1e3 * (beside - ready):.0f} ms beside it."
            )
    for kept, default in itertools.product(found, found):
        if kept.threads == default.threads and (kept.allocator, default.allocator) == ("kept", "default"):
            port = median(default.wall[f"port float32, {WITHIN}"])
            for kind in ("float32", "bfloat16"):
                ours = median(kept.wall[f"ours {kind}, {BESIDE}"])
                yield f"- {kept.threads} threads, each as it comes: the port takes {port / ours:.2f} times ours {kind}."


def options(made: argparse.ArgumentParser, crops: int) -> None:
    """Add what `cases_on` reads."""
    made.add_argument("--variant", choices=sorted(VARIANTS), default="5")
    made.add_argument("--crops", type=int, default=crops)
    made.add_argument("--points", type=int, default=40_960)
    made.add_argument("--steps", type=int, default=3, help="steps timed together in a round")


def main() -> int:
    """Measure and print the tables."""
    made = parser(__doc__, rounds=7)
    made.set_defaults(allocator=["kept", "default"])
    options(made, crops=4)
    return run(made, measure, summary, pin=False)


if __name__ == "__main__":
    sys.exit(main())
