"""What the benchmarks of speed share: competitors take turns in one process, and a table and a JSON file come out.

A script yields cases. Each is measured in a process of its own for every number of threads (and every setting of the
allocator), because OpenMP and BLAS read theirs once, when they are loaded. Inside it every round runs each competitor
and the roof (`torch.mm` on two large float32 matrices) once, in turning order, so that whatever else the machine does
falls on all alike; a ratio is the median over rounds of the two times of one round. With one thread, CPU time of the
process counts in place of the clock, since it leaves out the time in which other programs had the core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mink_decouple.engine.runtime import environment, keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
ROOF = "torch.mm"
PACKAGES = ("torch", "numpy", "numba", "scipy", "MinkowskiEngine", "spconv", "open3d", "open3d-cpu", "pykdtree")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

Runs = Mapping[str, Callable[[], Any]]
Measure = Callable[[argparse.Namespace], Iterator["Case"]]
Summary = Callable[[Sequence["Case"]], Iterator[str]]


@dataclass
class Case:
    """One comparison under one setting of threads and allocator.

    Attributes:
        title: what is computed; cases of one title form one table.
        facts: sizes, for the line under the title.
        ours: the competitors that the others are divided by.
        size: number of voxels or points, for the tables of growth.
        work: floating-point operations of one run, a multiplication and an addition being two; 0 where not counted.
        roof: operations of one run of the roof.
        wall: competitor -> seconds of each round by the clock.
        cpu: competitor -> CPU seconds of each round, all threads of the process together.
        errors: competitor -> largest difference from the oracle, divided by the oracle's largest magnitude.
        wrong: peers whose results on several threads are further away than their tolerance.
        values: other figures: name -> value in the unit that the name ends with.
        column: heading of the column of `values`, where threads and allocator do not say it.
        clock: take the clock for ratios with one thread too, for work that several threads share even then.
        threads: set by the harness.
        allocator: set by the harness: "kept" (freed memory stays with the process, as in training) or "default".
    """

    title: str
    facts: str = ""
    ours: tuple[str, ...] = ()
    size: int = 0
    work: float = 0.0
    roof: float = 0.0
    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    column: str = ""
    clock: bool = False
    threads: int = 0
    allocator: str = ""

    @property
    def by_clock(self) -> bool:
        """Whether ratios are taken of the clock rather than of CPU time."""
        return self.clock or self.threads != 1

    def seconds(self, name: str) -> list[float]:
        """The times that ratios are taken of."""
        return (self.wall if self.by_clock else self.cpu)[name]

    def ratio(self, name: str, to: str) -> float:
        """How many times as long `name` takes as `to`."""
        return median(a / b for a, b in zip(self.seconds(name), self.seconds(to), strict=True))

    def share_of_roof(self, name: str) -> float:
        """Operations per second of `name` over those of the roof."""
        return self.work / self.roof / self.ratio(name, ROOF)


def race(
    case: Case,
    runs: Runs,
    args: argparse.Namespace,
    own_clock: bool = False,
    device: str = "cpu",
) -> Case:
    """Time the competitors and the roof in turns and put the seconds into the case.

    Args:
        case: what is compared.
        runs: competitor -> what it does; each is run once beforehand, to compile and to fill its caches.
        args: `rounds` and `seconds` bound the work: at least two rounds, and none begun after that many seconds.
        own_clock: each run returns the wall and CPU seconds that count.
        device: where the competitors work; on "cuda" the roof multiplies larger bfloat16 matrices.
    """
    edge = 256 if args.quick else 2048 if device == "cpu" else 8192
    case.roof = 2.0 * edge**3
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    left, right = (torch.rand(edge, edge, device=device, dtype=dtype) for _ in range(2))
    everyone: dict[str, Callable[[], Any]] = {**runs, ROOF: lambda: torch.mm(left, right)}
    say(f"  {case.title}: {', '.join(everyone)}")
    for run in everyone.values():
        run()
    names = list(everyone)
    began = time.perf_counter()
    for turn in range(args.rounds):
        if turn >= 2 and time.perf_counter() - began > args.seconds:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if own_clock and name != ROOF:
                wall, cpu = everyone[name]()
            else:
                wall, cpu = timed(everyone[name], device)
            case.wall.setdefault(name, []).append(wall)
            case.cpu.setdefault(name, []).append(cpu)
    return case


def timed(run: Callable[[], object], device: str = "cpu") -> tuple[float, float]:
    """Wall and CPU seconds of one call, the release of its result included."""
    finish(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    finish(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def finish(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def agree(case: Case, name: str, found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Note how far a competitor's result is from the oracle's.

    A peer may fail on several threads, which is then said beside its times: spconv 2.3.8 adds rows up on a CPU in a way
    that loses some of them there.

    Raises:
        SystemExit: it is further than `tolerance` times the oracle's largest magnitude, so the times compare nothing.
    """
    scale = float(wanted.abs().max()) or 1.0
    error = float((found.detach().double().cpu() - wanted.double().cpu()).abs().max()) / scale if len(wanted) else 0.0
    case.errors[name] = max(error, case.errors.get(name, 0.0))
    if error <= tolerance:
        return
    if name in case.ours or torch.get_num_threads() == 1:
        raise SystemExit(f"{case.title}: {name} differs from the oracle by {error:.1e} of its largest value")
    case.wrong.append(name)


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def parser(text: str | None, threads: Sequence[int] | None = None, rounds: int = 15) -> argparse.ArgumentParser:
    """The options that every script has."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    made.add_argument("--threads", type=int, nargs="+", default=threads, help="by default 1 and every core")
    made.add_argument("--rounds", type=int, default=rounds, help="most rounds of a case")
    made.add_argument("--seconds", type=float, default=60.0, help="no round of a case begins after these, from two on")
    made.add_argument("--allocator", nargs="+", choices=("kept", "default"), default=["kept"])
    made.add_argument("--samples", type=Path, default=ROOT.parent / "shared" / "data", help="folder of real samples")
    made.add_argument("--json", type=Path, help="file to write every figure to")
    made.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    # for the last process alone: what depends on neither threads nor allocator is measured once
    made.add_argument("--final", action="store_true", help=argparse.SUPPRESS)
    return made


def run(
    made: argparse.ArgumentParser, measure: Measure, summary: Summary | None = None, pin: bool = True, unit: str = "ms"
) -> int:
    """Measure in one process for each setting, then print the tables.

    Args:
        made: what `parser` returned, with the options of the script.
        measure: yields the cases.
        summary: lines to print after the tables.
        pin: keep a process to as many cores as it has threads: some libraries read no other setting.
        unit: of the tables, "ms" or "s".

    Returns:
        The exit code.
    """
    args = made.parse_args()
    if args.quick:
        args.rounds, args.threads, args.allocator = min(args.rounds, 2), args.threads or [1], args.allocator[:1]
    args.threads = args.threads or sorted({1, os.cpu_count() or 1})
    if args.worker is not None:
        return _work(args, measure)
    cases: list[Case] = []
    settings = [(threads, allocator) for allocator in args.allocator for threads in args.threads]
    for threads, allocator in settings:
        final = (threads, allocator) == settings[-1]
        found, ended = _in_process(threads, allocator, pin, final)
        cases += found
        if not ended:
            break
    result = {"machine": machine(), "command": sys.argv, "cases": [asdict(case) for case in cases]}
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(report(cases, unit)))
    if not ended:
        say(f"the run with {threads} threads and allocator {allocator} failed; the tables hold what came before")
        return 1
    if summary is not None:
        print("\n".join(summary(cases)))
    return 0


def _in_process(threads: int, allocator: str, pin: bool, final: bool) -> tuple[list[Case], bool]:
    """What a process of its own measured, and whether it came to the end."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    # MinkowskiEngine multiplies from within OpenMP threads: more of BLAS's own only wait beside them
    env.setdefault("OPENBLAS_NUM_THREADS", "1")
    command = [sys.executable, *sys.argv, "--threads", str(threads), "--allocator", allocator]
    command += ["--final"] if final else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cases.json"
        cores = sorted(os.sched_getaffinity(0))[:threads] if pin and hasattr(os, "sched_setaffinity") else None
        say(f"{threads} threads, allocator {allocator}")
        done = subprocess.run(
            [*command, "--worker", str(file)],
            env=env,
            preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
        )
        measured = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        return [Case(**case) for case in measured], done.returncode == 0


def _work(args: argparse.Namespace, measure: Measure) -> int:
    (threads,), (allocator,) = args.threads, args.allocator
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if allocator == "kept":
        keep_freed_memory()
    cases = []
    for case in measure(args):
        case.threads, case.allocator, case.ours = threads, allocator, tuple(case.ours)
        cases.append(asdict(case))
        # one case at a time, so that what an interrupted run measured is not lost
        args.worker.write_text(json.dumps(cases), encoding="utf-8")
    return 0


def machine() -> dict[str, Any]:
    """Processor, memory and versions."""
    described: dict[str, Any] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        described["processor"] = fields.get("model name", described["processor"])
        flags = fields.get("flags", "").split()
        described["instructions"] = [name for name in INSTRUCTIONS if name in flags]
    except OSError:
        pass
    if hasattr(os, "sysconf"):
        described["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if torch.cuda.is_available():
        described["processor"] += f" with {torch.cuda.get_device_name()}"
    described["versions"] = {"python": platform.python_version(), **versions()}
    described["commit"] = environment(torch.device("cpu"))["commit"]
    return described


def versions() -> dict[str, str]:
    """Version of each package that is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def report(cases: Sequence[Case], unit: str = "ms") -> Iterator[str]:
    """Every case as a Markdown table, the machine in front."""
    about = machine()
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield f"{about['processor']}, {about['cores']} cores, {' '.join(about.get('instructions', []))}; {packages}."
    yield ""
    for title in dict.fromkeys(case.title for case in cases):
        same = [case for case in cases if case.title == title]
        yield f"**{title}**" + (f" ({same[0].facts})" if same[0].facts else "")
        yield ""
        if same[0].wall:
            yield from times_table(same, unit)
        if any(case.values for case in same):
            yield from values_table(same)
        errors = {name: max(case.errors.get(name, 0.0) for case in same) for case in same for name in case.errors}
        if errors:
            worst = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
            yield f"Largest difference from the oracle, relative: {worst}."
            for case in same:
                for name in dict.fromkeys(case.wrong):
                    yield f"On {case.threads} threads {name} is wrong by {case.errors[name]:.1e}."
            yield ""


def times_table(cases: Sequence[Case], unit: str) -> Iterator[str]:
    """A row for each competitor; for each setting its time, least to most, share of the roof, and ratios to ours."""
    factor = {"ms": 1e3, "s": 1.0}[unit]
    head, line = "| |", "|---|"
    for case in cases:
        kind = "clock" if case.by_clock else "CPU time"
        several = "" if len({c.allocator for c in cases}) == 1 else f", {case.allocator} allocator"
        cells = [f"{case.threads} thread{'s' * (case.threads > 1)}{several}: {unit}, {kind}", "least to most"]
        cells += [] if case.by_clock else ["clock"]
        cells += [f"of {ROOF}"] if case.work else []
        cells += [f"/ {name}" for name in case.ours]
        head += " " + " | ".join(cells) + " |"
        line += "---|" * len(cells)
    yield head
    yield line
    for name in cases[0].wall:
        row = f"| {name} |"
        for case in cases:
            seconds = [value * factor for value in case.seconds(name)]
            cells = [figure(median(seconds)), f"{figure(min(seconds))} to {figure(max(seconds))}"]
            cells += [] if case.by_clock else [figure(median(case.wall[name]) * factor)]
            cells += [f"{case.share_of_roof(name):.2f}" if name != ROOF else "1"] if case.work else []
            cells += [f"{case.ratio(name, ours):.2f}" if name != ROOF else "" for ours in case.ours]
            row += " " + " | ".join(cells) + " |"
        yield row
    yield ""


def values_table(cases: Sequence[Case]) -> Iterator[str]:
    """A row for each named figure, a column for each setting."""
    columns = [case.column or f"{case.threads} thread{'s' * (case.threads > 1)}, {case.allocator}" for case in cases]
    yield "| | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(cases)
    for name in dict.fromkeys(name for case in cases for name in case.values):
        yield f"| {name} | " + " | ".join(figure(c.values[name]) if name in c.values else "" for c in cases) + " |"
    yield ""


def growth(cases: Sequence[Case], what: str) -> Iterator[str]:
    """How the time of each competitor grows with the size: microseconds per element, a column for each size."""
    for threads, allocator in dict.fromkeys((case.threads, case.allocator) for case in cases):
        same = sorted(
            (c for c in cases if (c.threads, c.allocator) == (threads, allocator) and c.size), key=lambda c: c.size
        )
        if len({case.size for case in same}) < 2:
            continue
        yield f"Microseconds per {what}, {threads} thread{'s' * (threads > 1)}:"
        yield ""
        yield "| | " + " | ".join(f"{case.size:,}" for case in same) + " |"
        yield "|---|" + "---|" * len(same)
        for name in dict.fromkeys(name for case in same for name in case.wall if name != ROOF):
            cells = [figure(1e6 * median(c.seconds(name)) / c.size) if name in c.wall else "" for c in same]
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""


def figure(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"
