"""Out of memory names the settings to lower; other errors pass as they are."""

import pytest
import torch

from mink_decouple.cli import main
from mink_decouple.config import dump
from mink_decouple.engine import predict_files
from mink_decouple.engine.memory import OutOfMemory, named_settings
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


def test_evaluate_says_it_too(make_config, tmp_path, monkeypatch, capsys):
    Trainer(make_config(), tmp_path / "run", CPU).run()
    monkeypatch.setattr("mink_decouple.engine.evaluate.predict_grid", lambda *a: (_ for _ in ()).throw(MemoryError()))
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    assert main(["evaluate", "--checkpoint", str(last), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert "lower view.crop_points (now 0, whole scenes), or take a larger data.grid" in capsys.readouterr().err


def test_predict_says_it_too_and_leaves_nothing(make_config, folder, tmp_path, monkeypatch, capsys):
    Trainer(make_config(), tmp_path / "run", CPU).run()
    monkeypatch.setattr(predict_files, "decide", lambda *a: (_ for _ in ()).throw(MemoryError()))
    last, target = tmp_path / "run" / "checkpoints" / "last.pt", tmp_path / "out.npz"
    assert main(["predict", str(folder / "c.npz"), "--checkpoint", str(last), "--output", str(target)]) == 1
    assert "lower view.crop_points (now 0, whole scenes), or take a larger data.grid" in capsys.readouterr().err
    assert not target.exists()
