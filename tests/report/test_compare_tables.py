"""Every table of a comparison, cell by cell, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_compare import CLASSES, made, page_of, read


def pseudo_labels(certain, uncertain, precision, recall):
    names = {"certain": certain, "uncertain": uncertain, "precision": precision, "recall": recall}
    return {"event": "pseudo_labels", **{key: dict(zip(CLASSES, row, strict=True)) for key, row in names.items()}}


@pytest.fixture
def records():
    """Two seeds of one setting whose figures all differ, and one of another without pseudo-labels."""
    first = made(seed=3)
    costs = (
        {
            "pretrain": 60.0, "snapshots": 1.0, "evaluation": 5.0, "iter_00_I_pseudo_labels": 10.0, "iter_00_I": 30.0,
            "iter_00_II": 7.0, "iter_01_I_pseudo_labels": 20.0, "iter_01_I": 40.0, "iter_01_II": 9.0,
        },
        {
            "pretrain": 70.0, "snapshots": 3.0, "evaluation": 7.0, "iter_00_I_pseudo_labels": 14.0, "iter_00_I": 36.0,
            "iter_00_II": 8.0, "iter_01_I_pseudo_labels": 24.0, "iter_01_I": 44.0, "iter_01_II": 12.0,
        },
    )  # fmt: skip
    scores = (
        {"miou": 0.5, "head_iou": 0.9, "waist_iou": 0.4, "tail_iou": 0.2, "oa": 0.81, "iou": (0.9, 0.4, 0.2)},
        {"miou": 0.6, "head_iou": 0.94, "waist_iou": 0.6, "tail_iou": None, "oa": 0.87, "iou": (0.94, 0.6, None)},
    )
    labels = (
        pseudo_labels((1000, 20, 3), (100, 0, 1), (0.9, 0.5, None), (0.8, 0.1, 0.0)),
        pseudo_labels((2000, 40, 0), (300, 2, 0), (0.7, 0.6, None), (0.6, 0.3, None)),
    )
    later = pseudo_labels((5, 6, 7), (0, 0, 0), (1.0, 1.0, 1.0), (0.01, 0.02, 0.03))
    ours = [
        replace(
            first,
            seed=seed,
            metrics={
                **first.metrics,
                **scores[seed],
                "iou": dict(zip(CLASSES, scores[seed]["iou"], strict=True)),
                "pretrained": {"miou": 0.3 + 0.02 * seed},
            },
            history=[first.history[0], labels[seed], later, first.history[2]],
            cost={**first.cost, "seconds": costs[seed], "peak_memory_mib": 900.0 + 101 * seed, "threads": 1 + seed},
        )
        for seed in (0, 1)
    ]
    plain = made("supervised", 1, 0.45)
    cost = {**plain.cost, "seconds": {"pretrain": 3600.0, "evaluation": 12.0}, "peak_memory_mib": None}
    return [*ours, replace(plain, history=plain.history[:1], cost=cost)]


@pytest.fixture
def tables(records, tmp_path):
    """By the texts of their headers, the rows of every table."""
    return {tuple(head): rows for head, *rows in read(page_of(tmp_path, records)).tables}


def test_scores(tables):
    reference, found = next(rows for head, rows in tables.items() if "pre-trained" in head)
    assert reference == [
        "1pt", "MinkUNet", "supervised", "45.0", "90.0", "45.0", "22.5", "80.0", "22.5", "1", "", "", "", "",
    ]  # fmt: skip
    assert found == [
        "1pt", "MinkUNet", "decoupled", "55.0 ± 7.1", "92.0 ± 2.8", "50.0 ± 14.1", "20.0", "84.0 ± 4.2",
        "31.0 ± 1.4", "2", "+15.0", "", "", "",
    ]  # fmt: skip


def test_classes(tables):
    assert tables["setting", "floor (head)", "wall (waist)", "sofa (tail)"] == [
        ["supervised, MinkUNet, 1pt", "90.0", "45.0", "10.0"],
        ["decoupled, MinkUNet, 1pt", "92.0", "50.0", "20.0"],
    ]


def test_pseudo_labels(tables):
    """Both rounds are counted; shares are means of the seeds that have one."""
    times = (f"{what}, time {i}" for i in (0, 1) for what in ("labels", "precision", "recall"))
    assert tables[("class", *times)] == [
        ["floor", "1,700", "80", "70", "5", "100", "1"],
        ["wall", "31", "55", "20", "6", "100", "2"],
        ["sofa", "2", "-", "0", "7", "100", "3"],
    ]


def test_cost(tables):
    found = next(rows for head, rows in tables.items() if "peak memory, MiB" in head)
    assert found == [
        ["supervised, MinkUNet, 1pt", "3,600", "0", "0", "0", "12", "3,612", "-", "110", "45.0", "cpu, 1"],
        # scoring includes the pictures and features that a run keeps
        ["decoupled, MinkUNet, 1pt", "65", "75", "18", "34", "8", "200", "950", "110", "55.0", "cpu, 1; cpu, 2"],
    ]


def test_origin(tables):
    assert tables["setting", "recipe", "seeds", "settings' digest"] == [
        ["supervised, MinkUNet, 1pt", "supervised", "1", "supervisedminkunet"],
        ["decoupled, MinkUNet, 1pt", "decoupled", "0, 1", "decoupledminkunet"],
    ]
