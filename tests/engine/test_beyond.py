"""The switches beyond the paper: off they change nothing, each does something, all compose with recipes and resume."""

import json

import numpy as np
import pytest
import torch

from mink_decouple.config import configs_dir, load_config, merge
from mink_decouple.data.budget import LabelSet, visible
from mink_decouple.data.segments import over_segment, spread_labels
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.engine import checkpoint
from mink_decouple.engine.pseudo import spread_scene_labels
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")
BACKBONES = ("minkunet", "randla")
RECIPES = sorted(path.stem for path in (configs_dir() / "recipes" / "beyond").glob("*.yaml"))
FREE = {"pseudo": {"delta_d": 0.0, "delta_len": 0.05}}  # an untrained network is unsure of everything
EVERYTHING = {
    "ema": {"decay": 0.9, "use": "both"},
    "view": {"mix": 0.7},
    "loss": {"erda": 0.1},
    "ii": {"sampler": "balanced", "logit_adjust": 0.3},
    "pseudo": {"smooth": "segments", "delta_d": 0.0, "delta_len": 0.05},
    "labels": {"spread": "segments", "spread_in": "all"},
    "eval": {"every": "epoch"},
    "segments": {"most": 20},
}
SWITCHES = {
    "ema": {"ema": {"decay": 0.9, "use": "eval", "restart": False}},
    "ema restart": {"ema": {"decay": 0.9, "use": "pseudo", "restart": True}},
    "mix": {"view": {"mix": 1.0}},
    "mix in the I-step": {"view": {"mix": 1.0, "mix_stages": "i_step"}},
    "erda": {"loss": {"erda": 0.5}},
    "erda temperature": {"loss": {"erda": 0.5, "erda_temperature": 0.1}},
    "balanced": {"ii": {"sampler": "balanced"}},
    "adjusted": {"ii": {"logit_adjust": 1.0}},
    "smooth": {"pseudo": {"smooth": "segments"}},
    "spread": {"labels": {"spread": "segments"}},
    "spread early": {"labels": {"spread": "segments", "spread_in": "all"}},
    "forest": {"labels": {"spread": "forest"}, "forest": {"trees": 5}},
}


def run(config, output, resume=False):
    return Trainer(config, output, CPU, resume=resume).run()


def weights(output):
    return checkpoint.load(output / "checkpoints" / "last.pt")["model"]


def same_weights(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def events(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("overrides", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_gives_another_network(make_config, tmp_path, overrides):
    run(make_config(**FREE), tmp_path / "default")
    run(make_config(**merge(FREE, overrides)), tmp_path / "changed")
    assert not same_weights(weights(tmp_path / "default"), weights(tmp_path / "changed"))


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("supervised", {"view": {"mix": 1.0, "mix_stages": "i_step"}}),
        ("supervised", {"loss": {"erda": 1.0, "erda_stages": "i_step"}}),
        ("joint", {"ii": {"sampler": "balanced", "logit_adjust": 1.0}}),
        ("paper", {"ii": {"spread_rows": 1}}),
        ("supervised", {"pseudo": {"smooth": "segments"}, "labels": {"spread": "segments"}}),
        ("paper", {"pseudo": {"smooth": "segments"}, "segments": {"most": 1}}),
        ("paper", {"labels": {"spread": "segments"}, "segments": {"most": 1}}),
        ("paper", {"eval": {"every": "epoch"}}),
    ],
    ids=str,
)
def test_a_switch_without_effect_leaves_the_run_as_it_is_to_the_byte(make_config, tmp_path, recipe, overrides):
    run(make_config(recipe=recipe, **FREE), tmp_path / "default")
    run(make_config(recipe=recipe, **merge(FREE, overrides)), tmp_path / "switched")
    assert (tmp_path / "default" / "metrics.json").read_bytes() == (tmp_path / "switched" / "metrics.json").read_bytes()
    assert same_weights(weights(tmp_path / "default"), weights(tmp_path / "switched"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_beyond_the_paper_trains(make_config, tmp_path, recipe):
    metrics = run(make_config(recipe=f"beyond/{recipe}"), tmp_path / "run").metrics
    assert metrics["recipe"] == f"beyond/{recipe}" and 0 <= metrics["miou"] <= 1
    assert metrics["label_budget"]["labelled"] == 2 * 3 * 4


def test_a_recipe_of_a_list_is_the_sum_of_its_parts():
    both = load_config(recipe="beyond/ema_mix")
    assert (both.ema, both.view) == (load_config(recipe="beyond/ema").ema, load_config(recipe="beyond/mix").view)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    ["supervised", "fully_supervised", "joint", "table5/row2", "table6/mixed", "table6/pseudo", "table7/ii_step"],
)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_everything_together_trains_with_every_kind_of_recipe(make_config, tmp_path, backbone, recipe):
    metrics = run(make_config(backbone, recipe, **EVERYTHING), tmp_path / "run").metrics
    assert 0 <= metrics["miou"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_everything_together_trains_in_bfloat16_and_in_micro_batches(make_config, tmp_path, backbone):
    more = {"optim": {"precision": "bf16"}, "view": {"accumulate": 2}}
    metrics = run(make_config(backbone, **merge(EVERYTHING, more)), tmp_path / "run").metrics
    assert 0 <= metrics["miou"] <= 1


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"ema": {"restart": False, "use": "pseudo"}, "view": {"batch": 1}}], ids=str)
@pytest.mark.parametrize("recipe", ["paper", "joint"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_everything_on_a_run_that_died_resumes_to_the_same_bytes(
    make_config, tmp_path, monkeypatch, backbone, recipe, changes
):
    config = make_config(backbone, recipe, **merge(EVERYTHING, changes))
    run(config, tmp_path / "whole")
    original = Trainer.save
    for saves in (3, 6) if recipe == "joint" else (3, 6, 8):
        output, written = tmp_path / f"cut{saves}", []

        def save(self, written=written, saves=saves):
            original(self)
            written.append(1)
            if len(written) == saves:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "save", save)
            with pytest.raises(Killed):
                run(config, output)
        run(config, output, resume=True)
        for name in ("metrics.json", "metrics.jsonl"):
            assert (tmp_path / "whole" / name).read_bytes() == (output / name).read_bytes(), name
        first, last = (checkpoint.load(folder / "checkpoints" / "last.pt") for folder in (tmp_path / "whole", output))
        assert same_weights(first["model"], last["model"])
        assert first["ema"]["updates"] == last["ema"]["updates"]
        assert same_weights(first["ema"]["weights"], last["ema"]["weights"])
        assert same_weights(first["alignment"], last["alignment"])


def test_the_alignment_is_part_of_the_training_state_and_not_of_the_network(make_config, tmp_path):
    run(make_config(), tmp_path / "plain")
    run(make_config(loss={"erda": 0.5}), tmp_path / "run")
    last, best = (checkpoint.load(tmp_path / "run" / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    assert last["model"].keys() == weights(tmp_path / "plain").keys()
    assert "alignment" in last and "alignment" not in best
    assert (last["alignment"]["updates"] > 0).all()


def test_the_alignment_learns_in_the_stages_it_is_on_in(make_config, tmp_path, monkeypatch):
    seen = []
    original = Trainer.save

    def save(self):
        original(self)
        seen.append({key: value.clone() for key, value in self.alignment.state_dict().items()})

    monkeypatch.setattr(Trainer, "save", save)
    run(make_config(loss={"erda": 0.5, "erda_stages": "pretrain"}), tmp_path / "run")
    # saves: the start, three epochs of pre-training and its score, the two of the I-step and its end, the II-step
    assert not torch.equal(seen[0]["projector.0.weight"], seen[3]["projector.0.weight"])
    assert same_weights(seen[3], seen[8])


def test_scoring_every_epoch_adds_events_and_nothing_else(make_config, tmp_path):
    for recipe in ("paper", "joint"):
        often, plain = (
            make_config(recipe=recipe, eval={"every": every}, schedule={"iterations": 2})
            for every in ("epoch", "iteration")
        )
        run(often, tmp_path / recipe / "often")
        run(plain, tmp_path / recipe / "plain")
        found = [e for e in events(tmp_path / recipe / "often") if e["event"] == "evaluation"]
        kind = "I" if recipe == "paper" else "joint"
        by_epoch = [(e["stage"], e["iteration"], e["epoch"]) for e in found if "epoch" in e]
        assert by_epoch == [(f"iter_{i:02d}_{kind}", i, epoch) for i in (0, 1) for epoch in (1, 2)]
        rest = [{k: v for k, v in e.items() if k not in ("epoch", "iteration")} for e in found]
        for event in events(tmp_path / recipe / "plain"):
            if event["event"] == "evaluation":
                assert "epoch" not in event and event in rest
        names = ("metrics.json", "checkpoints/best.pt")
        assert len({(tmp_path / recipe / f / names[0]).read_bytes() for f in ("often", "plain")}) == 1


def test_scores_by_epoch_are_asked_for_even_where_those_by_iteration_are_not(make_config, tmp_path):
    config = make_config(recipe="joint", eval={"every": "epoch", "every_iteration": False}, schedule={"iterations": 2})
    run(config, tmp_path / "run")
    found = [(e["stage"], e.get("epoch")) for e in events(tmp_path / "run") if e["event"] == "evaluation"]
    assert found == [("pretrain", None), *((f"iter_{i:02d}_joint", epoch) for i in (0, 1) for epoch in (1, 2))]


def test_given_labels_spread_to_their_segments_and_nowhere_else(make_config, tmp_path):
    config = make_config(labels={"spread": "segments", "budget": "2pt"}, segments={"most": 40})
    trainer = Trainer(config, tmp_path / "run", CPU)
    trainer.run()
    table = PseudoLabelTable.load(tmp_path / "run" / "pseudo_labels" / "iter_00.npz")
    labels = LabelSet.load(tmp_path / "run" / "labels.npz")
    assert labels.counts.sum() == trainer.labels.counts.sum() == 2 * 3 * 2
    spread_to = 0
    for scene in trainer.scenes:
        shown, pseudo = visible(labels, scene.grid), table[scene.name]
        reached = spread_labels(shown, over_segment(scene.grid, config.segments))
        assert (pseudo.label.numpy()[shown >= 0] == -1).all()
        told = (reached >= 0) & (shown < 0)
        np.testing.assert_array_equal(pseudo.label.numpy()[told], reached[told])
        assert (pseudo.confidence.numpy()[told] == 1).all() and (pseudo.round.numpy()[told] == 1).all()
        spread_to += told.sum()
    (event,) = [e for e in events(tmp_path / "run") if e["event"] == "pseudo_labels"]
    assert sum(event["spread"].values()) == spread_to > 20
    budget = json.loads((tmp_path / "run" / "metrics.json").read_text())["label_budget"]
    assert budget["labelled"] == 12 and budget["checksum"] == labels.checksum


def test_smoothed_probabilities_give_one_pseudo_label_a_segment(make_config, tmp_path):
    config = make_config(pseudo={"smooth": "segments", "delta_d": 0.0, "delta_len": 1.0}, segments={"most": 40})
    trainer = Trainer(config, tmp_path / "run", CPU)
    trainer.run()
    table = PseudoLabelTable.load(tmp_path / "run" / "pseudo_labels" / "iter_00.npz")
    for scene in trainer.scenes:
        label, segments = table[scene.name].label.numpy(), over_segment(scene.grid, config.segments)
        found = (label >= 0) & (scene.visible < 0)
        pairs = set(zip(segments[found].tolist(), label[found].tolist()))
        assert len(pairs) == len({segment for segment, _ in pairs}) > 1


def test_a_default_checkpoint_holds_nothing_of_the_switches(make_config, tmp_path):
    run(make_config(), tmp_path / "run")
    assert not {"ema", "alignment"} & checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt").keys()


def test_labels_spread_in_the_pre_training_only_where_asked_for(make_config, tmp_path):
    folders = {name: tmp_path / name for name in ("none", "pseudo", "all")}
    run(make_config(recipe="supervised"), folders["none"])
    for where in ("pseudo", "all"):
        run(make_config(recipe="supervised", labels={"spread": "segments", "spread_in": where}), folders[where])
    assert same_weights(weights(folders["none"]), weights(folders["pseudo"]))
    assert not same_weights(weights(folders["none"]), weights(folders["all"]))
    assert not (folders["all"] / "pseudo_labels").exists()


def test_early_labels_are_those_that_spread(make_config, tmp_path):
    config = make_config(labels={"spread": "segments", "spread_in": "all"}, segments={"most": 40})
    trainer = Trainer(config, tmp_path / "run", CPU)
    labels = spread_scene_labels(trainer.scenes, trainer.reach)
    for scene in trainer.scenes:
        found, shown = labels[scene.name], scene.visible
        np.testing.assert_array_equal(found.visible, shown)
        expected = spread_labels(shown, over_segment(scene.grid, config.segments))
        np.testing.assert_array_equal(found.pseudo, np.where(shown < 0, expected, -1))
        np.testing.assert_array_equal(found.confidence, found.pseudo >= 0)
    trainer.events.close()
