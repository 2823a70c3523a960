import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.decouple import losses
from mink_decouple.decouple.losses import Term, cross_entropy, feature_loss, focal, imbalanced_focal

LOG = math.log


def draw(n=12, classes=5, seed=0, unlabelled=True):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator) * 3
    target = torch.randint(-1 if unlabelled else 0, classes, (n,), generator=generator)
    return logits, target


def logits_of(*rows):
    """Logits whose softmax is the given rows of probabilities."""
    return torch.tensor(rows).log()


EVERY_LOSS = {
    "cross_entropy": lambda z, y: cross_entropy(z, y),
    "cross_entropy_weighted": lambda z, y: cross_entropy(z, y, torch.arange(1.0, 6.0), "weights"),
    "logit_adjusted": lambda z, y: cross_entropy(losses.adjust_logits(z, torch.arange(5.0)), y),
    "focal": lambda z, y: focal(z, y, 2.0),
    "imbalanced_focal": lambda z, y: imbalanced_focal(z, y, torch.arange(5.0) * 2.5),
    "imbalanced_focal_ovr": lambda z, y: imbalanced_focal(z, y, torch.arange(5.0) * 2.5, form="ovr"),
    "imbalanced_focal_efl": lambda z, y: imbalanced_focal(z, y, torch.arange(5.0) * 2.5, efl_weight=True),
    "imbalanced_focal_confidence": lambda z, y: imbalanced_focal(
        z, y, torch.arange(5.0), alpha=torch.full((len(z),), 0.7)
    ),
}


@pytest.mark.parametrize("name", EVERY_LOSS)
@pytest.mark.parametrize("rows", [0, 7])
def test_a_batch_without_labels_gives_a_zero_connected_to_the_logits(name, rows):
    logits = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    total, count = EVERY_LOSS[name](logits, torch.full((rows,), -1))
    assert total.item() == 0.0 and count.item() == 0.0 and total.shape == count.shape == ()
    feature_loss([Term(name, total, count)]).backward()
    assert logits.grad is not None and bool((logits.grad == 0).all())


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_unlabelled_rows_change_nothing(name):
    logits, target = draw()
    keep = target >= 0
    if name == "imbalanced_focal_confidence":
        assert keep.any()
    whole, kept = EVERY_LOSS[name](logits, target), EVERY_LOSS[name](logits[keep], target[keep])
    torch.testing.assert_close(whole[0], kept[0])
    assert whole[1] == kept[1]


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_bfloat16_logits_are_computed_in_float32(name):
    logits, target = draw()
    half = logits.bfloat16()
    total, count = EVERY_LOSS[name](half, target)
    assert total.dtype == count.dtype == torch.float32
    torch.testing.assert_close(total, EVERY_LOSS[name](half.float(), target)[0])


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_gradients_agree_with_finite_differences(name):
    logits, target = draw(6)
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: EVERY_LOSS[name](z, target)[0], (logits,))


def test_cross_entropy_of_a_hand_worked_batch():
    # -log 0.5 - log 0.25 = 0.6931 + 1.3863 = 2.0794 over 2 labelled rows
    logits = logits_of([0.5, 0.3, 0.2], [0.25, 0.25, 0.5], [0.1, 0.1, 0.8])
    total, count = cross_entropy(logits, torch.tensor([0, 1, -1]))
    assert total.item() == pytest.approx(2.0794, abs=1e-4) and count.item() == 2


def test_class_weights_divide_by_rows_or_by_their_sum():
    # 3 * log 2 + 1 * log 4 = 3.4657; rows 2; weights 3 + 1 = 4
    logits, target = logits_of([0.5, 0.3, 0.2], [0.25, 0.25, 0.5]), torch.tensor([0, 1])
    weight = torch.tensor([3.0, 1.0, 9.0])
    by_rows, by_weights = cross_entropy(logits, target, weight), cross_entropy(logits, target, weight, "weights")
    assert by_rows[0].item() == by_weights[0].item() == pytest.approx(3.4657, abs=1e-4)
    assert (by_rows[1].item(), by_weights[1].item()) == (2.0, 4.0)
    torch.testing.assert_close(by_weights[0] / by_weights[1], F.cross_entropy(logits, target, weight))


def test_focal_loss_of_a_hand_worked_row():
    # Eq. 4: -0.5 * (1 - 0.2)^2 * log 0.2 = 0.5 * 0.64 * 1.6094 = 0.5150
    total, count = focal(logits_of([0.2, 0.5, 0.3]), torch.tensor([0]), gamma=2.0)
    assert total.item() == pytest.approx(0.5150, abs=1e-4) and count.item() == 1


def test_imbalanced_focal_takes_the_factor_of_the_pseudo_class_only():
    # Eq. 5, c = pseudo-class: 0.5 * 0.8^9 * 1.6094 = 0.1080 and 0.5 * 0.5^0 * 0.6931 = 0.3466
    logits = logits_of([0.2, 0.5, 0.3], [0.2, 0.5, 0.3])
    total, count = imbalanced_focal(logits, torch.tensor([0, 1]), torch.tensor([9.0, 0.0, 4.0]))
    assert total.item() == pytest.approx(0.1080 + 0.3466, abs=1e-4) and count.item() == 2


def test_one_versus_rest_form_of_a_hand_worked_row():
    # alpha .5, gamma (1, 2, 0), pseudo-class 0, p (.2, .5, .3), p_t (.2, .5, .7):
    # .8^1 * 1.6094 + .5^2 * .6931 + .3^0 * .3567 = 1.2875 + .1733 + .3567 = 1.8175, halved .9087
    gamma = torch.tensor([1.0, 2.0, 0.0])
    total, count = imbalanced_focal(logits_of([0.2, 0.5, 0.3]), torch.tensor([0]), gamma, form="ovr")
    assert total.item() == pytest.approx(0.9087, abs=1e-4) and count.item() == 1


def test_efl_weight_multiplies_by_half_of_gamma_plus_two():
    # gamma 9: 0.1080 * 11 / 2 = 0.5940
    logits, target, gamma = logits_of([0.2, 0.5, 0.3]), torch.tensor([0]), torch.tensor([9.0, 0.0, 4.0])
    total, _ = imbalanced_focal(logits, target, gamma, efl_weight=True)
    assert total.item() == pytest.approx(0.5940, abs=2e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0.01, 2.0))
def test_gamma_zero_equals_alpha_times_cross_entropy(seed, alpha):
    logits, target = draw(seed=seed)
    ours, ce = imbalanced_focal(logits, target, torch.zeros(5), alpha), cross_entropy(logits, target)
    torch.testing.assert_close(ours[0], alpha * ce[0])
    assert ours[1] == ce[1]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0.0, 10.0))
def test_equal_factors_give_the_focal_loss(seed, gamma):
    logits, target = draw(seed=seed)
    torch.testing.assert_close(
        imbalanced_focal(logits, target, torch.full((5,), gamma))[0], focal(logits, target, gamma)[0]
    )


def test_alpha_may_be_the_confidence_of_each_row():
    logits, target = draw(unlabelled=False)
    confidence = torch.linspace(0.1, 0.9, len(logits))
    gamma = torch.arange(5.0)
    rows = torch.stack([imbalanced_focal(logits[i : i + 1], target[i : i + 1], gamma, 1.0)[0] for i in range(12)])
    torch.testing.assert_close(imbalanced_focal(logits, target, gamma, confidence)[0], (rows * confidence).sum())


@pytest.mark.parametrize("form", ["softmax", "ovr"])
@pytest.mark.parametrize("gamma", [-1.0, -0.5, 0.0, 0.3, 10.0, 50.0])
@pytest.mark.parametrize("size", [0.0, 30.0, 1e4])
def test_saturated_probabilities_stay_finite_with_their_gradients(form, gamma, size):
    logits = torch.tensor([[size, 0.0, -size], [-size, 0.0, size], [0.0, 0.0, 0.0]], requires_grad=True)
    total, _ = imbalanced_focal(logits, torch.tensor([0, 0, 1]), torch.full((3,), gamma), form=form, efl_weight=True)
    total.backward()
    assert torch.isfinite(total) and bool(torch.isfinite(logits.grad).all())


def test_literal_negative_factor_stays_bounded_by_alpha_near_certainty():
    # alpha (1 - p)^-1 (-log p) -> alpha as p -> 1
    total, _ = imbalanced_focal(logits_of([0.999, 0.001]), torch.tensor([0]), torch.tensor([-1.0, -1.0]))
    assert total.item() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("p", "share"), [(0.05, 1.5), (0.1, 1.3), (0.2, 0.62), (0.3, 0.23), (0.5, 0.014), (0.7, 1.7e-4)]
)
def test_a_large_factor_acts_on_uncertain_points_only(p, share):
    # gradient at the own logit relative to cross-entropy, gamma 9: (1-p)^9 - 9 p (1-p)^8 log p
    logits = logits_of([p, 1 - p]).requires_grad_()
    imbalanced_focal(logits, torch.tensor([0]), torch.tensor([9.0, 0.0]), alpha=1.0)[0].backward()
    assert logits.grad[0, 0].item() / (p - 1) == pytest.approx(share, rel=0.05)


def test_no_gradient_flows_into_factors_or_alpha():
    logits, target = draw()
    gamma, alpha = torch.ones(5, requires_grad=True), torch.ones(12, requires_grad=True)
    assert not imbalanced_focal(logits, target, gamma, alpha)[0].requires_grad


def test_feature_loss_of_hand_worked_terms():
    # 6 / 3 + 2 * (8 / 4) + 5 (a sum is not divided) = 11; with the step's counts 6 / 12 + 2 * (8 / 4) + 5 = 9.5
    terms = [
        Term("mifl", torch.tensor(6.0), torch.tensor(3.0)),
        Term("seg", torch.tensor(8.0), torch.tensor(4.0), scale=2.0),
        Term("printed", torch.tensor(5.0), torch.tensor(4.0), reduction="sum"),
    ]
    assert feature_loss(terms).item() == 11.0
    assert feature_loss(terms, {"mifl": 12.0}).item() == 9.5


def test_micro_batches_with_the_counts_of_the_step_equal_one_batch():
    logits, target = draw(30)
    whole = feature_loss([Term("seg", *cross_entropy(logits, target))])
    count = (target >= 0).sum()
    parts = [
        feature_loss([Term("seg", *cross_entropy(logits[rows], target[rows]))], {"seg": count})
        for rows in (slice(0, 3), slice(3, 30))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_pseudo_labels_never_override_ground_truth():
    target, pseudo = torch.tensor([2, -1, 0, -1]), torch.tensor([1, 1, -1, -1])
    assert losses.merge_targets(target, pseudo).tolist() == [2, 1, 0, -1]
    assert losses.hide_labelled(target, pseudo).tolist() == [-1, 1, -1, -1]


def test_joint_and_split_segmentation_loss_of_a_hand_worked_batch():
    # GT row -log 0.5 = 0.6931; pseudo rows -log 0.25 = 1.3863 each, three of them; last row both: GT counts (0.6931)
    logits = logits_of(*[[0.5, 0.25, 0.25]] * 5)
    target, pseudo = torch.tensor([0, -1, -1, -1, 0]), torch.tensor([-1, 1, 2, 1, 1])
    # joint: (2 * 0.6931 + 3 * 1.3863) / 5 = 1.1090
    joint = losses.segmentation_terms(logits, target, pseudo)
    assert [term.name for term in joint] == ["seg"]
    assert feature_loss(joint).item() == pytest.approx(1.1090, abs=1e-4)
    # split: 0.6931 + 0.5 * 1.3863 = 1.3863
    split = losses.segmentation_terms(logits, target, pseudo, "split", lam=0.5)
    assert [term.name for term in split] == ["seg_gt", "seg_pseudo"]
    assert feature_loss(split).item() == pytest.approx(1.3863, abs=1e-4)


def test_logit_adjustment_of_a_hand_worked_row():
    # prior (.8, .2), z = 0: softmax(log prior) = prior, so -log .2 = 1.6094; tau 0: log 2 = 0.6931
    logits, target, prior = torch.zeros(1, 2), torch.tensor([1]), torch.tensor([8.0, 2.0])
    assert cross_entropy(losses.adjust_logits(logits, prior), target)[0].item() == pytest.approx(1.6094, abs=1e-4)
    assert cross_entropy(losses.adjust_logits(logits, prior, tau=0.0), target)[0].item() == pytest.approx(LOG(2))


def test_an_absent_class_is_adjusted_like_the_rarest_present_one():
    logits, target = draw(classes=3)
    absent = cross_entropy(losses.adjust_logits(logits, torch.tensor([6.0, 2.0, 0.0])), target)
    # a constant added to every log prior changes nothing, so (6, 2, 2) is the same adjustment
    filled = cross_entropy(losses.adjust_logits(logits, torch.tensor([6.0, 2.0, 2.0])), target)
    torch.testing.assert_close(absent[0], filled[0])


def test_class_weights_of_hand_worked_counts():
    # f = (.98, .02, 0): 1 / (1.0, 0.04, 0.02) = 1, 25, 50
    assert losses.class_weights(torch.tensor([98, 2, 0])).tolist() == pytest.approx([1.0, 25.0, 50.0])
    assert losses.class_weights(torch.tensor([98, 2, 0]), "none").tolist() == [1.0, 1.0, 1.0]


def test_absent_classes_of_a_hand_worked_batch():
    # rows of p = (.5, .25, .25): classes 0 and 1 possible -log .75 = .2877; class 2 alone -log .25 = 1.3863;
    # all possible: 0; given: left out, though it counts for nothing but the labelled
    logits = logits_of(*[[0.5, 0.25, 0.25]] * 4)
    target = torch.tensor([-1, -1, -1, 0])
    present = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 1, 1], [1, 0, 0]]).bool()
    total, count = losses.absent_classes(logits, target, present)
    assert total.item() == pytest.approx(0.2877 + 1.3863, abs=1e-4)
    assert count.item() == 3


def test_absent_classes_push_no_class_that_may_be_there_apart():
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[1, 1, 0, 1]] * 4 + [[1, 1, 1, 1]] + [[0, 0, 0, 0]]).bool()
    target = torch.tensor([-1] * 6)
    assert torch.autograd.gradcheck(lambda x: losses.absent_classes(x, target, present)[0], logits)
    losses.absent_classes(logits, target, present)[0].backward()
    assert (logits.grad[:4, 2] > 0).all()
    # within the possible classes the gradient is in proportion to their probabilities: their order stays
    share = logits.detach()[:4, present[0]].softmax(1)
    torch.testing.assert_close(logits.grad[:4, present[0]], -logits.grad[:4, 2:3] * share)
    assert not logits.grad[4:].any()


def test_pseudo_weights_even_out_and_keep_the_mean():
    # f = (.98, .02): 1 / (1.0, 0.04) = 1, 25; mean .98 + .5 = 1.48
    found = losses.pseudo_weights(torch.tensor([98, 2]))
    assert found.tolist() == pytest.approx([1 / 1.48, 25 / 1.48])
    assert losses.pseudo_weights(torch.zeros(3, dtype=torch.int64)).tolist() == [1.0, 1.0, 1.0]
    # a class without any is never asked for
    assert torch.isfinite(losses.pseudo_weights(torch.tensor([5, 0]))).all()


def test_pseudo_weights_apply_to_the_pseudo_labels_alone():
    # GT row -log .5 = .6931; pseudo rows 1.3863 weighted 2 and .5: mean 1.7329
    logits = logits_of(*[[0.5, 0.25, 0.25]] * 3)
    target, pseudo = torch.tensor([0, -1, -1]), torch.tensor([-1, 1, 2])
    terms = losses.segmentation_terms(
        logits, target, pseudo, "split", weight=None, pseudo_weight=torch.tensor([9.0, 2.0, 0.5])
    )
    assert feature_loss(terms).item() == pytest.approx(0.6931 + 1.7329, abs=1e-4)


def test_wrong_choices_are_named_with_the_choices():
    logits, target = draw()
    with pytest.raises(ValueError, match="form: 'sigmoid' is not one of softmax, ovr"):
        imbalanced_focal(logits, target, torch.zeros(5), form="sigmoid")
    with pytest.raises(ValueError, match=r"gamma: shape \(3,\), expected \(5,\)"):
        imbalanced_focal(logits, target, torch.zeros(3))
    with pytest.raises(ValueError, match="divide_by: 'mean' is not one of rows, weights"):
        cross_entropy(logits, target, divide_by="mean")
    with pytest.raises(ValueError, match="norm: 'both' is not one of joint, split"):
        losses.segmentation_terms(logits, target, target, "both")
    with pytest.raises(ValueError, match="reduction: 'max' is not one of mean, sum"):
        Term("seg", torch.zeros(()), torch.zeros(()), reduction="max")
    with pytest.raises(ValueError, match="class_weight: 'log' is not one of inv, none"):
        losses.class_weights(torch.ones(3), "log")
    with pytest.raises(ValueError, match="class_weight: no labelled point"):
        losses.class_weights(torch.zeros(3))
    with pytest.raises(ValueError, match="prior: every class has frequency 0"):
        losses.adjust_logits(logits, torch.zeros(5))
    with pytest.raises(ValueError, match="terms: empty"):
        feature_loss([])
