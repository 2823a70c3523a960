"""Scores from a confusion matrix: IoU, mIoU, head/waist/tail IoU, overall accuracy, mean class accuracy.

The rule for absent classes lives here: a class that occurs neither in the truth nor in the prediction is dropped from
the mean, a class that is only predicted counts 0, and the report says how many classes entered the mean. Scores of
several scenes or folds come from the sum of their matrices, not from the mean of their scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -1
GROUPS = ("head", "waist", "tail")
ClassGroups = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class ConfusionMatrix:
    """Counts of (truth, prediction).

    Args:
        classes: C.
        counts: (C, C + 1) int64 to start from, copied; None for zeros.

    Attributes:
        classes: C.
        counts: (C, C + 1) int64, rows truth, columns prediction; the last column holds predictions outside the classes,
            which are misses. A trainer may add this array over ranks.

    Raises:
        ValueError: classes < 1 or counts of another shape.
    """

    def __init__(self, classes: int, counts: np.ndarray | None = None) -> None:
        if classes < 1:
            raise ValueError(f"classes: {classes}, expected at least 1")
        shape = (classes, classes + 1)
        if counts is not None and counts.shape != shape:
            raise ValueError(f"counts: shape {counts.shape}, expected {shape}")
        self.classes = classes
        self.counts = np.zeros(shape, np.int64) if counts is None else counts.astype(np.int64)

    def update(self, pred: np.ndarray | Tensor, target: np.ndarray | Tensor) -> None:
        """Count points; the inputs are not modified.

        Args:
            pred: (n,) integer train ids; one outside 0..C-1 counts as a miss of the true class.
            target: (n,) integer train ids, -1 left out.

        Raises:
            ValueError: unequal lengths, a type that is not integer, or a target outside -1..C-1.
        """
        p, t = _integers("pred", pred), _integers("target", target)
        if p.shape != t.shape:
            raise ValueError(f"pred has {len(p)} points, target {len(t)}: expected as many")
        if len(t) and not (t.min() >= IGNORE and t.max() < self.classes):
            wrong = t.min() if t.min() < IGNORE else t.max()
            raise ValueError(f"target: label {wrong}, expected -1..{self.classes - 1}")
        known = t != IGNORE
        p, t = p[known], t[known]
        column = np.where((p >= 0) & (p < self.classes), p, self.classes)
        width = self.classes + 1
        self.counts += np.bincount(t * width + column, minlength=self.classes * width).reshape(self.counts.shape)

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add the counts of another matrix to this one; returns this one.

        Raises:
            ValueError: another number of classes.
        """
        if other.classes != self.classes:
            raise ValueError(f"merge: {other.classes} classes into {self.classes}")
        self.counts += other.counts
        return self

    @property
    def points(self) -> int:
        """Points counted."""
        return int(self.counts.sum())

    @property
    def true(self) -> np.ndarray:
        """(C,) int64 points of each class in the truth."""
        return self.counts.sum(1)

    @property
    def confusion(self) -> np.ndarray:
        """(C, C) int64, rows truth, columns prediction; without predictions outside the classes."""
        return self.counts[:, :-1]

    @property
    def iou(self) -> np.ndarray:
        """(C,) float64 intersection over union, NaN for an empty union."""
        hit = np.diagonal(self.counts)
        return _ratio(hit, self.true + self.counts[:, :-1].sum(0) - hit)

    @property
    def recall(self) -> np.ndarray:
        """(C,) float64 hits over truth, NaN for a class absent from the truth."""
        return _ratio(np.diagonal(self.counts), self.true)

    @property
    def classes_counted(self) -> int:
        """Classes that enter mIoU."""
        return int(np.isfinite(self.iou).sum())

    @property
    def miou(self) -> float:
        """Mean IoU over the classes with a non-empty union; NaN without points."""
        return _mean(self.iou)

    @property
    def oa(self) -> float:
        """Overall accuracy, hits over points; NaN without points."""
        return float(_ratio(np.trace(self.counts), self.counts.sum()))

    @property
    def macc(self) -> float:
        """Mean recall over the classes present in the truth; NaN without points."""
        return _mean(self.recall)

    def official_miou(self, dataset: str) -> float | None:
        """Mean IoU where the benchmark's own rule for absent classes is another, else None.

        SemanticKITTI (np_ioueval.py) divides by all classes, so that a class absent everywhere counts 0. S3DIS
        (IoU_from_confusions of RandLA-Net's utilities) leaves out classes absent from the truth, even predicted ones.
        Where every class occurs in the truth, all rules agree.

        Args:
            dataset: "s3dis", "semantickitti" or any other.
        """
        if dataset == "semantickitti":
            return float(np.nan_to_num(self.iou).mean())
        if dataset == "s3dis":
            return _mean(self.iou[self.true > 0])
        return None

    def group_iou(self, groups: Sequence[Sequence[int]]) -> tuple[float, ...]:
        """Mean IoU of each group of class ids, by the same rule; NaN for a group without any counted class."""
        return tuple(_mean(self.iou[list(group)]) for group in groups)

    def report(
        self, names: Sequence[str], groups: Sequence[Sequence[int]] | None = None, dataset: str = ""
    ) -> dict[str, Any]:
        """Scores as JSON-ready values in 0..1, None where undefined.

        Args:
            names: C class names.
            groups: head, waist and tail class ids (`class_groups`); None leaves their scores None.
            dataset: adds `miou_official` where the dataset's own rule is another (`official_miou`).

        Raises:
            ValueError: the number of names is not C.
        """
        self._check_names(names)
        official = self.official_miou(dataset)
        by_group = (math.nan,) * len(GROUPS) if groups is None else self.group_iou(groups)
        return {
            "miou": _none(self.miou),
            **({} if official is None else {"miou_official": _none(official)}),
            **{f"{group}_iou": _none(value) for group, value in zip(GROUPS, by_group, strict=True)},
            "oa": _none(self.oa),
            "macc": _none(self.macc),
            "iou": {name: _none(value) for name, value in zip(names, self.iou)},
            "classes_counted": self.classes_counted,
            "points": self.points,
        }

    def _check_names(self, names: Sequence[str]) -> None:
        if len(names) != self.classes:
            raise ValueError(f"names: {len(names)} for {self.classes} classes")


def class_groups(counts: np.ndarray | Tensor | Sequence[int]) -> ClassGroups:
    """Split classes by frequency into head, waist and tail.

    The most frequent `ceil(C / 3)` classes are the head, the rarest `floor(C / 3)` the tail, the rest the waist; of
    equally frequent classes the lower id counts as more frequent. S3DIS: head wall, ceiling, floor, clutter, bookcase;
    waist door, chair, table, window; tail column, beam, board, sofa, as in the paper's Fig. 1.

    Args:
        counts: (C,) points per class, of the training data.

    Returns:
        `(head, waist, tail)`, each from the most to the least frequent class id.
    """
    array = np.asarray(_to_numpy(counts))
    order = [int(c) for c in np.argsort(-array.astype(np.float64), kind="stable")]
    head, tail = math.ceil(len(order) / 3), len(order) - len(order) // 3
    return tuple(order[:head]), tuple(order[head:tail]), tuple(order[tail:])


def table(
    names: Sequence[str], columns: Mapping[str, ConfusionMatrix], groups: Sequence[Sequence[int]] | None = None
) -> str:
    """Plain-text table of per-class IoU and the means, in percent, one column per confusion matrix.

    Args:
        names: C class names.
        columns: title -> matrix, for example `{"pre-trained": before, "final": after}`.
        groups: head, waist and tail class ids; adds their rows and marks each class with its group.

    Returns:
        Lines joined by newlines; "-" where a score is undefined.

    Raises:
        ValueError: no column, or the number of names is not C.
    """
    if not columns:
        raise ValueError("columns: empty, a table needs at least one confusion matrix")
    matrices = list(columns.values())
    for matrix in matrices:
        matrix._check_names(names)
    group_of = {c: name for name, group in zip(GROUPS, groups or ()) for c in group}
    rows = [["class", *columns]]
    for c, name in enumerate(names):
        label = f"{name} ({group_of[c]})" if c in group_of else name
        rows.append([label, *(_percent(matrix.iou[c]) for matrix in matrices)])
    means = [["mIoU", *(_percent(matrix.miou) for matrix in matrices)]]
    for i, group in enumerate(GROUPS if groups is not None else ()):
        means.append([f"{group} IoU", *(_percent(matrix.group_iou(groups or ())[i]) for matrix in matrices)])
    means.append(["OA", *(_percent(matrix.oa) for matrix in matrices)])
    means.append(["mAcc", *(_percent(matrix.macc) for matrix in matrices)])
    means.append(["classes counted", *(f"{matrix.classes_counted} of {matrix.classes}" for matrix in matrices)])
    widths = [max(map(len, column)) for column in zip(*rows, *means)]
    rule = ["-" * width for width in widths]
    lines = [rows[0], rule, *rows[1:], rule, *means]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
        for line in lines
    )


def _to_numpy(values: Any) -> np.ndarray:
    """Array of an array, a sequence or a tensor on any device, without importing torch."""
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def _integers(key: str, values: Any) -> np.ndarray:
    array = _to_numpy(values).reshape(-1)
    if array.dtype.kind not in "iu" and len(array):
        raise ValueError(f"{key}: type {array.dtype}, expected integer train ids")
    return array.astype(np.int64, copy=False)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    whole = np.asarray(whole, np.float64)
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def _none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "-"
