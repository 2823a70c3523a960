"""The command line as a user meets it: bad input gives one clear line and exit code 2, and leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mink_decouple.cli import main, tool
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import write_cloud
from mink_decouple.sparse import engines

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {
    "classes": {"low": {"raw": [1]}, "high": {"raw": [2]}},
    "ignore": [0],
    "splits": {"train": ["a"], "val": ["b"]},
}


def cloud(name, labels=(1, 2)):
    rng = np.random.default_rng(0)
    coords = rng.uniform(0, 1, (200, 3)).astype(np.float32)
    label = np.resize(np.asarray(labels, np.int64), 200)
    return PointCloud(name=name, coords=coords, offset=np.zeros(3), features={}, labels=label)


@pytest.fixture
def project(tmp_path):
    """A folder dataset of two tiny LAS tiles and a configuration for it."""
    pytest.importorskip("laspy", reason="LAS files need the extra [las]")
    root = tmp_path / "tiles"
    root.mkdir()
    for name in "ab":
        write_cloud(root / f"{name}.laz", cloud(name))
    (root / "classes.yaml").write_text(yaml.safe_dump(CLASSES, sort_keys=False))
    config = {
        "data": {"dataset": "folder", "root": str(root), "grid": 0.1, "features": ["height"]},
        "labels": {"budget": "2pt"},
        "model": {"variant": "tiny"},
        "schedule": {"iterations": 0, "steps": 1, "pretrain": {"epochs": 1}},
        "view": {"batch": 1, "workers": 0},
        "eval": {"votes": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def fails(capsys, *args):
    """Run; the exit code is 2 and the message comes back, one line an error."""
    assert main([str(a) for a in args]) == 2
    text = capsys.readouterr().err.strip()
    assert text and all(line.startswith("error: ") for line in text.splitlines())
    return text


def train(project, *more):
    return ("train", "--config", project / "config.yaml", "--output", project / "run", "--device", "cpu", *more)


def edit(project, change):
    path = project / "tiles" / "classes.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def test_training_writes_metrics_and_a_picture_and_evaluation_repeats_the_score(project, capsys):
    assert main([str(a) for a in train(project)]) == 0
    out = capsys.readouterr().out
    assert "pre-trained" in out and "final" in out
    assert (project / "run" / "metrics.json").is_file()
    assert (project / "run" / "pictures" / "b.png").is_file()
    checkpoint = project / "run" / "checkpoints" / "last.pt"
    assert tool("evaluate", ["--checkpoint", str(checkpoint), "--output", str(project / "again")]) == 0
    first = yaml.safe_load((project / "run" / "metrics.json").read_text())
    again = yaml.safe_load((project / "again" / "metrics.json").read_text())
    assert again["iou"] == first["iou"] and again["points"] == first["points"] == 200


def test_a_label_file_drawn_once_serves_a_run_and_is_not_overwritten(project, capsys):
    labels = project / "labels.npz"
    draw = ("labels", "--config", project / "config.yaml", "--labels", "3pt", "--output", labels)
    assert main([str(a) for a in draw]) == 0
    assert main([str(a) for a in train(project, "--labels", labels)]) == 0
    capsys.readouterr()
    assert "labels.npz: exists" in fails(capsys, *draw)


def test_a_missing_file_is_named(project, capsys):
    (project / "tiles" / "b.laz").unlink()
    assert "'b'" in fails(capsys, *train(project))
    assert "nothing.yaml" in fails(capsys, "train", "--config", "nothing.yaml")
    assert "none.pt" in fails(capsys, "evaluate", "--checkpoint", "none.pt")
    assert not (project / "run").exists()


def test_a_truncated_laz_is_named(project, capsys):
    path = project / "tiles" / "a.laz"
    path.write_bytes(path.read_bytes()[:-200])
    text = fails(capsys, *train(project))
    assert "a.laz" in text and len(text.splitlines()) == 1
    assert not (project / "run").exists()


def test_a_ply_without_coordinates_is_named_with_its_columns(project, capsys):
    (project / "tiles" / "a.laz").unlink()
    header = "ply\nformat ascii 1.0\nelement vertex 1\nproperty float u\nproperty float v\nend_header\n1 2\n"
    (project / "tiles" / "a.ply").write_text(header)
    text = fails(capsys, *train(project))
    assert "a.ply" in text and "u" in text and "x" in text


def test_nan_coordinates_are_counted(project, capsys):
    (project / "tiles" / "a.laz").unlink()
    coords = cloud("a").coords.copy()
    coords[[3, 7], 1] = np.nan
    np.savez(project / "tiles" / "a.npz", coords=coords, label=np.resize([1, 2], 200))
    text = fails(capsys, *train(project))
    assert "a.npz" in text and "2" in text


def test_a_label_outside_the_classes_is_named_with_the_known_ids(project, capsys):
    write_cloud(project / "tiles" / "a.laz", cloud("a", labels=(1, 2, 9)))
    text = fails(capsys, *train(project))
    assert "a.laz" in text and "9" in text and "[1, 2]" in text


def test_a_class_with_no_labelled_point_is_named(project, capsys):
    edit(project, lambda content: content["classes"].update(rare={"raw": [5]}))
    text = fails(capsys, *train(project))
    assert "rare" in text and "labels.budget" in text
    assert not (project / "run").exists()


def test_an_empty_split_is_named(project, capsys):
    edit(project, lambda content: content["splits"].update(val=[]))
    assert "'val' is empty" in fails(capsys, *train(project))


def test_an_unknown_configuration_key_gets_the_nearest_name(project, capsys):
    text = fails(capsys, *train(project, "--set", "schedule.iteratons=3", "--set", "vue.batch=1"))
    assert "schedule.iteratons" in text and "nearest: iterations" in text and "nearest: view" in text
    assert len(text.splitlines()) == 2


def test_a_checkpoint_of_another_class_list_is_refused(project, capsys):
    assert main([str(a) for a in train(project)]) == 0
    capsys.readouterr()

    def rename(content):
        content["classes"] = {"ground": {"raw": [1]}, "high": {"raw": [2]}}

    edit(project, rename)
    text = fails(capsys, "evaluate", "--checkpoint", project / "run" / "checkpoints" / "last.pt")
    assert "low, high" in text and "ground, high" in text
    assert not (project / "run" / "evaluation").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--labels", "many"), "1pt"),
        (("--device", "tpu"), "auto, cpu, cuda"),
        (("--backbone", "pointnet"), "minkunet, randla"),
        (("--recipe", "magic"), "supervised"),
        (("--set", "model.variant=99X"), "14A"),
        (("--set", "augment.spin=true"), "rotate_z"),
        (("--set", "data.features=[hue]"), "hue"),
    ],
)
def test_wrong_values_list_the_choices(project, capsys, args, words):
    assert words in fails(capsys, *train(project, *args))
    assert not (project / "run").exists()


def test_resume_needs_to_know_what(project, capsys):
    assert "--output" in fails(capsys, "train", "--config", project / "config.yaml", "--resume")


def test_a_run_is_resumed_by_its_folder_alone(project, capsys):
    assert main([str(a) for a in train(project, "--recipe", "supervised", "--seed", "3")]) == 0
    first = (project / "run" / "metrics.json").read_bytes()
    (project / "run" / "metrics.json").unlink()
    resume = ("train", "--output", project / "run", "--resume", "--device", "cpu")
    assert main([str(a) for a in resume]) == 0
    assert (project / "run" / "metrics.json").read_bytes() == first
    capsys.readouterr()
    assert "is for recipe 'supervised', not 'paper'" in fails(capsys, *resume, "--recipe", "paper")
    assert "'seed: 3' became 'seed: 4'" in fails(capsys, *resume, "--seed", "4")
    assert main([str(a) for a in (*resume, "--backbone", "mink")]) == 0


def test_the_scripts_of_tools_answer_help():
    for script in sorted((ROOT / "tools").glob("*.py")):
        done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and f"usage: {script.name}" in done.stdout, script


def test_the_engine_is_recorded_and_can_be_chosen_again(project, capsys):
    assert main([str(a) for a in train(project)]) == 0
    last = project / "run" / "checkpoints" / "last.pt"
    assert torch.load(last, weights_only=True)["engine"] == "native"
    assert json.loads((project / "run" / "metrics.json").read_text())["engine"] == "native"
    evaluate = ("evaluate", "--checkpoint", last, "--device", "cpu", "--output", project / "again")
    assert main([str(a) for a in (*evaluate, "--set", "model.engine=native")]) == 0
    capsys.readouterr()
    assert "auto, native, minkowski" in fails(capsys, *evaluate, "--set", "model.engine=spconv")
    assert "model.variant: is fixed by the checkpoint" in fails(capsys, *evaluate, "--set", "model.variant=14A")


def test_minkowskiengine_where_it_is_not_installed_is_one_line(project, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    engines._minkowski.cache_clear()
    text = fails(capsys, *train(project, "--set", "model.engine=minkowski"))
    assert "docker/install_minkowski.sh" in text and len(text.splitlines()) == 1
    assert "minkunet, not randla" in fails(
        capsys,
        *train(project, "--backbone", "randla", "--set", "model.variant=4", "--set", "model.engine=minkowski"),
    )
    assert not (project / "run").exists()


def test_a_run_goes_on_with_another_engine(project, capsys):
    try:
        engines.import_minkowski()
    except ValueError as error:
        pytest.skip(str(error))
    more = ("--set", "schedule.pretrain.epochs=2")
    assert main([str(a) for a in train(project, *more)]) == 0
    (project / "run" / "metrics.json").unlink()
    resumed = train(project, *more, "--set", "model.engine=minkowski", "--resume")
    assert main([str(a) for a in resumed]) == 0
    assert "trained so far on the engine native, going on with minkowski" in capsys.readouterr().out
    assert json.loads((project / "run" / "metrics.json").read_text())["engine"] == "minkowski"


def test_a_run_says_what_its_recipe_decides_and_no_score_of_groups_that_are_empty(project, capsys):
    """Two classes are a head and a waist; the tail has none."""
    config = yaml.safe_load((project / "config.yaml").read_text())
    (project / "own.yaml").write_text(yaml.safe_dump({**config, "pseudo": {"delta_d": 0.1}}))
    arguments = ["train", "--config", str(project / "own.yaml"), "--output", str(project / "run"), "--device", "cpu"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"note: the recipe decoupled decides pseudo.delta_d, not {project / 'own.yaml'}; --set wins" in said
    assert "pretrain: mIoU " in said and "tail IoU 0.0" not in said


def test_a_checkpoint_becomes_example_weights_and_comes_back(project, capsys):
    assert main([str(a) for a in train(project)]) == 0
    last, weights, back = (project / name for name in ("run/checkpoints/last.pt", "example.pth", "back.pt"))
    assert main(["convert", str(last), "--output", str(weights)]) == 0
    assert "final.kernel" in torch.load(weights, weights_only=True)
    again = ("convert", weights, "--config", project / "config.yaml", "--output", back)
    assert main([str(a) for a in again]) == 0
    ours, theirs = (torch.load(path, weights_only=True)["model"] for path in (last, back))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert main(["evaluate", "--checkpoint", str(back), "--output", str(project / "scores"), "--device", "cpu"]) == 0
    scores = [json.loads((project / name / "metrics.json").read_text()) for name in ("run", "scores")]
    assert scores[0]["iou"] == scores[1]["iou"]
    capsys.readouterr()
    assert "exists" in fails(capsys, *again)
    assert "leave out --config" in fails(capsys, "convert", last, "--set", "seed=1", "--output", project / "no.pth")
    other = ("convert", weights, "--config", project / "config.yaml", "--output", project / "no.pt")
    assert "data.features" in fails(capsys, *other, "--set", "data.features=[height, xyz]")
    assert "the weights decide" in fails(capsys, *other, "--set", "model.variant=34C")
    (project / "text.pth").write_text("no weights")
    assert "text.pth: not a readable" in fails(capsys, "convert", project / "text.pth", "--output", project / "no.pt")
    assert not (project / "no.pt").exists()


def test_doctor_examines_this_machine(capsys, monkeypatch):
    monkeypatch.setattr("mink_decouple.engine.doctor._disk", lambda: iter(()))  # a full disk is not the point
    assert main(["doctor"]) == 0
    assert "engine native on cpu" in capsys.readouterr().out
