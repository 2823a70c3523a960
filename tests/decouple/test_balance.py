import pytest
import torch

from mink_decouple.decouple import balance
from mink_decouple.decouple.balance import GradientRatio, focusing_factors, imbalance_ratio
from mink_decouple.decouple.losses import cross_entropy
from mink_decouple.decouple.pseudo_labels import keep_rates, tail_classes, uncertain_thresholds

# S3DIS, 1 % of the 4 cm points: class, labelled points, literal rho, literal threshold at beta .5, then the repaired
# threshold at beta .5, .2 and .8, CReST's keep rate at power 1/3, and the repaired gamma at g = 0, s = 10.
S3DIS = [
    ("wall", 49192, 55.5, 0.134, 1.000, 1.00, 1.00, 0.262, 9.00),
    ("ceiling", 33707, 38.0, 0.162, 0.828, 0.93, 0.74, 0.360, 9.31),
    ("floor", 28567, 32.2, 0.176, 0.762, 0.90, 0.65, 0.401, 9.42),
    ("clutter", 22728, 25.6, 0.198, 0.680, 0.86, 0.54, 0.424, 9.54),
    ("bookcase", 12841, 14.5, 0.263, 0.511, 0.76, 0.34, 0.460, 9.74),
    ("door", 9747, 11.0, 0.302, 0.445, 0.72, 0.27, 0.509, 9.80),
    ("chair", 7914, 8.9, 0.335, 0.401, 0.69, 0.23, 0.544, 9.84),
    ("table", 6504, 7.3, 0.369, 0.364, 0.67, 0.20, 0.583, 9.87),
    ("window", 4780, 5.4, 0.431, 0.312, 0.63, 0.16, 0.639, 9.90),
    ("column", 3756, 4.2, 0.486, 0.276, 0.60, 0.13, 0.773, 9.92),
    ("beam", 3181, 3.6, 0.528, 0.254, 0.58, 0.11, 0.834, 9.94),
    ("board", 2297, 2.6, 0.621, 0.216, 0.54, 0.09, 0.882, 9.95),
    ("sofa", 887, 1.0, 1.000, 0.134, 0.45, 0.04, 1.000, 9.98),
]
COUNTS = torch.tensor([row[1] for row in S3DIS])


def column(i):
    return torch.tensor([row[i] for row in S3DIS])


def test_imbalance_ratio_of_hand_worked_counts():
    # repaired 8 / (8, 4, 2), literal (8, 4, 2) / 2
    assert imbalance_ratio(torch.tensor([8, 4, 2])).tolist() == [1.0, 2.0, 4.0]
    assert imbalance_ratio(torch.tensor([8, 4, 2]), "literal").tolist() == [4.0, 2.0, 1.0]


@pytest.mark.parametrize("mode", ["repaired", "literal"])
def test_an_absent_class_takes_the_ratio_of_the_rarest_present_one(mode):
    rho = imbalance_ratio(torch.tensor([8, 0, 2]), mode)
    assert rho[1] == rho[2] and bool(torch.isfinite(rho).all()) and bool((rho >= 1).all())


def test_without_any_count_all_classes_are_balanced():
    assert imbalance_ratio(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]


def test_the_s3dis_example_of_ratio_thresholds_and_keep_rates():
    torch.testing.assert_close(imbalance_ratio(COUNTS, "literal"), column(2), atol=0.06, rtol=0)
    sure = torch.ones(1, 13)  # max_j = 1 in every class, so only the ratio decides
    rows = torch.tensor([True])
    literal = uncertain_thresholds(sure, rows, imbalance_ratio(COUNTS, "literal"))
    torch.testing.assert_close(literal, column(3), atol=6e-4, rtol=0)
    rho = imbalance_ratio(COUNTS)
    for beta, i, digits in ((0.5, 4, 6e-4), (0.2, 5, 6e-3), (0.8, 6, 6e-3)):
        torch.testing.assert_close(uncertain_thresholds(sure, rows, rho, beta), column(i), atol=digits, rtol=0)
    torch.testing.assert_close(keep_rates(rho), column(7), atol=6e-4, rtol=0)


def test_the_s3dis_example_of_focusing_factors():
    rho = imbalance_ratio(COUNTS)
    torch.testing.assert_close(focusing_factors(torch.zeros(13), rho), column(8), atol=6e-3, rtol=0)
    assert focusing_factors(torch.ones(13), rho).tolist() == [0.0] * 13
    # literal at g = 1: wall -887 / 49192 = -0.018, sofa -1; at g = 0 10 higher
    literal = focusing_factors(torch.ones(13), imbalance_ratio(COUNTS, "literal"), clamp_min=None)
    assert literal[[0, 12]].tolist() == pytest.approx([-0.018, -1.0], abs=1e-3)


def test_focusing_factors_of_hand_worked_values():
    # 10 * (1 - .25) - 1/2 = 7; 10 * (1 - 1) - 1/4 = -.25, clamped 0; EFL 10 * .75 + 2 = 9.5
    g, rho = torch.tensor([0.25, 1.0]), torch.tensor([2.0, 4.0])
    assert focusing_factors(g, rho).tolist() == [7.0, 0.0]
    assert focusing_factors(g, rho, clamp_min=None).tolist() == [7.0, -0.25]
    assert focusing_factors(g, rho, base="efl").tolist() == [9.5, 2.0]


def test_one_point_per_class_and_scene_is_flat_though_the_sums_are_not():
    per_scene = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 0, 0], [1, 0, 0]])
    assert balance.labels_are_flat(per_scene)
    assert not balance.labels_are_flat(per_scene.sum(0))  # 5 : 1 : 1
    assert not balance.labels_are_flat(torch.tensor([[90, 30, 1], [80, 10, 2]]))


def test_auto_source_takes_predicted_counts_only_where_labels_are_flat():
    flat, skewed = torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([[90, 30, 1], [80, 10, 2]])
    predicted = torch.tensor([500, 40, 3])
    assert balance.select_counts(flat, predicted).tolist() == [500, 40, 3]
    assert balance.select_counts(flat, None).tolist() == [2, 2, 1]
    assert balance.select_counts(skewed, predicted).tolist() == [170, 40, 3]
    assert balance.select_counts(skewed, predicted, "predicted").tolist() == [500, 40, 3]
    assert balance.select_counts(flat, predicted, "labels").tolist() == [2, 2, 1]


def gradients(logits, target):
    z = logits.clone().requires_grad_()
    cross_entropy(z, target)[0].backward()
    own = torch.zeros_like(z, dtype=torch.bool)
    own[target >= 0, target[target >= 0]] = True
    size = z.grad.abs()
    return torch.stack([(size * own).sum(0), (size * ~own).sum(0)])


def batch(seed, n=40, classes=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator) * 2, torch.randint(-1, classes, (n,), generator=generator)


def test_accumulated_gradients_are_those_autograd_finds():
    ratio, expected = GradientRatio(4), torch.zeros(2, 4)
    for seed in range(3):
        ratio.update(*batch(seed))
        expected += gradients(*batch(seed))
    torch.testing.assert_close(ratio.accumulators().float(), expected)
    torch.testing.assert_close(ratio.ratio(), (expected[0] / expected[1]).clamp(0, 1))


def test_gradient_ratio_of_a_hand_worked_batch():
    # p = (.75, .25) twice, targets 0 and 1: class 0 positive 1 - .75 = .25, negative .75: 1/3;
    # class 1 positive 1 - .25 = .75, negative .25: 3, clipped to 1
    ratio = GradientRatio(2)
    ratio.update(torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log(), torch.tensor([0, 1]))
    assert ratio.ratio().tolist() == pytest.approx([1 / 3, 1.0])


def test_sigmoid_gradients_of_a_hand_worked_batch():
    # z = 0: sigmoid .5 everywhere; one row of class 0: positive (.5, 0), negative (0, .5)
    ratio = GradientRatio(2, act="sigmoid")
    ratio.update(torch.zeros(1, 2), torch.tensor([0]))
    assert ratio.accumulators().tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert ratio.ratio().tolist() == [1.0, 0.0]


def test_ratio_starts_at_one_and_reset_brings_it_back():
    ratio = GradientRatio(4)
    assert ratio.ratio().tolist() == [1.0] * 4
    ratio.update(torch.zeros(3, 4), torch.full((3,), -1))
    assert ratio.ratio().tolist() == [1.0] * 4
    ratio.update(*batch(0))
    assert ratio.ratio().tolist() != [1.0] * 4
    ratio.reset()
    assert ratio.ratio().tolist() == [1.0] * 4


def test_moving_average_weighs_the_last_batch_most():
    # decay .5: sums = .5 * first + last
    ratio = GradientRatio(4, ema=0.5)
    ratio.update(*batch(0))
    ratio.update(*batch(1))
    torch.testing.assert_close(
        ratio.accumulators().float(), 0.5 * gradients(*batch(0)) + gradients(*batch(1)), rtol=1e-5, atol=1e-6
    )


def test_sums_of_two_processes_give_the_ratio_of_one():
    both, first, second = GradientRatio(4), GradientRatio(4), GradientRatio(4)
    for seed, part in ((0, first), (1, second)):
        both.update(*batch(seed))
        part.update(*batch(seed))
    reduced = first.accumulators() + second.accumulators()
    torch.testing.assert_close(first.ratio(reduced), both.ratio())


def test_the_sums_stay_on_the_device_that_they_began_on():
    """What a step adds is a difference of two of them, taken on the way and after."""
    ratio = GradientRatio(4, device="meta")
    for change in (lambda: None, ratio.reset, lambda: ratio.load_state_dict({"sums": torch.ones(2, 4)})):
        change()
        before = ratio.accumulators()
        ratio.update(*(rows.to("meta") for rows in batch(0)))
        assert (ratio.accumulators() - before).device.type == ratio.ratio().device.type == "meta"


def test_state_restores_the_ratio_and_is_a_copy():
    ratio = GradientRatio(4)
    ratio.update(*batch(0))
    state, before = ratio.state_dict(), ratio.ratio()
    ratio.update(*batch(1))
    restored = GradientRatio(4)
    restored.load_state_dict(state)
    assert torch.equal(restored.ratio(), before)
    with pytest.raises(ValueError, match="state of 4 classes, expected 3"):
        GradientRatio(3).load_state_dict(state)


def test_update_leaves_the_graph_alone():
    logits, target = batch(0)
    logits.requires_grad_()
    ratio = GradientRatio(4)
    ratio.update(logits, target)
    assert not ratio.ratio().requires_grad and logits.grad is None


def test_renaming_classes_renames_ratios_rates_and_tail():
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    assert torch.equal(imbalance_ratio(COUNTS[order]), imbalance_ratio(COUNTS)[order])
    assert torch.equal(keep_rates(imbalance_ratio(COUNTS[order])), keep_rates(imbalance_ratio(COUNTS))[order])
    assert set(order[tail_classes(COUNTS[order])].tolist()) == set(tail_classes(COUNTS).tolist())


def test_wrong_choices_are_named_with_the_choices():
    counts = torch.tensor([2, 1])
    with pytest.raises(ValueError, match=r"rho.mode: 'inverse' is not one of repaired, literal"):
        imbalance_ratio(counts, "inverse")
    with pytest.raises(ValueError, match="counts: -1 is negative"):
        imbalance_ratio(torch.tensor([2, -1]))
    with pytest.raises(ValueError, match=r"rho.source: 'truth' is not one of labels, predicted, auto"):
        balance.select_counts(counts, None, "truth")
    with pytest.raises(ValueError, match="'predicted' needs predicted counts"):
        balance.select_counts(counts, None, "predicted")
    with pytest.raises(ValueError, match=r"gamma.base: 'eql' is not one of seed, efl"):
        focusing_factors(torch.ones(2), torch.ones(2), base="eql")
    with pytest.raises(ValueError, match=r"g.act: 'relu' is not one of softmax, sigmoid"):
        GradientRatio(2, act="relu")
    with pytest.raises(ValueError, match=r"g.ema: 1.5"):
        GradientRatio(2, ema=1.5)
    with pytest.raises(ValueError, match="classes: 0"):
        GradientRatio(0)
