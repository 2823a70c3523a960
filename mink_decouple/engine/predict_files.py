"""Classes and confidences of every point of files, written in the files' own formats."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mink_decouple import config as configuration
from mink_decouple.config import Config
from mink_decouple.data.annotate import SUFFIXES, annotate, outputs, require_format, require_layout, side_file
from mink_decouple.data.blocks import Block
from mink_decouple.data.classes import Classes
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import clouds_of, read_cloud
from mink_decouple.data.io_kitti import CONFIDENCE
from mink_decouple.data.io_las import LAS
from mink_decouple.data.prepare import prepare as prepare_folder
from mink_decouple.data.prepared import PreparedDataset
from mink_decouple.data.raw_file import RawFile, streams
from mink_decouple.engine import checkpoint
from mink_decouple.engine.evaluate import restore
from mink_decouple.engine.events import say
from mink_decouple.engine.export import load_network
from mink_decouple.engine.memory import named_settings
from mink_decouple.engine.predict import decide
from mink_decouple.engine.scenes import Scene, load_scene, prepare
from mink_decouple.metrics import ConfusionMatrix, table
from mink_decouple.models.segmenter import Segmenter

HELD_POINTS = 4_000_000
"""LAS and LAZ files of more points are predicted from a temporary copy on disk beside the output."""
_RAW = {"log_intensity": "intensity"}
"""Columns of a file that others follow from; heights and places follow from the coordinates."""
_MADE = {"xyz", "one", "offset", "height", "height_wide"}


@dataclass(frozen=True)
class Network:
    """What a checkpoint holds that predicting needs."""

    model: Segmenter
    config: Config
    classes: Classes
    device: torch.device

    @property
    def raw(self) -> list[int]:
        """The raw id of every class."""
        ids: list[int] = self.classes.decode(np.arange(len(self.classes))).tolist()
        return ids


def predict_files(
    path: Path,
    inputs: Sequence[Path],
    output: Path,
    device: torch.device,
    votes: int | None = None,
    columns: Sequence[str] | None = None,
    overwrite: bool = False,
    smooth: str | None = None,
) -> list[Path]:
    """Predict files with a checkpoint, which knows its classes, features and grid; see `data.annotate` for the outputs.

    Args:
        path: the checkpoint, or the folder of an exported network.
        inputs: files, or folders whose files are all predicted.
        output: a file for one input file, else a folder that gets files of the same names.
        device: where to run.
        votes: augmented passes averaged; None for those the network was scored with.
        columns: names of the columns of text files, plain `.npy` arrays and `.bin` files.
        overwrite: replace outputs that exist.
        smooth: `eval.smooth`; None for that which the network was scored with.

    Returns:
        The files written.

    Raises:
        FileNotFoundError, ValueError: see `load_network` and `read_cloud`; no input; two inputs of one name; an
            output that exists; a file of a layout that takes no further columns, before the first is predicted; a
            file without a column that the network was trained on.
    """
    state = load_network(path)
    config = configuration.loads(state["config"], str(path))
    chosen = {key: value for key, value in (("votes", votes), ("smooth", smooth)) if value is not None}
    config = configuration.override(config, {"eval": chosen})
    pairs = _pairs(inputs, output, overwrite)
    network = Network(restore(state, config, device), config, checkpoint.classes_of(state), device)
    for source, _ in pairs:
        require_layout(source, network.raw, columns)
    scored: list[ConfusionMatrix] = []
    for number, (source, target) in enumerate(pairs, 1):
        if len(pairs) > 1:
            say(f"[{number}/{len(pairs)}] {source.name}")
        matrix = _predict_file(network, source, target, columns)
        if matrix is not None:
            scored.append(matrix)
            if len(pairs) > 1:
                say(f"against the labels that the file has: mIoU {100 * matrix.miou:.1f}")
    if scored:
        total = ConfusionMatrix(len(network.classes))
        for matrix in scored:
            total.merge(matrix)
        files = f"{len(scored)} of {len(pairs)} files" if len(pairs) > 1 else "the file"
        say(f"IoU against the labels of {files}, in percent:")
        say(table(network.classes.names, {"": total}))
    return [target for _, target in pairs]


def _pairs(inputs: Sequence[Path], output: Path, overwrite: bool) -> list[tuple[Path, Path]]:
    """Every input file and where its prediction goes; refuses before anything is computed."""
    files: list[Path] = []
    for given in inputs:
        if given.is_dir():
            found = clouds_of(given)
            if not found:
                raise ValueError(f"{given}: no point clouds; known suffixes: {', '.join(SUFFIXES)}")
            files += found
        elif not given.is_file():
            raise FileNotFoundError(f"{given}: no such file or folder")
        elif given.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{given}: unknown suffix '{given.suffix}'; choose from {', '.join(SUFFIXES)}")
        else:
            files.append(given)
    one = len(inputs) == 1 and not inputs[0].is_dir() and output.suffix.lower() in SUFFIXES and not output.is_dir()
    pairs = [(file, output if one else output / file.name) for file in files]
    if not one and output.is_file():
        raise ValueError(f"{output}: is a file; the predictions of {len(files)} files need a folder")
    repeated = {file.name for file in files if [f.name for f in files].count(file.name) > 1}
    if repeated:
        raise ValueError(f"inputs of the same name, {min(repeated)!r}: predict them into different folders")
    for source, target in pairs:
        require_format(source, target)
        if target.exists() and target.samefile(source):
            raise ValueError(f"{target}: is the input itself; choose another --output")
    existing = [place for _, target in pairs for place in outputs(target) if place.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ValueError(f"{existing[0]}{more}: exists; choose another --output, or --overwrite")
    return pairs


def _predict_file(
    network: Network, source: Path, target: Path, columns: Sequence[str] | None
) -> ConfusionMatrix | None:
    """Write the prediction of one file; returns the scores where it has labels of these classes."""
    config, classes, started = network.config, network.classes, time.perf_counter()
    with _scene(network, source, target, columns) as (scene, cloud):
        with named_settings(config, training=False):
            ids, confidence = decide(network.model, config, scene, len(classes), network.device, config.eval.votes)
        raw = np.asarray(network.raw)
        counts = np.zeros(len(classes), np.int64)

        def blocks() -> Iterator[Block]:
            for points in scene.point_blocks():
                counts[:] += np.bincount(ids[points], minlength=len(classes))
                yield Block(raw[ids[points]], confidence[points])

        annotate(source, target, blocks(), network.raw, columns)
        scores = None if cloud is None else _scores(network, source, cloud, scene, ids)
    seconds, points = time.perf_counter() - started, int(counts.sum())
    share = sorted(zip(counts / points, classes.names), reverse=True)
    say(f"{target}: {points:,} points in {seconds:.0f} s; " + ", ".join(f"{n} {100 * s:.1f} %" for s, n in share if s))
    return scores


@contextmanager
def _scene(
    network: Network, source: Path, target: Path, columns: Sequence[str] | None
) -> Iterator[tuple[Scene, PointCloud | None]]:
    """The scene of a file, and its cloud where that is in memory."""
    config = network.config
    wanted = {_RAW.get(name, name) for name in config.data.features} - _MADE
    if not streams(source, HELD_POINTS):
        cloud = read_cloud(source, columns)
        _require(source, wanted, set(cloud.features))
        yield prepare(replace(cloud, labels=None), config), cloud
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as folder:
        # heights of the file's own go before those that follow from the coordinates, as for a file in memory
        raw = RawFile(source, network.classes, columns, wanted | ({"height"} & set(config.data.features)))
        prepare_folder(lambda root: raw, source.parent, Path(folder), workers=1)
        dataset = PreparedDataset(folder)
        _require(source, wanted, set(dataset.open(source.stem).features))
        yield load_scene(config, dataset, source.stem), None


def _require(source: Path, wanted: set[str], found: set[str]) -> None:
    missing = sorted(wanted - found)
    if missing:
        raise ValueError(
            f"{source}: has no column {', '.join(missing)}, which the network was trained on; "
            f"it has {', '.join(sorted(found)) or 'coordinates only'}"
        )


def _scores(network: Network, source: Path, cloud: PointCloud, scene: Scene, ids: np.ndarray) -> ConfusionMatrix | None:
    """Of a file with labels of these classes that are no prediction themselves; None of another one."""
    if cloud.labels is None:
        return None
    las = source.suffix.lower() in LAS and "confidence" in cloud.features and "prediction" not in cloud.features
    if las or (source.suffix.lower() == ".bin" and side_file(source, CONFIDENCE).is_file()):
        say(f"{source.name}: no score, its classification has a confidence beside it and so is itself a prediction")
        return None
    try:
        truth = network.classes.encode(cloud.labels)
    except ValueError:
        return None  # labels of other classes: nothing to compare with
    matrix = ConfusionMatrix(len(network.classes))
    begin = 0
    for points in scene.point_blocks():
        matrix.update(ids[points], truth[begin : begin + len(points)])
        begin += len(points)
    return matrix if matrix.points else None  # None where all are of ignored classes
