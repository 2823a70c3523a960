"""Scripts of benchmarks/ that take runs apart: what they make again is what the run had."""

import json
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mink_decouple.engine import checkpoint
from mink_decouple.engine.train import Trainer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_second_step_made_again_ends_where_the_run_did(make_config, tmp_path):
    """The run's best network is that of its pre-training, so the step begins as it did."""
    from second_step import again

    config = make_config()
    Trainer(config, tmp_path / "run", torch.device("cpu")).run()
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")["after"] == "pretrain"
    rows = again(tmp_path / "run", {}, [config.loss.class_weight])
    begin, end, made = rows.values()
    assert made["iou"] == pytest.approx(end["iou"], abs=1e-6) and begin["iou"] != end["iou"]


def test_a_second_step_on_labels_that_spread_is_made_again_as_it_was(make_config, tmp_path):
    from second_step import again

    spread = {"labels": {"spread": "segments"}, "ii": {"labels": "spread", "class_weight": "inv", "spread_rows": 20}}
    config = make_config(**spread, checkpoints={"stages": True}, schedule={"ii_step": {"epochs": 3, "lr": 0.1}})
    Trainer(config, tmp_path / "run", torch.device("cpu")).run()
    begin, end, made, plain = again(tmp_path / "run", {}, ["inv", "none"]).values()
    assert made["iou"] == pytest.approx(end["iou"], abs=1e-6) and begin["iou"] != end["iou"] != plain["iou"]
    with pytest.raises(SystemExit, match=r"ii\.labels mixed: pseudo-labels are not made again; choices: gt, spread"):
        again(tmp_path / "run", {"ii": {"labels": "mixed"}}, ["none"])


def test_a_run_scored_again_has_the_scores_of_a_run_with_these_settings(make_config, tmp_path):
    from rescore import again

    smoothed = {"eval": {"smooth": "segments"}}
    for name, changes in (("plain", {}), ("smoothed", smoothed)):
        Trainer(make_config(**changes), tmp_path / name, torch.device("cpu")).run()
    own, new = again(tmp_path / "plain", smoothed)
    wanted = json.loads((tmp_path / "smoothed" / "metrics.json").read_text())
    assert new["iou"] == wanted["iou"] and own["iou"] == again(tmp_path / "plain", {})[1]["iou"]
    assert new["iou"] != own["iou"]


def write_tiles(tmp_path, wrong=()):
    """A tile with its truth, and as if predicted: the first ten points wrong, one more dimension."""
    laspy = pytest.importorskip("laspy")
    source = laspy.LasData(laspy.LasHeader(point_format=6, version="1.4"))
    source.xyz = np.random.default_rng(0).random((90, 3))
    source.classification = np.repeat([1, 2, 6], 30).astype(np.uint8)
    source.write(tmp_path / "truth.laz")
    ids = np.asarray(source.classification).copy()
    ids[:10] = 2
    source.classification = ids
    if "intensity" in wrong:
        source.intensity = np.arange(90)
    source.add_extra_dim(laspy.ExtraBytesParams("confidence", "f4"))
    source.write(tmp_path / "predicted.laz")
    (tmp_path / "classes.yaml").write_text("classes: {a: {raw: [1]}, b: {raw: [2]}, c: {raw: [6]}}\n")
    a, b = 20 / 30, (0.0 if "score" in wrong else 30 / 40)
    (tmp_path / "metrics.json").write_text(f'{{"iou": {{"a": {a}, "b": {b}, "c": 1.0}}}}')


@pytest.mark.parametrize(
    ("wrong", "said"), [((), None), (("intensity",), "more than the class"), (("score",), "differ")]
)
def test_scores_are_recomputed_from_files_and_what_differs_is_noticed(tmp_path, monkeypatch, capsys, wrong, said):
    from recompute_scores import main

    write_tiles(tmp_path, wrong)
    names = ("classes.yaml", "metrics.json", "truth.laz", "predicted.laz")
    monkeypatch.setattr(sys, "argv", ["recompute_scores.py", *(str(tmp_path / name) for name in names)])
    if said is None:
        main()
        assert "the scores are the same" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit, match=said):
        main()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux' /proc")
@pytest.mark.parametrize("trim", [False, platform.libc_ver()[0] == "glibc"])
def test_memory_is_told_for_every_epoch_asked_for(tmp_path, trim):
    from epochs_memory import measure

    found = measure("minkunet", {"eval": {"votes": 1}}, 2, 1, tmp_path, trim)
    assert [epoch for epoch, _ in found] == [1, 2] and all(mebibytes > 100 for _, mebibytes in found)
