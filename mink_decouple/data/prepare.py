"""A raw download to a prepared folder: resumable at any moment, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from mink_decouple.data.adapters import Adapter
from mink_decouple.data.manifest import (
    MANIFEST,
    UNFINISHED,
    Head,
    Manifest,
    SceneRecord,
    add_unfinished,
    pack_head,
    read_manifest,
    read_unfinished,
    start_unfinished,
    write_manifest,
)
from mink_decouple.data.prepare_pool import write_scenes
from mink_decouple.data.prepare_scene import IGNORED, sources
from mink_decouple.data.prepared import SCENES
from mink_decouple.data.raw import RawDataset, RawScene
from mink_decouple.data.tensors import PART, SUFFIX, open_tensors

LOCK = ".lock"


@dataclass(frozen=True, eq=False)
class Summary:
    """What a call of `prepare` did.

    Attributes:
        manifest: of the folder.
        kept: names of the scenes that were there.
        done: names of the scenes that were prepared.
        seconds: the sum over the prepared scenes of the time each took on its core.
        lacking: what the download lacks of its benchmark, a line each.
    """

    manifest: Manifest
    kept: tuple[str, ...]
    done: tuple[str, ...]
    seconds: float
    lacking: tuple[str, ...]


def prepare(
    make: Adapter, root: Path, output: Path, workers: int | None = None, scenes: Sequence[str] | None = None
) -> Summary:
    """Prepare the scenes of a raw dataset that `output` does not hold yet.

    A scene is kept where its file is whole and was made of the same source files. Killed at any moment, the same call
    ends with the bytes of an undisturbed one.

    Args:
        make: root -> adapter; a function of a module, so that other processes can import it.
        root: the download.
        output: the folder to write; new, empty or prepared before from the same dataset by the same adapter.
        workers: processes; None for one per core, 1 for none but this one.
        scenes: names of scenes or groups; None for all.

    Raises:
        FileNotFoundError: `root` is not such a download.
        ValueError: `output` holds something else or another process writes to it, an unknown scene, or scenes that
            cannot be read; the others are then done and kept, and there is no manifest.
    """
    raw = make(root)
    listed = _by_name(raw.scenes())
    head = Head(raw.name, raw.version, raw.classes)
    if len(raw.classes) > IGNORED:
        raise ValueError(f"{root}: {len(raw.classes)} classes; at most {IGNORED} fit a prepared file")
    wanted = _wanted(root, listed, scenes)
    _found(output, head)  # refuses a foreign folder before anything is written to it
    (output / SCENES).mkdir(parents=True, exist_ok=True)
    with _alone(output):
        before = _found(output, head)  # another process may have added scenes since
        for part in (*output.glob(f".*{PART}"), *(output / SCENES).glob(f".*{PART}")):
            part.unlink(missing_ok=True)
        kept = _kept(raw, output, listed, before)
        todo = [listed[name] for name in wanted if name not in kept]
        seconds, done = 0.0, dict(kept)
        if todo or (output / UNFINISHED).is_file() or before is None:
            start_unfinished(output, head, kept.values())
        failed: dict[str, str] = {}
        for name, result, spent in write_scenes(make, root, raw, output / SCENES, todo, workers):
            seconds += spent
            if isinstance(result, SceneRecord):
                add_unfinished(output, result)
                done[name] = result
            else:
                failed[name] = result
        if failed:
            lines = [f"scene {name}: {failed[name]}" for name in sorted(failed)]
            lines += _incomplete(raw.lacking())
            lines.append(
                f"{output}: {len(failed)} scenes failed, {len(done)} are done and kept; mend the files above and "
                "run the same prepare command again"
            )
            raise ValueError("\n".join(lines))
        manifest = Manifest(head, {name: done[name] for name in sorted(done)}, len(listed) - len(done))
        write_manifest(output, manifest)
        (output / UNFINISHED).unlink(missing_ok=True)
    return Summary(manifest, tuple(sorted(kept)), tuple(scene.name for scene in todo), seconds, tuple(raw.lacking()))


def describe(summary: Summary) -> str:
    """Lines for people: what was done, how fast, and every repair."""
    records = summary.manifest.scenes
    points = sum(records[name].points for name in summary.done)
    lines = [f"{len(summary.done)} scenes prepared, {len(summary.kept)} kept"]
    if summary.done:
        rate = points / max(summary.seconds, 1e-9)
        lines.append(
            f"{points:,} points in {summary.seconds:.1f} s of one core: {rate:,.0f} points per second and core"
        )
    if summary.manifest.missing:
        lines.append(
            f"{summary.manifest.missing} scenes of the download are left out; prepare without --scenes adds them"
        )
    lines += _incomplete(summary.lacking)
    for name in records:
        for repair in records[name].repairs:
            line = "" if repair.line is None else f" line {repair.line}"
            lines.append(f"repaired {repair.file}{line}: {repair.found} -> {repair.done}")
    return "\n".join(lines)


def _incomplete(lacking: Sequence[str]) -> list[str]:
    return [f"not the whole of the benchmark: {line}" for line in lacking]


def _by_name(scenes: Sequence[RawScene]) -> dict[str, RawScene]:
    listed: dict[str, RawScene] = {}
    for scene in scenes:
        if scene.name in listed or scene.name != Path(scene.name).name or scene.name.startswith("."):
            raise ValueError(f"scene '{scene.name}': listed twice, or no valid file name")
        listed[scene.name] = scene
    return listed


def _wanted(root: Path, listed: dict[str, RawScene], asked: Sequence[str] | None) -> list[str]:
    if asked is None:
        return list(listed)
    names: dict[str, None] = {}
    for entry in asked:
        found = [name for name, scene in listed.items() if entry in (name, scene.group)]
        if not found:
            choices = ", ".join(list(listed)[:10]) + (", ..." if len(listed) > 10 else "")
            raise ValueError(f"--scenes {entry}: {root} has no such scene or group; it has {choices}")
        names.update(dict.fromkeys(found))
    return sorted(names)


def _found(output: Path, head: Head) -> Manifest | None:
    """What an output folder holds so far; ValueError where that is not of the same making."""
    if not output.exists():
        return None
    if not output.is_dir():
        raise ValueError(f"{output}: is a file; choose a folder as --output")
    if (output / UNFINISHED).is_file():
        before = read_unfinished(output)
    elif (output / MANIFEST).is_file():
        before = read_manifest(output)
    else:
        litter = [path.name for path in output.iterdir() if path.name not in (SCENES, LOCK) and path.suffix != PART]
        if litter or ((output / SCENES).is_dir() and any((output / SCENES).glob(f"[!.]*{SUFFIX}"))):
            raise ValueError(f"{output}: not empty and not a prepared folder; choose another --output")
        return None
    old, new = pack_head(before.head), pack_head(head)
    for key in ("dataset", "adapter", "classes", "ignored"):
        if old[key] != new[key]:
            now = f"with {key} {_short(old[key])}, now it would be {_short(new[key])}"
            other = "by another version, or with other options or names of columns"
            raise ValueError(
                f"{output}: prepared {other if key == 'adapter' else now}; "
                "choose another --output, or delete this one to prepare it anew"
            )
    return before


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _kept(
    raw: RawDataset, output: Path, listed: dict[str, RawScene], before: Manifest | None
) -> dict[str, SceneRecord]:
    """Records of the scenes that need not be prepared again, with their present split and group."""
    kept = {}
    for name, record in (before.scenes if before is not None else {}).items():
        path = output / SCENES / f"{name}{SUFFIX}"
        if name not in listed:
            if path.exists():
                raise ValueError(
                    f"{path}: {raw.root} has no scene '{name}'; delete the file, or choose another --output"
                )
            continue
        if not path.is_file() or path.stat().st_size != record.bytes or sources(raw, listed[name]) != record.sources:
            continue
        try:
            open_tensors(path)
        except ValueError:
            continue
        kept[name] = replace(record, split=listed[name].split, group=listed[name].group)
    return kept


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep a second process out of the folder; the lock of a killed process is void."""
    path = output / LOCK
    with path.open("w") as file:
        locked = _lock(file)
        # a process that ended in between has taken its file away, and with it the lock on it
        if locked is False or (locked and not _is_at(file, path)):
            raise ValueError(f"{output}: another process prepares into this folder; wait for it")
        try:
            yield
        finally:
            if locked:  # before it is closed: afterwards it may be the lock of another process
                path.unlink(missing_ok=True)
    if not locked:
        with suppress(OSError):  # another process has it open, which some systems refuse
            path.unlink()


def _lock(file: IO[str]) -> bool | None:
    """Whether the lock is ours now; None where system or file system have none."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        return None
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
