"""Runs of a grid as processes: states of run folders, resumption, records, failures, expected times."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mink_decouple.cli import main
from mink_decouple.config import Config, digest, dump
from mink_decouple.report.records import Record, save
from mink_decouple.study.grid import Cell, expand, read_experiment
from mink_decouple.study.launch import TRAIN, outcome, set_aside, state
from mink_decouple.study.run import Study

TINY = """
backbones: [minkunet]
recipes: [supervised, decoupled]
seeds: [0]
reference: supervised
set:
  data.synthetic: {areas: 5, rooms_per_area: 1, points_per_room: 1500}
  data.grid: 0.1
  schedule: {iterations: 1, pretrain: {epochs: 2}, i_step: {epochs: 1}, ii_step: {epochs: 2}}
  pseudo.votes: 1
  ii.cache_passes: 1
  eval.votes: 1
"""


FAKE_TRAINING = """
import json, pathlib, shutil, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
CHECK
output.mkdir(parents=True)
scores = dict.fromkeys(["miou", "head_iou", "waist_iou", "tail_iou"], 0.5)
metrics = {**scores, "pretrained": {"miou": 0.25}, "iou": {}, "label_budget": {}, "parameters": {}}
(output / "environment.json").write_text(json.dumps({"digest": "d"}))
shutil.copy(sys.argv[sys.argv.index("--config") + 1], output / "config.yaml")
if "stages: true" in (output / "config.yaml").read_text():
    (output / "checkpoints").mkdir()
    (output / "checkpoints" / "pretrain.pt").write_text("weights")
(output / "metrics.part").write_text(json.dumps(metrics))
(output / "metrics.part").rename(output / "metrics.json")
"""


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal, also where the tests run as a background job, which begins with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fake_training(monkeypatch):
    """Trainings that take no time and all score 50; `check` is a line of Python that each begins with."""

    def install(check: str = "") -> None:
        script = FAKE_TRAINING.replace("CHECK", check)
        monkeypatch.setattr("mink_decouple.study.launch.TRAIN", (sys.executable, "-c", script))

    return install


def grid(folder: Path, text: str = TINY) -> Path:
    file = folder / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def cell_of(folder: Path, number: int = 0) -> Cell:
    file = grid(folder)
    return expand(read_experiment(file), file)[number]


def fake_run(folder: Path, cell: Cell, miou: float = 0.5, seconds: float = 60.0) -> None:
    """A folder that looks like a finished run of a cell."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(cell.config), encoding="utf-8")
    scores = {"miou": miou, "head_iou": miou, "waist_iou": miou, "tail_iou": miou / 2}
    metrics = {**scores, "pretrained": {"miou": miou / 2}}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "timing.json").write_text(json.dumps({"seconds": {"pretrain": seconds}}), encoding="utf-8")


def test_the_state_of_a_run_is_read_from_its_folder(tmp_path):
    folder = tmp_path / "run"
    assert state(folder, False) == "to do"
    assert state(folder, True) == "recorded"
    folder.mkdir()
    assert state(folder, False) == "to do"
    (folder / "config.yaml").write_text("x", encoding="utf-8")
    assert state(folder, False) == "cut off"
    (folder / "checkpoints").mkdir()
    assert state(folder, False) == "cut off"
    (folder / "checkpoints" / "last-1.pt").write_bytes(b"x")  # the newest was damaged
    assert state(folder, False) == "begun"
    (folder / "checkpoints" / "last.pt").write_bytes(b"x")
    assert state(folder, False) == "begun"
    (folder / "metrics.json").write_text("{}", encoding="utf-8")
    assert state(folder, False) == state(folder, True) == "done"


def test_a_folder_that_is_set_aside_loses_nothing(tmp_path):
    for text in ("first", "second"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text(text, encoding="utf-8")
        set_aside(tmp_path / "run")
    kept = {path.parent.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*/config.yaml")}
    assert kept == {"run.aborted-1": "first", "run.aborted-2": "second"}


def test_a_folder_of_other_settings_is_refused_before_anything_runs(tmp_path):
    cell = cell_of(tmp_path)
    fake_run(tmp_path / "out" / cell.name, replace(cell, config=replace(cell.config, seed=9)))
    with pytest.raises(ValueError, match="holds a run of other settings"):
        Study(grid(tmp_path), tmp_path / "out")


def test_only_keeps_the_runs_that_are_named(tmp_path):
    study = Study(grid(tmp_path), tmp_path / "out", only=["decoupled"])
    assert [cell.title for cell in study.cells] == ["decoupled"]
    with pytest.raises(ValueError, match="--only randla: fits none of the 2 runs"):
        Study(grid(tmp_path), tmp_path / "out", only=["randla"])


def test_a_failing_run_does_not_stop_the_others(tmp_path, capsys, fake_training):
    fake_training("if 'decoupled' in output.name: sys.exit('error: no luck')")
    code = main(["experiment", str(grid(tmp_path)), "--output", str(tmp_path / "out"), "--jobs", "2"])
    said = capsys.readouterr()
    assert code == 1
    assert "| minkunet | 1pt | supervised | 50.0 |" in said.out
    assert str(tmp_path / "out" / "report.html") in said.out and said.out.endswith("--reference supervised\n")
    assert "failed: minkunet-1pt-decoupled-seed0: error: no luck (see " in said.err


def test_a_report_of_runs_that_are_all_records_can_be_made(tmp_path):
    """The study's own folder then holds no run, which `compare` would refuse."""
    scores = dict.fromkeys(("miou", "head_iou", "waist_iou", "tail_iou"), 0.5)
    more = {"classes": ["wall"], "colors": None, "groups": {}, "label_budget": {}, "parameters": {}, "history": []}
    more |= {"metrics": {**scores, "iou": {"wall": 0.5}}, "cost": {"seconds": {"pretrain": 1.0}}}
    found = [
        Record(cell.title, "minkunet", "1pt", cell.title, 0, "synthetic", digest(cell.config), **more)
        for cell in (cell_of(tmp_path, 0), cell_of(tmp_path, 1))
    ]
    save(tmp_path / "kept.json", found)
    study = Study(grid(tmp_path), tmp_path / "out", records=tmp_path / "kept.json")
    assert study.run("cpu", 1, lambda config: None) == []
    assert main(["compare", *study.report_arguments()]) == 0
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process where others send it a signal")
@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("import os; print('mIoU 40', flush=True); os.kill(os.getpid(), 9)", "ended by SIGKILL; the system does that"),
        ("sys.exit(3)", "exit code 3, nothing said"),
        ("print('bad luck', flush=True); sys.exit(3)", "bad luck"),
    ],
)
def test_a_failure_has_the_reason_of_this_start(tmp_path, capsys, fake_training, ending, reason):
    """The log goes on over all starts."""
    fake_training(ending)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "minkunet-1pt-supervised-seed0.log").write_text("an earlier start\n")
    only = ["--only", "supervised", "--jobs", "1"]
    assert main(["experiment", str(grid(tmp_path)), "--output", str(tmp_path / "out"), *only]) == 1
    assert f"failed: minkunet-1pt-supervised-seed0: {reason}" in capsys.readouterr().err


def test_settings_that_cannot_be_trained_are_named_before_the_first_run(tmp_path, capsys, fake_training):
    fake_training("sys.exit('error: a run began')")
    wrong = """
  - {title: apart, set: {ii.labels: spread, labels.spread: none}}
  - {title: odd, set: {model.variant: 99Z}}
  - {title: lost, labels: ["list:nowhere.txt"]}
"""
    text = TINY.replace("seeds: [0]", "seeds: [0, 1]").replace("reference: supervised\n", "")
    text = text.replace("recipes: [supervised, decoupled]", f"recipes:{wrong}")
    assert main(["experiment", str(grid(tmp_path, text)), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("apart: ii.labels spread: the given labels do not; ") == 1
    assert said.count("odd: variant of minkunet is '99Z'; choose one of ") == 1
    assert said.count("lost: list of points nowhere.txt: no such file") == 1
    assert "a run began" not in said and not (tmp_path / "out").exists()


def test_a_begun_run_goes_on_whatever_is_refused_now(tmp_path, capsys, fake_training, monkeypatch):
    fake_training("shutil.rmtree(output); assert '--resume' in sys.argv")

    def refuse(config: Config) -> None:
        raise ValueError("no longer")

    monkeypatch.setattr("mink_decouple.engine.settings.check_settings", refuse)
    arguments = ["experiment", str(grid(tmp_path)), "--output", str(tmp_path / "out"), "--only"]
    cell = cell_of(tmp_path)
    folder = tmp_path / "out" / cell.name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(cell.config), encoding="utf-8")
    (folder / "checkpoints" / "last.pt").write_text("weights", encoding="utf-8")
    assert main([*arguments, "decoupled"]) == 2
    assert "decoupled: no longer" in capsys.readouterr().err
    assert main([*arguments, cell.name]) == 0


def test_a_run_cut_off_before_its_first_checkpoint_begins_anew(tmp_path, capsys, fake_training):
    fake_training("assert '--resume' not in sys.argv and not output.exists()")
    cell = cell_of(tmp_path)
    (tmp_path / "out" / cell.name).mkdir(parents=True)
    (tmp_path / "out" / cell.name / "config.yaml").write_text(dump(cell.config), encoding="utf-8")
    assert main(["experiment", str(grid(tmp_path)), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / f"{cell.name}.aborted-1" / "config.yaml").is_file()
    assert "set aside" in capsys.readouterr().out


def test_entries_of_equal_settings_are_trained_once(tmp_path, capsys, fake_training):
    fake_training()
    file = grid(tmp_path, "backbones: [minkunet]\nrecipes: [paper, table6/gt, supervised]\nseeds: [0]\n")
    assert main(["experiment", str(file), "--output", str(tmp_path / "out")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| minkunet")]
    assert len(rows) == 3 and all("| 50.0 |" in row for row in rows)
    assert len(list((tmp_path / "out").glob("*/metrics.json"))) == 2


def test_list_runs_nothing(tmp_path, capsys):
    assert main(["experiment", str(grid(tmp_path)), "--output", str(tmp_path / "out"), "--list"]) == 0
    said = capsys.readouterr().out
    assert said.count("to do") == 3 and "2 to do" in said
    assert not (tmp_path / "out").exists()


FAMILY = "backbones: [minkunet]\nrecipes: [paper, table5/row1, supervised, table5/row2]\nseeds: [0, 1]\nlabels: [1pt]\n"
"""Of each seed, the first two and the last share their pre-training."""


def test_runs_wait_for_the_pre_training_that_they_share(tmp_path, capsys, fake_training):
    fake_training("""
import time
seed, first, plain = output.name[-1], "paper" in output.name, "supervised" in output.name
if first:
    time.sleep(1.5)
taken = sys.argv[sys.argv.index("--pretrained") + 1] if "--pretrained" in sys.argv else None
assert (taken is None) == (first or plain), output.name
assert taken is None or f"minkunet-1pt-paper-seed{seed}/checkpoints" in pathlib.Path(taken).as_posix()
assert taken is None or pathlib.Path(taken).read_text() == "weights"
""")
    arguments = ["experiment", str(grid(tmp_path, FAMILY)), "--output", str(tmp_path / "out"), "--jobs", "8"]
    assert main(arguments) == 0
    assert "4 of 8 trainings take over the pre-training of another" in capsys.readouterr().out
    for follower in (tmp_path / "out").glob("*row*"):  # and where the pre-training is there already
        if follower.is_dir():
            shutil.rmtree(follower)
    assert main(arguments) == 0
    assert "4 of 4 trainings take over the pre-training of another" in capsys.readouterr().out
    other = ["experiment", str(grid(tmp_path, FAMILY.replace("row1", "row3").replace("paper", "table7/ii_step")))]
    assert main([*other, *arguments[2:], "--only", "ii_step"]) == 0  # a run of another experiment in the same folder
    assert "2 of 2 trainings take over the pre-training of another" in capsys.readouterr().out


def test_runs_train_their_own_pre_training_where_the_one_they_wait_for_fails(tmp_path, capsys, fake_training):
    fake_training("""
if "paper" in output.name:
    sys.exit("error: no luck")
assert "--pretrained" not in sys.argv
""")
    arguments = ["experiment", str(grid(tmp_path, FAMILY)), "--output", str(tmp_path / "out"), "--jobs", "2"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.err.count("failed: ") == 2 and said.out.count("| 2 |") == 3


def once_begun(out: Path, act: Callable[[], None]) -> threading.Thread:
    """Act beside the test as soon as its training has written the file `begun`."""

    def wait() -> None:
        for _ in range(300):
            if (out / "begun").exists():
                break
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process where others send it a signal")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_trainings_that_ignore_ctrl_c_stop_with_the_study(tmp_path, fake_training, ctrl_c, monkeypatch, sign):
    """As a training does while it begins as the background job of a shell."""
    monkeypatch.setattr("mink_decouple.study.launch.GRACE_SECONDS", 0.5)
    fake_training("""
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
(output.parent / "begun").write_text("")
time.sleep(120)
(output.parent / "ended").write_text("")
""")
    out = tmp_path / "out"
    stopper = once_begun(out, lambda: os.kill(os.getpid(), sign))
    assert main(["experiment", str(grid(tmp_path)), "--output", str(out), "--jobs", "1"]) == 130
    stopper.join()
    assert not (out / "ended").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process where others send it a signal")
def test_trainings_that_the_terminal_has_told_get_no_second_signal(tmp_path, fake_training, ctrl_c):
    """Ctrl-C reaches the study and its trainings; one that is saving its step is left to it."""
    fake_training("""
import os, signal, time
def save(*_):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    time.sleep(1.0)
    (output.parent / "saved").write_text("")
    sys.exit("stopped")
signal.signal(signal.SIGINT, save)
(output.parent / "begun.part").write_text(str(os.getpid()))
(output.parent / "begun.part").rename(output.parent / "begun")
time.sleep(120)
""")
    out = tmp_path / "out"

    def press() -> None:
        os.kill(int((out / "begun").read_text()), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    presser = once_begun(out, press)
    assert main(["experiment", str(grid(tmp_path)), "--output", str(out), "--jobs", "1"]) == 130
    presser.join()
    assert (out / "saved").exists()


@pytest.mark.slow
def test_a_shared_pre_training_changes_no_figure(tmp_path):
    """Real trainings: the followers' figures are those of trainings of their own."""
    text = TINY.replace("[supervised, decoupled]", "[table5/row1, table5/row2]").replace("reference: supervised", "")
    file = grid(tmp_path, text)
    assert main(["experiment", str(file), "--output", str(tmp_path / "shared"), "--jobs", "1"]) == 0
    second = "minkunet-1pt-table5-row2-seed0"
    assert "pre-training of" in (tmp_path / "shared" / f"{second}.log").read_text()
    alone = ["experiment", str(file), "--output", str(tmp_path / "alone"), "--jobs", "1", "--only", second]
    assert main(alone) == 0
    assert "pre-training of" not in (tmp_path / "alone" / f"{second}.log").read_text()
    for name in ("metrics.json", "metrics.jsonl"):
        assert (tmp_path / "shared" / second / name).read_bytes() == (tmp_path / "alone" / second / name).read_bytes()


@pytest.mark.slow
def test_a_stopped_study_goes_on_and_its_records_save_runs(tmp_path, capsys):
    """A real grid: terminated while it trains, continued by the same command, then known from its records alone."""
    out, records = tmp_path / "out", tmp_path / "records.json"
    arguments = ["experiment", str(grid(tmp_path)), "--output", str(out), "--jobs", "1", "--records", str(records)]
    process = subprocess.Popen([*TRAIN[:-1], *arguments], stderr=subprocess.PIPE)
    first = cell_of(tmp_path)
    for _ in range(600):
        if (out / first.name / "checkpoints" / "last.pt").is_file() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) in (130, 0)
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "| minkunet | 1pt | supervised |" in said and "| minkunet | 1pt | decoupled |" in said
    for number in (0, 1):
        assert outcome(out / cell_of(tmp_path, number).name) is not None
    elsewhere = ["experiment", str(grid(tmp_path)), "--output", str(tmp_path / "other"), "--records", str(records)]
    assert main(elsewhere) == 0
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if line.startswith("| minkunet")] == [
        line for line in said.splitlines() if line.startswith("| minkunet")
    ]
    assert not list((tmp_path / "other").glob("*/metrics.json"))
