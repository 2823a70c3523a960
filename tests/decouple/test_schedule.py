import dataclasses
import itertools
import math

import pytest

from mink_decouple.decouple import schedule
from mink_decouple.decouple.schedule import Stage, build_schedule, learning_rate, refresh_due

MODES = ["decoupled", "joint", "supervised"]


def stage(**changes):
    first = build_schedule(pretrain_epochs=4, pretrain_lr=0.1, lr_decay=0.5)[0]
    return dataclasses.replace(first, **changes)


def rates(stage, steps):
    positions = itertools.product(range(stage.epochs), range(steps))
    return [learning_rate(stage, epoch, step, steps) for epoch, step in positions]


def test_the_paper_s_schedule_has_1400_epochs_in_21_stages():
    # 100 + 10 * (30 + 100)
    stages = build_schedule()
    assert sum(stage.epochs for stage in stages) == 1400 and len(stages) == 21
    assert [stage.kind for stage in stages] == ["pretrain"] + ["I", "II"] * 10
    assert [stage.iteration for stage in stages] == [-1, *(i for i in range(10) for _ in range(2))]
    assert len({stage.name for stage in stages}) == 21


def test_each_step_trains_its_part_on_its_labels():
    pretrain, i_step, ii_step = build_schedule(iterations=1)
    assert (pretrain.trains, pretrain.uses_pseudo, pretrain.refresh) == ("all", False, None)
    assert (i_step.trains, i_step.uses_pseudo, i_step.refresh) == ("backbone", True, "iter")
    assert (ii_step.trains, ii_step.uses_pseudo, ii_step.refresh) == ("classifier", False, None)
    assert build_schedule(iterations=1, ii_labels="mixed")[2].uses_pseudo
    assert not build_schedule(iterations=1, ii_labels="spread")[2].uses_pseudo


@pytest.mark.parametrize("mode", MODES)
def test_zero_iterations_equal_the_supervised_training(mode):
    assert build_schedule(mode, iterations=0) == build_schedule("supervised", iterations=0)
    assert [stage.kind for stage in build_schedule(mode, iterations=0)] == ["pretrain"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_the_backbone_for_as_many_epochs(mode):
    stages = build_schedule(mode)
    assert sum(stage.epochs for stage in stages if stage.trains != "classifier") == 400


def test_joint_training_moves_all_parameters_with_the_labels_of_the_i_step():
    stages = build_schedule("joint", iterations=3)
    assert [stage.kind for stage in stages] == ["pretrain", "joint", "joint", "joint"]
    for joint, i_step in zip(stages[1:], build_schedule(iterations=3)[1::2], strict=True):
        assert dataclasses.replace(joint, name=i_step.name, kind="I", trains="backbone") == i_step


def test_the_longer_supervised_training_ends_at_the_rate_of_the_pre_training():
    (supervised,), pretrain = build_schedule("supervised"), build_schedule()[0]
    assert supervised.lr * supervised.lr_decay**400 == pytest.approx(pretrain.lr * pretrain.lr_decay**100)


def test_the_pre_training_ends_where_the_steps_go_on():
    # reading A: .01 * .98^100 = .0013, then .001
    pretrain, i_step, ii_step = build_schedule(iterations=1)
    assert pretrain.lr * pretrain.lr_decay**100 == pytest.approx(0.0013, abs=5e-5)
    assert i_step.lr == ii_step.lr == 0.001
    assert schedule.LR_READINGS["B"] == (0.001, 0.01)


def test_exponential_rate_changes_once_per_epoch():
    assert rates(stage(), 2) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125])


def test_constant_rate():
    assert set(rates(stage(lr_policy="constant"), 3)) == {0.1}


def test_cosine_rate_falls_from_the_initial_rate_to_almost_zero():
    found = rates(stage(lr_policy="cosine"), 25)
    assert found[0] == 0.1 and found[50] == pytest.approx(0.05) and 0 < found[-1] < 1e-4
    assert found == sorted(found, reverse=True)
    assert found[25] == pytest.approx(0.05 * (1 + math.cos(math.pi / 4)))


def test_warm_up_rises_to_the_policy_and_leaves_it():
    found = rates(stage(lr_policy="constant", warmup_epochs=2), 2)
    assert found == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert build_schedule(iterations=1, warmup_epochs=5)[1].warmup_epochs == 0


def test_the_rate_is_a_plain_function_of_the_position():
    for policy in schedule.LR_POLICIES:
        item = stage(lr_policy=policy, warmup_epochs=1)
        assert rates(item, 3)[7:] == [learning_rate(item, p // 3, p % 3, 3) for p in range(7, 12)]
        assert all(type(rate) is float for rate in rates(item, 3))


def test_pseudo_labels_are_refreshed_at_the_right_steps():
    def fired(refresh):
        item = stage(refresh=refresh)
        return [(e, s) for e in range(3) for s in range(2) if refresh_due(item, e, s)]

    assert fired("iter") == [(0, 0)]
    assert fired("epoch") == [(0, 0), (1, 0), (2, 0)]
    assert len(fired("batch")) == 6 and fired(None) == []


def test_stages_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage().epochs = 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_schedule("alternating"), "mode: 'alternating' is not one of decoupled, joint, supervised"),
        (lambda: build_schedule(iterations=-1), "iterations: -1, expected at least 0"),
        (lambda: build_schedule(pretrain_epochs=0), "pretrain_epochs: 0, expected at least 1"),
        (lambda: build_schedule(ii_epochs=0), "ii_epochs: 0, expected at least 1"),
        (lambda: build_schedule("supervised", i_epochs=-5), "i_epochs: -5, expected at least 1"),
        (lambda: build_schedule(refresh="never"), "refresh: 'never' is not one of iter, epoch, batch"),
        (lambda: build_schedule(ii_labels="all"), "ii_labels: 'all' is not one of gt, spread, pseudo, mixed"),
        (lambda: build_schedule(lr_policy="step"), "lr_policy: 'step' is not one of exp, cosine, constant"),
        (lambda: build_schedule(lr_decay=0.0), "lr_decay: 0.0, expected a factor in"),
        (lambda: build_schedule(i_lr=0.0), "lr: 0.0, expected a positive rate"),
        (lambda: learning_rate(stage(), 4, 0, 2), "epoch: 4, stage pretrain has epochs 0..3"),
        (lambda: learning_rate(stage(), 0, 2, 2), "step: 2, an epoch has steps 0..1"),
        (lambda: Stage("x", "III", 0, 1, 0.1, "exp", 0.9, "all", "gt"), "kind: 'III' is not one of"),
    ],
)
def test_wrong_values_are_named_with_the_choices(build, message):
    with pytest.raises(ValueError) as error:
        build()
    assert message in str(error.value) and "\n" not in str(error.value)
