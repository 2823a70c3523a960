"""The cached II-step: features of a frozen backbone, labelled rows only where nothing else is needed."""

import numpy as np
import pytest
import torch

from mink_decouple.config import LossConfig
from mink_decouple.data.segments import over_segment, spread_labels
from mink_decouple.decouple.balance import GradientRatio, select_counts
from mink_decouple.engine import train as module
from mink_decouple.engine.batches import SceneLabels
from mink_decouple.engine.evaluate import make_model
from mink_decouple.engine.objective import Objective
from mink_decouple.engine.pseudo import labelled_counts, spread_scene_labels
from mink_decouple.engine.reach import reach_of, segments_of
from mink_decouple.engine.runtime import derive_seed, generator
from mink_decouple.engine.scenes import load_split, open_dataset, reveal, training_labels
from mink_decouple.engine.second_step import Features, balanced_order, cache_features, train_classifier
from mink_decouple.engine.stages import stages_of
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")


def revealed(config):
    dataset = open_dataset(config)
    scenes = load_split(config, dataset, "train")
    return reveal(scenes, training_labels(config, dataset, scenes)), dataset.classes


def cached(config, kind="gt"):
    scenes, classes = revealed(config)
    labels = {s.name: SceneLabels.given(s) for s in scenes}
    if kind == "spread":
        labels = spread_scene_labels(scenes, reach_of(config, scenes, segments_of(config, scenes)))
    model = make_model(config, classes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features = cache_features(model, config, scenes, labels, 3, CPU, "iter_00_II", kind)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    return features


def test_a_linear_classifier_needs_the_labelled_rows_alone(make_config):
    features = cached(make_config("minkunet", augment={"drop_points": None}))
    assert (features.target >= 0).all()
    assert 0 < len(features.target) <= 24
    assert not features.feats.requires_grad


def test_a_classifier_with_batch_norm_gets_unlabelled_rows_for_its_statistics(make_config):
    features = cached(make_config("randla", ii={"context": 10}))
    assert (features.target < 0).sum() >= 10
    assert (features.target >= 0).any()


def test_every_pass_adds_an_augmented_copy(make_config):
    one = cached(make_config("minkunet", ii={"cache_passes": 1}))
    three = cached(make_config("minkunet", ii={"cache_passes": 3}))
    assert len(three.target) > 2 * len(one.target)
    assert not torch.equal(three.feats[: len(one.feats)], three.feats[-len(one.feats) :])


def test_given_labels_are_counted_and_drawn_by_themselves_where_pseudo_labels_are_cached_beside_them():
    none, target, pseudo = torch.zeros(5), torch.tensor([0, 1, -1, -1, -1]), torch.tensor([-1, -1, 0, 0, 2])
    features = Features(none[:, None], target, pseudo, none)
    counts = {kind: features.counts(kind, 3).tolist() for kind in ("gt", "spread", "pseudo", "mixed")}
    assert counts == {"gt": [1, 1, 0], "spread": [1, 1, 0], "pseudo": [2, 0, 1], "mixed": [3, 1, 1]}


def test_rows_without_any_label_move_nothing(make_config):
    """Such rows are there for a batch norm; a step on them would decay the weights."""
    config = make_config("minkunet", optim={"name": "adamw", "weight_decay": 0.5}, ii={"rows": 2})
    _, classes = revealed(config)
    model = make_model(config, classes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    none = torch.full((4,), -1)
    cached = Features(torch.randn(4, model.backbone.out_channels), none, none, torch.zeros(4))
    fixed = None, torch.ones(3), GradientRatio(3)
    stage = next(stage for stage in stages_of(config) if stage.kind == "II")
    train_classifier(model, config, stage, cached, Objective(config.loss, "gt", "none", *fixed), "iter_00_II")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


WHOLE = {"view": {"crop_points": 1000}}
STILL = dict.fromkeys(("rotate_z", "flip", "drop_points"))  # every grid point is a row
SPREAD = {"labels": {"spread": "segments"}, "segments": {"most": 40}, "augment": STILL}


def reached(scene, config):
    """Labels of the grid points that a scene has one of, given ones and those that they spread to."""
    label = spread_labels(scene.visible, over_segment(scene.grid, config.segments))
    label = np.where(scene.visible >= 0, scene.visible, label)
    return torch.from_numpy(label[label >= 0])


def test_labels_that_spread_are_those_of_their_segments_beside_all_given_ones(make_config):
    config = make_config("randla", **SPREAD, **WHOLE, ii={"labels": "spread", "cache_passes": 1})
    features = cached(config, "spread")
    expected = sum(reached(scene, config).bincount(minlength=3) for scene in revealed(config)[0])
    given = cached(config).counts("gt", 3)
    assert features.counts("spread", 3).tolist() == expected.tolist()
    assert expected.sum() > 2 * given.sum() and (features.pseudo < 0).all()


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
def test_of_labels_that_spread_a_view_keeps_so_many_and_all_given_ones(make_config, backbone):
    whole = WHOLE if backbone == "randla" else {}  # a view is a scene
    few, many = (
        make_config(
            backbone, **SPREAD, **whole, ii={"labels": "spread", "cache_passes": 1, "spread_rows": n, "context": 10}
        )
        for n in (3, 10**6)
    )
    given, kept, held = cached(few), cached(few, "spread"), cached(many, "spread")
    labelled = [int((found.target >= 0).sum()) for found in (given, kept, held)]
    assert labelled[1] == labelled[0] + 3 * len(revealed(few)[0]) < labelled[2]
    unlabelled = [int((found.target < 0).sum()) for found in (given, kept)]
    assert unlabelled[0] == unlabelled[1]  # what was not kept of a segment is no context either


def test_seeds_depend_on_every_part_and_on_nothing_else():
    assert derive_seed(1, "a", 2) == derive_seed(1, "a", 2)
    assert len({derive_seed(1, "a"), derive_seed(1, "b"), derive_seed(2, "a"), derive_seed(1, "a", 0)}) == 4
    assert generator(3, "x").random() == generator(3, "x").random()


def test_balanced_rows_hold_every_class_as_often_as_any_other_and_the_rest_once():
    label = torch.tensor([0] * 700 + [2] * 40 + [5] * 10 + [-1] * 250)[torch.randperm(1000)]
    order = torch.Generator().manual_seed(0)
    seen, rest = torch.zeros(6), []
    for _ in range(20):
        rows = balanced_order(label, order)
        assert len(rows) == 1000
        drawn = label[rows]
        seen += torch.bincount(drawn[drawn >= 0], minlength=6)
        rest.append(rows[drawn < 0].sort().values)
    assert seen[[1, 3, 4]].eq(0).all()
    torch.testing.assert_close(seen[[0, 2, 5]] / seen.sum(), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    hidden = (label < 0).nonzero().flatten()
    assert all(torch.equal(found, hidden) for found in rest)


def test_balanced_rows_of_a_class_are_all_drawn_alike_and_repeat_with_the_seed():
    label = torch.tensor([0] * 4 + [1] * 12)
    counts, order = torch.zeros(16), torch.Generator().manual_seed(1)
    for _ in range(1500):
        counts += torch.bincount(balanced_order(label, order), minlength=16)
    torch.testing.assert_close(counts[:4] / counts[:4].sum(), torch.full((4,), 1 / 4), atol=0.02, rtol=0)
    torch.testing.assert_close(counts[4:] / counts[4:].sum(), torch.full((12,), 1 / 12), atol=0.01, rtol=0)
    one, two = (balanced_order(label, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)


def test_balanced_rows_without_a_label_are_a_permutation():
    rows = balanced_order(torch.full((9,), -1), torch.Generator().manual_seed(0))
    assert rows.sort().values.tolist() == list(range(9))


@pytest.mark.parametrize("labels", ["gt", "pseudo", "mixed"])
@pytest.mark.parametrize("tau", [1.0, 0.5, -0.5])
def test_the_adjusted_loss_is_the_cross_entropy_of_shifted_logits(labels, tau):
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, pseudo = torch.tensor([0, 1, 2, -1, -1, -1]), torch.tensor([-1, -1, -1, 2, 0, 1])
    prior = torch.tensor([6, 3, 1])
    told = {"gt": target, "pseudo": pseudo, "mixed": torch.tensor([0, 1, 2, 2, 0, 1])}[labels]
    shifted = logits + tau * torch.log(torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64))
    made = Objective(LossConfig(), labels, "none", None, torch.ones(3), GradientRatio(3), tau, prior)
    counts = {key: float(value) for key, value in made.counts(target, pseudo).items()}
    loss, _ = made(logits, target, pseudo, torch.zeros(6), counts)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(shifted, told, ignore_index=-1))


def test_the_classes_of_the_step_are_weighted_by_its_own_rows(make_config, tmp_path, monkeypatch):
    ii = {"labels": "spread", "class_weight": "inv", "cache_passes": 1}
    config = make_config("randla", **SPREAD, **WHOLE, ii=ii)
    (objective,), trainer = objectives_of(config, tmp_path / "run", monkeypatch)
    assert objective.labels == "gt"
    counts = sum(reached(scene, config).bincount(minlength=3) for scene in trainer.scenes)
    torch.testing.assert_close(objective.weight.double(), 1 / (counts.double() / counts.sum() + 0.02))
    (plain,), _ = objectives_of(make_config("minkunet"), tmp_path / "plain", monkeypatch)
    assert plain.weight.unique().numel() == 1  # by the given labels, four of each class


def objectives_of(config, output, monkeypatch):
    """The objective of each II-step of a run, and the trainer."""
    seen = []
    original = module.train_classifier

    def train(model, config, stage, cached, objective, key):
        seen.append(objective)
        return original(model, config, stage, cached, objective, key)

    monkeypatch.setattr(module, "train_classifier", train)
    trainer = Trainer(config, output, CPU)
    trainer.run()
    return seen, trainer


@pytest.mark.parametrize("budget", ["4pt", "10%"])
def test_priors_are_labels_or_where_those_are_flat_predictions(make_config, tmp_path, monkeypatch, budget):
    config = make_config(ii={"logit_adjust": 0.5}, labels={"budget": budget})
    (objective,), trainer = objectives_of(config, tmp_path / "run", monkeypatch)
    assert objective.tau == 0.5
    labelled, predicted = labelled_counts(trainer.scenes, 3), trainer.state.predicted
    expected = predicted if budget == "4pt" else labelled.sum(0)
    assert torch.equal(objective.prior, expected.double())
    assert torch.equal(objective.prior, select_counts(labelled, predicted))
    hidden = sum(len(s.grid) - int((s.visible >= 0).sum()) for s in trainer.scenes)
    assert int(predicted.sum()) == hidden


def test_without_an_adjustment_there_is_no_prior(make_config, tmp_path, monkeypatch):
    (objective,), _ = objectives_of(make_config(), tmp_path / "run", monkeypatch)
    assert objective.prior is None and objective.tau == 0


def test_balanced_sampling_draws_the_classes_that_the_step_is_trained_on(make_config, tmp_path, monkeypatch):
    from mink_decouple.engine import second_step

    seen = []
    original = second_step.balanced_order

    def order(label, generator):
        seen.append(np.unique(label.numpy()).tolist())
        return original(label, generator)

    monkeypatch.setattr(second_step, "balanced_order", order)
    Trainer(make_config(ii={"sampler": "balanced"}), tmp_path / "gt", CPU).run()
    assert seen and all(found == [0, 1, 2] for found in seen)
