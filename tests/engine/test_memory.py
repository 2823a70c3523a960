"""Out of memory names the settings to lower; other errors pass as they are."""

import platform
import subprocess
import sys
import time

import pytest
import torch

from mink_decouple.cli import main
from mink_decouple.config import dump
from mink_decouple.engine import predict_files
from mink_decouple.engine.memory import OutOfMemory, named_settings
from mink_decouple.engine.runtime import FreedMemory
from mink_decouple.engine.train import Trainer
from mink_decouple.models.segmenter import Segmenter

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (MemoryError(), "machine"),
        (torch.OutOfMemoryError("CUDA out of memory"), "GPU"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), "machine"),
    ],
)
def test_a_step_that_does_not_fit_names_what_to_lower(make_config, tmp_path, monkeypatch, capsys, error, place):
    (tmp_path / "config.yaml").write_text(dump(make_config()))
    monkeypatch.setattr(Segmenter, "features", lambda self, batch: (_ for _ in ()).throw(error))
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert f"out of memory on the {place}: lower view.batch (now 2; " in said
    assert (
        ", view.max_points (now 0, no limit) or view.crop_points (now 0, whole scenes), or take" in said
        and "model.variant (now tiny)" in said
    )


def test_a_real_allocation_that_is_too_large_is_recognised(make_config):
    with (
        pytest.raises(OutOfMemory, match="out of memory on the machine"),
        named_settings(make_config(), training=False),
    ):
        torch.empty(1 << 55, dtype=torch.uint8)


def test_other_errors_pass(make_config):
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), named_settings(make_config(), training=True):
        raise RuntimeError("shapes differ")


def test_predict_says_it_too_and_leaves_nothing(make_config, folder, tmp_path, monkeypatch, capsys):
    Trainer(make_config(), tmp_path / "run", CPU).run()
    monkeypatch.setattr(predict_files, "decide", lambda *a: (_ for _ in ()).throw(MemoryError()))
    last, target = tmp_path / "run" / "checkpoints" / "last.pt", tmp_path / "out.npz"
    assert main(["predict", str(folder / "c.npz"), "--checkpoint", str(last), "--output", str(target)]) == 1
    assert "lower view.crop_points (now 0, whole scenes), or take a larger data.grid" in capsys.readouterr().err
    assert not target.exists()


HOLDS = """
import os
from pathlib import Path
from mink_decouple.engine.runtime import FreedMemory, keep_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
keep_freed_memory()
blocks, last = [bytearray(2**20) for _ in range(300)], bytearray(2**20)
full = resident()
del blocks
kept = resident()
assert FreedMemory(0.0).hand_back()
print(full, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_memory_that_was_kept_is_handed_back():
    """In a process of its own: the allocator's settings last."""
    done = subprocess.run([sys.executable, "-c", HOLDS], capture_output=True, text=True, check=True)
    full, kept, left = map(float, done.stdout.split())
    assert full > 300 and kept > full - 20 and left < full - 280


def test_freed_memory_is_handed_back_once_in_a_while_and_after_an_epoch(make_config, tmp_path, monkeypatch):
    assert not FreedMemory(60.0).hand_back()
    now, freed = [0.0], FreedMemory(60.0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    freed._last = 0.0
    now[0] = 59.0
    assert not freed.hand_back()
    now[0] = 61.0
    assert freed.hand_back() == sys.platform.startswith("linux") and not freed.hand_back()
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(FreedMemory, "hand_back", lambda self: asked.append(1))
    Trainer(make_config(schedule={"pretrain": {"epochs": 2}, "iterations": 0}), tmp_path / "run", CPU).run()
    assert len(asked) == 2
