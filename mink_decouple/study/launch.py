"""The runs of a grid as processes of their own: found, begun, continued, several at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from statistics import mean
from typing import Any

from mink_decouple.config import CheckpointsConfig, Config, dump, load_config
from mink_decouple.study.grid import Cell

MEMORY_OF_A_RUN = 3 * 2**30
"""Bytes that a training on a CPU is taken to need, for how many may run at once."""
TRAIN = (sys.executable, "-c", "import sys; from mink_decouple.cli import main; sys.exit(main())", "train")
GRACE_SECONDS = 10.0
"""A terminal's Ctrl-C reaches the trainings, too; so long they are left to end by it, since a second signal ends them
before they have saved."""
STATES = ("done", "recorded", "begun", "cut off", "to do")


@dataclass(frozen=True)
class Outcome:
    """What a finished run gave: the content of its metrics.json, and the seconds of its stages."""

    metrics: dict[str, Any]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """A training that did not end well: its cell, its log and what the log says last."""

    cell: Cell
    log: Path
    reason: str


def outcome(folder: Path) -> Outcome | None:
    """The outcome of a run folder; None where the run is not finished."""
    metrics, timing = folder / "metrics.json", folder / "timing.json"
    if not metrics.is_file():
        return None
    seconds = json.loads(timing.read_text(encoding="utf-8"))["seconds"] if timing.is_file() else {}
    return Outcome(json.loads(metrics.read_text(encoding="utf-8")), seconds)


def state(folder: Path, recorded: bool) -> str:
    """One of `STATES`: what is to be done for a run is nothing, nothing, going on, beginning anew, beginning."""
    if (folder / "metrics.json").is_file():
        return "done"
    if recorded:
        return "recorded"
    if any((folder / "checkpoints").glob("last*.pt")):  # earlier ones serve where the newest cannot be read
        return "begun"
    return "cut off" if folder.exists() and any(folder.iterdir()) else "to do"


def require_settings(folder: Path, cell: Cell) -> None:
    """Raises ValueError where the folder of a cell holds a run of other settings."""
    file = folder / "config.yaml"
    if file.is_file() and _alike(load_config(file)) != _alike(cell.config):
        raise ValueError(f"{folder}: holds a run of other settings; choose another --output")


def _alike(config: Config) -> Config:
    """Without what a run keeps, which no figure depends on."""
    return replace(config, checkpoints=CheckpointsConfig())


def simultaneous(device: str, asked: int | None) -> int:
    """How many trainings run at once: as asked, one a GPU, or one a core as far as memory goes."""
    if asked is not None:
        return asked
    if device == "cuda":
        return _gpus()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else MEMORY_OF_A_RUN
    return max(1, min(os.cpu_count() or 1, memory // MEMORY_OF_A_RUN))


class Launcher:
    """Trains cells in processes, `jobs` at once.

    Args:
        output: folder of the run folders and their logs.
        jobs: trainings at once.
        device: "cpu" or "cuda"; the GPUs are taken in turn, several trainings to one where there are more.
        leaders: by the name of a cell, that of the run whose pre-training it takes over, which comes earlier or is
            there already. It waits until the pre-training is over, and where it fails trains its own.

    A process has its share of the cores. The ones still running are stopped where the caller is interrupted: they save
    their step, and what they did is kept.
    """

    def __init__(self, output: Path, jobs: int, device: str, leaders: Mapping[str, str] | None = None) -> None:
        self.output, self.jobs, self.device = output, jobs, device
        self.leaders = leaders or {}
        self._training: set[str] = set()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self._places: SimpleQueue[int] = SimpleQueue()
        for place in range(jobs):
            self._places.put(place)

    def run(
        self, cells: Sequence[Cell], finished: Callable[[Cell, Path, float], None], failed: Callable[[Failure], None]
    ) -> None:
        """Train every cell; `finished` and `failed` are called in this thread as each ends.

        Args:
            cells: to train, in this order.
            finished: called with cell, run folder and seconds of wall-clock time.
            failed: called with what went wrong.
        """
        before = _on_termination(_interrupt)
        with ThreadPoolExecutor(self.jobs) as pool:
            self._training = {cell.name for cell in cells}
            waiting = {pool.submit(self._train, cell): cell for cell in cells}
            try:
                for future in as_completed(waiting):
                    cell = waiting[future]
                    code, seconds, before_it = future.result()
                    folder = self.output / cell.name
                    if code == 0 and (folder / "metrics.json").is_file():
                        finished(cell, folder, seconds)
                    else:
                        failed(Failure(cell, self._log(cell), _reason(code, self._log(cell), before_it)))
            except BaseException as error:
                by_key = isinstance(error, KeyboardInterrupt) and not isinstance(error, _Terminated)
                self._stop(GRACE_SECONDS if by_key else 0.0)
                for future in waiting:
                    future.cancel()
                raise
            finally:
                _on_termination(before)

    def _train(self, cell: Cell) -> tuple[int, float, int]:
        """Exit code and seconds of a training, and the bytes that its log had before."""
        place, began = self._places.get(), time.perf_counter()
        try:
            folder, config = self.output / cell.name, cell.config
            if state(folder, False) == "cut off":
                set_aside(folder)
            if cell.name in self.leaders.values():
                config = replace(config, checkpoints=replace(config.checkpoints, stages=True))
            settings = self.output / f"{cell.name}.yaml"
            settings.write_text(dump(config), encoding="utf-8")
            how = ["--resume"] if state(folder, False) == "begun" else self._pretrained(cell)
            began = time.perf_counter()
            command = [*TRAIN, "--config", str(settings), "--output", str(folder), "--device", self.device, *how]
            with self._log(cell).open("ab") as log:
                before_it = log.tell()
                with self._lock:
                    if self._stopped:
                        return 130, 0.0, before_it
                    process = subprocess.Popen(
                        command, stdout=log, stderr=subprocess.STDOUT, env=self._environment(place)
                    )
                    self._running.add(process)
                code = process.wait()
            with self._lock:
                self._running.discard(process)
            return code, time.perf_counter() - began, before_it
        finally:
            self._training.discard(cell.name)
            self._places.put(place)

    def _pretrained(self, cell: Cell) -> list[str]:
        """Wait for the pre-training that a cell takes over; the arguments for that, none where there is none."""
        leader = self.leaders.get(cell.name)
        if leader is None:
            return []
        file = pretraining_of(self.output / leader)
        while not file.is_file() and leader in self._training and not self._stopped:
            time.sleep(1.0)
        return ["--pretrained", str(file)] if file.is_file() else []

    def _environment(self, place: int) -> dict[str, str]:
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self.device == "cuda":
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            names = [name for name in visible.split(",") if name] or [str(i) for i in range(_gpus())]
            env["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]
        return env

    def _log(self, cell: Cell) -> Path:
        return self.output / f"{cell.name}.log"

    def _stop(self, grace: float) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        until = time.monotonic() + grace
        while any(process.poll() is None for process in running) and time.monotonic() < until:
            time.sleep(0.1)
        for process in running:
            if process.poll() is None:
                process.terminate()  # SIGINT may be ignored: a shell's background jobs begin so


def pretraining_of(folder: Path) -> Path:
    """The checkpoint of a run folder that other runs can begin after."""
    return folder / "checkpoints" / "pretrain.pt"


def set_aside(folder: Path) -> Path:
    """Rename the folder of a run that stopped before its first checkpoint; nothing in it is lost."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.aborted-{number}")).exists():
        number += 1
    os.replace(folder, target)
    return target


def expected(cell: Cell, known: Sequence[tuple[Cell, float]]) -> float | None:
    """Seconds that a run is expected to take, from finished ones that are like it; None where there is none.

    The nearest kind that was ever finished decides: the same group, the same backbone and title, the same backbone,
    any.
    """
    for like in (
        lambda other: other.group == cell.group,
        lambda other: (other.config.backbone, other.title) == (cell.config.backbone, cell.title),
        lambda other: other.config.backbone == cell.config.backbone,
        lambda other: True,
    ):
        found = [seconds for other, seconds in known if like(other)]
        if found:
            return mean(found)
    return None


def _reason(code: int, log: Path, begin: int) -> str:
    """Why a training ended: the signal that killed it, or the last line of its log behind the first `begin` bytes."""
    if code < 0:
        name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
        return f"ended by {name}" + ("; the system does that where memory runs out" if name == "SIGKILL" else "")
    text = log.read_bytes()[begin:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}, nothing said"


def _gpus() -> int:
    """GPUs of this machine, at least one: the training says so where there is none."""
    import torch

    return max(1, torch.cuda.device_count())


class _Terminated(KeyboardInterrupt):
    """SIGTERM came, to this process alone."""


def _interrupt(number: int, frame: Any) -> None:
    raise _Terminated


def _on_termination(handler: Any) -> Any:
    """Set the handler of SIGTERM and return the one before; elsewhere than in the main thread nothing can be set."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler if handler is not None else signal.SIG_DFL)
