import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.decouple import pseudo_labels
from mink_decouple.decouple.pseudo_labels import CERTAIN, UNCERTAIN, PseudoLabels, SelectionOptions, keep_rates, select

ALL = torch.arange(4)
BALANCED = torch.ones(4)


def draw(seed, n=60, classes=4, sharpness=3.0, labelled=0.2):
    """Probabilities, given labels of some points, and a repaired imbalance ratio."""
    generator = torch.Generator().manual_seed(seed)
    probs = (torch.randn(n, classes, generator=generator) * sharpness).softmax(1)
    visible = torch.randint(0, classes, (n,), generator=generator)
    visible[torch.rand(n, generator=generator) > labelled] = -1
    counts = torch.randint(1, 1000, (classes,), generator=generator).float()
    return probs, visible, counts.max() / counts


def hidden(n):
    return torch.full((n,), -1)


SEEDS = st.integers(0, 100_000)


def test_certain_thresholds_of_hand_worked_columns():
    # max(max - .1, .5): .95 -> .85, .55 -> .5, .3 -> .5; the last row is no candidate, or class 2 would give .8
    probs = torch.tensor([[0.95, 0.03, 0.02], [0.15, 0.55, 0.30], [0.05, 0.05, 0.90]])
    thresholds = pseudo_labels.certain_thresholds(probs, torch.tensor([True, True, False]))
    assert thresholds.tolist() == pytest.approx([0.85, 0.5, 0.5])


def test_uncertain_thresholds_of_hand_worked_columns():
    # min(max_j, (1 / rho)^.5): min(.6, 1) = .6, min(.55, .5) = .5, min(.3, .25) = .25, floor .4 lifts the last
    probs, rows = torch.tensor([[0.6, 0.1, 0.3], [0.15, 0.55, 0.30]]), torch.tensor([True, True])
    rho = torch.tensor([1.0, 4.0, 16.0])
    assert pseudo_labels.uncertain_thresholds(probs, rows, rho).tolist() == pytest.approx([0.6, 0.5, 0.25])
    assert pseudo_labels.uncertain_thresholds(probs, rows, rho, floor=0.4).tolist() == pytest.approx([0.6, 0.5, 0.4])


def test_selection_of_a_hand_worked_cloud():
    # certain: class 0 max .95 -> .85, class 1 max .65 -> .55, class 2 max .45 -> .5
    # uncertain, rho (1, 1, 9): class 2 min(.45, 1/3); classes 0 and 1 are not in the tail
    probs = torch.tensor(
        [
            [0.95, 0.03, 0.02],  # certain 0
            [0.80, 0.10, 0.10],  # below .85, head: none
            [0.30, 0.65, 0.05],  # certain 1
            [0.30, 0.50, 0.20],  # below .55, head: none
            [0.30, 0.25, 0.45],  # uncertain 2
            [0.34, 0.33, 0.33],  # arg-max 0: none
            [0.98, 0.01, 0.01],  # given as class 2: none
        ]
    )
    visible = torch.tensor([-1, -1, -1, -1, -1, -1, 2])
    found = select(probs, visible, torch.tensor([1.0, 1.0, 9.0]), torch.tensor([2]))
    assert found.label.tolist() == [0, -1, 1, -1, 2, -1, -1]
    assert found.round.tolist() == [1, 0, 1, 0, 2, 0, 0]
    assert found.confidence.tolist() == pytest.approx([0.95, 0, 0.65, 0, 0.45, 0, 0])
    assert (found.label.dtype, found.round.dtype, found.confidence.dtype) == (torch.int64, torch.uint8, torch.float32)


def test_thresholds_are_strict():
    # all numbers are exact in binary: max .75 - .25 = .5, and exactly .5 is not above it
    probs = torch.tensor([[0.75, 0.25], [0.5, 0.25], [0.5625, 0.4375]])
    options = SelectionOptions(delta_len=0.25, mode="off")
    found = select(torch.cat([probs, probs.new_zeros(3, 1)], 1), hidden(3), torch.ones(3), torch.arange(3), options)
    assert found.label.tolist() == [0, 0, 0]  # the middle row is 2/3 once normalised
    even = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25], [0.5625, 0.4375, 0.0]])
    found = select(even, hidden(3), torch.ones(3), torch.arange(3), options)
    assert found.label.tolist() == [0, -1, 0]
    # uncertain: (1 / 4)^.5 = .5 exactly
    found = select(even, hidden(3), torch.full((3,), 4.0), torch.arange(3), SelectionOptions(delta_d=0.9))
    assert found.round.tolist() == [2, 0, 2]


def test_a_lower_bound_below_half_still_takes_the_arg_max_only():
    found = select(torch.tensor([[0.45, 0.55]]), hidden(1), torch.ones(2), ALL[:0], SelectionOptions(delta_d=0.4))
    assert found.label.tolist() == [1]


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, mode=st.sampled_from(["threshold", "rate", "off"]))
def test_invariants_of_every_selection(seed, mode):
    probs, visible, rho = draw(seed)
    before = probs.clone(), visible.clone()
    tail = torch.tensor([1, 3])
    found = select(probs, visible, rho, tail, SelectionOptions(mode=mode))
    given_label, chosen = visible >= 0, found.round > 0
    assert torch.equal(probs, before[0]) and torch.equal(visible, before[1])
    assert not (chosen & given_label).any(), "given labels take part in no round"
    assert torch.equal(found.label >= 0, chosen), "a label exactly where there is a round"
    assert torch.equal(found.label[chosen], probs.argmax(1)[chosen]), "only the arg-max class"
    assert torch.isin(found.label[found.round == UNCERTAIN], tail).all(), "uncertain points are of tail classes"
    assert bool((found.confidence[~chosen] == 0).all())
    torch.testing.assert_close(found.confidence[chosen], probs.amax(1)[chosen])
    certain = select(probs, visible, rho, tail, SelectionOptions(mode="off"))
    assert torch.equal(found.round == CERTAIN, certain.round == CERTAIN), "the certain round comes first"
    for c in range(4):
        sure = found.confidence[(found.round == CERTAIN) & (found.label == c)]
        unsure = found.confidence[(found.round == UNCERTAIN) & (found.label == c)]
        assert not len(sure) or not len(unsure) or sure.min() > unsure.max()


def test_classes_of_one_frequency_are_kept_at_one_rate():
    rates = keep_rates(torch.tensor([2.0, 1.0, 4.0, 2.0]))
    assert rates[0] == rates[3] == pytest.approx(0.5 ** (1 / 3))
    low = keep_rates(torch.tensor([4.0, 1.0, 1.0]))
    assert low[1] == low[2] == pytest.approx((1 + 0.25 ** (1 / 3)) / 2) and low[0] == 1.0


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, mode=st.sampled_from(["threshold", "rate"]))
def test_renaming_classes_renames_the_labels(seed, mode):
    probs, visible, rho = draw(seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    new_id = torch.argsort(order)
    tail, options = torch.tensor([0, 2]), SelectionOptions(mode=mode)
    renamed_visible = torch.where(visible >= 0, new_id[visible.clamp_min(0)], visible)
    found = select(probs, visible, rho, tail, options)
    renamed = select(probs[:, order], renamed_visible, rho[order], new_id[tail], options)
    assert torch.equal(renamed.round, found.round)
    assert torch.equal(renamed.label, torch.where(found.label >= 0, new_id[found.label.clamp_min(0)], found.label))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_shuffling_points_shuffles_the_labels(seed):
    probs, visible, rho = draw(seed)
    order = torch.randperm(len(probs), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(
        select(probs[order], visible[order], rho, ALL).label, select(probs, visible, rho, ALL).label[order]
    )


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_beta_zero_selects_no_uncertain_point(seed):
    probs, visible, rho = draw(seed)
    assert not (select(probs, visible, rho, ALL, SelectionOptions(beta=0.0)).round == UNCERTAIN).any()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_a_larger_beta_never_takes_a_point_away(seed):
    probs, visible, rho = draw(seed)
    few, many = (select(probs, visible, rho, ALL, SelectionOptions(beta=beta)).round > 0 for beta in (0.2, 0.8))
    assert bool((few <= many).all())


def test_the_head_gains_no_uncertain_point_even_outside_the_tail_rule():
    # rho 1: threshold is the largest remaining probability itself
    probs, visible, _ = draw(0)
    assert not (select(probs, visible, BALANCED, ALL).round == UNCERTAIN).any()


def test_cloud_thresholds_look_at_the_points_each_round_may_take():
    # certain: hidden max .9 -> .8; uncertain: min(remaining max .6, (1 / 2)^.5 = .7071); the given .99 counts nowhere
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.99, 0.01]])
    certain, uncertain = pseudo_labels.cloud_thresholds(probs, torch.tensor([-1, -1, 0]), torch.full((2,), 2.0))
    assert certain.tolist() == pytest.approx([0.8, 0.5]) and uncertain.tolist() == pytest.approx([0.6, 0.4])


def test_thresholds_belong_to_one_cloud():
    # max .7 -> .6 in the first cloud, max .99 -> .89 in the second: .65 is certain only in the first
    first, second = torch.tensor([[0.7, 0.3], [0.65, 0.35]]), torch.tensor([[0.99, 0.01], [0.65, 0.35]])
    rho, none = torch.ones(2), torch.arange(0)
    assert select(first, hidden(2), rho, none).label.tolist() == [0, 0]
    assert select(second, hidden(2), rho, none).label.tolist() == [0, -1]


def test_a_given_point_does_not_move_the_threshold():
    probs = torch.tensor([[0.99, 0.01], [0.65, 0.35]])
    assert select(probs, torch.tensor([0, -1]), torch.ones(2), torch.arange(0)).label.tolist() == [-1, 0]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_global_thresholds_label_two_clouds_as_if_they_were_one(seed):
    probs, visible, rho = draw(seed)
    parts = [(probs[:20], visible[:20]), (probs[20:], visible[20:])]
    certain = torch.stack([pseudo_labels.cloud_thresholds(*part, rho)[0] for part in parts]).amax(0)
    uncertain = torch.stack([pseudo_labels.cloud_thresholds(*part, rho, certain=certain)[1] for part in parts]).amax(0)
    found = [select(*part, rho, ALL, certain=certain, uncertain=uncertain) for part in parts]
    whole = select(probs, visible, rho, ALL)
    assert torch.equal(torch.cat([part.label for part in found]), whole.label)
    assert torch.equal(torch.cat([part.round for part in found]), whole.round)


def test_probabilities_are_normalised_before_any_threshold():
    # voting leaves 1 - .95^k of the mass: the same selection as the normalised probabilities give
    probs, visible, rho = draw(1)
    voted = select(probs * (1 - 0.95**3), visible, rho, ALL)
    torch.testing.assert_close(voted.confidence, select(probs, visible, rho, ALL).confidence)


def test_points_never_visited_get_no_label():
    probs = torch.tensor([[0.0, 0.0], [0.9, 0.1], [0.0, 0.0]])
    for mode in ("threshold", "rate"):
        found = select(probs, hidden(3), torch.ones(2), torch.arange(2), SelectionOptions(mode=mode))
        assert found.label.tolist() == [-1, 0, -1]
    assert pseudo_labels.predicted_counts(probs, hidden(3)).tolist() == [1, 0]


@pytest.mark.parametrize("rows", [0, 3])
def test_a_cloud_without_hidden_points_gets_no_label(rows):
    found = select(torch.full((rows, 2), 0.5), torch.zeros(rows, dtype=torch.int64), torch.ones(2), torch.arange(2))
    assert found.label.tolist() == [-1] * rows and found.round.tolist() == [0] * rows


def test_rate_keeps_the_most_confident_share_of_each_tail_class():
    # rho (1, 4): frequencies (1, 1/4), mirrored rates at power .5: (.5, 1); four remaining points of class 0: two kept
    first = torch.tensor([0.60, 0.75, 0.65, 0.70])
    probs = torch.cat([torch.stack([first, 1 - first], 1), torch.tensor([[0.45, 0.55], [0.3, 0.7]])])
    options = SelectionOptions(delta_d=0.9, mode="rate", rate_power=0.5)
    found = select(probs, hidden(6), torch.tensor([1.0, 4.0]), torch.tensor([0, 1]), options)
    assert found.label.tolist() == [-1, 0, -1, 0, 1, 1]
    assert select(probs, hidden(6), torch.tensor([1.0, 4.0]), torch.tensor([1]), options).label.tolist() == [
        *[-1] * 4,
        1,
        1,
    ]


def test_half_precision_probabilities_are_accepted():
    probs, visible, rho = draw(2)
    half = probs.half()
    assert torch.equal(select(half, visible, rho, ALL).label, select(half.float(), visible, rho, ALL).label)


def test_tail_rules_of_hand_worked_counts():
    counts = torch.tensor([50, 5, 30, 10, 5])  # mean 20
    assert pseudo_labels.tail_classes(counts).tolist() == [1, 4]  # floor(5 / 2) = 2
    assert pseudo_labels.tail_classes(counts, tail_frac=0.6).tolist() == [1, 3, 4]
    assert pseudo_labels.tail_classes(counts, "below_mean").tolist() == [1, 3, 4]
    assert pseudo_labels.tail_classes(counts, "all").tolist() == [0, 1, 2, 3, 4]


def test_predicted_counts_leave_given_points_out():
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    assert pseudo_labels.predicted_counts(probs, torch.tensor([-1, -1, 1, -1])).tolist() == [2, 1]


def test_quality_of_a_hand_worked_cloud():
    labels = PseudoLabels(
        label=torch.tensor([0, 0, 1, 1, -1, -1, 0]),
        round=torch.tensor([1, 1, 1, 2, 0, 0, 1], dtype=torch.uint8),
        confidence=torch.ones(7),
    )
    truth = torch.tensor([0, 1, 1, 1, 1, 0, -1])  # the last point's truth is unknown: left out
    visible = torch.tensor([-1, -1, -1, -1, -1, 0, -1])
    found = pseudo_labels.quality(labels, truth, 3, visible)
    assert found.selected.tolist() == [[2, 1, 0], [0, 1, 0]]
    assert found.correct.tolist() == [[1, 1, 0], [0, 1, 0]]
    assert found.hidden.tolist() == [1, 4, 0]
    assert found.precision()[:2].tolist() == [0.5, 1.0] and found.recall()[:2].tolist() == [1.0, 0.5]
    assert found.recall(CERTAIN)[1] == 0.25 and found.count(UNCERTAIN).tolist() == [0, 1, 0]
    assert found.precision()[2].isnan() and found.recall()[2].isnan()
    twice = found + found
    assert twice.count().tolist() == [4, 4, 0] and torch.equal(twice.precision()[:2], found.precision()[:2])


def test_wrong_settings_are_named_with_the_choices():
    with pytest.raises(ValueError, match=r"uncer\.mode: 'crest' is not one of threshold, rate, off"):
        SelectionOptions(mode="crest")
    with pytest.raises(ValueError, match=r"tail\.rule: 'third' is not one of half, below_mean, all"):
        SelectionOptions(tail_rule="third")
    with pytest.raises(ValueError, match=r"beta: 1\.5, expected a number in 0\.\.1"):
        SelectionOptions(beta=1.5)
    with pytest.raises(ValueError, match="NaN or infinity"):
        select(torch.tensor([[0.5, float("nan")]]), hidden(1), torch.ones(2), torch.arange(2))
    with pytest.raises(ValueError, match=r"probs \(1, 2\) and visible \(3,\)"):
        select(torch.tensor([[0.5, 0.5]]), hidden(3), torch.ones(2), torch.arange(2))


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_labels_that_spread_are_certain_and_never_touch_a_given_one(seed):
    probs, visible, rho = draw(seed)
    before = select(probs, visible, rho, ALL)
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randint(-1, 4, (60,), generator=generator)
    after = pseudo_labels.give_spread(before, visible, spread)
    given_, reached = visible >= 0, (visible < 0) & (spread >= 0)
    assert (after.label[given_] == -1).all() and (after.round[given_] == 0).all()
    assert torch.equal(after.label[reached], spread[reached])
    assert (after.round[reached] == CERTAIN).all() and (after.confidence[reached] == 1).all()
    rest = ~given_ & ~reached
    for name in ("label", "round", "confidence"):
        assert torch.equal(getattr(after, name)[rest], getattr(before, name)[rest]), name
