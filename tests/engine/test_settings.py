"""Checks of settings that need no data: by themselves, before clouds are read, and of the shipped configurations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mink_decouple.config import configs_dir, load_config
from mink_decouple.engine import check
from mink_decouple.engine import run as module
from mink_decouple.engine.settings import check_settings
from mink_decouple.engine.train import Trainer
from mink_decouple.study.grid import expand, read_experiment

CPU = torch.device("cpu")
WRONG = {
    "labels.budget": ({"labels": {"budget": "one"}}, r"label budget 'one': must be "),
    "augment": ({"augment": {"twist": True}}, r"augment: transform 'twist': choose from "),
    "pseudo": ({"pseudo": {"rho_mode": "literal", "tail_rule": "all"}}, r"pseudo\.rho_mode literal: gives head"),
    "rate": ({"pseudo": {"rho_mode": "literal", "uncertain": "rate"}}, r"pseudo\.uncertain rate: needs"),
    "weights": ({"loss": {"pseudo_weight": "inv"}}, r"loss\.pseudo_weight inv: .* set loss\.seg_norm split"),
    "spread": ({"ii": {"labels": "spread"}}, r"ii\.labels spread: the given labels do not"),
    "feature": (
        {"ii": {"labels": "spread", "feature": "mifl"}, "labels": {"spread": "segments"}},
        r"ii\.feature mifl: is of pseudo-labels",
    ),
    "radii": ({"forest": {"radii": [2.0, 0.0]}}, r"forest\.radii \[2\.0, 0\.0\]: .* each above 0"),
    "negative radius": ({"forest": {"radii": [-1.0]}}, r"forest\.radii \[-1\.0\]: .* each above 0"),
    "no radii": ({"forest": {"radii": []}}, r"forest\.radii \[\]: .* at least one"),
    "one edge": ({"view": {"voxel": [0.1]}}, r"view\.voxel \[0\.1\]: .* need three, each above 0"),
    "flat voxel": ({"view": {"voxel": [0.1, 0.1, 0.0]}}, r"view\.voxel \[0\.1, 0\.1, 0\.0\]: .* each above 0"),
    "no data": ({"data": {"root": None}}, r"data\.root: not set; a folder dataset needs the folder"),
    "features": ({"data": {"features": []}}, r"features: \[\]; need at least one"),
    "variant": ({"model": {"variant": "99Z"}}, r"variant of \w+ is '99Z'; choose one of "),
}


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named_before_a_cloud_is_read(make_config, tmp_path, monkeypatch, backbone, name):
    settings, message = WRONG[name]
    config = make_config(backbone, "paper", **settings)
    with pytest.raises(ValueError, match=message):
        check_settings(config)
    for part in (module, check):
        monkeypatch.setattr(part, "open_dataset", lambda config: pytest.fail("the data was opened"))
    with pytest.raises(ValueError, match=message):
        check.check_data(config)
    with pytest.raises(ValueError, match=message):
        Trainer(config, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_a_begun_run_goes_on_whatever_is_refused_since(make_config, tmp_path, monkeypatch):
    config = make_config("minkunet", "supervised")
    Trainer(config, tmp_path / "run", CPU).release()

    def refuse(config):
        raise ValueError("no longer")

    monkeypatch.setattr(module, "check_settings", refuse)
    with pytest.raises(ValueError, match="no longer"):
        Trainer(config, tmp_path / "new", CPU)
    assert Trainer(config, tmp_path / "run", CPU, resume=True).run().metrics["stages"] == ["pretrain"]


def test_an_engine_of_another_backbone_is_named(make_config):
    with pytest.raises(ValueError, match=r"model\.engine is 'minkowski', which computes the backbone minkunet"):
        check_settings(make_config("randla", model={"engine": "minkowski"}))


@pytest.mark.parametrize("path", sorted((configs_dir() / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_settings_of_every_shipped_experiment_pass(path):
    for cell in expand(replace(read_experiment(path), seeds=[0]), path):
        check_settings(cell.config)


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
@pytest.mark.parametrize("path", sorted(configs_dir().glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_pass(path, backbone):
    if path.name != "base.yaml":
        check_settings(load_config(path, backbone=backbone))
