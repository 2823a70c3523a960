"""The benchmarks' own rules, stated again in plain loops, against `mink_decouple.metrics`; and where they part from it.

Every rule is written from the words of its official tool: np_ioueval.py (SemanticKITTI), evaluate_semantic_label.py
(ScanNet), IoU_from_confusions and 6_fold_cv.py (S3DIS), the server's page (Semantic3D).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.data.semantic3d import SEMANTIC3D
from mink_decouple.data.semantickitti import SEMANTICKITTI
from mink_decouple.metrics import ConfusionMatrix

NYU40 = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39]
LEARNING_MAP = """
0:0 1:0 10:1 11:2 13:5 15:3 16:5 18:4 20:5 30:6 31:7 32:8 40:9 44:10 48:11 49:12 50:13 51:14 52:0 60:9 70:15 71:16 72:17
80:18 81:19 99:0 252:1 253:7 254:6 255:8 256:5 257:5 258:4 259:5
"""
KITTI_MAP = {int(raw): int(to) for raw, to in (pair.split(":") for pair in LEARNING_MAP.split())}
seeds = settings(max_examples=25, deadline=None)


def draw(seed: int, ids: list[int], least: int = 1) -> tuple[list[int], list[int]]:
    """(prediction, truth) of raw ids; half of the points are right, and some ids do not occur."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(ids)[: rng.integers(least, len(ids) + 1)].tolist()
    truth = rng.choice(ids, rng.integers(1, 120))
    return np.where(rng.random(len(truth)) < 0.5, truth, rng.choice(ids, len(truth))).tolist(), truth.tolist()


def ours(prediction: np.ndarray, truth: np.ndarray, classes: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    matrix.update(prediction, truth)
    return matrix


def tally(pairs: list[tuple[int, int]], of: int) -> tuple[int, int, int]:
    """True positives, false positives and false negatives of one class among (prediction, truth) pairs."""
    tp = sum(p == of and t == of for p, t in pairs)
    fp = sum(p == of and t != of for p, t in pairs)
    fn = sum(p != of and t == of for p, t in pairs)
    return tp, fp, fn


def kitti(prediction: list[int], truth: list[int]) -> tuple[list[float], float, float]:
    """(IoU of 19 classes, their mean, accuracy): a class absent everywhere counts 0; so do predictions of class 0."""
    pairs = [(KITTI_MAP[p], KITTI_MAP[t]) for p, t in zip(prediction, truth)]
    pairs = [(p, t) for p, t in pairs if t != 0]
    counts = [tally(pairs, c) for c in range(1, 20)]
    iou = [tp / (tp + fp + fn + 1e-15) for tp, fp, fn in counts]
    return iou, sum(iou) / 19, sum(tp for tp, _, _ in counts) / (sum(tp + fp for tp, fp, _ in counts) + 1e-15)


@seeds
@given(st.integers(0, 10**6))
def test_semantickitti(seed: int) -> None:
    prediction, truth = draw(seed, list(KITTI_MAP))
    iou, miou, accuracy = kitti(prediction, truth)
    found = ours(SEMANTICKITTI.encode(np.array(prediction)), SEMANTICKITTI.encode(np.array(truth)), 19)
    absent = np.isnan(found.iou)
    np.testing.assert_allclose(np.nan_to_num(found.iou), iou, atol=1e-12)
    assert found.official_miou("semantickitti") == pytest.approx(miou, abs=1e-12)
    # The rules part exactly where a class occurs neither in the truth nor in the prediction.
    if not absent.all():
        assert found.miou * (19 - absent.sum()) == pytest.approx(19 * miou)
    # Accuracy: predictions of class 0 are missing from the official divisor, and count as errors in ours.
    unlabelled = int(found.counts[:, -1].sum())
    if found.points > unlabelled:
        assert found.oa * found.points == pytest.approx(accuracy * (found.points - unlabelled))


def test_semantickitti_worked_by_hand() -> None:
    # car right, moving car as car right, road taken for unlabelled, outlier left out.
    prediction, truth = [10, 10, 0, 40], [10, 252, 40, 1]
    iou, miou, accuracy = kitti(prediction, truth)
    assert (iou[0], iou[8], miou, accuracy) == pytest.approx((1, 0, 1 / 19, 1))
    found = ours(SEMANTICKITTI.encode(np.array(prediction)), SEMANTICKITTI.encode(np.array(truth)), 19)
    report = found.report(SEMANTICKITTI.names, dataset="semantickitti")
    assert (report["miou"], report["miou_official"], report["oa"]) == pytest.approx((1 / 2, 1 / 19, 2 / 3))
    assert report["classes_counted"] == 2 and report["points"] == 3


def scannet(prediction: list[int], truth: list[int]) -> list[float]:
    """IoU of the 20 classes: truth outside them is dropped, a prediction outside them is nobody's false positive."""
    pairs = [(p, t) for p, t in zip(prediction, truth) if t in NYU40]
    iou = []
    for label in NYU40:
        tp, fp, fn = tally(pairs, label)
        iou.append(tp / (tp + fp + fn) if tp + fp + fn else math.nan)
    return iou


@seeds
@given(st.integers(0, 10**6), st.booleans())
def test_scannet(seed: int, complete: bool) -> None:
    prediction, truth = draw(seed, list(range(41)))
    if complete:
        prediction, truth = prediction + NYU40, truth + NYU40
    iou = scannet(prediction, truth)

    def train(ids: list[int]) -> np.ndarray:
        return np.array([NYU40.index(i) if i in NYU40 else -1 for i in ids])

    found = ours(train(prediction), train(truth), 20)
    np.testing.assert_allclose(found.iou, iou)
    assert found.official_miou("scannet") is None
    if complete:
        assert found.miou == pytest.approx(sum(iou) / 20)


@seeds
@given(st.integers(0, 10**6), st.booleans())
def test_semantic3d(seed: int, complete: bool) -> None:
    prediction, truth = draw(seed, list(range(1, 9)))
    truth = [0 if i % 7 == 0 else t for i, t in enumerate(truth)]
    if complete:
        prediction, truth = prediction + list(range(1, 9)), truth + list(range(1, 9))
    pairs = [(p, t) for p, t in zip(prediction, truth) if t != 0]
    counts = [tally(pairs, c) for c in range(1, 9)]
    iou = [tp / (tp + fp + fn) if tp + fp + fn else math.nan for tp, fp, fn in counts]
    found = ours(SEMANTIC3D.encode(np.array(prediction)), SEMANTIC3D.encode(np.array(truth)), 8)
    np.testing.assert_allclose(found.iou, iou)
    assert found.official_miou("semantic3d") is None
    if pairs:
        assert found.oa == pytest.approx(sum(p == t for p, t in pairs) / len(pairs))
    if complete:
        assert found.miou == pytest.approx(sum(iou) / 8)


def s3dis(pairs: list[tuple[int, int]]) -> tuple[list[float], float]:
    """(IoU of 13 classes, mIoU): a class absent from the truth gets the mean of the others, so it changes no mean."""
    counts = [tally(pairs, c) for c in range(13)]
    present = [tp + fn > 0 for tp, _, fn in counts]
    plain = [tp / (tp + fp + fn) if tp + fp + fn else 0.0 for tp, fp, fn in counts]
    mean = sum(plain) / sum(present)  # what is only predicted has the IoU 0 and adds nothing
    iou = [value if there else mean for value, there in zip(plain, present)]
    return iou, sum(iou) / 13


@seeds
@given(st.integers(0, 10**6))
def test_s3dis(seed: int) -> None:
    prediction, truth = draw(seed, list(range(13)))
    iou, miou = s3dis(list(zip(prediction, truth)))
    found = ours(np.array(prediction), np.array(truth), 13)
    there = found.true > 0
    np.testing.assert_allclose(found.iou[there], np.array(iou)[there])
    assert found.official_miou("s3dis") == pytest.approx(miou)
    # The rules part exactly where a class is predicted but absent from the truth: ours counts 0, theirs leaves it out.
    only_predicted = int(np.isfinite(found.iou[~there]).sum())
    assert found.miou * (there.sum() + only_predicted) == pytest.approx(miou * there.sum())


@seeds
@given(st.integers(0, 10**6))
def test_s3dis_6_fold_pools_the_counts_of_all_rooms(seed: int) -> None:
    folds = [draw(seed + fold, list(range(13))) for fold in range(6)]
    folds.append((list(range(13)), list(range(13))))  # every class occurs somewhere
    right, true, predicted = [0] * 13, [0] * 13, [0] * 13
    total = ConfusionMatrix(13)
    for prediction, truth in folds:
        for p, t in zip(prediction, truth):
            true[t] += 1
            predicted[p] += 1
            right[t] += p == t
        total.merge(ours(np.array(prediction), np.array(truth), 13))
    iou = [r / (t + p - r) for r, t, p in zip(right, true, predicted)]
    np.testing.assert_allclose(total.iou, iou)
    assert total.miou == pytest.approx(sum(iou) / 13) == total.official_miou("s3dis")
    assert total.oa == pytest.approx(sum(right) / sum(true))
    assert total.macc == pytest.approx(sum(r / t for r, t in zip(right, true)) / 13)


def test_only_datasets_whose_rule_differs_get_a_second_mean() -> None:
    matrix = ours(np.array([0, 1]), np.array([0, 0]), 3)
    keys = {name: "miou_official" in matrix.report("abc", dataset=name) for name in ("s3dis", "semantickitti")}
    assert keys == {"s3dis": True, "semantickitti": True}
    assert not any("miou_official" in matrix.report("abc", dataset=d) for d in ("", "folder", "scannet", "semantic3d"))
    assert matrix.official_miou("s3dis") == 0.5 and matrix.official_miou("semantickitti") == pytest.approx(1 / 6)
    assert matrix.miou == 0.25
    assert ConfusionMatrix(3).report("abc", dataset="s3dis")["miou_official"] is None
