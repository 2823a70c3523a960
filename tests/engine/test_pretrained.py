"""Runs that take over the pre-training of another: the same bytes as with their own, refused where it differs."""

import dataclasses
import json

import pytest
import torch

from mink_decouple.config import Config, pretraining
from mink_decouple.engine import checkpoint
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")
KEEPS = {"checkpoints": {"stages": True}}
LATER = {
    "schedule": {"iterations": 2, "i_step": {"epochs": 3, "lr": 4e-3}, "ii_step": {"epochs": 1, "lr": 2e-3}},
    "pseudo": {
        "delta_d": 0.7,
        "delta_len": 0.9,
        "scope": "global",
        "refresh": "epoch",
        "beta": 0.8,
        "floor": 0.1,
        "tail_rule": "below_mean",
        "rho_source": "predicted",
        "votes": 2,
        "smooth": "segments",
        "within": "labelled",
    },
    "loss": {
        "feature": "focal",
        "alpha": 0.3,
        "alpha_mode": "confidence",
        "gamma": 1.0,
        "s": 5.0,
        "clamp_min": None,
        "gamma_base": "efl",
        "form": "ovr",
        "efl_weight": True,
        "g_source": "all",
        "g_act": "sigmoid",
        "g_reset": "never",
    },
    "ii": {
        "labels": "mixed",
        "cache_passes": 2,
        "rows": 32,
        "context": 8,
        "spread_rows": 9,
        "class_weight": "inv",
        "sampler": "balanced",
        "logit_adjust": 0.5,
    },
    "eval": {"votes": 1, "smooth": "segments", "every": "epoch"},
}
"""Another value for every setting that the pre-training is said not to depend on, where its labels do not spread."""
ALONE = {
    "labels": {"spread": "forest"},
    "segments": {"k": 6, "angle": 20.0, "colour": 0.2, "scale": 1.0, "most": 50},
    "forest": {"trees": 5, "radii": [2.0], "neighbors": 9, "share": 0.2, "most": 9},
    "loss": {"seg_norm": "split", "seg_lambda": 0.5, "pseudo_weight": "inv"},
}
"""The same where labels spread in the pre-training: only these matter to it."""


def run(config, output, **options):
    return Trainer(config, output, CPU, **options).run()


def bytes_of(output):
    return {name: (output / name).read_bytes() for name in ("metrics.json", "metrics.jsonl", "labels.npz")}


def merged(*trees):
    out = {}
    for tree in trees:
        for section, values in tree.items():
            out[section] = {**out.get(section, {}), **values}
    return out


@pytest.mark.parametrize(
    ("backbone", "recipe", "later"),
    [
        ("minkunet", "paper", merged(LATER, ALONE)),
        ("randla", "paper", {"schedule": {"mode": "joint"}, **{k: v for k, v in LATER.items() if k != "schedule"}}),
        ("minkunet", "decoupled", LATER),
        ("minkunet", "beyond/ema", LATER),
        ("minkunet", "beyond/erda", LATER),
    ],
)
def test_a_run_after_the_pre_training_of_another_equals_one_after_its_own(
    make_config, tmp_path, backbone, recipe, later
):
    run(make_config(backbone, recipe, **KEEPS), tmp_path / "first")
    config = make_config(backbone, recipe, **later)
    run(config, tmp_path / "own")
    run(config, tmp_path / "taken", pretrained=tmp_path / "first")
    assert bytes_of(tmp_path / "taken") == bytes_of(tmp_path / "own")
    assert bytes_of(tmp_path / "taken") != bytes_of(tmp_path / "first")
    about = json.loads((tmp_path / "taken" / "environment.json").read_text())
    assert about["pretrained"] == str(tmp_path / "first" / "checkpoints" / "pretrain.pt")
    seconds = [json.loads((tmp_path / name / "timing.json").read_text())["seconds"] for name in ("first", "taken")]
    assert seconds[0]["pretrain"] == seconds[1]["pretrain"]  # as though it had trained it


def test_the_settings_said_not_to_matter_are_all_that_there_are_but_those_kept():
    """A setting added later counts as one that the pre-training depends on, or stands in LATER or ALONE."""
    default = dataclasses.asdict(Config())
    told = merged(LATER, ALONE)
    for section in ("pseudo", "ii", "segments", "forest"):
        assert set(told[section]) | UNTRIED.get(section, set()) == set(default[section]), section
    kept = {"class_weight", "absent", "erda", "erda_stages", "erda_momentum", "erda_temperature"}
    assert set(told["loss"]) | kept == set(default["loss"])


UNTRIED = {"pseudo": {"uncertain", "tail_frac", "rho_mode"}, "ii": {"feature"}}
"""Left at their default in LATER, since they do not go with its other values."""


def test_a_run_of_a_taken_pre_training_goes_on_like_any_other(make_config, tmp_path, monkeypatch):
    run(make_config(**KEEPS), tmp_path / "first")
    config = make_config(ii={"sampler": "balanced"})
    run(config, tmp_path / "whole", pretrained=tmp_path / "first")
    original = Trainer.save

    def die(self):
        original(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", die)
        with pytest.raises(KeyboardInterrupt):
            Trainer(config, tmp_path / "cut", CPU, pretrained=tmp_path / "first")
    run(config, tmp_path / "cut", resume=True)
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, r"'seed: 0' became 'seed: 1'\); take a pre-training of the same settings, or none"),
        ({"loss": {"class_weight": "none"}}, "'class_weight: inv' became 'class_weight: none'"),
        ({"schedule": {"mode": "supervised"}}, "'mode: decoupled' became 'mode: supervised'"),
        ({"schedule": {"pretrain": {"epochs": 4}}}, "'epochs: 3' became 'epochs: 4'"),
        (
            {"labels": {"spread": "segments", "spread_in": "all"}, "loss": {"seg_norm": "split"}},
            "'spread: none' became",
        ),
    ],
)
def test_a_pre_training_of_other_settings_is_refused_before_anything_is_written(
    make_config, tmp_path, changed, message
):
    run(make_config(**KEEPS), tmp_path / "first")
    with pytest.raises(ValueError, match=message):
        Trainer(make_config(**changed), tmp_path / "next", CPU, pretrained=tmp_path / "first")
    assert not (tmp_path / "next").exists()


def test_what_is_no_pre_training_is_refused(make_config, tmp_path):
    run(make_config(), tmp_path / "first")
    kept = tmp_path / "first" / "checkpoints"
    with pytest.raises(FileNotFoundError, match=r"pretrain\.pt: no such file; .*checkpoints\.stages=true"):
        Trainer(make_config(), tmp_path / "next", CPU, pretrained=tmp_path / "first")
    for name in ("best.pt", "last.pt"):
        with pytest.raises(ValueError, match=f"{name}: is no pre-training to go on from"):
            Trainer(make_config(), tmp_path / "next", CPU, pretrained=kept / name)


def test_the_end_of_the_pre_training_is_kept_without_its_optimizer(make_config, tmp_path):
    run(make_config(**KEEPS), tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run" / "checkpoints" / "pretrain.pt")
    assert saved["optimizer"] is None and (saved["state"]["stage"], saved["state"]["epoch"]) == (0, 3)


def test_the_pre_training_of_plain_training_is_all_of_it():
    config = dataclasses.replace(Config(), schedule=dataclasses.replace(Config().schedule, mode="supervised"))
    longer = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, iterations=11))
    assert pretraining(config) != pretraining(longer)
    assert pretraining(pretraining(config)) == pretraining(config)


def test_the_forest_matters_to_a_pre_training_only_where_it_tells_labels(make_config):
    spread = {"spread_in": "all"}
    for kind, matters in (("segments", False), ("forest", True)):
        configs = [
            make_config(labels={"spread": kind, **spread}, forest={"trees": trees}, loss={"seg_norm": "split"})
            for trees in (5, 6)
        ]
        assert (pretraining(configs[0]) != pretraining(configs[1])) == matters, kind
