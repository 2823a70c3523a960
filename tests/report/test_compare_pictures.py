"""The pictures of a comparison: of which runs they are, and what their words say of them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from test_compare import made, page_of
from test_records import run_folder

from mink_decouple.data.classes import Classes
from mink_decouple.report import charts, scenes
from mink_decouple.report.compare import compare
from mink_decouple.report.records import read_run, save
from mink_decouple.report.sections import MOST_ROOMS, pseudo_label_maps_section, rooms_section
from mink_decouple.report.statistics import grouped

POINTS = 60


def keep_pictures(folder, unlabelled=0):
    """What a run keeps of its two scenes."""
    rng = np.random.default_rng(0)
    coords, ids = rng.uniform(0, 4, (POINTS, 3)).astype(np.float32), np.arange(POINTS) % 2
    (folder / "views").mkdir(parents=True)
    (folder / "features").mkdir()
    truth = np.where(np.arange(POINTS) < unlabelled, -1, ids)
    np.savez(folder / "views" / "office.npz", coords=coords, truth=truth, final=ids)
    visible = np.where(np.arange(POINTS) < 4, ids, -1)
    labels = {"iter_00_label": np.where(np.arange(POINTS) < 30, ids, -1), "iter_00_round": np.ones(POINTS, np.uint8)}
    np.savez(folder / "views" / "lobby.npz", coords=coords, truth=ids, visible=visible, **labels)
    stages = {"pretrain": rng.normal(size=(POINTS, 3))}
    np.savez(folder / "features" / "lobby.npz", truth=ids, visible=visible, **stages)
    return folder


def test_a_picture_names_the_seed_of_the_folder_that_it_is_of(tmp_path):
    """Seed 0 is there as a record, without its folder."""
    folder = keep_pictures(run_folder(tmp_path / "run", seed=1))
    (folder / "metrics.jsonl").write_text('{"event": "evaluation", "stage": "pretrain"}\n', encoding="utf-8")
    save(tmp_path / "records.json", [replace(read_run(folder), seed=0)])
    compare([tmp_path / "records.json", folder], tmp_path / "page.html", projection="pca")
    parts = (tmp_path / "page.html").read_text(encoding="utf-8").split("<section")
    pictured = [part for part in parts if re.search(r"<h2>(Pseudo-labels in a room|Rooms|Features)</h2>", part)]
    assert len(pictured) == 3
    assert all("seed 1" in part and "seed 0" not in part for part in pictured)


def rooms_of(tmp_path, seeds, unlabelled=0):
    """The section of settings that have runs of such seeds, each with a folder."""
    groups = grouped([made(title, seed) for title, found in seeds.items() for seed in found])
    places = {
        setting: [(run, keep_pictures(tmp_path / f"{run.title}{run.seed}", unlabelled)) for run in runs]
        for setting, runs in groups.items()
    }
    return rooms_section(groups, places)


def test_rooms_are_of_one_seed_where_there_is_one_that_all_have(tmp_path):
    shown = re.findall(r"<figcaption>(\w+), seed (\d)<", rooms_of(tmp_path / "a", {"a": (0, 1, 2), "b": (1, 2)}))
    assert shown == [("a", "1"), ("b", "1")]
    shown = re.findall(r"<figcaption>(\w+), seed (\d)<", rooms_of(tmp_path / "b", {"a": (0, 2), "b": (1,)}))
    assert shown == [("a", "0"), ("b", "1")]


def test_settings_whose_room_is_not_drawn_are_counted(tmp_path):
    text = rooms_of(tmp_path / "a", {f"setting{number}": (0,) for number in range(MOST_ROOMS + 2)})
    assert f"2 of {MOST_ROOMS + 2} settings are left out" in text
    assert "left out" not in rooms_of(tmp_path / "b", {f"setting{number}": (0,) for number in range(MOST_ROOMS)})


def test_a_legend_names_the_colour_of_no_label_where_it_is_drawn(tmp_path):
    assert "</i>no label<" not in rooms_of(tmp_path / "a", {"a": (0,)})
    assert "</i>no label<" in rooms_of(tmp_path / "b", {"a": (0,)}, unlabelled=5)
    groups = grouped([made()])
    places = {setting: [(runs[0], tmp_path / "a" / "a0")] for setting, runs in groups.items()}
    assert "</i>no label<" in pseudo_label_maps_section(groups, places)


def test_given_labels_are_seen_though_they_are_few_and_behind_others(monkeypatch):
    """One labelled point below the middle of a slab of thousands, which hides it."""
    rng = np.random.default_rng(0)
    coords = np.vstack([[[2.0, 2.0, -0.5]], rng.uniform(0, 4, (5000, 3)) * [1, 1, 0.05]])
    classes = Classes(("a", "b"), np.array([[0, 0, 255], [255, 0, 0]], np.uint8), {0: 0, 1: 1}, frozenset())
    visible = np.where(np.arange(5001) == 0, 1, -1)
    monkeypatch.setattr(scenes, "picture", lambda image: image)
    view = {"coords": coords, "truth": np.zeros(5001, int), "visible": visible}
    panels = dict(scenes.pseudo_label_panels(view, classes))
    red = (panels["given labels"] == (1, 0, 0)).all(-1)
    assert 25 <= red.sum() <= 36  # 6 x 6, those of the edge blended


def figure_of(monkeypatch, chart, *arguments):
    """The figure of a chart before it becomes text."""
    monkeypatch.setattr(charts, "_svg", lambda figure, name: figure)
    return chart(*arguments)


def test_no_point_of_the_cost_chart_is_cut(monkeypatch):
    """Where the minutes were nearly equal, the axis ended within the last mark."""
    points = {"a": (100.0, 50.0), "b": (100.1, 51.0)}
    axes = figure_of(monkeypatch, charts.cost_chart, points).axes[0]
    axes.figure.canvas.draw()
    right, last = axes.transAxes.transform((1, 0))[0], axes.transData.transform((100.1, 0))[0]
    radius = 45**0.5 / 2 * axes.figure.dpi / 72  # a scatter's size is in square points
    assert right - last > radius


@pytest.mark.parametrize("settings", [4, 5])
def test_bands_are_left_out_where_they_would_merge(monkeypatch, settings):
    groups = {f"s{number}": [made(seed=seed) for seed in range(3)] for number in range(settings)}
    axes = figure_of(monkeypatch, charts.iou_curves, groups, ["floor", "wall", "sofa"]).axes[0]
    assert len(axes.lines) == settings and len(axes.collections) == (4 if settings == 4 else 0)


def test_captions_say_how_many_seeds_they_hold(tmp_path):
    text = page_of(tmp_path, [*(made("a", seed) for seed in range(3)), made("b")])
    assert text.count(">a, 3 seeds<") == 1 and text.count(">b, 1 seed<") == 1  # lines of the curves
    for what in ("pseudo-labels of each class by iteration", "confusion matrix"):
        assert f"{what}, a, MinkUNet, 1pt, 3 seeds" in text and f"{what}, b, MinkUNet, 1pt, 1 seed" in text
