"""The whole MinkUNet18A, kernel maps made anew in every run: inference, training step, memory, and growth with size.

    python benchmarks/network.py --voxels 100000 --growth 10000 100000 500000

Ours, MinkowskiEngine (our network on its engine) and spconv have the same weights; their logits, and on a small scene
a gradient, are compared with our operations of plain torch in float64 before anything is timed. A training step is
forward, cross-entropy over all rows and backward.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from harness import Case, agree, growth, parser, race, run, say
from memory import peak_mebibytes
from peers import peer
from spconv_minkunet import SpconvMinkUNet, spconv_weight
from torch import Tensor, nn
from torch.nn import functional as F
from voxel_scenes import Voxels, network_work, rooms, scan

from mink_decouple.engine.runtime import keep_freed_memory
from mink_decouple.models.minkunet import VARIANTS
from mink_decouple.models.segmenter import Segmenter, build_model
from mink_decouple.sparse.engines import require_device

CHANNELS = 4
CLASSES = 13
OURS = ("ours float32", "ours bfloat16")
COMPETITORS = (*OURS, "MinkowskiEngine", "spconv")
HALVES = {"ours bfloat16": torch.bfloat16, "spconv float16": torch.float16}
# Of the logits and of the gradient of the first kernel. A ReLU whose input is rounded across zero, which happens now
# and then, moves a gradient by up to a tenth; in bfloat16 an untrained network leaves little but its magnitude.
TOLERANCES = {"ours bfloat16": (0.1, 1.0)}
USUAL = (1e-3, 0.2)


@dataclass(frozen=True, eq=False)
class View:
    """What a network reads: voxels (n, 4) int32 and feats (n, F)."""

    voxels: Tensor
    feats: Tensor


class Network:
    """One competitor with the weights of seed 0.

    Args:
        name: one of COMPETITORS, "spconv float16", or "oracle" for ours in float64.
        scene: what it runs on.
        variant: of MinkUNet.
        device: where.

    Raises:
        ValueError: it does not import, or not for the device.
    """

    def __init__(self, name: str, scene: Voxels, variant: str, device: str = "cpu") -> None:
        self.scene, self.name, self.dtype = scene, name, torch.float64 if name == "oracle" else torch.float32
        self.device, self.coords = device, scene.coords.to(device)
        self.feats = scene.feats(CHANNELS).to(device, self.dtype)
        self.target = torch.randint(CLASSES, (len(scene),), generator=torch.Generator().manual_seed(3)).to(device)
        engine = "minkowski" if name == "MinkowskiEngine" else "native"
        ours: Segmenter = build_model("minkunet", variant, CHANNELS, CLASSES, head="linear", engine=engine)
        require_device(ours.engine, torch.device(device))
        if name.startswith("spconv"):
            sp = peer("spconv")
            if sp is None:
                raise ValueError("spconv does not import")
            self.model: nn.Module = SpconvMinkUNet(sp, VARIANTS[variant], CHANNELS, CLASSES).load(ours)
        else:
            self.model = ours.to(self.dtype)
        self.model.to(device)
        self.start = {key: value.clone() for key, value in self.model.state_dict().items()}

    def logits(self) -> Tensor:
        """Logits (n, C); the voxels are a tensor that nothing has seen before."""
        voxels, half = self.coords.clone(), HALVES.get(self.name)
        with torch.autocast(self.device, half, enabled=half is not None):
            if self.name.startswith("spconv"):
                out: Tensor = self.model(voxels, self.feats, self.scene.shape)
            else:
                out = self.model(View(voxels, self.feats))
        return out

    def infer(self) -> Tensor:
        """Logits as in evaluation."""
        self.model.eval()
        with torch.no_grad():
            return self.logits()

    def train(self) -> None:
        """Forward, loss and backward."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        F.cross_entropy(self.logits().to(self.dtype), self.target).backward()

    def gradient(self) -> Tensor:
        """Gradient of the first kernel after a training step from the initial state, as spconv lays it out."""
        self.train()
        self.model.load_state_dict(self.start)
        theirs = self.name.startswith("spconv")
        found = self.model.get_parameter("conv0p1s1.weight" if theirs else "backbone.conv0p1s1.kernel").grad
        assert found is not None
        return found if theirs else spconv_weight(found)


def networks(
    scene: Voxels, variant: str, names: Sequence[str] = COMPETITORS, device: str = "cpu"
) -> dict[str, Network]:
    """Every competitor that imports."""
    made = {}
    for name in names:
        try:
            made[name] = Network(name, scene, variant, device)
        except ValueError as error:
            say(f"{name} is absent: {error}")
    return made


def measure(args: argparse.Namespace) -> Iterator[Case]:
    """Inference and training on rooms and on the real scan, memory, then inference by size."""
    variant = "tiny" if args.quick else args.variant
    count = 1000 if args.quick else args.voxels
    real = None if args.quick else scan(args.samples)
    for scene in [rooms(count), *([real] if real is not None else [])]:
        entrants = networks(scene, variant)
        work = network_work(scene.coords, VARIANTS[variant], CHANNELS, CLASSES)
        facts = f"{len(scene):,} voxels, {work / 1e9:.0f} GFLOP forward"
        case = Case(f"MinkUNet{variant}, {scene.name}: inference", facts, OURS, 0, work)
        trained = Case(f"MinkUNet{variant}, {scene.name}: training step", facts, OURS, 0, 3 * work)
        compare(case, trained, entrants, variant)
        yield race(case, {name: network.infer for name, network in entrants.items()}, args)
        yield race(trained, {name: network.train for name, network in entrants.items()}, args)
        if args.final:
            names = ["ours float32"] if args.quick else list(entrants)
            yield memory_case(f"MinkUNet{variant}, {scene.name}: peak memory", names, scene, args)
    for size in [500, 1000] if args.quick else args.growth:
        scene = rooms(size)
        work = network_work(scene.coords, VARIANTS[variant], CHANNELS, CLASSES)
        case = Case(f"MinkUNet{variant}: inference of {size:,} voxels", f"{work / 1e9:.0f} GFLOP", OURS, size, work)
        yield race(case, {name: network.infer for name, network in networks(scene, variant).items()}, args)


def compare(inference: Case, training: Case, entrants: dict[str, Network], variant: str) -> None:
    """Logits of each competitor, and the first gradient on a small scene, against the oracle's.

    A peer that fails is named and removed from `entrants`: a compiled library may lack kernels for the card at hand.
    """
    some, small = next(iter(entrants.values())), rooms(1000)
    logits = Network("oracle", some.scene, variant, some.device).infer()
    gradient = Network("oracle", small, variant, some.device).gradient()
    for name, network in list(entrants.items()):
        near, far = TOLERANCES.get(name, USUAL)
        try:
            found, slope = network.infer(), Network(name, small, variant, some.device).gradient()
        except RuntimeError as error:
            if name in OURS:
                raise
            say(f"{name} fails: {' '.join(str(error).split())[:160]}")
            del entrants[name]
            continue
        agree(inference, name, found, logits, near)
        agree(training, name, slope, gradient, far)


def memory_case(title: str, names: list[str], scene: Voxels, args: argparse.Namespace) -> Case:
    """Peak memory of each competitor, each in a process of its own."""
    facts = "over what the process held with the network and the data loaded and a small scene run"
    case = Case(title, facts, column="MiB")
    for what in ("training step",) if args.quick else ("inference", "training step"):
        for name in names:
            for allocator in ("default",) if args.quick else ("default", "kept"):
                # the fresh process reads these options, and those of the script that came before them
                asked = ["--memory", name, what, allocator, "scan" if scene.name.startswith("Sem") else "rooms"]
                command = [sys.executable, *sys.argv, *asked]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = float(done.stdout.split()[-1])
                case.values[f"{what}, {name}, freed memory {'kept' if allocator == 'kept' else 'returned'}"] = found
    return case


def print_memory(args: argparse.Namespace) -> int:
    """One competitor's peak in this process, MiB, on standard output."""
    name, what, allocator, where = args.memory
    torch.set_num_threads(args.threads[0])
    if allocator == "kept":
        keep_freed_memory()
    scene = scan(args.samples) if where == "scan" else rooms(1000 if args.quick else args.voxels)
    assert scene is not None
    variant = "tiny" if args.quick else args.variant
    for small in (True, False):
        network = Network(name, rooms(200) if small else scene, variant)
        step: Callable[[], object] = partial(Network.infer if what == "inference" else Network.train, network)
        if small:
            # compiles, and loads what is loaded late
            step()
    print(peak_mebibytes(step))
    return 0


def summary(cases: Sequence[Case]) -> Iterator[str]:
    """How inference grows."""
    yield from growth(cases, "voxel of a MinkUNet's inference")


def main() -> int:
    """Measure and print the tables."""
    made = parser(__doc__, rounds=9)
    made.add_argument("--variant", choices=sorted(VARIANTS), default="18A")
    made.add_argument("--voxels", type=int, default=100_000)
    made.add_argument("--growth", type=int, nargs="*", default=[10_000, 100_000, 500_000])
    made.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    asked = made.parse_args()
    return print_memory(asked) if asked.memory else run(made, measure, summary)


if __name__ == "__main__":
    sys.exit(main())
