"""The loss of a step: micro-batches together weigh as the whole batch, and each label source feeds its terms only."""

import pytest
import torch

from mink_decouple.config import LossConfig
from mink_decouple.decouple.balance import GradientRatio
from mink_decouple.decouple.erda import Alignment, alignment_loss
from mink_decouple.engine.objective import Objective


def objective(labels="mixed", feature="mifl", **changes):
    return Objective(LossConfig(**changes), labels, feature, None, torch.ones(3), GradientRatio(3))


@pytest.fixture
def rows():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 3, generator=g, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, -1, -1, -1, -1, -1, -1, -1, -1, -1])
    pseudo = torch.tensor([-1, -1, -1, 0, 1, 2, 2, 1, 0, -1, -1, -1])
    return logits, target, pseudo, torch.full((12,), 0.8, dtype=torch.float64)


def total(parts):
    return {key: float(sum(part[key] for part in parts)) for key in parts[0]}


@pytest.mark.parametrize("norm", ["joint", "split"])
@pytest.mark.parametrize("feature", ["mifl", "focal", "none"])
def test_micro_batches_of_unequal_label_counts_give_the_gradient_of_the_whole_batch(rows, norm, feature):
    logits, *rest = rows
    whole = objective(feature=feature, seg_norm=norm)
    loss, _ = whole(logits, *rest, total([whole.counts(*rest[:2])]))
    (expected,) = torch.autograd.grad(loss, logits)
    parts = objective(feature=feature, seg_norm=norm)
    pieces = [slice(0, 4), slice(4, 12)]
    counts = total([parts.counts(rest[0][s], rest[1][s]) for s in pieces])
    gamma = parts.gamma()
    parts.gamma = lambda: gamma  # g^c moves between micro-batches by design; hold it for the comparison
    loss = sum(parts(logits[s], *(r[s] for r in rest), counts)[0] for s in pieces)
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, expected)


def test_absent_classes_cost_the_rows_without_a_given_label_and_micro_batches_agree(rows):
    logits, *rest = rows
    present = (torch.arange(12).unsqueeze(1) + torch.arange(3)) % 3 > 0
    whole, without = objective(feature="none", absent=0.5), objective(feature="none")
    counts = total([whole.counts(*rest[:2])])
    loss, values = whole(logits, *rest, counts, present=present)
    hidden = rest[0] == -1
    expected = -(logits.softmax(1) * present).sum(1).log()[hidden].mean()
    assert values["absent"] == pytest.approx(0.5 * expected.item())
    torch.testing.assert_close(loss, without(logits, *rest, counts)[0] + 0.5 * expected)
    pieces = [slice(0, 4), slice(4, 12)]
    parts = sum(whole(logits[s], *(r[s] for r in rest), counts, present=present[s])[0] for s in pieces)
    torch.testing.assert_close(parts, loss)


def test_given_labels_only_is_plain_cross_entropy(rows):
    logits, target, pseudo, confidence = rows
    first = objective(labels="gt", feature="none")
    loss, values = first(logits, target, pseudo, confidence, total([first.counts(target, pseudo)]))
    expected = torch.nn.functional.cross_entropy(logits, target, ignore_index=-1)
    torch.testing.assert_close(loss, expected)
    assert values["seg"] == pytest.approx(expected.item())


def test_without_any_label_the_loss_is_a_zero_that_still_reaches_the_logits(rows):
    logits = rows[0]
    none = torch.full((12,), -1)
    first = objective()
    loss, _ = first(logits, none, none, rows[3], total([first.counts(none, none)]))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_gradient_ratio_follows_the_chosen_rows(rows):
    logits, target, pseudo, confidence = rows
    sums = {}
    for source in ("pseudo", "labels", "all"):
        chosen = objective(g_source=source)
        chosen(logits, target, pseudo, confidence, total([chosen.counts(target, pseudo)]))
        sums[source] = chosen.ratio.accumulators()
    torch.testing.assert_close(sums["pseudo"] + sums["labels"], sums["all"])
    assert (sums["pseudo"] > 0).all() and (sums["labels"] > 0).all()
    assert not torch.allclose(sums["pseudo"], sums["labels"])


def test_the_alignment_adds_its_weighted_mean_over_the_rows_without_a_given_label(rows):
    logits, *rest = rows
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    module = Alignment(5, 3).double()
    plain, aligned = objective(feature="none"), objective(feature="none", erda=0.3)
    aligned.alignment = module
    without, _ = plain(logits, *rest, total([plain.counts(*rest[:2])]))
    counts = total([aligned.counts(*rest[:2])])
    assert counts["erda"] == 9
    loss, values = aligned(logits, *rest, counts, features)
    again = Alignment(5, 3).double()
    sum_, count = alignment_loss(again(features, rest[0]), logits, rest[0])
    torch.testing.assert_close(loss, without + 0.3 * sum_ / count)
    assert values["erda"] == pytest.approx(0.3 * sum_.item() / count.item())


@pytest.mark.parametrize("labels", ["gt", "mixed"])
def test_class_weights_weigh_the_rows_of_the_cross_entropy(rows, labels):
    logits, target, pseudo, confidence = rows
    weight = torch.tensor([3.0, 1.0, 9.0], dtype=torch.float64)
    made = Objective(LossConfig(), labels, "none", weight, torch.ones(3), GradientRatio(3))
    loss, _ = made(logits, target, pseudo, confidence, total([made.counts(target, pseudo)]))
    chosen = target if labels == "gt" else torch.where(target >= 0, target, pseudo)
    picked = chosen >= 0
    nll = -logits.log_softmax(1)[picked, chosen[picked]]
    torch.testing.assert_close(loss, (weight[chosen[picked]] * nll).sum() / picked.sum())


ALONE = [
    ("mifl", {}, {"s": 5.0}),
    ("mifl", {}, {"clamp_min": None}),
    ("mifl", {}, {"gamma_base": "efl"}),
    ("mifl", {}, {"form": "ovr"}),
    ("mifl", {}, {"efl_weight": True}),
    ("mifl", {}, {"alpha": 0.3}),
    ("mifl", {}, {"alpha_mode": "confidence"}),
    ("mifl", {}, {"g_source": "all"}),
    ("mifl", {}, {"seg_norm": "split"}),
    ("mifl", {"seg_norm": "split"}, {"seg_lambda": 0.5}),
    ("focal", {}, {"gamma": 1.0}),
    ("focal", {}, {"alpha": 0.3}),
    ("focal", {}, {"alpha_mode": "confidence"}),
]


@pytest.mark.parametrize(("feature", "base", "change"), ALONE, ids=[f"{f}-{next(iter(c))}" for f, _, c in ALONE])
def test_each_loss_setting_changes_the_loss_by_itself(rows, feature, base, change):
    logits, *rest = rows

    def losses(**changes):
        ratio, rho = GradientRatio(3), torch.tensor([1.0, 2.0, 4.0])
        made = Objective(LossConfig(**changes), "mixed", feature, None, rho, ratio)
        counts = total([made.counts(*rest[:2])])
        return [float(made(logits * scale, *rest, counts)[0].detach()) for scale in (1.0, 2.0, 3.0)]

    plain, changed = losses(**base), losses(**base, **change)
    assert max(abs(a - b) for a, b in zip(plain, changed, strict=True)) > 1e-3


def test_the_imbalance_ratio_moves_the_focusing_factors():
    flat = Objective(LossConfig(), "mixed", "mifl", None, torch.ones(3), GradientRatio(3))
    steep = Objective(LossConfig(), "mixed", "mifl", None, torch.tensor([1.0, 2.0, 4.0]), GradientRatio(3))
    for made in (flat, steep):
        made.ratio.update(torch.tensor([[0.1, 0.2, 0.3]]).repeat(9, 1), torch.arange(9) % 3)
        expected = (10 * (1 - made.ratio.ratio()) - 1 / made.rho).clamp(min=0)  # Eq. 6
        torch.testing.assert_close(made.gamma().double(), expected.double(), rtol=1e-5, atol=1e-6)
    assert steep.gamma()[2] > flat.gamma()[2] > 0
