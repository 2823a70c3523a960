"""What a study says of its runs, and how many train at once and where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mink_decouple.study.grid import Cell, expand, read_experiment
from mink_decouple.study.launch import Launcher, Outcome, expected, simultaneous
from mink_decouple.study.summary import difference, duration, spread, table


def cells(folder: Path, text: str) -> list[Cell]:
    (folder / "grid.yaml").write_text(text, encoding="utf-8")
    return expand(read_experiment(folder / "grid.yaml"), folder / "grid.yaml")


def test_expected_time_is_that_of_the_most_alike(tmp_path):
    grid = "recipes: [supervised, decoupled]\nlabels: [1pt, 1%]\nseeds: [0]\n"
    by_group = {cell.group: cell for cell in cells(tmp_path, grid)}
    known = [
        (by_group["minkunet", "1pt", "supervised"], 10.0),
        (by_group["minkunet", "1%", "supervised"], 20.0),
        (by_group["minkunet", "1pt", "decoupled"], 60.0),
    ]
    assert expected(by_group["minkunet", "1%", "supervised"], known) == 20
    assert expected(by_group["minkunet", "1%", "decoupled"], known) == 60
    assert expected(by_group["randla", "1%", "decoupled"], known) == 30
    assert expected(by_group["randla", "1%", "decoupled"], []) is None


def test_trainings_at_once():
    assert simultaneous("cpu", 3) == 3
    assert 1 <= simultaneous("cpu", None) <= (os.cpu_count() or 1)


def test_the_table_holds_means_spreads_and_paired_differences(tmp_path):
    grid = "backbones: [minkunet]\nrecipes: [supervised, decoupled]\nseeds: [0, 1, 2]\n"
    scores = {("supervised", 0): 0.40, ("supervised", 1): 0.42, ("decoupled", 0): 0.45, ("decoupled", 1): 0.49}
    finished = []
    for cell in cells(tmp_path, grid):
        value = scores.get((cell.title, cell.config.seed))
        if value is not None:
            metrics = dict.fromkeys(("miou", "head_iou", "waist_iou", "tail_iou"), value) | {
                "pretrained": {"miou": None}
            }
            finished.append((cell, Outcome(metrics, {})))
    first, second = list(table(finished, "supervised"))[2:]
    assert first.startswith("| minkunet | 1pt | supervised | 41.0 ± 1.4 |")
    assert second.split(" | ")[3] == "47.0 ± 2.8"
    assert second.endswith("| - | 2 | +6.0 ± 1.4 | +6.0 ± 1.4 |")


def test_words_for_numbers():
    assert [duration(s) for s in (45, 600, 5399, 11100)] == ["45 s", "10 min", "1 h 30 min", "3 h 05 min"]
    assert spread([]) == spread([None]) == "-"
    assert difference({0: {"miou": 0.5}}, {0: {"miou": 0.4}}, "miou") == "+10.0"
    assert difference({0: {"miou": 0.5}}, {1: {"miou": 0.4}}, "miou") == "-"


@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [("", 1, ["0", "0", "0"]), ("", 2, ["0", "1", "0"]), ("4,6", 8, ["4", "6", "4"]), ("", 0, ["0", "0", "0"])],
)
def test_more_trainings_than_gpus_share_them(tmp_path, monkeypatch, visible, gpus, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    launcher = Launcher(tmp_path, 3, "cuda")
    assert [launcher._environment(place)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == expected
