"""The trainer as a whole: repeatable to the byte, resumable anywhere, every recipe runnable, bad states refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mink_decouple.config import load_config, merge
from mink_decouple.data.budget import LabelSet, visible
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.engine import checkpoint
from mink_decouple.engine.optim import Diverged
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")
BACKBONES = ("minkunet", "randla")


def run(config, output, resume=False):
    return Trainer(config, output, CPU, resume=resume).run()


class Killed(Exception):
    """Stands for a process that dies."""


def run_and_die(config, output, saves, monkeypatch):
    """Train until the given number of checkpoints is written, then die at once."""
    original, written = Trainer.save, []

    def save(self):
        original(self)
        written.append(1)
        if len(written) == saves:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save)
        with pytest.raises(Killed):
            run(config, output)


def weights(output):
    return checkpoint.load(output / "checkpoints" / "last.pt")["model"]


def same_weights(first, second):
    return all(torch.equal(first[key], second[key]) for key in first) and first.keys() == second.keys()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_same_seed_gives_the_same_bytes_twice(make_config, tmp_path, backbone):
    config = make_config(backbone)
    run(config, tmp_path / "one")
    run(config, tmp_path / "two")
    for name in ("metrics.json", "metrics.jsonl", "config.yaml", "labels.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert same_weights(weights(tmp_path / "one"), weights(tmp_path / "two"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Folder of a backbone's run, which the first test that needs it makes."""
    return {backbone: tmp_path_factory.mktemp("undisturbed") / backbone for backbone in BACKBONES}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("saves", range(1, 11))
def test_a_run_that_died_at_any_checkpoint_resumes_to_the_same_bytes(
    make_config, tmp_path, monkeypatch, undisturbed, backbone, saves
):
    """Saves: at the start, after each epoch of the pre-training (3) and its score, after each of the I-step (2), at its
    end, after the II-step and after its score."""
    config, whole = make_config(backbone), undisturbed[backbone]
    if not whole.exists():
        run(config, whole)
    run_and_die(config, tmp_path / "cut", saves, monkeypatch)
    run(config, tmp_path / "cut", resume=True)
    for name in ("metrics.json", "metrics.jsonl"):
        assert (whole / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name
    assert same_weights(weights(whole), weights(tmp_path / "cut"))


def test_the_number_of_loader_threads_does_not_change_the_result(make_config, tmp_path):
    run(make_config("randla", view={"workers": 0}), tmp_path / "none")
    run(make_config("randla", view={"workers": 3}), tmp_path / "three")
    assert same_weights(weights(tmp_path / "none"), weights(tmp_path / "three"))


def test_another_seed_gives_another_network(make_config, tmp_path):
    run(make_config(seed=0), tmp_path / "0")
    run(make_config(seed=1), tmp_path / "1")
    assert not same_weights(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_zero_iterations_equal_supervised_training(make_config, tmp_path):
    run(make_config(schedule={"iterations": 0}), tmp_path / "zero")
    run(make_config(recipe="supervised", schedule={"iterations": 0}), tmp_path / "supervised")
    assert same_weights(weights(tmp_path / "zero"), weights(tmp_path / "supervised"))


@pytest.mark.parametrize(
    "recipe",
    [
        "decoupled",
        "supervised",
        "fully_supervised",
        "joint",
        *(f"table5/row{i}" for i in range(1, 9)),
        "table6/pseudo",
        "table6/mixed",
        "table7/ii_step",
    ],
)
def test_every_recipe_trains(make_config, tmp_path, recipe):
    metrics = run(make_config(recipe=recipe), tmp_path / "run").metrics
    assert metrics["recipe"] == recipe
    assert metrics["label_budget"]["budget"] == ("full" if recipe == "fully_supervised" else "4pt")
    assert 0 <= metrics["miou"] <= 1


@pytest.mark.parametrize(
    "overrides",
    [
        {"optim": {"precision": "bf16"}},
        {"optim": {"name": "sgd"}},
        {"optim": {"name": "adamw", "weight_decay": 0.01}},
        {"view": {"accumulate": 2}},
        {"pseudo": {"scope": "global"}},
        {"pseudo": {"refresh": "epoch"}},
        {"pseudo": {"uncertain": "rate", "rho_source": "labels"}},
        {"loss": {"seg_norm": "split", "class_weight": "none", "g_source": "all", "alpha_mode": "confidence"}},
        {"loss": {"form": "ovr", "gamma_base": "efl", "efl_weight": True, "g_reset": "never"}},
        {"model": {"head": "mlp"}},
    ],
    ids=str,
)
def test_every_switch_trains_another_network(make_config, tmp_path, overrides):
    free = {"pseudo": {"delta_d": 0.0, "delta_len": 0.05}}  # an untrained network is unsure of everything
    run(make_config(**free), tmp_path / "default")
    run(make_config(**merge(free, overrides)), tmp_path / "changed")
    assert not same_weights(weights(tmp_path / "default"), weights(tmp_path / "changed"))


def test_a_run_folder_holds_what_it_promises(make_config, tmp_path):
    output = tmp_path / "run"
    run(make_config(), output)
    metrics = json.loads((output / "metrics.json").read_text())
    for key in ("miou", "head_iou", "waist_iou", "tail_iou", "oa", "macc", "iou", "classes_counted", "points"):
        assert key in metrics
    for key in ("parameters", "label_budget", "seconds", "seed", "backbone", "recipe"):
        assert key in metrics
    assert set(metrics["iou"]) == {"floor", "wall", "box"}
    assert metrics["label_budget"]["labelled"] == 2 * 3 * 4
    for name in ("environment.json", "timing.json", "labels.npz", "config.yaml", "checkpoints/best.pt"):
        assert (output / name).is_file(), name
    assert (output / "pseudo_labels" / "iter_00.npz").is_file()
    assert list((output / "tensorboard").iterdir())
    assert load_config(output / "config.yaml").recipe == "paper"
    events = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["evaluation", "pseudo_labels", "evaluation"]
    assert set(events[1]["precision"]) == {"floor", "wall", "box"}


@pytest.mark.parametrize("recipe", ["decoupled", "supervised"])
def test_a_training_scene_without_labels_is_like_one_whose_labels_are_all_ignored(
    make_config, folder, tmp_path, recipe
):
    free = {"pseudo": {"delta_d": 0.0, "delta_len": 0.05}}  # an untrained network is unsure of everything
    found = []
    for kind in ("none", "ignored"):
        root = shutil.copytree(folder, tmp_path / kind)
        with np.load(root / "b.npz") as stored:
            room = {key: stored[key] for key in ("coords", "rgb")}
            ignored = {} if kind == "none" else {"label": np.zeros_like(stored["label"])}
        np.savez(root / "b.npz", **room, **ignored)
        output = tmp_path / f"run_{kind}"
        found.append(
            (run(make_config(recipe=recipe, data={"root": str(root)}, **free), output).metrics, weights(output))
        )
        labels = LabelSet.load(output / "labels.npz")
        assert len(labels.index["b"]) == 0 < len(labels.index["a"])
        if recipe == "decoupled":
            table = PseudoLabelTable.load(output / "pseudo_labels" / "iter_00.npz")
            assert (table["b"].label >= 0).any()
    (metrics, first), (others, second) = found
    assert metrics["iou"] == others["iou"] and same_weights(first, second)


def test_where_no_training_scene_has_labels_it_is_said(make_config, folder, tmp_path):
    for name in "abc":
        with np.load(folder / f"{name}.npz") as stored:
            np.savez(tmp_path / f"{name}.npz", **{key: stored[key] for key in stored if key != "label" or name == "c"})
    (tmp_path / "classes.yaml").write_text((folder / "classes.yaml").read_text())
    with pytest.raises(ValueError, match=r"labels\.budget .4pt.: no labelled point in the training split"):
        Trainer(make_config(data={"root": str(tmp_path)}), tmp_path / "run", CPU)


def test_given_labels_get_no_pseudo_label(make_config, tmp_path):
    trainer = Trainer(make_config(pseudo={"delta_d": 0.0, "delta_len": 1.0}), tmp_path / "run", CPU)
    trainer.run()
    table = PseudoLabelTable.load(tmp_path / "run" / "pseudo_labels" / "iter_00.npz")
    labels = LabelSet.load(tmp_path / "run" / "labels.npz")
    for scene in trainer.scenes:
        given = visible(labels, scene.grid) >= 0
        assert given.sum() == 12
        assert (table[scene.name].label.numpy()[given] == -1).all()
        assert (table[scene.name].label.numpy()[~given] >= 0).any()


def test_the_first_step_moves_the_backbone_alone_and_the_second_the_classifier_alone(
    make_config, tmp_path, monkeypatch
):
    seen = []
    original = Trainer.save

    def save(self):
        original(self)
        seen.append({key: value.clone() for key, value in self.model.state_dict().items()})

    monkeypatch.setattr(Trainer, "save", save)
    run(make_config("randla"), tmp_path / "run")

    def moved(before, after):
        return {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}

    assert moved(seen[1], seen[2]) == {"backbone", "classifier"}
    assert moved(seen[3], seen[6]) == {"backbone"}
    assert moved(seen[7], seen[8]) == {"classifier"}


def test_a_loss_that_is_not_finite_stops_before_any_weight_is_touched_and_names_the_scenes(make_config, tmp_path):
    trainer = Trainer(make_config(), tmp_path / "run", CPU)
    with torch.no_grad():
        next(trainer.model.classifier.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match=r"loss is nan on pretrain, epoch 0, scenes [ab], [ab]"):
        trainer.run()


def test_gradients_are_clipped_by_norm():
    from mink_decouple.config import OptimConfig
    from mink_decouple.engine.optim import apply_gradients

    layer = torch.nn.Linear(3, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    apply_gradients(OptimConfig(grad_clip=1.0), optimizer, "")
    assert torch.allclose(layer.weight.grad, torch.tensor([[0.6, 0.0, 0.8]]), atol=1e-5)


def test_gradients_left_on_a_frozen_part_do_not_enter_the_norm():
    from mink_decouple.config import OptimConfig
    from mink_decouple.engine.optim import apply_gradients, make_optimizer

    pair = torch.nn.ModuleList([torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)])
    for layer, grad in zip(pair, (100.0, 0.5)):
        layer.weight.grad = torch.tensor([[grad]])
    pair[0].requires_grad_(False)
    apply_gradients(OptimConfig(grad_clip=1.0), make_optimizer(OptimConfig(), pair), "")
    assert pair[1].weight.grad.item() == 0.5


def test_a_folder_with_content_is_never_trained_into(make_config, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty.*--resume"):
        Trainer(make_config(), tmp_path, CPU)
    with pytest.raises(ValueError, match="no run to resume"):
        Trainer(make_config(), tmp_path, CPU, resume=True)
    assert (tmp_path / "note.txt").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        Trainer(make_config(), tmp_path / "new", CPU, resume=True)


def test_resuming_with_other_settings_or_labels_is_refused(make_config, tmp_path, monkeypatch):
    output = tmp_path / "run"
    run_and_die(make_config(), output, 2, monkeypatch)
    with pytest.raises(ValueError, match=r"configuration changed.*'seed: 0' became 'seed: 1'"):
        Trainer(make_config(seed=1), output, CPU, resume=True)
    other = tmp_path / "other"
    run_and_die(make_config(labels={"seed": 9}), other, 1, monkeypatch)
    shutil.copy(other / "labels.npz", output / "labels.npz")
    with pytest.raises(ValueError, match="not the labels this run began with"):
        Trainer(make_config(), output, CPU, resume=True)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(make_config, tmp_path, monkeypatch, capsys):
    run(make_config(), tmp_path / "whole")
    output = tmp_path / "run"
    run_and_die(make_config(), output, 6, monkeypatch)
    last = output / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    run(make_config(), output, resume=True)
    told = capsys.readouterr().out
    assert "last.pt: not a readable checkpoint" in told and "going on from last-1.pt" in told
    assert last.with_name("damaged-last.pt").stat().st_size == 1000
    for name in ("metrics.json", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (output / name).read_bytes(), name


def test_where_no_checkpoint_can_be_read_nothing_is_begun_and_nothing_deleted(make_config, tmp_path, monkeypatch):
    output = tmp_path / "run"
    run_and_die(make_config(), output, 3, monkeypatch)
    for path in (output / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    before = sorted(p.name for p in output.rglob("*"))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        Trainer(make_config(), output, CPU, resume=True)
    assert sorted(p.name for p in output.rglob("*")) == before


def test_pseudo_labels_of_a_resumed_step_must_be_whole(make_config, tmp_path, monkeypatch):
    output = tmp_path / "run"
    run_and_die(make_config(), output, 6, monkeypatch)
    table = output / "pseudo_labels" / "iter_00.npz"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 255
    table.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"iter_00\.npz"):
        run(make_config(), output, resume=True)


def test_best_is_the_highest_score_not_the_last(make_config, tmp_path, monkeypatch):
    from mink_decouple.engine import train as module
    from mink_decouple.metrics import ConfusionMatrix

    scores = iter([0.3, 0.5, 0.4])

    def evaluate(*_):
        hits = round(next(scores) * 100)
        matrix = ConfusionMatrix(3)
        matrix.update(np.repeat([0, 3], [hits, 100 - hits]), np.zeros(100, int))
        return matrix

    monkeypatch.setattr(module, "evaluate", evaluate)
    metrics = run(make_config(schedule={"iterations": 2}), tmp_path / "run").metrics
    assert metrics["best"]["stage"] == "iter_00_II"
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")["after"] == "iter_00_II"


def test_a_label_file_of_other_clouds_is_refused(make_config, folder, tmp_path):
    from mink_decouple.data.folder import FolderDataset
    from mink_decouple.engine.scenes import load_split, prepare, training_labels

    config = make_config()
    dataset = FolderDataset(folder)
    scenes = load_split(config, dataset, "train")
    labels = training_labels(config, dataset, scenes)
    labels.save(tmp_path / "labels.npz")
    again = training_labels(make_config(labels={"budget": str(tmp_path / "labels.npz")}), dataset, scenes)
    assert again.checksum == labels.checksum and again.meta == labels.meta
    coarse = make_config(labels={"budget": str(tmp_path / "labels.npz")}, data={"grid": 0.4})
    recounted = training_labels(coarse, dataset, load_split(coarse, dataset, "train"))
    assert recounted.checksum == labels.checksum and recounted.meta["grid_share"] > labels.meta["grid_share"]
    swapped = LabelSet({"a": labels.index["b"], "b": labels.index["a"]}, {**labels.label}, labels.meta)
    swapped.save(tmp_path / "swapped.npz")
    with pytest.raises(ValueError, match=r"swapped\.npz: scene [ab]: .*drawn from other data"):
        training_labels(make_config(labels={"budget": str(tmp_path / "swapped.npz")}), dataset, scenes)
    bare = prepare(replace(dataset.load("c"), name="bare", labels=None), config)
    more = training_labels(make_config(labels={"budget": str(tmp_path / "labels.npz")}), dataset, [*scenes, bare])
    assert len(more.index["bare"]) == 0 and np.array_equal(more.index["a"], labels.index["a"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"pseudo": {"rho_mode": "literal", "tail_rule": "all"}}, "tail_rule"),
        ({"pseudo": {"rho_mode": "literal", "uncertain": "rate"}}, "uncertain rate"),
        ({"data": {"features": ["hue"]}}, "hue"),
        ({"augment": {"spin": True}}, "spin"),
        ({"data": {"splits": {"train": ["a", "b"], "val": ["bare"]}}}, "no labels to score"),
    ],
    ids=str,
)
def test_mistakes_show_before_anything_is_written(make_config, folder, tmp_path, overrides, words):
    rooms = shutil.copytree(folder, tmp_path / "rooms")
    np.savez(rooms / "bare.npz", coords=np.random.default_rng(0).random((50, 3)), rgb=np.zeros((50, 3), np.float32))
    with pytest.raises(ValueError, match=words):
        Trainer(make_config(**merge({"data": {"root": str(rooms)}}, overrides)), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()
