"""One experiment from its file to its table: what is there, what is missing, train that, say what came out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mink_decouple.config import Config, digest, load_config, pretraining
from mink_decouple.report import records as kept
from mink_decouple.study.grid import Cell, expand, read_experiment
from mink_decouple.study.launch import (
    Failure,
    Launcher,
    Outcome,
    expected,
    outcome,
    pretraining_of,
    require_settings,
    simultaneous,
    state,
)
from mink_decouple.study.summary import duration, table
from mink_decouple.typed import ConfigError


class Study:
    """The runs of one experiment, in a folder and in a file of records.

    Args:
        path: of the experiment.
        output: folder of the run folders.
        overrides: settings that win over those of the file.
        only: texts, one of which the name of a run must hold; None: all runs.
        seeds: in place of the file's.
        records: file that finished runs are added to, and whose runs are not run again.

    Raises:
        FileNotFoundError, ConfigError, ValueError: the experiment's file or its records are wrong, no run is left, or a
            run folder holds other settings.
    """

    def __init__(
        self,
        path: Path,
        output: Path,
        overrides: dict[str, Any] | None = None,
        only: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        records: Path | None = None,
    ) -> None:
        self.experiment = read_experiment(path)
        if seeds is not None:
            self.experiment = replace(self.experiment, seeds=list(seeds))
        self.output, self.records = output, records
        every = expand(self.experiment, path, overrides)
        self.cells = [cell for cell in every if only is None or any(text in cell.name for text in only)]
        if not self.cells:
            raise ValueError(
                f"--only {' '.join(only or ())}: fits none of the {len(every)} runs, such as {every[0].name}"
            )
        # entries of equal settings, such as table5/row3 and table6/gt, are one run: the first one's
        self._first: dict[tuple[str, int], Cell] = {}
        for cell in self.cells:
            if self._first.setdefault(self._key(cell), cell) is cell:
                require_settings(output / cell.name, cell)
        found = kept.load([records]) if records is not None and records.exists() else []
        self.recorded = {(record.digest, record.seed): record for record in found}

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell: that of the first one of equal settings and seed."""
        return self.output / self._first[self._key(cell)].name

    def state(self, cell: Cell) -> str:
        """See `launch.state`."""
        return state(self.folder(cell), self._key(cell) in self.recorded)

    def finished(self) -> list[tuple[Cell, Outcome]]:
        """Every finished run of the grid, from its folder or from the records."""
        found = []
        for cell in self.cells:
            one = outcome(self.folder(cell))
            if one is None and (record := self.recorded.get(self._key(cell))) is not None:
                one = Outcome(record.metrics, record.cost["seconds"])
            if one is not None:
                found.append((cell, one))
        return found

    def listing(self) -> Iterator[str]:
        """A line for every run: its state and the time it is expected to take."""
        known = self._seconds()
        for cell in self.cells:
            seconds = expected(cell, known)
            takes = "" if seconds is None else duration(seconds)
            yield f"{self.state(cell):9}{takes:>12}  {cell.name}"
        counts = {
            one: sum(self.state(cell) == one for cell in self.cells)
            for one in dict.fromkeys(map(self.state, self.cells))
        }
        yield ", ".join(f"{number} {one}" for one, number in counts.items())

    def run(self, device: str, jobs: int | None, check: Callable[[Config], None]) -> list[Failure]:
        """Train what is missing, then return what failed.

        Args:
            device: "cpu" or "cuda".
            jobs: trainings at once; None: those of the file, or as many as the machine allows.
            check: raises ValueError or OSError where settings cannot be trained.

        Raises:
            ConfigError: every message of `check` once, before anything trains.
        """
        jobs = simultaneous(device, jobs or self.experiment.jobs)
        trained = list(self._first.values())
        missing = [cell for cell in trained if self.state(cell) not in ("done", "recorded")]
        # begun ones go on, and check themselves as far as they need
        _check_all([cell for cell in missing if self.state(cell) != "begun"], check)
        self.output.mkdir(parents=True, exist_ok=True)
        for cell in trained:
            if self.state(cell) == "done":
                self._record(self.folder(cell))
            elif self.state(cell) == "cut off":
                print(f"{cell.name}: stopped before its first checkpoint; set aside and begun anew", flush=True)
        leaders = self._leaders(missing)
        missing.sort(key=lambda cell: cell.name not in leaders.values())
        if leaders:
            print(f"{len(leaders)} of {len(missing)} trainings take over the pre-training of another", flush=True)
        failures: list[Failure] = []
        with _progress(len(trained), len(trained) - len(missing)) as advance:

            def done(cell: Cell, folder: Path, seconds: float) -> None:
                self._record(folder)
                missing.remove(cell)
                known = self._seconds()
                left = [self._left(other, known, leaders) or seconds for other in missing]
                one = outcome(folder)
                assert one is not None
                scores = ", ".join(
                    f"{name} {_percent(one.metrics[key])}" for name, key in (("mIoU", "miou"), ("tail", "tail_iou"))
                )
                rest = f"; about {duration(sum(left) / min(jobs, len(left)))} left" if left else ""
                advance(f"{cell.name}: {scores}, {duration(seconds)}{rest}")

            def failed(failure: Failure) -> None:
                missing.remove(failure.cell)
                failures.append(failure)
                advance(f"{failure.cell.name}: FAILED, {failure.reason}")

            Launcher(self.output, jobs, device, leaders).run(list(missing), done, failed)
        return failures

    def table(self) -> Iterator[str]:
        """The figures so far as Markdown."""
        return table(self.finished(), self.experiment.reference)

    def write_records(self) -> Path:
        """Every finished run, by the titles of this experiment, as `OUTPUT/records.json`."""
        found = []
        for cell in self.cells:
            if self.state(cell) == "done":
                found.append(replace(kept.read_run(self.folder(cell)), title=cell.title))
            elif (record := self.recorded.get(self._key(cell))) is not None:
                found.append(replace(record, title=cell.title))
        path = self.output / "records.json"
        kept.save(path, found)
        return path

    def report_arguments(self) -> list[str]:
        """What `compare` is to be told for a report of the finished runs; writes their records first."""
        titles = {cell.title for cell, _ in self.finished()}
        asked = {"--reference": self.experiment.reference, "--title": self.experiment.title}
        named = [
            part
            for flag, text in asked.items()
            if text and (flag == "--title" or text in titles)
            for part in (flag, text)
        ]
        # runs that others trained are records alone, and a folder without any run is refused
        folder = [str(self.output)] if any(self.state(cell) == "done" for cell in self.cells) else []
        return [*folder, str(self.write_records()), "--output", str(self.output / "report.html"), *named]

    def _seconds(self) -> list[tuple[Cell, float]]:
        return [(cell, sum(one.seconds.values())) for cell, one in self.finished() if one.seconds]

    def _leaders(self, missing: Sequence[Cell]) -> dict[str, str]:
        """By the name of a run to begin, that of the one whose pre-training it takes over: the same to the last bit."""
        found = dict[tuple[str, int], str]()
        for folder in sorted(self.output.iterdir()):
            if pretraining_of(folder).is_file() and (folder / "config.yaml").is_file():
                found.setdefault(_pretraining_key(load_config(folder / "config.yaml")), folder.name)
        leaders = {}
        for cell in missing:
            leader = found.setdefault(_pretraining_key(cell.config), cell.name)
            if leader != cell.name and self.state(cell) != "begun":
                leaders[cell.name] = leader
        return leaders

    def _left(self, cell: Cell, known: Sequence[tuple[Cell, float]], leaders: Mapping[str, str]) -> float | None:
        """Seconds that a run is expected to take."""
        if cell.name not in leaders:
            return expected(cell, known)
        spared = {cell.name: one.seconds.get("pretrain", 0.0) for cell, one in self.finished()}
        return expected(cell, [(other, seconds - spared[other.name]) for other, seconds in known])

    def _key(self, cell: Cell) -> tuple[str, int]:
        return digest(cell.config), cell.config.seed

    def _record(self, folder: Path) -> None:
        if self.records is None:
            return
        record = kept.read_run(folder)
        if (record.digest, record.seed) not in self.recorded:
            self.recorded[record.digest, record.seed] = record
            kept.add(self.records, record)


def _check_all(cells: Sequence[Cell], check: Callable[[Config], None]) -> None:
    errors: dict[str, None] = {}
    # once for all seeds of a configuration, which differ in nothing that is checked
    for cell in {repr(replace(cell.config, seed=0)): cell for cell in cells}.values():
        try:
            check(cell.config)
        except (ValueError, OSError) as error:
            errors[f"{cell.title}: {error}"] = None
    if errors:
        raise ConfigError("\n".join(errors))


def _pretraining_key(config: Config) -> tuple[str, int]:
    return digest(pretraining(config)), config.seed


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, with lines above it; lines alone elsewhere."""
    bar = tqdm(total=total, initial=done, unit="run", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    numbers = iter(range(done + 1, total + 1))

    def advance(line: str) -> None:
        bar.update()
        tqdm.write(f"{time.strftime('%H:%M:%S')} [{next(numbers)}/{total}] {line}", file=sys.stdout)
        sys.stdout.flush()

    with bar:
        yield advance


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
