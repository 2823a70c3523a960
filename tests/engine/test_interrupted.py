"""Runs that are stopped, killed or crowded out: nothing is lost, and the end is the same to the byte."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mink_decouple.decouple.pseudo_labels import PseudoLabels
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.engine import checkpoint, kept
from mink_decouple.engine.events import Events
from mink_decouple.engine.interrupt import Interrupt, Stopped
from mink_decouple.engine.lock import RunLock
from mink_decouple.engine.train import Trainer
from mink_decouple.engine.train import apply_gradients as original_step

CPU = torch.device("cpu")
LONG = {"schedule": {"steps": 4}, "view": {"workers": 2}}
"""Epochs of four steps, drawn ahead by threads."""


def run(config, output, resume=False):
    return Trainer(config, output, CPU, resume=resume).run()


def same_files(first, second):
    for name in ("metrics.json", "metrics.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """The signal comes during an optimizer step of the run, counted from 1."""
    done = []

    def apply(*arguments):
        original_step(*arguments)
        done.append(1)
        if len(done) == step:
            signal.raise_signal(number)

    monkeypatch.setattr("mink_decouple.engine.train.apply_gradients", apply)


@pytest.mark.parametrize(
    ("step", "changes"),
    [(2, {}), (4, {}), (13, {}), (18, {"pseudo": {"refresh": "epoch"}, "view": {"accumulate": 2}})],
    ids=str,
)
@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
def test_a_signal_within_an_epoch_saves_the_step_and_the_run_goes_on_from_it(
    make_config, tmp_path, monkeypatch, backbone, step, changes
):
    """Three epochs of the pre-training and two of the I-step, of four steps each; the MLP head draws dropout masks."""
    from mink_decouple.config import merge

    config = make_config(backbone, **merge(merge(LONG, {"model": {"head": "mlp"}}), changes))
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Stopped, match=r"stopped by SIGTERM .*saved; go on with --resume") as stopped:
            run(config, tmp_path / "cut")
    assert stopped.value.code == 128 + signal.SIGTERM
    state = checkpoint.load(tmp_path / "cut" / "checkpoints" / "last.pt")["state"]
    assert state["step"] == step
    assert (state["within"] or {"step": 0})["step"] == step % 4
    run(config, tmp_path / "cut", resume=True)
    same_files(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
def test_a_run_that_went_on_from_an_earlier_checkpoint_saves_within_its_epoch(
    make_config, tmp_path, monkeypatch, backbone
):
    config, cut = make_config(backbone, **LONG), tmp_path / "cut"
    run(config, tmp_path / "whole")
    for step, resume in ((6, False), (2, True)):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Stopped, match="saved"):
                run(config, cut, resume)
        if not resume:
            (cut / "checkpoints" / "last.pt").write_bytes(b"damaged")
    assert checkpoint.load(cut / "checkpoints" / "last.pt")["state"]["within"]["step"] == 2
    run(config, cut, resume=True)
    same_files(tmp_path / "whole", cut)


def test_a_run_killed_after_it_renewed_its_pseudo_labels_renews_them_again(make_config, tmp_path, monkeypatch):
    """Those on disk are then later than the checkpoint."""
    config = make_config(pseudo={"refresh": "epoch"})
    run(config, tmp_path / "whole")
    original, saved = PseudoLabelTable.save, []

    def save(self, path):
        saved.append(original(self, path))
        if len(saved) == 2:
            raise KeyboardInterrupt
        return saved[-1]

    with monkeypatch.context() as patch:
        patch.setattr(PseudoLabelTable, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "cut")
    run(config, tmp_path / "cut", resume=True)
    same_files(tmp_path / "whole", tmp_path / "cut")


def test_pseudo_labels_of_another_checkpoint_are_refused(make_config, tmp_path, monkeypatch):
    config = make_config(**LONG)
    with monkeypatch.context() as patch:
        stop_at(patch, 14)
        with pytest.raises(Stopped):
            run(config, tmp_path / "cut")
    path = tmp_path / "cut" / "pseudo_labels" / "iter_00.npz"
    labels = torch.zeros(3, dtype=torch.int64)
    PseudoLabelTable(3, [("a", PseudoLabels(labels, labels.to(torch.int8) + 1, torch.ones(3)))]).save(path)
    with pytest.raises(ValueError, match=r"iter_00\.npz: not the pseudo-labels that the checkpoint was trained with"):
        run(config, tmp_path / "cut", resume=True)


def test_a_signal_between_steps_stops_at_once(make_config, tmp_path, monkeypatch):
    config = make_config(**LONG)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("mink_decouple.engine.train.evaluate", lambda *a: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped, match="SIGINT") as stopped:
            run(config, tmp_path / "cut")
    assert stopped.value.code == 130
    state = checkpoint.load(tmp_path / "cut" / "checkpoints" / "last.pt")["state"]
    assert (state["stage"], state["epoch"]) == (0, 3)  # the pre-training is done, its score is not
    run(config, tmp_path / "cut", resume=True)
    same_files(tmp_path / "whole", tmp_path / "cut")


def test_checkpoints_come_by_the_clock_within_an_epoch(make_config, tmp_path, monkeypatch):
    config = make_config(**LONG, checkpoints={"minutes": 1e-9})
    within = []
    original = Trainer.save

    def save(self):
        original(self)
        within.append(self.state.within is not None)
        if sum(within) == 5:
            raise KeyboardInterrupt

    run(make_config(**LONG), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "cut")
    # the policy of the checkpoints may change when a run goes on, and so may the number of loader threads
    run(make_config(schedule={"steps": 4}, view={"workers": 0}), tmp_path / "cut", resume=True)
    same_files(tmp_path / "whole", tmp_path / "cut")


def test_the_handlers_are_those_of_before_when_a_run_has_ended():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt().handled():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_a_run_takes_no_signals(make_config, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(make_config(), tmp_path / "run").metrics["miou"]))
    thread.start()
    thread.join()
    assert len(found) == 1


def test_a_second_signal_ends_the_process():
    code = (
        "import signal\n"
        "from mink_decouple.engine.interrupt import Interrupt\n"
        "stop = Interrupt()\n"
        "with stop.handled(), stop.until_saved():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('asked', stop.asked, flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"asked {signal.SIGTERM.value}\n"
    assert done.returncode == -signal.SIGTERM


def test_a_folder_is_of_one_process_and_the_lock_ends_with_it(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from mink_decouple.engine.lock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=rf"another process trains into it \(process {holder.pid}\)"):
        RunLock(tmp_path)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    RunLock(tmp_path).release()


def test_two_runs_into_one_folder_are_refused(make_config, tmp_path):
    config = make_config()
    first = Trainer(config, tmp_path / "run", CPU)
    with pytest.raises(ValueError, match="another process trains into it"):
        Trainer(config, tmp_path / "run", CPU, resume=True)
    first.release()
    run(config, tmp_path / "run", resume=True)


def test_a_run_killed_before_its_first_checkpoint_begins_anew_with_the_same_settings(
    make_config, tmp_path, monkeypatch, capsys
):
    def die(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", die)
        with pytest.raises(KeyboardInterrupt):
            Trainer(make_config(), tmp_path / "cut", CPU)
    with pytest.raises(ValueError, match=r"configuration changed.*'seed: 0' became 'seed: 1'"):
        Trainer(make_config(seed=1), tmp_path / "cut", CPU, resume=True)
    run(make_config(), tmp_path / "cut", resume=True)
    assert "ended before the first checkpoint; starting it from the beginning" in capsys.readouterr().out
    run(make_config(), tmp_path / "whole")
    same_files(tmp_path / "whole", tmp_path / "cut")


def test_a_run_that_goes_on_elsewhere_says_where(make_config, tmp_path, monkeypatch):
    """Once for every change, beside where it began; a damaged file is no reason to stop."""
    about = tmp_path / "run" / "environment.json"
    run(make_config(), tmp_path / "run")
    first = json.loads(about.read_text())
    run(make_config(), tmp_path / "run", resume=True)
    assert json.loads(about.read_text()) == first
    monkeypatch.setattr("mink_decouple.engine.runtime._commit", lambda: "another")
    for _ in range(2):
        run(make_config(), tmp_path / "run", resume=True)
    second = json.loads(about.read_text())
    assert [(one["commit"], one["step"] > 0) for one in second.pop("resumed")] == [("another", True)]
    assert second == first
    about.write_text("[]")
    run(make_config(), tmp_path / "run", resume=True)


def test_checkpoints_are_kept_by_the_policy(make_config, tmp_path):
    output = tmp_path / "run"
    run(make_config(checkpoints={"keep": 3, "stages": True}), output)
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["best.pt", "iter_00_II.pt", "last-1.pt", "last-2.pt", "last.pt", "pretrain.pt"]
    steps = [checkpoint.load(output / "checkpoints" / name)["state"] for name in kept.names(3)]
    assert [(s["stage"], s["epoch"]) for s in steps] == [(3, 0), (2, 1), (2, 0)]
    scored = checkpoint.load(output / "checkpoints" / "iter_00_II.pt")
    assert scored["after"] == "iter_00_II" and "optimizer" not in scored


@pytest.mark.parametrize("links", [True, False])
def test_at_every_moment_one_checkpoint_can_be_read(tmp_path, monkeypatch, links):
    """Killed before any of the renames of a save, also where the file system knows no hard links."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    original = os.replace
    for moment in range(6):
        folder = tmp_path / str(moment)
        for number in range(3):
            kept.save(folder, {"number": number}, 3)
        left = [moment]

        def replace(source, target, left=left):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            original(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                kept.save(folder, {"number": 3}, 3)
            except KeyboardInterrupt:
                assert kept.load(folder)["number"] == 2
            else:
                assert moment > 3
                assert kept.load(folder)["number"] == 3


@pytest.mark.parametrize(
    "told",
    [
        "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0",
        "[enforce fail at inline_container.cc:672] . unexpected pos 344448 vs 344344",
    ],
)
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tmp_path, monkeypatch, told):
    """The messages are those of torch 2.13 on a full tmpfs."""
    kept.save(tmp_path, {"number": 0}, 2)

    def full(content, file):
        file.write(b"x" * 100)
        raise RuntimeError(told)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"next\.pt: cannot be written .*last good one is untouched"):
        kept.save(tmp_path, {"number": 1}, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert kept.load(tmp_path)["number"] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer
def test_a_run_folder_that_vanished_is_named_and_not_made_anew(make_config, tmp_path, monkeypatch):
    import shutil

    output = tmp_path / "run"
    trainer = Trainer(make_config(), output, CPU)
    shutil.rmtree(output)
    with pytest.raises(OSError, match="run"):
        trainer.run()
    assert not output.exists()


@pytest.mark.slow
def test_the_command_says_where_it_stopped_and_ends_with_the_signal(tmp_path):
    """As a service manager sees it: SIGTERM to the process, one line, its exit status, and a resume."""
    root = Path(__file__).resolve().parents[2]
    size = ["data.synthetic.points_per_room=2000", "data.synthetic.rooms_per_area=1", "schedule.pretrain.epochs=40"]
    size += ["schedule.iterations=0", "schedule.steps=4", "eval.votes=1"]
    command = [sys.executable, str(root / "tools" / "train.py"), "--output", str(tmp_path / "run")]
    command += [part for one in size for part in ("--set", one)]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    last = tmp_path / "run" / "checkpoints" / "last-1.pt"
    while not last.exists() and process.poll() is None:  # the second checkpoint: the first epoch is done
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, told
    assert told.strip().splitlines()[-1].startswith("stopped by SIGTERM ")
    done = subprocess.run([*command, "--resume"], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resuming at pretrain" in done.stdout
    assert 0 <= json.loads((tmp_path / "run" / "metrics.json").read_text())["miou"] <= 1


@pytest.mark.parametrize("owner", [Events, PseudoLabelTable])
def test_a_disk_that_fills_up_between_checkpoints_is_named_and_the_run_goes_on(
    make_config, tmp_path, monkeypatch, owner
):
    def full(*arguments, **values):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config, method = make_config(), {Events: "record", PseudoLabelTable: "save"}[owner]
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, full)
        with pytest.raises(OSError, match=r"run: No space left on device; the last checkpoint is untouched, go on"):
            run(config, tmp_path / "run")
    run(config, tmp_path / "run", resume=True)
    run(config, tmp_path / "whole")
    same_files(tmp_path / "run", tmp_path / "whole")
