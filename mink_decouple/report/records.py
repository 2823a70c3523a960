"""Records: a finished run as plain data small enough to keep and to share, made from its run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

FORMAT = 1
DIGITS = 5
"""Significant digits that a file of records keeps of a number."""


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        title: what it is called in tables: its recipe, or the title of an experiment's entry.
        backbone: of the network.
        labels: the budget as text, "1pt".
        recipe: of the configuration.
        seed: of the run.
        dataset: `data.dataset`, or the last part of `data.root` for a folder of clouds.
        digest: of the settings without the seed (`config.digest`).
        classes: names.
        colors: (C, 3) palette; None where the run folder says nothing.
        groups: "head", "waist", "tail" -> class ids; empty where the run folder says nothing.
        metrics: scores and confusion matrix of metrics.json, those after the pre-training under "pretrained".
        label_budget: of metrics.json.
        parameters: of metrics.json.
        history: the lines of metrics.jsonl.
        cost: `seconds` by stage, `peak_memory_mib`, `threads`, `device`, `processor`, `commit`, `versions`; None where
            unknown.
    """

    title: str
    backbone: str
    labels: str
    recipe: str
    seed: int
    dataset: str
    digest: str
    classes: list[str]
    colors: list[list[int]] | None
    groups: dict[str, list[int]]
    metrics: dict[str, Any]
    label_budget: dict[str, Any]
    parameters: dict[str, int]
    history: list[dict[str, Any]]
    cost: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, str, str, int, str]:
        """What records are sorted by; two of one key are the same run."""
        return self.dataset, self.backbone, self.labels, self.title, self.seed, self.digest

    def pack(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> Record:
        """The inverse of `pack`.

        Raises:
            ValueError: names what is missing or unknown.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(packed, dict) or set(packed) != names:
            found = set(packed) if isinstance(packed, dict) else set()
            wrong = ", ".join(sorted(found ^ names)) or type(packed).__name__
            raise ValueError(f"a record with other keys than this version's ({wrong})")
        return cls(**packed)


def read_run(folder: Path) -> Record:
    """The record of a run folder.

    Raises:
        FileNotFoundError: the run is not finished, or this is no run folder.
        ValueError: a file of it cannot be read.
    """
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(f"{folder}: no metrics.json; not a finished run")
    if not (folder / "environment.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no environment.json; not a training run, perhaps the folder of an evaluation"
        )
    metrics, environment, timing = (_read(folder / f"{name}.json") for name in ("metrics", "environment", "timing"))
    if "digest" not in environment:
        raise ValueError(f"{folder}: environment.json has no digest of the settings; only runs of this version compare")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return _record(folder, metrics, config, environment, timing)
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(
            f"{folder}: metrics.json, config.yaml, environment.json or timing.json is damaged or not of this program "
            f"({reason})"
        ) from None


def _record(
    folder: Path, metrics: dict[str, Any], config: dict[str, Any], environment: dict[str, Any], timing: dict[str, Any]
) -> Record:
    apart = ("classes", "colors", "groups", "label_budget", "parameters", "seconds")
    names = metrics.get("classes") or list(metrics["iou"])
    data, versions = config["data"], environment.get("versions", {})
    return Record(
        title=config["recipe"],
        backbone=config["backbone"],
        labels=_budget(str(config["labels"]["budget"]), metrics["label_budget"], int(config["seed"])),
        recipe=config["recipe"],
        seed=int(config["seed"]),
        dataset=Path(data["root"]).name if data["dataset"] == "folder" and data.get("root") else data["dataset"],
        digest=environment["digest"],
        classes=list(names),
        colors=metrics.get("colors"),
        groups={key: list(ids) for key, ids in (metrics.get("groups") or {}).items()},
        metrics={key: value for key, value in metrics.items() if key not in apart},
        label_budget=metrics["label_budget"],
        parameters=metrics["parameters"],
        history=_lines(folder / "metrics.jsonl"),
        cost={
            "seconds": timing.get("seconds", {}),
            "peak_memory_mib": timing.get("peak_memory_mib"),
            "threads": timing.get("threads", environment.get("threads")),
            "device": timing.get("device", environment.get("device")),
            "processor": environment.get("device_name") or None,
            "commit": environment.get("commit"),
            "versions": versions,
        },
    )


def _budget(asked: str, found: dict[str, Any], seed: int) -> str:
    """The budget as text; of labels drawn to a file by the run's own seed, that of the draw: one for all seeds."""
    drawn = asked.endswith(".npz") and "budget" in found and found.get("seed") == seed
    return f"{found['budget']} (file)" if drawn else asked


def load(paths: Iterable[Path]) -> list[Record]:
    """Records of run folders, of folders that hold run folders, and of files of records, in this order.

    Raises:
        FileNotFoundError: no such path, or a folder without any finished run.
        ValueError: a file that holds no records.
    """
    found: list[Record] = []
    for path in paths:
        if path.is_dir():
            found += [read_run(folder) for folder in run_folders(path)]
        elif path.is_file():
            found += _records_of(path)
        else:
            raise FileNotFoundError(f"{path}: no such run folder or file of records")
    return found


def run_folders(path: Path) -> list[Path]:
    """The finished run folders that a folder is or holds.

    Raises:
        FileNotFoundError: there is none.
    """
    if (path / "metrics.json").is_file():
        return [path]
    inner = sorted(folder.parent for folder in path.glob("*/metrics.json") if (folder.parent / "config.yaml").is_file())
    if not inner:
        raise FileNotFoundError(f"{path}: holds no finished run (a folder with metrics.json)")
    return inner


def add(path: Path, *records: Record) -> None:
    """Add runs to a file of records, made where there is none; not those whose settings and seed it already holds.

    Several programs may add to one file: each keeps what the others have added since it began.

    Raises:
        ValueError: the file holds no records.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        found = load([path]) if path.exists() else []
        known = {(record.digest, record.seed) for record in found}
        new = [record for record in records if (record.digest, record.seed) not in known]
        if new:
            save(path, [*found, *new])


def save(path: Path, records: Sequence[Record]) -> None:
    """Write a file of records, whole or not at all: a line each, sorted by `key`, numbers of `DIGITS` digits."""
    lines = [json.dumps(_short(record.pack()), allow_nan=False) for record in sorted(records, key=lambda r: r.key)]
    text = f'{{"format": {FORMAT}, "records": [\n' + ",\n".join(lines) + "\n]}\n"
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _records_of(path: Path) -> list[Record]:
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("records"), list):
        raise ValueError(f"{path}: not a file of records (format {FORMAT})")
    try:
        return [Record.unpack(packed) for packed in content["records"]]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON lines ({error})") from None


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_short(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
