"""Several processes of one run: the losses, pseudo-labels and scores of one, whatever their number."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn

from mink_decouple.cli import main
from mink_decouple.config import dump, merge
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.engine import checkpoint
from mink_decouple.engine.processes import Processes
from mink_decouple.engine.state import require_shares
from mink_decouple.engine.statistics import RunningStatistics
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")
TOOLS = Path(__file__).parents[2] / "tools"

SCRIPT = Path(__file__).with_name("one_of_many.py")
SHARED = {
    "view": {"accumulate": 4, "batch": 1},
    "schedule": {"steps": 3, "pretrain": {"epochs": 3, "lr": 1e-3}, "i_step": {"epochs": 2}},
    "loss": {"feature": "mifl"},
    "optim": {"name": "sgd"},
}
"""Fifteen steps of four micro-batches. Adam would hide a wrong scale of the gradients, and it magnifies rounding: the
step of a weight whose gradient is close to zero has a size of its own."""


def launch(command, count, **environment):
    """Run a command in so many processes that know of each other, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        met = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        env = {**os.environ, **{key: str(value) for key, value in {**place, **met, **environment}.items()}}
        started.append(
            subprocess.Popen(
                [sys.executable, *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return started


def finish(started):
    told = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(told)
    return told


def trained(config, tmp_path, count):
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    output = tmp_path / str(count)
    told = finish(launch([str(SCRIPT), str(path), str(output)], count))
    assert not any(told[1:]), "only the first process speaks"
    return output


SEGMENTS = {
    "labels": {"spread": "segments"},
    "segments": {"most": 40},
    "ii": {"labels": "spread", "class_weight": "inv", "spread_rows": 20},
}
FOREST = {
    "labels": {"spread": "forest"},
    "segments": {"most": 40},
    "forest": {"trees": 5, "radii": [2.0], "neighbors": 9},
    "ii": {"labels": "spread", "class_weight": "inv", "spread_rows": 20},
}


@pytest.mark.parametrize(
    ("backbone", "count", "more"),
    [("minkunet", 4, {}), ("randla", 3, {**SEGMENTS, "view": {"workers": 0}}), ("minkunet", 3, FOREST)],
)
def test_several_processes_give_the_losses_and_scores_of_one(make_config, tmp_path, monkeypatch, backbone, count, more):
    """Of three, one has two of the four micro-batches."""
    config = make_config(backbone, **merge(merge(SHARED, more), {"model": {"head": "mlp"}}))
    several, one, wanted = trained(config, tmp_path, count), tmp_path / "one", []
    original = Trainer._gradients

    def gradients(self, *arguments):
        wanted.append(original(self, *arguments))
        return wanted[-1]

    monkeypatch.setattr(Trainer, "_gradients", gradients)
    Trainer(config, one, CPU).run()
    found = json.loads((several / "losses.json").read_text())
    assert len(found) == len(wanted) == 15
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    first, last = (json.loads((folder / "metrics.json").read_text()) for folder in (one, several))
    assert first["points"] == last["points"], "every point is scored once"
    assert last["miou"] == pytest.approx(first["miou"], abs=0.02)
    pseudo = [PseudoLabelTable.load(folder / "pseudo_labels" / "iter_00.npz") for folder in (one, several)]
    assert list(pseudo[0]) == list(pseudo[1])
    for name in pseudo[0]:
        same = pseudo[0][name].label == pseudo[1][name].label
        assert same.float().mean() > 0.97, name
    weights = [checkpoint.load(folder / "checkpoints" / "last.pt")["model"] for folder in (one, several)]
    for key, value in weights[0].items():
        assert torch.allclose(value.double(), weights[1][key].double(), rtol=0.01, atol=0.01), key


def test_a_checkpoint_is_scored_to_the_same_bytes_by_any_number_of_processes(make_config, tmp_path):
    """Two scenes: of three processes one has none."""
    Trainer(make_config(), tmp_path / "run", CPU).run()
    last = tmp_path / "run" / "checkpoints" / "best.pt"
    found = []
    for count in (1, 3):
        output = tmp_path / str(count)
        arguments = ["--checkpoint", str(last), "--output", str(output), "--set", "data.eval_split=train"]
        told = finish(launch([str(TOOLS / "evaluate.py"), *arguments], count))
        assert "wrote" in told[0] and not any(told[1:])
        found.append((output / "metrics.json").read_bytes())
    assert found[0] == found[1]


def torchrun(command, *options):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    piped = {"start_new_session": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*start, *command], **piped)


def wait_for_a_step(last):
    deadline = time.monotonic() + 240
    while not (last.exists() and checkpoint.load(last)["state"]["within"]) and time.monotonic() < deadline:
        time.sleep(0.2)


@pytest.fixture
def command(make_config, tmp_path):
    """Of a run that writes a checkpoint after every step, in `run`."""
    view = {"accumulate": 2, "batch": 1}
    config = make_config(view=view, schedule={"steps": 8}, checkpoints={"minutes": 1e-6}, eval={"votes": 1})
    (tmp_path / "config.yaml").write_text(dump(config))
    fixed = ["--config", str(tmp_path / "config.yaml"), "--device", "cpu", "--output", str(tmp_path / "run")]
    return [str(TOOLS / "train.py"), *fixed]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals a group of processes")
@pytest.mark.parametrize(("count", "sign"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGINT)])
def test_torchrun_s_processes_stop_together_and_any_number_goes_on(command, tmp_path, count, sign):
    """Going on within a stage, all of them build what averages the gradients at the same place."""
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    several = torchrun(command)
    wait_for_a_step(last)
    if sign == signal.SIGINT:  # as a terminal does, to the whole group
        os.killpg(several.pid, sign)
    else:
        several.send_signal(sign)
    told = several.communicate(timeout=120)[0]
    assert several.returncode != 0
    assert told.count("stopped by SIG") == 2, told
    done = checkpoint.load(last)["state"]["step"]
    told = finish(launch([*command, "--resume"], count))
    assert f"resuming at pretrain, epoch {done // 8}" in told[0] and not any(told[1:])
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_two_processes_take_over_the_pre_training_of_one(command, tmp_path):
    alone = [*command[:-1], str(tmp_path / "first"), "--set", "checkpoints.stages=true"]
    finish(launch(alone, 1))
    told = finish(launch([*command, "--pretrained", str(tmp_path / "first")], 2))
    assert "pre-training of" in told[0] and not told[1]
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("first", "run"))
    assert first["pretrained"] == second["pretrained"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in Linux' /proc")
def test_torchrun_starts_killed_processes_again_and_they_go_on(command, tmp_path):
    several = torchrun(command, "--max-restarts", "1")
    wait_for_a_step(tmp_path / "run" / "checkpoints" / "last.pt")
    children = Path(f"/proc/{several.pid}/task/{several.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    told = several.communicate(timeout=240)[0]
    assert several.returncode == 0, told
    assert "resuming at pretrain" in told and (tmp_path / "run" / "metrics.json").is_file()


JOINS = """
import os, signal, torch
from mink_decouple.engine.processes import joined
with joined(torch.device("cpu")) as processes:
    print(int(processes.total(torch.tensor([1]))), flush=True)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("order", ["10", "01"])
def test_restarted_processes_do_not_look_for_those_that_were_killed(order):
    """torchrun keeps its store over a restart, and the one that is first back finds old addresses in it."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "2"}
    agent |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for restart in ("0", "1"):
        started = []
        for rank in order:
            place = {**os.environ, **agent, "RANK": rank, "TORCHELASTIC_RESTART_COUNT": restart}
            started.append(
                subprocess.Popen([sys.executable, "-c", JOINS], env=place, stdout=subprocess.PIPE, text=True)
            )
            if restart == "1" and rank == order[0]:
                time.sleep(8.0)  # long enough to have looked
        try:
            assert [process.communicate(timeout=60)[0].split() for process in started] == [["2"], ["2"]]
        finally:
            for process in started:
                process.kill()


LATE = """
import sys, time, numpy, torch
from torch import distributed
from mink_decouple.engine.leave import leave

class Late:
    def __del__(self, sleep=time.sleep):
        sleep(0.5)

late = Late()
distributed.init_process_group("gloo")
distributed.barrier()
sys.setswitchinterval(1000.0)
distributed.all_reduce(torch.from_numpy(numpy.ones(9)), async_op=True)
until = time.monotonic() + 1.0
while time.monotonic() < until:
    pass
print("done")
leave(3)
"""
"""A thread of gloo has a tensor to let go of and waits for the interpreter's lock, which is free once the interpreter
ends: where torch has not mended its issue 190489, the process aborts there."""


def test_a_thread_that_still_holds_a_tensor_does_not_fail_a_process_that_leaves():
    several = launch(["-c", LATE], 2)
    told = [process.communicate(timeout=60)[0] for process in several]
    assert [process.returncode for process in several] == [3, 3] and told == ["done\n"] * 2, told


def test_the_command_line_leaves_where_it_is_one_of_several():
    """Else the interpreter would end, and say so."""
    ends_aloud = (
        "import atexit, sys; atexit.register(print, 'ended')\nfrom mink_decouple.cli import main\nsys.exit(main())"
    )
    for count, ends in ((2, 0), (1, 1)):
        several = launch(["-c", ends_aloud, "evaluate", "--checkpoint", "missing.pt"], count)
        for process in several:
            told = process.communicate(timeout=60)[0]
            assert process.returncode == 2 and "error: missing.pt" in told and told.count("ended") == ends, told


def test_a_loss_that_is_not_finite_stops_all_and_one_names_its_scenes(make_config, tmp_path):
    """A learning rate that no network survives."""
    lost = {"schedule": {"steps": 8, "pretrain": {"lr": 1e30}}, "optim": {"name": "sgd", "grad_clip": 0.0}}
    (tmp_path / "config.yaml").write_text(dump(make_config(**merge(SHARED, lost))))
    command = [str(TOOLS / "train.py"), "--config", str(tmp_path / "config.yaml"), "--device", "cpu"]
    started = launch([*command, "--output", str(tmp_path / "run")], 2)
    told = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [1, 1], told
    assert any(
        re.search(r"error: (loss|gradient norm) is \S+ on pretrain, epoch 0, scenes [ab], [ab];", text) for text in told
    )
    assert not any("Traceback" in text for text in told), told


def test_what_several_processes_do_not_share_is_for_one(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["labels", "--output", str(tmp_path / "labels.npz")]) == 2
    assert "labels: is for one process; several share train and evaluate only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"view": {"batch": 4, "accumulate": 2}},
            r"view\.accumulate 2: 3 processes .*view\.accumulate=3 --set view\.batch=2 ",
        ),
        ({"view": {"accumulate": 3}, "loss": {"erda": 0.1}}, r"loss\.erda 0\.1: .*set it to 0 or start one"),
    ],
)
def test_what_processes_cannot_share_is_refused(make_config, changes, message):
    config = make_config(**changes)
    require_shares(config, 1)
    with pytest.raises(ValueError, match=message):
        require_shares(config, 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 10**9), max_size=40), st.integers(1, 9))
def test_every_scene_has_one_owner_and_nobody_has_more_than_a_scene_too_much(sizes, count):
    owners = Processes(0, count).owners(sizes)
    load = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(count)]
    assert len(owners) == len(sizes) and max(load) <= sum(sizes) / count + max(sizes, default=0)


def test_running_statistics_move_alike_by_every_micro_batch():
    """Against the formula by hand: N of them move the mean by as much as N in a row of their average."""
    norm, rows = nn.BatchNorm1d(2, momentum=0.1), [torch.randn(7, 2) + number for number in range(3)]
    expected = torch.zeros(2)
    for _ in range(3):
        expected = 0.9 * expected + 0.1 * torch.stack([part.mean(0) for part in rows]).mean(0)
    for order in ((0, 1, 2), (2, 0, 1)):
        norm.reset_running_stats()
        statistics = RunningStatistics(nn.Sequential(norm), Processes(), 3)
        for number in order:
            statistics.begin()
            norm(rows[number])
            statistics.end()
        statistics.settle()
        assert torch.allclose(norm.running_mean, expected, atol=1e-6)
        assert int(norm.num_batches_tracked) == 3


def test_a_single_micro_batch_moves_the_statistics_as_batch_norm_does():
    one, other, rows = nn.BatchNorm1d(2), nn.BatchNorm1d(2), torch.randn(5, 2)
    statistics = RunningStatistics(one, Processes(), 1)
    statistics.begin()
    one(rows)
    statistics.end()
    statistics.settle()
    other(rows)
    assert torch.equal(one.running_mean, other.running_mean) and torch.equal(one.running_var, other.running_var)
