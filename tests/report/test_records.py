"""Records of finished runs: made from a run folder, written, read back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mink_decouple.config import digest, dump, load_config
from mink_decouple.report.records import Record, add, load, read_run, run_folders, save

SCORES = {
    "miou": 0.123456789,
    "head_iou": 0.5,
    "waist_iou": 0.25,
    "tail_iou": None,
    "iou": {"wall": 0.5, "board": None},
}


def run_folder(folder: Path, seed: int = 0, **more: object) -> Path:
    """A finished run as the trainer leaves it, with made-up scores."""
    config = load_config(overrides={"seed": seed})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    metrics = {
        **SCORES,
        "pretrained": SCORES,
        "confusion": [[3, 1], [0, 2]],
        "classes": ["wall", "board"],
        "colors": [[1, 2, 3], [4, 5, 6]],
        "groups": {"head": [0], "waist": [], "tail": [1]},
        "label_budget": {"labelled": 2},
        "parameters": {"backbone": 10, "classifier": 2},
        "seconds": {"file": "timing.json"},
        **more,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    timing = {"seconds": {"pretrain": 1.5}, "peak_memory_mib": 100.0, "threads": 2, "device": "cpu"}
    (folder / "timing.json").write_text(json.dumps(timing), encoding="utf-8")
    (folder / "environment.json").write_text(
        json.dumps({"commit": "abc", "versions": {"torch": "2"}, "digest": digest(config)}), encoding="utf-8"
    )
    lines = [{"event": "evaluation", "step": 3, "stage": "pretrain"}, {"event": "pseudo_labels", "step": 3}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_a_record_holds_what_the_folder_says(tmp_path):
    record = read_run(run_folder(tmp_path / "run", seed=4))
    assert (record.title, record.backbone, record.labels, record.seed) == ("decoupled", "minkunet", "1pt", 4)
    assert (record.dataset, record.classes) == ("synthetic", ["wall", "board"])
    assert record.digest == digest(load_config())
    assert record.metrics["confusion"] == [[3, 1], [0, 2]] and "classes" not in record.metrics
    assert record.cost["seconds"] == {"pretrain": 1.5} and record.cost["peak_memory_mib"] == 100.0
    assert [line["event"] for line in record.history] == ["evaluation", "pseudo_labels"]


@pytest.mark.parametrize(
    ("budget", "found", "told"),
    [
        ("s0.npz", {"labelled": 2, "budget": "1pt", "seed": 0}, "1pt (file)"),
        ("s0.npz", {"labelled": 2, "budget": "1pt", "seed": 3}, "s0.npz"),
        ("s0.npz", {"labelled": 2}, "s0.npz"),
        ("1pt", {"budget": "1pt"}, "1pt"),
    ],
)
def test_labels_drawn_to_a_file_a_seed_are_one_budget(tmp_path, budget, found, told):
    folder = run_folder(tmp_path / "run", label_budget=found)
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(config.replace("budget: 1pt", f"budget: {budget}"), encoding="utf-8")
    assert read_run(folder).labels == told


def test_programs_that_add_to_one_file_keep_each_other_s_runs(tmp_path):
    one = read_run(run_folder(tmp_path / "run"))
    file, runs = tmp_path / "shared" / "records.json", [replace(one, seed=seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda record: add(file, record), runs))
    assert [record.seed for record in load([file])] == list(range(24))
    before = file.read_bytes()
    add(file, replace(runs[3], title="under another title"))
    assert file.read_bytes() == before


def test_records_come_back_from_a_file_with_numbers_of_five_digits(tmp_path):
    records = [read_run(run_folder(tmp_path / f"run{seed}", seed=seed)) for seed in (1, 0)]
    save(tmp_path / "records.json", records)
    back = load([tmp_path / "records.json"])
    assert [record.seed for record in back] == [0, 1]
    assert back[0].metrics["miou"] == 0.12346
    rounded = replace(records[1], metrics=back[0].metrics)
    assert rounded == back[0]
    first = (tmp_path / "records.json").read_bytes()
    save(tmp_path / "records.json", back[::-1])
    assert (tmp_path / "records.json").read_bytes() == first
    assert len(first.splitlines()) == 4  # a line for each record


def test_a_folder_of_runs_and_a_single_run_are_found(tmp_path):
    inner = [run_folder(tmp_path / "study" / name) for name in ("b", "a")]
    assert run_folders(tmp_path / "study") == sorted(inner)
    assert run_folders(inner[0]) == [inner[0]]
    assert len(load([tmp_path / "study", inner[0]])) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "not a file of records"),
        ('{"format": 2, "records": []}', "not a file of records"),
        ('{"format": 1, "records": [{"title": "x"}]}', "a record with other keys"),
        ("{", "not valid JSON"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, content, said):
    (tmp_path / "records.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=said) as caught:
        load([tmp_path / "records.json"])
    assert str(tmp_path / "records.json") in str(caught.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        load([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        load([tmp_path / "empty"])
    folder = run_folder(tmp_path / "old")
    (folder / "environment.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no digest of the settings"):
        read_run(folder)
    (folder / "environment.json").unlink()  # as `evaluate` leaves its folder
    with pytest.raises(FileNotFoundError, match=r"no environment\.json; not a training run, perhaps"):
        load([folder])


def test_packing_is_undone_by_unpacking(tmp_path):
    record = read_run(run_folder(tmp_path / "run"))
    assert Record.unpack(json.loads(json.dumps(record.pack()))) == record
