"""The trainer, scoring and prediction on a GPU, on tiny rooms."""

import json
import math

import numpy as np
import pytest
import torch

from mink_decouple.cli import main
from mink_decouple.engine.train import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")
BACKBONES = ("minkunet", "randla")


def finite(value):
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_stage_trains_in_either_precision(make_config, tmp_path, backbone, precision):
    result = Trainer(make_config(backbone, "decoupled", optim={"precision": precision}), tmp_path / "run", GPU).run()
    assert finite(result.metrics) and result.metrics["miou"] > 0
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["evaluation", "pseudo_labels", "evaluation"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_scores_as_on_the_cpu(make_config, tmp_path, backbone):
    config = make_config(backbone, "fully_supervised", schedule={"pretrain": {"epochs": 25}})
    ours, theirs = (Trainer(config, tmp_path / kind, torch.device(kind)).run().metrics for kind in ("cuda", "cpu"))
    # nothing but rounding differs, but it grows over the steps, and a step is a large part of so short a training
    assert ours["miou"] > 0.35 and abs(ours["miou"] - theirs["miou"]) < 0.25


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_run_is_resumed_scored_and_predicts(make_config, tmp_path, folder, backbone, capsys):
    run = tmp_path / "run"
    Trainer(make_config(backbone), run, GPU).run()
    found = json.loads((run / "metrics.json").read_text())
    assert Trainer(make_config(backbone), run, GPU, resume=True).run().metrics["miou"] == found["miou"]
    checkpoint = ["--device", "cuda", "--checkpoint", str(run / "checkpoints" / "last.pt")]
    assert main(["evaluate", *checkpoint, "--config", str(run / "config.yaml"), "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["miou"] == pytest.approx(found["miou"], abs=0.02)
    assert main(["predict", *checkpoint, str(folder / "c.npz"), "--output", str(tmp_path / "c.npz")]) == 0
    with np.load(tmp_path / "c.npz") as out, np.load(folder / "c.npz") as source:
        assert len(out["confidence"]) == len(source["coords"]) and np.isfinite(out["confidence"]).all()


def test_the_sums_that_processes_add_up_are_on_the_gpu(make_config, tmp_path):
    trainer = Trainer(make_config(), tmp_path / "run", GPU)
    trainer.release()
    assert trainer.ratio.accumulators().device.type == "cuda"
