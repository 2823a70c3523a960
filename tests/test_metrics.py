import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from mink_decouple import metrics
from mink_decouple.metrics import ConfusionMatrix, class_groups

NAMES = ("wall", "floor", "chair", "lamp")


def matrix(pred, target, classes=4):
    found = ConfusionMatrix(classes)
    found.update(np.array(pred, dtype=np.int64), np.array(target, dtype=np.int64))
    return found


def draw(seed, n=200, classes=4):
    generator = np.random.default_rng(seed)
    return generator.integers(0, classes, n), generator.integers(0, classes, n)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100_000), n=st.integers(1, 60), classes=st.integers(2, 6))
def test_scores_agree_with_sklearn(seed, n, classes):
    pred, target = draw(seed, n, classes)
    found, labels = matrix(pred, target, classes), list(range(classes))
    np.testing.assert_array_equal(found.counts[:, :-1], oracle.confusion_matrix(target, pred, labels=labels))
    counted = np.union1d(pred, target)
    expected = oracle.jaccard_score(target, pred, labels=counted, average=None, zero_division=0)
    np.testing.assert_allclose(found.iou[counted], expected)
    assert np.isnan(np.delete(found.iou, counted)).all()
    assert found.miou == pytest.approx(expected.mean()) and found.classes_counted == len(counted)
    assert found.oa == pytest.approx(oracle.accuracy_score(target, pred))
    present = np.unique(target)
    recall = oracle.recall_score(target, pred, labels=present, average=None, zero_division=0)
    assert found.macc == pytest.approx(recall.mean()) and found.points == n


def test_an_absent_class_is_dropped_and_an_only_predicted_one_counts_zero():
    # wall 2 of 3, floor 1 of 1 + 0, chair only predicted 0, lamp absent: (2/3 + 1 + 0) / 3
    found = matrix([0, 0, 2, 1], [0, 0, 0, 1])
    assert found.iou[:3].tolist() == pytest.approx([2 / 3, 1.0, 0.0]) and math.isnan(found.iou[3])
    assert found.miou == pytest.approx(5 / 9) and found.classes_counted == 3
    assert found.macc == pytest.approx((2 / 3 + 1) / 2) and found.oa == 0.75


def test_unlabelled_points_are_left_out():
    assert matrix([0, 3, 9], [0, -1, -1]).counts.sum() == 1


@pytest.mark.parametrize("miss", [-1, 4, 255])
def test_a_prediction_outside_the_classes_is_a_miss(miss):
    found = matrix([0, miss], [0, 0])
    assert found.iou[0] == 0.5 and found.oa == 0.5 and found.points == 2 and found.classes_counted == 1


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, torch.int64, torch.uint8])
def test_arrays_and_tensors_of_any_integer_type_count_alike(kind):
    pred, target = draw(0)
    found = ConfusionMatrix(4)
    if isinstance(kind, torch.dtype):
        found.update(torch.from_numpy(pred).to(kind), torch.from_numpy(target).to(kind))
    else:
        found.update(pred.astype(kind), target.astype(kind))
    np.testing.assert_array_equal(found.counts, matrix(pred, target).counts)


def test_update_modifies_neither_input():
    pred, target = torch.tensor([0, -1, 9, 2]), torch.tensor([0, -1, 2, -1])
    before = pred.clone(), target.clone()
    ConfusionMatrix(4).update(pred, target)
    assert torch.equal(pred, before[0]) and torch.equal(target, before[1])


def test_read_only_arrays_are_accepted():
    pred, target = draw(0)
    pred.flags.writeable = target.flags.writeable = False
    ConfusionMatrix(4).update(pred, target)


def test_merging_scenes_equals_counting_them_together():
    (p1, t1), (p2, t2) = draw(0), draw(1)
    merged, other = matrix(p1, t1), matrix(p2, t2)
    before = other.counts.copy()
    assert merged.merge(other) is merged
    np.testing.assert_array_equal(merged.counts, matrix(np.r_[p1, p2], np.r_[t1, t2]).counts)
    np.testing.assert_array_equal(other.counts, before)


def test_counts_given_to_a_new_matrix_are_copied():
    first = matrix(*draw(0))
    second = ConfusionMatrix(4, first.counts)
    second.update(np.array([0]), np.array([0]))
    assert second.points == first.points + 1


def test_report_holds_json_values_with_none_for_absent_classes():
    report = matrix([0, 0, 2, 1], [0, 0, 0, 1]).report(NAMES, ((0, 1), (2,), (3,)))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["iou"] == {"wall": pytest.approx(2 / 3), "floor": 1.0, "chair": 0.0, "lamp": None}
    assert (report["head_iou"], report["waist_iou"], report["tail_iou"]) == (pytest.approx(5 / 6), 0.0, None)
    assert report["miou"] == pytest.approx(5 / 9) and report["oa"] == 0.75 and report["macc"] == pytest.approx(5 / 6)
    assert (report["classes_counted"], report["points"]) == (3, 4)


def test_report_without_points_or_groups_holds_none():
    report = ConfusionMatrix(4).report(NAMES)
    scores = ("miou", "oa", "macc", "head_iou", "waist_iou", "tail_iou")
    assert all(report[key] is None for key in scores) and report["points"] == report["classes_counted"] == 0


def test_the_s3dis_classes_fall_into_head_waist_and_tail():
    # ceiling floor wall beam column window door table chair sofa bookcase board clutter, 1 % counts
    counts = [33707, 28567, 49192, 3181, 3756, 4780, 9747, 6504, 7914, 887, 12841, 2297, 22728]
    head, waist, tail = class_groups(counts)
    assert head == (2, 0, 1, 12, 10)  # wall ceiling floor clutter bookcase
    assert waist == (6, 8, 7, 5)  # door chair table window
    assert tail == (4, 3, 11, 9)  # column beam board sofa


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_groups_part_the_classes_in_order_of_frequency(counts):
    head, waist, tail = class_groups(torch.tensor(counts))
    assert sorted(head + waist + tail) == list(range(len(counts)))
    assert (len(head), len(tail)) == (math.ceil(len(counts) / 3), len(counts) // 3)
    ordered = [counts[c] for c in head + waist + tail]
    assert ordered == sorted(ordered, reverse=True)


def test_table_shows_several_columns_side_by_side():
    before, after = matrix([0, 0, 2, 1], [0, 0, 0, 1]), matrix([0, 0, 0, 1], [0, 0, 0, 1])
    lines = metrics.table(NAMES, {"pre-trained": before, "final": after}, ((0, 1), (2,), (3,))).splitlines()
    cells = {line.rsplit(None, 2)[0].strip(): line.rsplit(None, 2)[1:] for line in lines if "of" not in line}
    assert cells["class"] == ["pre-trained", "final"]
    assert cells["wall (head)"] == ["66.7", "100.0"] and cells["lamp (tail)"] == ["-", "-"]
    assert cells["chair (waist)"] == ["0.0", "-"]
    assert cells["mIoU"] == ["55.6", "100.0"] and cells["head IoU"] == ["83.3", "100.0"]
    assert cells["OA"] == ["75.0", "100.0"] and cells["mAcc"] == ["83.3", "100.0"]
    assert lines[-1].split() == ["classes", "counted", "3", "of", "4", "2", "of", "4"]
    assert len({len(line) for line in lines}) == 1
    assert "head" not in metrics.table(NAMES, {"final": after})


def test_wrong_input_is_named():
    found = ConfusionMatrix(4)
    with pytest.raises(ValueError, match=r"target: label 4, expected -1\.\.3"):
        found.update(np.array([0]), np.array([4]))
    with pytest.raises(ValueError, match=r"target: label -2, expected -1\.\.3"):
        found.update(np.array([0]), np.array([-2]))
    with pytest.raises(ValueError, match="pred has 2 points, target 1"):
        found.update(np.array([0, 1]), np.array([0]))
    with pytest.raises(ValueError, match="pred: type float32, expected integer train ids"):
        found.update(torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="merge: 3 classes into 4"):
        found.merge(ConfusionMatrix(3))
    with pytest.raises(ValueError, match="names: 1 for 4 classes"):
        found.report(["wall"])
    with pytest.raises(ValueError, match="columns: empty"):
        metrics.table(NAMES, {})
    with pytest.raises(ValueError, match=r"counts: shape \(4, 4\), expected \(4, 5\)"):
        ConfusionMatrix(4, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="classes: 0"):
        ConfusionMatrix(0)
    assert found.points == 0
