"""Label budgets: which few points of which scene are labelled, drawn with a seed and kept as a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mink_decouple.data.budget_forms import Budget, parse_budget
from mink_decouple.data.budget_lists import listed_points, read_lists
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.grid import GridCloud
from mink_decouple.data.voxels import majority

__all__ = ["Budget", "LabelSet", "check", "class_counts", "collect", "describe", "draw", "parse_budget", "visible"]

UNITS = ("grid", "raw")


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The visible labels of a set of scenes.

    Attributes:
        index: scene name -> (m,) int64 raw point indices, ascending, without duplicates; every scene drawn from is a
            key.
        label: scene name -> (m,) int64 train ids of those points.
        meta: plain JSON values: ``budget``, ``seed``, ``unit``, ``grid`` (metres), ``classes`` (names),
            ``raw_points`` and ``grid_points`` (totals over the scenes), ``raw_counts`` and ``grid_counts`` (labelled
            per class), ``raw_share`` and ``grid_share``; ``ignored_points`` where a list names points without a class.
            It says nothing of the hidden labels, so that nothing can be weighted by them.
    """

    index: Mapping[str, np.ndarray]
    label: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in train-id order."""
        return tuple(self.meta["classes"])

    @property
    def counts(self) -> np.ndarray:
        """(C,) int64 labelled raw points per class."""
        return class_counts(np.concatenate([np.empty(0, np.int64), *self.label.values()]), len(self.classes))

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the classes without a single labelled point."""
        return tuple(name for name, count in zip(self.classes, self.counts) if count == 0)

    @property
    def complete(self) -> bool:
        """Whether every class of a labelled scene has a label, so that one without any is absent from it."""
        try:
            kind = parse_budget(str(self.meta["budget"])).kind
        except (ValueError, FileNotFoundError):
            return False  # a list that has moved, or a file made elsewhere
        return kind in ("per_class", "share", "scans", "full")

    @property
    def checksum(self) -> str:
        """SHA-256 over class names, scene names, indices and labels: equal label sets have equal checksums."""
        digest = hashlib.sha256(json.dumps([list(self.classes), sorted(self.index)]).encode())
        for name in sorted(self.index):
            digest.update(len(self.index[name]).to_bytes(8, "little"))
            digest.update(self.index[name].astype("<i8").tobytes())
            digest.update(self.label[name].astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` (no pickle) through a temporary file, so that no half-written file is ever seen."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = sorted(self.index)
        columns = [[np.empty(0, np.int64), *(part[name] for name in names)] for part in (self.index, self.label)]
        index, label = (np.concatenate(column) for column in columns)
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with partial.open("wb") as file:
                np.savez_compressed(
                    file,
                    names=np.array(names, dtype=np.str_),
                    size=np.array([len(self.index[name]) for name in names], np.int64),
                    index=index,
                    label=label.astype(np.int16 if len(self.classes) < 2**15 else np.int64),
                    meta=np.array(json.dumps({**self.meta, "checksum": self.checksum}, sort_keys=True)),
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, classes: Sequence[str] | None = None) -> LabelSet:
        """Read a label file and verify its checksum.

        Args:
            path: the file.
            classes: class names the caller works with; None accepts any.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a label file, damaged, or drawn for other classes.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"label file {path}: no such file")
        try:
            with np.load(path, allow_pickle=False) as stored:
                names, size, index, label = (stored[key] for key in ("names", "size", "index", "label"))
                meta = json.loads(str(stored["meta"]))
                checksum = meta.pop("checksum")
            cuts = np.cumsum(size)[:-1]
            labels = cls(
                dict(zip(names.tolist(), np.split(index.astype(np.int64), cuts))),
                dict(zip(names.tolist(), np.split(label.astype(np.int64), cuts))),
                meta,
            )
            intact = labels.checksum == checksum
        except Exception as error:  # NumPy, zipfile and zlib raise a dozen types, by the place of the damage
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"label file {path}: not a label file of this program ({reason}); draw it anew") from None
        if not intact:
            raise ValueError(f"label file {path}: damaged, its checksum does not match its contents; draw it anew")
        if classes is not None and tuple(classes) != labels.classes:
            raise ValueError(
                f"label file {path}: drawn for classes {list(labels.classes)}, but the data has {list(classes)}"
            )
        return labels


def draw(
    names: Sequence[str],
    load: Callable[[str], tuple[PointCloud, GridCloud]],
    budget: Budget,
    classes: Sequence[str],
    seed: int = 0,
    unit: str = "grid",
) -> LabelSet:
    """Draw a label set.

    Chance depends on (seed, scene name) only: the draw of a scene is the same whatever the other scenes are.
    (``scans:R%`` takes the lowest-ranked share of the labelled scenes by such a draw; another scene may displace one at
    the threshold.) Nothing is drawn from a scene without labels.

    Args:
        names: scene names, without duplicates.
        load: name -> the raw cloud with its true labels (train ids, -1 ignored) and its grid cloud.
        budget: any but a ``file`` one. ``R%`` is ``max(int(R * n_c), 1)`` per cloud and class (PSD); ``uniform:R%`` is
            ``max(int(R * n), 1)`` of the labelled points per cloud with n points, labelled or not (SQN), and like
            ``Nx`` ignores classes. ``list:FILE`` takes the raw points that a file lists; seed and unit do not matter.
        classes: class names in train-id order.
        seed: non-negative.
        unit: ``grid`` counts and chooses grid points by their majority class, each represented by one raw point of
            that class in its cell (the protocol of PSD and its successors); ``raw`` counts and chooses raw points.

    Raises:
        ValueError: no or duplicate names, unknown ``unit``, a ``file`` budget, a list that lacks a labelled scene or
            names points outside one, or a scene with an unknown class id.
    """
    if unit not in UNITS:
        raise ValueError(f"label unit {unit!r}: choose one of {', '.join(UNITS)}")
    if budget.kind == "file":
        raise ValueError(f"label budget {budget.text!r} is a file; load it instead of drawing")
    if seed < 0:
        raise ValueError(f"label seed {seed}: must be 0 or more")
    if budget.kind == "list":
        lists = read_lists(budget.path)
        meta = {"budget": budget.text, "seed": int(seed), "unit": "raw"}

        def listed(cloud: PointCloud, grid: GridCloud) -> np.ndarray:
            if cloud.labels is None and cloud.name not in lists:
                return np.empty(0, np.int64)
            return listed_points(lists, cloud, str(budget.path))

        return collect(names, load, listed, classes, meta)
    chosen = set(names)
    if budget.kind == "scans":
        labelled = [name for name in chosen if load(name)[0].labels is not None]
        ranked = sorted(labelled, key=lambda name: (_generator(seed, name, "scan").random(), name))
        chosen = set(ranked[: max(int(budget.amount * len(ranked)), 1)])

    def choose(cloud: PointCloud, grid: GridCloud) -> np.ndarray:
        if cloud.labels is None or cloud.name not in chosen:
            return np.empty(0, np.int64)
        return _draw_scene(cloud, grid, budget, unit, _generator(seed, cloud.name, "points"))

    return collect(names, load, choose, classes, {"budget": budget.text, "seed": int(seed), "unit": unit})


def collect(
    names: Sequence[str],
    load: Callable[[str], tuple[PointCloud, GridCloud]],
    choose: Callable[[PointCloud, GridCloud], np.ndarray],
    classes: Sequence[str],
    meta: Mapping[str, Any],
) -> LabelSet:
    """Make a label set of the raw points that ``choose`` gives per scene, such as a benchmark's published list.

    Args:
        names: scene names, without duplicates.
        load: name -> the raw cloud with its true labels (train ids, -1 ignored; None as if all were) and its grid
            cloud, both named so.
        choose: cloud, grid -> raw point indices in any order; points without a true label are left out, and their
            number is kept as ``ignored_points`` where there are any.
        classes: class names in train-id order.
        meta: ``budget``, ``seed`` and ``unit``; the counts are added.

    Raises:
        ValueError: no or duplicate names, a scene with an unknown class id, or scenes of different grids.
    """
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"label budget {meta['budget']!r}: needs scene names without duplicates, got {len(names)} names"
        )
    index: dict[str, np.ndarray] = {}
    label: dict[str, np.ndarray] = {}
    raw_points, grid_points, ignored, sizes = 0, 0, 0, set()
    grid_counts = np.zeros(len(classes), np.int64)
    for name in tqdm(names, desc="drawing labels", unit="scene", disable=None, leave=False):
        cloud, grid = load(name)
        if (cloud.name, grid.name) != (name, name):
            raise ValueError(f"scene {name}: loads as {cloud.name!r} with grid {grid.name!r}; names must agree")
        truth = np.full(len(cloud), -1, np.int64) if cloud.labels is None else cloud.labels
        if truth.max(initial=-1) >= len(classes):
            raise ValueError(f"scene {name}: train id {truth.max()} is outside the {len(classes)} classes")
        drawn = np.unique(choose(cloud, grid)).astype(np.int64)
        ignored += int((truth[drawn] < 0).sum())
        drawn = drawn[truth[drawn] >= 0]
        index[name], label[name] = drawn, truth[drawn]
        raw_points, grid_points = raw_points + len(cloud), grid_points + len(grid)
        sizes.add(grid.size)
        grid_counts += class_counts(_visible(drawn, label[name], grid, len(classes)), len(classes))
    if len(sizes) != 1:
        raise ValueError(
            f"label budget {meta['budget']!r}: scenes were sub-sampled to different grids, {sorted(sizes)} m"
        )
    raw_counts = class_counts(np.concatenate(list(label.values())), len(classes))
    counted = {
        "grid": sizes.pop(),
        "classes": list(classes),
        "raw_points": raw_points,
        "grid_points": grid_points,
        "raw_counts": raw_counts.tolist(),
        "grid_counts": grid_counts.tolist(),
        "raw_share": int(raw_counts.sum()) / max(raw_points, 1),
        "grid_share": int(grid_counts.sum()) / max(grid_points, 1),
    }
    if ignored:
        counted["ignored_points"] = ignored
    return LabelSet(index, label, {**meta, **counted})


def _generator(seed: int, name: str, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{purpose}/{name}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def _draw_scene(cloud: PointCloud, grid: GridCloud, budget: Budget, unit: str, rng: np.random.Generator) -> np.ndarray:
    labels = cloud.labels
    assert labels is not None and grid.labels is not None  # nothing is drawn from another
    truth = grid.labels if unit == "grid" else labels
    pool = np.flatnonzero(truth >= 0)
    if budget.kind in ("full", "scans"):
        picked = pool
    elif budget.kind in ("per_cloud", "uniform"):
        wanted = max(int(budget.amount * len(truth)), 1) if budget.kind == "uniform" else int(budget.amount)
        picked = rng.choice(pool, min(wanted, len(pool)), replace=False)
    else:
        parts = [np.empty(0, np.int64)]
        for c in np.unique(truth[pool]):
            members = pool[truth[pool] == c]
            wanted = max(int(budget.amount * len(members)), 1) if budget.kind == "share" else int(budget.amount)
            parts.append(rng.choice(members, min(wanted, len(members)), replace=False))
        picked = np.concatenate(parts)
    if unit == "raw":
        return picked
    wanted_cell = np.zeros(len(grid), bool)
    wanted_cell[picked] = True
    # Shuffled, so that the first raw point of its cell's class is a uniform choice among them.
    candidates = rng.permutation(np.flatnonzero(wanted_cell[grid.inverse] & (labels == grid.labels[grid.inverse])))
    _, first = np.unique(grid.inverse[candidates], return_index=True)
    return candidates[first]


def check(labelset: LabelSet, scene: str, cloud: PointCloud) -> None:
    """Compare a scene's labels with its cloud.

    Raises:
        ValueError: the scene is not in the label set, an index is outside the cloud, or a label contradicts the
            cloud's own.
    """
    index, label = labelset.index.get(scene), labelset.label.get(scene)
    if index is None or label is None:
        raise ValueError(
            f"scene {scene}: not in the label file, which has {len(labelset.index)} other scenes; draw it anew"
        )
    if len(index) and not (index.min() >= 0 and index.max() < len(cloud.coords)):
        raise ValueError(
            f"scene {scene}: label file points at {index.max()}, but the cloud has {len(cloud.coords)} points"
        )
    if cloud.labels is not None:
        wrong = np.flatnonzero(cloud.labels[index] != label)
        if len(wrong):
            at = index[wrong[0]]
            raise ValueError(
                f"scene {scene}: label file says class {label[wrong[0]]} at point {at}, the cloud says "
                f"{cloud.labels[at]} ({len(wrong)} such points); it was drawn from other data"
            )


def class_counts(ids: np.ndarray, classes: int) -> np.ndarray:
    """(C,) int64 number of entries per class; negative ids do not count."""
    return np.bincount(ids[ids >= 0], minlength=classes)


def visible(labelset: LabelSet, grid: GridCloud) -> np.ndarray:
    """The labels a trainer may see on a grid cloud.

    Args:
        labelset: visible labels of raw points.
        grid: V grid points; a scene the label set does not name has no visible label.

    Returns:
        (V,) int64 majority of the labelled raw points of every cell; -1 where none is or where they tie.

    Raises:
        ValueError: an index lies outside the scene.
    """
    index = labelset.index.get(grid.name, np.empty(0, np.int64))
    if len(index) and not (index.min() >= 0 and index.max() < len(grid.inverse)):
        raise ValueError(
            f"scene {grid.name}: label file points at {index.max()}, but the cloud has {len(grid.inverse)} points"
        )
    return _visible(index, labelset.label.get(grid.name, index), grid, len(labelset.classes))


def _visible(index: np.ndarray, label: np.ndarray, grid: GridCloud, classes: int) -> np.ndarray:
    return majority(label, grid.inverse[index], len(grid), classes, ties="ignore")


def describe(labelset: LabelSet) -> str:
    """A table for people: labelled points per class on the raw and on the grid clouds, with totals and shares."""
    meta = labelset.meta
    width = max(len("total"), *(len(name) for name in labelset.classes))
    scenes = len(labelset.index)
    lines = [
        f"labels {meta['budget']} seed {meta['seed']}, drawn per {meta['unit']} point, "
        f"{scenes} scene{'s' * (scenes != 1)}, grid {meta['grid']:g} m, sha256 {labelset.checksum[:12]}",
        f"{'class':<{width}} {'raw':>12} {'grid':>12}",
    ]
    rows = zip(labelset.classes, meta["raw_counts"], meta["grid_counts"])
    lines += [f"{name:<{width}} {raw:>12,} {cell:>12,}" for name, raw, cell in rows]
    lines.append(f"{'total':<{width}} {sum(meta['raw_counts']):>12,} {sum(meta['grid_counts']):>12,}")
    lines.append(f"{'of':<{width}} {meta['raw_points']:>12,} {meta['grid_points']:>12,}")
    lines.append(f"{'share':<{width}} {meta['raw_share']:>12.4%} {meta['grid_share']:>12.4%}")
    if meta.get("ignored_points"):
        lines.append(f"listed but unannotated or of an ignored class, not used: {meta['ignored_points']:,}")
    if labelset.missing:
        lines.append(f"without any label: {', '.join(labelset.missing)}")
    return "\n".join(lines)
