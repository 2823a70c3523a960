"""What a configuration says reaches what computes: each setting by its effect, not by another run of the same code."""

import numpy as np
import pytest
import torch

from mink_decouple.decouple.losses import class_weights
from mink_decouple.decouple.pseudo_labels import SelectionOptions, select
from mink_decouple.decouple.schedule import Stage, learning_rate
from mink_decouple.engine import pseudo, second_step, train
from mink_decouple.engine.batches import SceneLabels, make_batch, make_sampler
from mink_decouple.engine.optim import set_rate
from mink_decouple.engine.predict import crops
from mink_decouple.engine.pseudo import make_pseudo_labels, selection_options
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.scenes import load_split, open_dataset, reveal, training_labels
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")


def revealed(config):
    dataset = open_dataset(config)
    scenes = load_split(config, dataset, "train")
    return reveal(scenes, training_labels(config, dataset, scenes))


@pytest.mark.parametrize(("policy", "decay", "warmup"), [("cosine", 0.98, 1), ("exp", 0.5, 0)])
def test_every_step_is_taken_at_its_stage_s_rate(make_config, tmp_path, monkeypatch, policy, decay, warmup):
    seen = {train: [], second_step: []}
    for module, rates in seen.items():

        def spy(optimizer, rate, rates=rates):
            rates.append(rate)
            set_rate(optimizer, rate)

        monkeypatch.setattr(module, "set_rate", spy)
    schedule = {
        "pretrain": {"epochs": 3, "lr": 1e-2},
        "i_step": {"epochs": 2, "lr": 3e-3},
        "ii_step": {"epochs": 1, "lr": 2e-4},
        "policy": policy,
        "decay": decay,
        "warmup": warmup,
    }
    Trainer(make_config(schedule=schedule, ii={"rows": 8}), tmp_path / "run", CPU).run()
    shared = policy, decay
    pretrain = Stage("pretrain", "pretrain", -1, 3, 1e-2, *shared, "all", "gt", None, warmup)
    first = Stage("iter_00_I", "I", 0, 2, 3e-3, *shared, "backbone", "mixed", "iter", 0)
    second = Stage("iter_00_II", "II", 0, 1, 2e-4, *shared, "classifier", "gt", None, 0)
    steps = 2  # of an epoch, the fixture's
    expected = [learning_rate(s, e, k, steps) for s in (pretrain, first) for e in range(s.epochs) for k in range(steps)]
    assert seen[train] == expected and len(set(expected)) > 3
    count = len(seen[second_step])
    assert count > 1 and seen[second_step] == [learning_rate(second, 0, k, count) for k in range(count)]


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 2), (2, 1)])
def test_an_epoch_sees_every_scene_once_where_its_steps_are_not_given(make_config, tmp_path, accumulate, steps):
    config = make_config(schedule={"steps": 0}, view={"batch": 1, "accumulate": accumulate})
    trainer = Trainer(config, tmp_path / "run", CPU)
    assert len(trainer.scenes) == 2 and trainer._steps() == steps
    taken = []
    trainer._gradients, plain = lambda *given: taken.append(1) or plain(*given), trainer._gradients
    trainer.run()
    assert len(taken) == (3 + 2) * steps


@pytest.mark.parametrize("reset", ["iter", "never"])
def test_the_gradient_ratio_begins_anew_with_an_i_step_or_never(make_config, tmp_path, reset):
    trainer = Trainer(make_config(schedule={"iterations": 2}, loss={"g_reset": reset}), tmp_path / "run", CPU)
    plain, sums = trainer._gradients, {}

    def gradients(*given):
        sums.setdefault(given[2][0], float(trainer.ratio._sums.sum()))  # before the first step of each stage
        return plain(*given)

    trainer._gradients = gradients
    trainer.run()
    assert sums["iter_00_I"] == 0.0
    assert (sums["iter_01_I"] > 0) == (reset == "never")


@pytest.mark.parametrize("kind", ["inv", "none"])
def test_class_weights_of_the_visible_labels_are_those_of_the_loss(make_config, tmp_path, kind):
    config = make_config(loss={"class_weight": kind, "g_act": "sigmoid"}, labels={"budget": "full"})
    trainer = Trainer(config, tmp_path / "run", CPU)
    counts = sum(np.bincount(s.visible[s.visible >= 0], minlength=3) for s in trainer.scenes)
    expected = class_weights(torch.from_numpy(counts))
    assert expected.max() > 1.5 * expected.min()
    objective = trainer._objective(trainer.stages[0], None)
    assert objective.ratio.act == "sigmoid"
    if kind == "none":
        assert objective.weight is None
    else:
        torch.testing.assert_close(objective.weight, expected.to(objective.weight.dtype))


def test_the_alignment_has_its_temperature_and_momentum(make_config, tmp_path):
    loss = {"erda": 0.5, "erda_temperature": 0.1, "erda_momentum": 0.7}
    alignment = Trainer(make_config(loss=loss), tmp_path / "run", CPU).alignment
    assert (alignment.temperature, alignment.momentum) == (0.1, 0.7)


def test_every_option_reaches_the_selection(make_config):
    options = {"delta_len": 0.3, "delta_d": 0.2, "beta": 0.7, "floor": 0.1, "tail_rule": "below_mean", "tail_frac": 0.2}
    found = selection_options(make_config(pseudo={**options, "uncertain": "rate"}))
    assert found == SelectionOptions(**options, mode="rate")


@pytest.mark.parametrize("mode", ["repaired", "literal"])
def test_ratio_tail_and_votes_of_the_selection_are_as_asked(make_config, monkeypatch, mode):
    """Points 0 to 9 of a scene are predicted to be of class 1, 10 to 12 of class 2, the others of class 0."""
    votes = []

    def sure(model, config, scene, classes, device, asked):
        votes.append(asked)
        found = np.zeros(len(scene.grid), np.int64)
        found[:10], found[10:13] = 1, 2
        return np.eye(3, dtype=np.float32)[found] * 0.9 + np.float32(0.1 / 3)

    monkeypatch.setattr(pseudo, "probabilities", sure)
    config = make_config(pseudo={"rho_mode": mode, "rho_source": "predicted", "tail_frac": 0.34, "votes": 3})
    scenes = revealed(config)
    found = make_pseudo_labels(None, config, scenes, 3, CPU)
    assert votes == [3, 3] and found.tail.tolist() == [2]
    predicted = found.predicted.double()
    expected = predicted.max() / predicted if mode == "repaired" else predicted / predicted.min()
    torch.testing.assert_close(found.rho.double(), expected, rtol=1e-5, atol=0)


def test_thresholds_of_all_scenes_together_are_those_of_one_large_scene(make_config, monkeypatch):
    """The surest points of class 1 in scene b are certain by its own threshold, by that of both scenes they are not."""
    table = {}

    def drawn(model, config, scene, classes, device, votes):
        sure = [0.95] * 20 if scene.name == "a" else [0.6] * 10 + [0.55] * 10
        found = np.tile(np.float32([0.9, 0.05, 0.05]), (len(scene.grid), 1))
        for row, chance in enumerate([*sure, *[0.4] * 10]):
            found[row] = (1 - chance) / 2, chance, (1 - chance) / 2
        found[-3:] = 0.05, 0.05, 0.9
        table[scene.name] = found
        return found.copy()

    monkeypatch.setattr(pseudo, "probabilities", drawn)
    config = make_config(pseudo={"scope": "global", "delta_d": 0.2, "beta": 0.1, "tail_frac": 0.67})
    scenes = revealed(config)
    found = make_pseudo_labels(None, config, scenes, 3, CPU)
    whole = torch.from_numpy(np.concatenate([table[s.name] for s in scenes]))
    visible = torch.from_numpy(np.concatenate([s.visible for s in scenes]))
    expected = select(whole, visible, found.rho, found.tail, selection_options(config))
    rounds = torch.cat([found.table[s.name].round for s in scenes])
    assert torch.equal(rounds, expected.round)
    assert 1 in found.tail.tolist() and not (rounds[visible < 0] == 2).any()


def test_the_sampler_and_the_votes_cut_crops_as_asked(make_config):
    view = {"crop_points": 60, "shape": "column", "center_noise": 0.3, "label_centred": 0.25}
    config = make_config("randla", view=view)
    scenes = revealed(config)
    sampler = make_sampler(config, scenes)
    asked = config.seed, 60, "column", 0.3, 0.25
    assert (sampler.seed, sampler.crop_points, sampler.shape, sampler.noise, sampler.label_centred) == asked
    index = sampler.next(np.random.default_rng(0))
    coords = next(s.grid.coords for s in scenes if s.name == index.scene)
    assert np.linalg.norm(coords - index.center, axis=1).min() > 1e-3, "the centre has noise"
    flat = np.linalg.norm(coords[:, :2] - index.center[:2], axis=1)
    assert flat[index.points].max() <= np.sort(flat)[59] + 1e-5
    first, second = (crops(config, scenes[0], key)[0].points for key in (0, 1))
    assert not np.array_equal(np.sort(first), np.sort(second)), "each vote cuts other crops"


def test_coordinates_are_centred_and_features_scaled_as_asked(make_config):
    def batch(**data):
        config = make_config("randla", data={"features": ["rgb", "xyz"], **data}, view={"crop_points": 1000})
        scene = revealed(config)[0]
        item = scene, SceneLabels.given(scene), crops(config, scene)[0]
        return make_batch(config, 3, [item], lambda sample, rng: sample, generator(0)).batch.feats

    plain, halved, flat = batch(), batch(factors={"rgb": 0.5}), batch(centre="xy")
    torch.testing.assert_close(halved[:, :3], 0.5 * plain[:, :3])
    torch.testing.assert_close(halved[:, 3:], plain[:, 3:])
    difference = (flat - plain)[:, 3:]
    assert difference[:, :2].abs().max() < 1e-5
    assert difference[:, 2].std() < 1e-4 and abs(float(difference[:, 2].mean())) > 0.05


@pytest.mark.parametrize("unit", ["grid", "raw"])
def test_a_budget_counts_the_points_that_it_is_of(make_config, unit):
    config = make_config(labels={"budget": "10%", "unit": unit})
    dataset = open_dataset(config)
    scenes = load_split(config, dataset, "train")
    labels = training_labels(config, dataset, scenes)
    assert labels.meta["unit"] == unit
    wanted = 0
    for scene in scenes:
        ids = scene.cloud.labels if unit == "raw" else scene.truth
        wanted += sum(max(int(0.1 * n), 1) for n in np.bincount(ids[ids >= 0], minlength=3))
    assert int(labels.counts.sum()) == wanted


def test_the_second_step_takes_so_many_rows_at_once_in_another_order_each_epoch(make_config, tmp_path, monkeypatch):
    trainer = Trainer(make_config(ii={"rows": 7}, schedule={"ii_step": {"epochs": 3}}), tmp_path / "run", CPU)
    seen, plain = [], torch.randperm

    def drawn(count, generator=None, **options):
        order = plain(count, generator=generator, **options)
        seen.append(order)
        return order

    steps, take = [], second_step.take_step
    monkeypatch.setattr(second_step, "take_step", lambda *given: steps.append(1) or take(*given))
    counted = second_step.train_classifier
    rows = []

    def counting(model, config, stage, cached, *rest):
        rows.append(len(cached.target))
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randperm", drawn)
            return counted(model, config, stage, cached, *rest)

    monkeypatch.setattr(train, "train_classifier", counting)
    trainer.run()
    assert len(steps) == 3 * -(-rows[0] // 7) > 3
    assert len(seen) == 3 and all(sorted(order.tolist()) == list(range(rows[0])) for order in seen)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
