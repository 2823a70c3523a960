import pytest
import torch

from mink_decouple.models.heads import Dropout, LinearHead, MLPHead, build_head


@pytest.mark.parametrize(("classes", "parameters"), [(13, 4813), (20, 5044), (8, 4648), (19, 5011)])
def test_the_mlp_head_has_the_published_number_of_parameters(classes, parameters):
    assert sum(p.numel() for p in MLPHead(32, classes).parameters()) == parameters


@pytest.mark.parametrize(("classes", "parameters"), [(13, 1261), (19, 1843)])
def test_the_linear_head_has_the_published_number_of_parameters(classes, parameters):
    assert sum(p.numel() for p in LinearHead(96, classes).parameters()) == parameters


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_gives_a_row_of_logits_per_row(kind):
    assert build_head(kind, 12, 5)(torch.zeros(7, 12)).shape == (7, 5)


def test_dropout_acts_in_training_only():
    head, x = MLPHead(6, 3), torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head.eval()(x), head(x))
    for norm in (head.fc1.norm, head.fc2.norm):
        norm.eval()
    head.dropout.train()
    assert not torch.equal(head(x), head(x))


def test_an_unknown_head_lists_the_choices():
    with pytest.raises(ValueError, match="head is 'deep'; choose one of linear, mlp"):
        build_head("deep", 3, 2)


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(p):
    layer, x = Dropout(p), torch.ones(4000, 33, requires_grad=True)
    torch.manual_seed(0)
    out = layer(x)
    kept = out != 0
    # five standard deviations of a binomial share
    assert abs(kept.double().mean() - (1 - p)) < 5 * (p * (1 - p) / out.numel()) ** 0.5
    assert torch.equal(out.unique(), torch.tensor([0.0, 1 / (1 - p)]))
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], out.detach())
    torch.manual_seed(0)
    assert torch.equal(layer(x), out)
    assert not torch.equal(layer(x), out)
    # neighbouring values fall independently of each other
    pairs = (kept[:, :-1] & kept[:, 1:]).double().mean()
    assert abs(pairs - (1 - p) ** 2) < 0.01


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_share_that_bytes_cannot_draw_is_drawn_by_torch(p):
    x = torch.ones(500, 7)
    torch.manual_seed(1)
    out = Dropout(p)(x)
    torch.manual_seed(1)
    assert torch.equal(out, torch.nn.functional.dropout(x, p))
