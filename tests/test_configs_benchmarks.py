"""The configurations of the four benchmarks: the paper's schedule, grids and budgets, for both backbones."""

from __future__ import annotations

import pytest

from mink_decouple.config import BACKBONES, Config, configs_dir, load_config
from mink_decouple.data.budget import parse_budget

DATASETS = ("s3dis", "scannet")
OUTDOOR = ("semantic3d", "semantickitti")


def config(name: str, backbone: str) -> Config:
    return load_config(configs_dir() / f"{name}.yaml", backbone=backbone)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", (*DATASETS, *OUTDOOR))
def test_the_schedule_is_the_papers(name: str, backbone: str) -> None:
    c = config(name, backbone)
    s = c.schedule
    assert c.recipe == "paper"
    assert (s.mode, s.iterations, s.policy, s.decay) == ("decoupled", 10, "exp", 0.98)
    assert [(stage.epochs, stage.lr) for stage in (s.pretrain, s.i_step, s.ii_step)] == [
        (100, 1e-2),
        (30, 1e-3),
        (100, 1e-3),
    ]
    assert c.view.batch * c.view.accumulate == 8 and c.view.k == 16
    assert (c.optim.name, c.optim.momentum) == ("adam", 0.9)
    assert (c.pseudo.delta_len, c.pseudo.delta_d, c.pseudo.beta, c.loss.s, c.loss.alpha) == (0.1, 0.5, 0.5, 10, 0.5)
    assert (c.data.dataset, c.data.eval_split, c.labels.budget, c.labels.unit) == (name, "val", "1%", "grid")


@pytest.mark.parametrize("name", DATASETS)
def test_randla_net_sees_the_crops_of_its_own_configuration(name: str) -> None:
    c = config(name, "randla")
    assert (c.data.grid, c.view.crop_points, c.model.variant) == (0.04, 40960, "5")
    assert c.data.features == ["xyz", "rgb"]


@pytest.mark.parametrize(
    ("name", "points", "variant", "features"),
    [("semantic3d", 65536, "5", ["xyz", "rgb"]), ("semantickitti", 45056, "4", ["xyz"])],
)
def test_randla_net_sees_the_crops_of_its_own_configuration_outdoors(
    name: str, points: int, variant: str, features: list[str]
) -> None:
    c = config(name, "randla")
    assert (c.data.grid, c.view.crop_points, c.model.variant, c.data.features) == (0.06, points, variant, features)
    assert c.data.grid == config(name, "minkunet").data.grid  # hence the same labels


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", OUTDOOR)
def test_the_smoke_variant_outdoors_is_the_same_chain_and_short(name: str, backbone: str) -> None:
    full, smoke = config(name, backbone), config(f"smoke/{name}", backbone)
    assert (smoke.data.features, smoke.data.dataset, smoke.data.centre) == (
        full.data.features,
        full.data.dataset,
        full.data.centre,
    )
    s = smoke.schedule
    assert s.steps * (s.pretrain.epochs + s.iterations * s.i_step.epochs) <= 100


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("budget", ["1pt", "1%", "uniform:0.1%"])
def test_the_published_budgets_can_be_asked_for(name: str, backbone: str, budget: str) -> None:
    c = load_config(configs_dir() / f"{name}.yaml", backbone=backbone, overrides={"labels": {"budget": budget}})
    assert parse_budget(c.labels.budget).text == budget


def test_both_backbones_draw_the_same_labels_on_s3dis() -> None:
    grids = {config("s3dis", backbone).data.grid for backbone in BACKBONES}
    assert grids == {0.04}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", DATASETS)
def test_the_smoke_variant_is_the_same_chain_and_short(name: str, backbone: str) -> None:
    full, smoke = config(name, backbone), config(f"smoke/{name}", backbone)
    for key in ("features", "dataset", "height", "centre"):
        assert getattr(smoke.data, key) == getattr(full.data, key)
    for key in ("augment", "pseudo", "loss", "optim"):
        assert getattr(smoke, key) == getattr(full, key)
    s = smoke.schedule
    assert s.steps * (s.pretrain.epochs + s.iterations * s.i_step.epochs) <= 100
    assert smoke.data.splits is not None and smoke.data.eval_split in smoke.data.splits
