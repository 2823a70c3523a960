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
            metrics = {"miou": value, "head_iou": value + 0.2, "waist_iou": value - 0.1, "tail_iou": value**2}
            metrics["pretrained"] = {"miou": None if cell.title == "decoupled" else value / 2}
            finished.append((cell, Outcome(metrics, {})))
    head, _, first, second = table(finished, "supervised")
    assert head.split(" | ")[3:8] == ["mIoU", "head", "waist", "tail", "pre-trained mIoU"]
    cells_of = [line.strip("| ").split(" | ") for line in (first, second)]
    # squares: 16.00 and 17.64, 20.25 and 24.01
    assert cells_of[0][3:9] == ["41.0 ± 1.4", "61.0 ± 1.4", "31.0 ± 1.4", "16.8 ± 1.2", "20.5 ± 0.7", "2"]
    assert cells_of[1][3:9] == ["47.0 ± 2.8", "67.0 ± 2.8", "37.0 ± 2.8", "22.1 ± 2.7", "-", "2"]
    assert cells_of[1][9:] == ["+6.0 ± 1.4", "+5.3 ± 1.5"]


def test_words_for_numbers():
    assert [duration(s) for s in (45, 600, 5399, 11100)] == ["45 s", "10 min", "1 h 30 min", "3 h 05 min"]
    assert spread([]) == spread([None]) == "-"
    assert difference({0: {"miou": 0.5}}, {0: {"miou": 0.4}}, "miou") == "+10.0"
    assert difference({0: {"miou": 0.5}}, {1: {"miou": 0.4}}, "miou") == "-"


def test_trainings_at_once_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    threads = [Launcher(tmp_path, jobs, "cpu")._environment(0)["OMP_NUM_THREADS"] for jobs in (1, 2, 3, 16)]
    assert threads == ["8", "4", "2", "1"]


@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [("", 1, ["0", "0", "0"]), ("", 2, ["0", "1", "0"]), ("4,6", 8, ["4", "6", "4"]), ("", 0, ["0", "0", "0"])],
)
def test_more_trainings_than_gpus_share_them(tmp_path, monkeypatch, visible, gpus, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    launcher = Launcher(tmp_path, 3, "cuda")
    assert [launcher._environment(place)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == expected
