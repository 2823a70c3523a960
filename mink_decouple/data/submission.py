"""Predictions as a zip for a benchmark server: streamed, checked as the server would, then given its name."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from mink_decouple.data.classes import Classes
from mink_decouple.data.submission_servers import Server, find_server, match_scenes

_BLOCK = 1 << 20


def write_submission(
    dataset: str,
    predictions: Iterable[tuple[str, np.ndarray | Iterable[np.ndarray]]],
    points: Mapping[str, int],
    path: Path,
    classes: Classes,
    description: str | None = None,
) -> None:
    """Write the predictions of every test scene; the file appears only when it is whole and passes `check_submission`.

    Args:
        dataset: `scannet`, `semantic3d`, `semantickitti`, or `semantic-8` or `reduced-8`.
        predictions: (scene, (N,) integer train ids, or blocks of them in the order of the points), the scenes in any
            order; one array or block is in memory at a time.
        points: scene -> N, the points of its raw file. Its keys are looked at before the first prediction is asked for.
        path: the zip.
        classes: train id -> raw id, by `Classes.decode`.
        description: text for SemanticKITTI's optional description.txt.

    Raises:
        ValueError: what the server would reject: a scene missing, unknown or given twice, another number of points, a
            point without a class, or an id that the benchmark does not have; or a name that does not end in .zip.
    """
    _require_zip(path)
    server = find_server(dataset, points)
    entries = match_scenes(server, points)
    if description is not None and "description.txt" not in server.optional:
        raise ValueError(f"{server.name}: takes no description.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for folder in server.folders:
                archive.writestr(_info(folder), b"")
            if description is not None:
                archive.writestr(_info("description.txt"), description)
            done: set[str] = set()
            for scene, train in predictions:
                if scene in done or scene not in entries:
                    what = "is given twice" if scene in done else "is not among the test scenes"
                    raise ValueError(f"{server.name}: the prediction of {scene!r} {what}")
                blocks = [train] if isinstance(train, np.ndarray) else train
                with archive.open(_info(entries[scene]), "w", force_zip64=True) as file:
                    _write_scene(file, server, scene, blocks, points[scene], classes)
                done.add(scene)
        missing = [scene for scene in entries if scene not in done]
        if missing:
            raise ValueError(f"{server.name}: {len(missing)} scenes have no prediction, first {missing[0]}")
        _check(server, temporary, points, str(path))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_submission(dataset: str, points: Mapping[str, int], path: Path) -> None:
    """Read a zip back and refuse what the server would reject.

    Args:
        dataset: as for `write_submission`.
        points: scene -> number of points of its raw file.
        path: the zip.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a sound zip, or not what the server wants; one line that names the file in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    _require_zip(path)
    _check(find_server(dataset, points), path, points, str(path))


def _require_zip(path: Path) -> None:
    if path.suffix != ".zip":
        raise ValueError(f"{path}: a submission must end in .zip")


def _info(name: str) -> zipfile.ZipInfo:
    # The fixed date of a fresh ZipInfo makes equal predictions equal files.
    info = zipfile.ZipInfo(name)
    folder = name.endswith("/")
    info.external_attr = (0o40755 << 16 | 0x10) if folder else 0o100644 << 16
    info.compress_type = zipfile.ZIP_STORED if folder else zipfile.ZIP_DEFLATED
    return info


def _write_scene(
    file: IO[bytes], server: Server, scene: str, blocks: Iterable[np.ndarray], count: int, classes: Classes
) -> None:
    """Write the ids of the benchmark for the (n,) train ids of each block; together they are `count`."""
    written = 0
    for block in blocks:
        train = np.asarray(block)
        if train.ndim != 1 or written + len(train) > count or train.dtype.kind not in "iu":
            found = f"{train.shape} {train.dtype.name}" + (f" after {written} others" if written else "")
            raise ValueError(f"{server.name}: {scene!r} needs ({count},) whole numbers, found {found}")
        if len(train):
            _write_ids(file, _raw_ids(server, scene, train, classes), server.binary)
        written += len(train)
    if written < count:
        raise ValueError(f"{server.name}: {scene!r} needs ({count},) whole numbers, found ({written},)")
    if count == 0:
        raise ValueError(f"{server.name}: {scene!r} needs a class for every point, found no points")


def _raw_ids(server: Server, scene: str, train: np.ndarray, classes: Classes) -> np.ndarray:
    """(n,) int64 ids of the benchmark for n > 0 train ids."""
    if train.min() < 0 or train.max() >= len(classes):
        found = f"{int(train.min())}..{int(train.max())}"
        raise ValueError(f"{server.name}: {scene!r} needs a class 0..{len(classes) - 1} for every point, found {found}")
    raw = classes.decode(train)
    wrong = sorted(set(np.unique(raw).tolist()) - server.ids)
    if wrong:
        raise ValueError(f"{server.name}: {scene!r} has the id {wrong[0]}; choose from {sorted(server.ids)}")
    return raw


def _write_ids(file: IO[bytes], raw: np.ndarray, binary: bool) -> None:
    words = [b"%d\n" % value for value in range(0 if binary else int(raw.max()) + 1)]
    for start in range(0, len(raw), _BLOCK):
        part = raw[start : start + _BLOCK]
        file.write(part.astype("<u4").tobytes() if binary else b"".join(words[value] for value in part.tolist()))


def _check(server: Server, path: Path, points: Mapping[str, int], name: str) -> None:
    """As `check_submission`, of the file at `path`, which messages call `name`."""
    entries = {entry: points[scene] for scene, entry in match_scenes(server, points).items()}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()]
            _check_names(server, names, entries, name)
            for entry, count in entries.items():
                with archive.open(entry) as file:
                    read = _count_binary if server.binary else _count_text
                    found = read(file, server, f"{name}: {entry}")
                if found != count:
                    raise ValueError(f"{name}: {entry} has {found} ids for {count} points")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"{name}: not a readable zip: {' '.join(str(error).split())}") from None


def _check_names(server: Server, names: list[str], entries: Mapping[str, int], name: str) -> None:
    there = set(names)
    if len(there) < len(names):
        twice = next(entry for index, entry in enumerate(names) if entry in names[:index])
        raise ValueError(f"{name}: {twice} is there twice")
    missing = [entry for entry in (*server.folders, *entries) if entry not in there]
    if missing:
        raise ValueError(f"{name}: {missing[0]} is missing ({len(missing)} entries)")
    surplus = sorted(there - {*server.folders, *entries, *server.optional})
    if surplus:
        raise ValueError(f"{name}: {surplus[0]} is none of the files of {server.name} ({len(surplus)} such entries)")


def _count_binary(file: IO[bytes], server: Server, name: str) -> int:
    """Number of uint32 ids in a file; every one is an id of the benchmark."""
    known, done = np.array(sorted(server.ids)), 0
    while block := file.read(4 * _BLOCK):
        if len(block) % 4:
            raise ValueError(f"{name}: {4 * done + len(block)} bytes are not whole ids of 4 bytes")
        ids = np.frombuffer(block, "<u4")
        wrong = np.flatnonzero(~np.isin(ids, known))
        if len(wrong):
            raise ValueError(_wrong_id(server, name, done + int(wrong[0]), str(ids[wrong[0]])))
        done += len(ids)
    return done


def _count_text(file: IO[bytes], server: Server, name: str) -> int:
    """Number of lines of a file; every one is an id of the benchmark and nothing else."""
    known, done, rest = {b"%d" % value for value in server.ids}, 0, b""
    while block := file.read(_BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        done = _count_lines(lines, known, server, name, done)
    return _count_lines([rest] if rest else [], known, server, name, done)


def _count_lines(lines: list[bytes], known: set[bytes], server: Server, name: str, done: int) -> int:
    unknown = set(lines) - known
    if unknown:
        at = next(index for index, line in enumerate(lines) if line in unknown)
        raise ValueError(_wrong_id(server, name, done + at, ascii(lines[at][:20].decode("latin-1"))))
    return done + len(lines)


def _wrong_id(server: Server, name: str, index: int, found: str) -> str:
    return f"{name}: id {index + 1} is {found}; choose from {sorted(server.ids)}"
