"""Distribution alignment: the loss by hand, gradients by differences, prototypes by their recursion."""

import math

import pytest
import torch

from mink_decouple.decouple.erda import Alignment, alignment_loss


def test_the_loss_is_the_cross_entropy_of_the_hidden_rows_worked_by_hand():
    probs = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    logits = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.4, 0.6]]))
    target = torch.tensor([-1, 1, -1])
    total, count = alignment_loss(probs, logits, target)
    first = -(0.5 * math.log(0.25) + 0.5 * math.log(0.75))
    third = -(0.2 * math.log(0.4) + 0.8 * math.log(0.6))
    assert total.item() == pytest.approx(first + third)
    assert count.item() == 2


def test_the_loss_is_entropy_plus_divergence():
    g = torch.Generator().manual_seed(0)
    probs = torch.randn(6, 4, generator=g).softmax(1)
    logits = torch.randn(6, 4, generator=g)
    q = logits.softmax(1)
    entropy = -(probs * probs.log()).sum()
    divergence = (probs * (probs / q).log()).sum()
    total, _ = alignment_loss(probs, logits, torch.full((6,), -1))
    torch.testing.assert_close(total, entropy + divergence)


def test_without_a_hidden_row_the_loss_is_a_connected_zero():
    logits = torch.randn(3, 2, requires_grad=True)
    total, count = alignment_loss(torch.full((3, 2), 0.5), logits, torch.tensor([0, 1, 0]))
    total.backward()
    assert total.item() == 0 and count.item() == 0 and torch.equal(logits.grad, torch.zeros(3, 2))


def seen_module(temperature=1.0):
    """A module in float64 that has seen classes 0 and 2 of three."""
    made = Alignment(4, 3, momentum=0.9, temperature=temperature).double()
    g = torch.Generator().manual_seed(1)
    made(torch.randn(8, 4, generator=g, dtype=torch.float64), torch.tensor([0, 0, 2, 2, -1, -1, -1, -1]))
    return made, torch.randn(5, 4, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_agree_with_differences_through_pseudo_distribution_and_prediction(training):
    made, features = seen_module(0.5)
    made.train(training)
    target = torch.full((5,), -1)  # no labelled row: the prototypes stay where they are between evaluations
    weight = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss(features, weight):
        return alignment_loss(made(features, target), features @ weight, target)[0]

    assert torch.autograd.gradcheck(loss, (features.requires_grad_(), weight.requires_grad_()), atol=1e-6)


def test_gradients_reach_the_projector_and_the_prediction_but_not_the_prototypes():
    made, features = seen_module()
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    total, _ = alignment_loss(made(features, torch.full((5,), -1)), logits, torch.full((5,), -1))
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.projector[3].parameters())
    assert logits.grad.abs().sum() > 0
    assert not made.prototypes.requires_grad


def test_a_class_that_was_never_seen_has_no_share():
    made, features = seen_module()
    probs = made.eval()(features, torch.full((5,), -1))
    assert (probs[:, 1] == 0).all()
    torch.testing.assert_close(probs.sum(1), torch.ones(5, dtype=torch.float64))
    fresh = Alignment(4, 3).double().eval()
    torch.testing.assert_close(fresh(features, torch.full((5,), -1)), torch.full((5, 3), 1 / 3, dtype=torch.float64))


def test_probabilities_are_the_softmax_of_cosines_over_the_temperature():
    made, features = seen_module(0.25)
    made.eval()
    probs = made(features, torch.full((5,), -1))
    projected = made.projector(features)
    for row, p in zip(projected, probs):
        cosine = [torch.cosine_similarity(row, made.prototypes[c], dim=0) for c in (0, 2)]
        expected = torch.stack(cosine).div(0.25).softmax(0)
        torch.testing.assert_close(p[[0, 2]], expected)


def test_prototypes_are_the_moving_average_of_the_means_of_labelled_rows():
    made = Alignment(2, 3, momentum=0.15).double()
    made.projector = torch.nn.Identity()  # projected features are the features
    a = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [9.0, 9.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 4.0], [7.0, 7.0]], dtype=torch.float64)
    made(a, torch.tensor([0, 0, 1, -1]))
    torch.testing.assert_close(made.prototypes[0], 0.9 * torch.tensor([2.0, 0.0], dtype=torch.float64))
    made(b, torch.tensor([0, -1]))
    # the second decay is min(0.15, 2 / 11)
    expected = 0.15 * 0.9 * torch.tensor([2.0, 0.0]) + 0.85 * torch.tensor([0.0, 4.0])
    torch.testing.assert_close(made.prototypes[0], expected.double())
    torch.testing.assert_close(made.prototypes[1], 0.9 * torch.tensor([0.0, 5.0], dtype=torch.float64))
    assert made.prototypes[2].eq(0).all() and made.updates.tolist() == [2, 1, 0]
    before = made.prototypes.clone()
    made.eval()(a, torch.tensor([0, 0, 1, -1]))
    assert torch.equal(made.prototypes, before)


def test_weights_follow_from_the_seed_and_leave_the_global_draws_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, two, other = Alignment(4, 3, seed=1), Alignment(4, 3, seed=1), Alignment(4, 3, seed=2)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(one.projector[0].weight, two.projector[0].weight)
    assert not torch.equal(one.projector[0].weight, other.projector[0].weight)
