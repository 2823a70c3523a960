"""The manifest of a prepared dataset: what it was made of, by which adapter, and what each scene holds."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mink_decouple.data.classes import Classes
from mink_decouple.data.raw import Repair

FORMAT = 1
MANIFEST = "manifest.json"
UNFINISHED = "unfinished.jsonl"
"""Stands in for the manifest while some scene is not done: the head, then a line per scene done."""


@dataclass(frozen=True)
class Source:
    """A file that a scene was read from.

    Attributes:
        file: its name relative to the dataset's root.
        bytes: its size.
        modified: when it was last written, nanoseconds since 1970. Label files of one scan all have one size, so size
            alone does not tell a new download from an old one.
    """

    file: str
    bytes: int
    modified: int


@dataclass(frozen=True, eq=False)
class Head:
    """What all scenes of a prepared dataset have in common.

    Attributes:
        dataset: name of the adapter's dataset.
        version: of the adapter.
        classes: of the dataset.
        format: of the files.
    """

    dataset: str
    version: int
    classes: Classes
    format: int = FORMAT


@dataclass(frozen=True)
class SceneRecord:
    """One prepared scene.

    Attributes:
        name: unique in the dataset.
        split: the split it belongs to by default, or "".
        group: what splits may name instead of its scenes, or "".
        points: N.
        labelled: labelled points per class in train-id order; None for a scene without labels.
        ignored: points with an ignored label.
        low: lowest world corner, metres.
        high: highest world corner, metres.
        checksum: SHA-256 of the scene's file.
        bytes: size of the scene's file.
        sources: the files it was made of.
        repairs: what was mended.
    """

    name: str
    split: str
    group: str
    points: int
    labelled: tuple[int, ...] | None
    ignored: int
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    checksum: str
    bytes: int
    sources: tuple[Source, ...]
    repairs: tuple[Repair, ...]


@dataclass(frozen=True, eq=False)
class Manifest:
    """A prepared dataset.

    Attributes:
        head: what its scenes have in common.
        scenes: name -> record, sorted by name.
        missing: number of scenes of the download that were left out on purpose.
    """

    head: Head
    scenes: Mapping[str, SceneRecord]
    missing: int = 0


def pack_head(head: Head) -> dict[str, Any]:
    """A head as plain data."""
    classes = head.classes
    return {
        "format": head.format,
        "dataset": head.dataset,
        "adapter": head.version,
        "classes": [
            {
                "name": name,
                "color": classes.colors[i].tolist(),
                "raw": [r for r, t in classes.raw_ids.items() if t == i],
            }
            for i, name in enumerate(classes.names)
        ],
        "ignored": sorted(classes.ignored),
    }


def unpack_head(packed: Mapping[str, Any]) -> Head:
    """The inverse of `pack_head`; KeyError, TypeError or ValueError for anything else."""
    entries = packed["classes"]
    classes = Classes(
        tuple(entry["name"] for entry in entries),
        np.array([entry["color"] for entry in entries], np.uint8),
        {int(raw): i for i, entry in enumerate(entries) for raw in entry["raw"]},
        frozenset(int(raw) for raw in packed["ignored"]),
    )
    return Head(str(packed["dataset"]), int(packed["adapter"]), classes, int(packed["format"]))


def pack_scene(record: SceneRecord) -> dict[str, Any]:
    """A record as plain data."""
    return dataclasses.asdict(record)


def unpack_scene(packed: Mapping[str, Any]) -> SceneRecord:
    """The inverse of `pack_scene`; KeyError, TypeError or ValueError for anything else."""
    values = dict(packed)
    for key in ("low", "high"):
        values[key] = tuple(float(v) for v in values[key])
    if values["labelled"] is not None:
        values["labelled"] = tuple(int(n) for n in values["labelled"])
    values["sources"] = tuple(Source(**source) for source in values["sources"])
    values["repairs"] = tuple(Repair(**repair) for repair in values["repairs"])
    return SceneRecord(**values)


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `root/manifest.json` in one step, a line per scene; equal content gives equal bytes."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}," for key, value in pack_head(manifest.head).items()]
    lines += [f'"missing": {manifest.missing},', '"scenes": [']
    records = [json.dumps(pack_scene(manifest.scenes[name])) for name in sorted(manifest.scenes)]
    text = "{\n" + "\n".join(lines) + "\n" + ",\n".join(records) + "\n]\n}\n"
    temporary = root / f".{MANIFEST}.{os.getpid()}.part"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, root / MANIFEST)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(root: Path) -> Manifest:
    """Read `root/manifest.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: damaged, or of another format.
    """
    path = root / MANIFEST
    try:
        packed = json.loads(path.read_text(encoding="utf-8"))
        if packed["format"] != FORMAT:
            raise ValueError(f"format {packed['format']!r}, this program reads {FORMAT}")
        records = [unpack_scene(scene) for scene in packed["scenes"]]
        return Manifest(unpack_head(packed), {record.name: record for record in records}, int(packed["missing"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a manifest of this program ({type(error).__name__}: {reason})") from None


def start_unfinished(root: Path, head: Head, done: Iterable[SceneRecord]) -> None:
    """Replace the manifest by the list of scenes done so far."""
    lines = [json.dumps(line) for line in (pack_head(head), *(pack_scene(record) for record in done))]
    temporary = root / f".{UNFINISHED}.{os.getpid()}.part"
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, root / UNFINISHED)
    (root / MANIFEST).unlink(missing_ok=True)


def add_unfinished(root: Path, record: SceneRecord) -> None:
    """Note one more scene as done."""
    with (root / UNFINISHED).open("a", encoding="utf-8") as file:
        file.write(json.dumps(pack_scene(record)) + "\n")


def read_unfinished(root: Path) -> Manifest:
    """The scenes done so far. A last line cut short by a killed process is left out.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: damaged, or of another format.
    """
    path = root / UNFINISHED
    try:
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]
        head = unpack_head(json.loads(whole[0]))
        if head.format != FORMAT:
            raise ValueError(f"format {head.format}, this program reads {FORMAT}")
        records = [unpack_scene(json.loads(line)) for line in whole[1:]]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a list of this program ({type(error).__name__}: {reason}); delete it") from None
    return Manifest(head, {record.name: record for record in records})
