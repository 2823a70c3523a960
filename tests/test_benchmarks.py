"""The benchmarks of speed run to the end on tiny inputs, and their arithmetic is right."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def load(name: str) -> ModuleType:
    """A module of the benchmarks, found as their scripts find it."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    return importlib.import_module(name)


def run_script(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", *options]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


# script and options -> a word of each table's title, and a competitor that is always there
SCRIPTS = {
    ("conv",): (("forward", "forward and backward"), "ours float32"),
    ("maps",): (("kernel map", "voxels and inverse", "distinct keys"), "ours"),
    ("network",): (("inference", "training step", "peak memory"), "ours float32"),
    ("knn",): (("nearest neighbours", "pyramid", "grid sub-sampling"), "ours"),
    ("randla",): (("preparation of a batch", "training step"), "ours float32, data prepared"),
    ("step",): (("minkunet tiny, a step of I", "randla 5, a step of pretrain", "epochs"), "backward"),
    ("score_cloud",): (("minkunet", "randla"), "network"),
    ("gpu", "--device", "cpu"): (("MinkUNet", "spconv's benchmark network", "RandLA-Net"), "ours bfloat16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script[0])
def test_a_benchmark_prints_its_tables_and_writes_its_figures(script, tmp_path):
    done = run_script(*script, "--threads", "1", "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["cases"]
    titles, always = SCRIPTS[script]
    for title in titles:
        assert any(title in case["title"] for case in cases), title
    for case in cases:
        assert f"**{case['title']}**" in done.stdout
        for name in (*case["wall"], *case["values"]):
            assert f"\n| {name} |" in done.stdout
        assert all(len(seconds) == 2 for seconds in case["wall"].values())
    assert any(always in (*case["wall"], *case["values"]) for case in cases)


def test_a_peer_that_fails_is_left_out_and_ours_is_not(capsys, monkeypatch):
    network = load("network")
    scene = load("voxel_scenes").rooms(60)
    entrants = network.networks(scene, "tiny", network.OURS)
    ours = entrants["ours float32"]

    def fail():
        raise RuntimeError("can't find suitable algorithm")

    entrants["spconv"] = argparse.Namespace(infer=fail)
    case = load("harness").Case("inference", ours=network.OURS)
    network.compare(case, case, entrants, "tiny")
    assert set(entrants) == set(network.OURS) and "spconv fails: can't find" in capsys.readouterr().err
    monkeypatch.setattr(ours, "infer", fail)
    with pytest.raises(RuntimeError, match="suitable"):
        network.compare(case, case, entrants, "tiny")


def test_what_was_measured_before_a_failure_is_printed(tmp_path):
    script = tmp_path / "half.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\nfrom harness import Case, parser, race, run\n"
        "def measure(args):\n"
        "    yield race(Case('first'), {'ours': lambda: 1}, args)\n"
        "    raise RuntimeError('broken')\n"
        "sys.exit(run(parser('half'), measure))\n"
    )
    command = [sys.executable, str(script), "--quick", "--json", str(tmp_path / "half.json")]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1 and "**first**" in done.stdout and "the tables hold what came before" in done.stderr
    assert [case["title"] for case in json.loads((tmp_path / "half.json").read_text())["cases"]] == ["first"]


@pytest.mark.slow
def test_peers_that_do_not_import_are_named_and_left_out(tmp_path):
    code = f"""
import runpy, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.modules["spconv"] = sys.modules["MinkowskiEngine"] = None
sys.argv = ["conv.py", "--quick", "--threads", "1", "--worker", {str(tmp_path / "cases.json")!r}]
runpy.run_path({str(BENCHMARKS / "conv.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "spconv is absent: " in done.stderr
    assert "MinkowskiEngine is absent: " in done.stderr
    names = set(json.loads((tmp_path / "cases.json").read_text(encoding="utf-8"))[0]["wall"])
    assert {"ours float32", "plain torch"} <= names
    assert not names & {"spconv", "MinkowskiEngine"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_benchmark_says_in_one_line_that_it_needs_one():
    done = run_script("gpu")
    assert done.returncode == 2
    assert not done.stdout
    assert "needs a GPU" in done.stderr.splitlines()[-1]


def made_case(**settings):
    harness = load("harness")
    times = {"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 8.0, 8.0], harness.ROOF: [2.0, 2.0, 2.0]}
    cpu = {name: [value / 2 for value in values] for name, values in times.items()}
    cpu["theirs"] = [1.0, 1.0, 1.0]
    return harness.Case("made", ours=("ours",), work=10.0, roof=40.0, wall=times, cpu=cpu, **settings)


def test_a_ratio_is_the_median_of_the_ratios_of_single_rounds():
    case = made_case(threads=2)
    assert case.ratio("theirs", "ours") == 3.0  # of 3, 4 and 2
    # with one thread CPU time counts, unless the case asks for the clock
    assert made_case(threads=1).ratio("theirs", "ours") == 1.0  # of 2, 1 and 0.5
    assert made_case(threads=1, clock=True).ratio("theirs", "ours") == 3.0
    # 10 operations in 2 s (median of 0.5, 1 and 2 times the roof's seconds) beside 40 in 2 s
    assert case.share_of_roof("ours") == pytest.approx(0.25)


def test_the_table_holds_median_extremes_share_of_the_roof_and_ratio():
    harness = load("harness")
    lines = list(harness.times_table([made_case(threads=2)], "ms"))
    assert lines[0] == "| | 2 threads: ms, clock | least to most | of torch.mm | / ours |"
    assert "| theirs | 8,000 | 3,000 to 8,000 | 0.06 | 3.00 |" in lines
    assert len({line.count("|") for line in lines if line}) == 1


def test_every_round_runs_every_competitor_once_in_turning_order():
    harness, ran = load("harness"), []
    runs = {name: (lambda name=name: ran.append(name)) for name in ("a", "b")}
    args = argparse.Namespace(quick=True, rounds=3, seconds=60.0)
    case = harness.race(harness.Case("order"), runs, args)
    assert ran == ["a", "b", "a", "b", "b", "a", "a", "b"]  # a warm-up, then from a, from b, and from the roof on
    assert {name: len(seconds) for name, seconds in case.wall.items()} == {"a": 3, "b": 3, harness.ROOF: 3}


def test_a_competitor_with_other_results_is_not_timed():
    harness = load("harness")
    wanted = torch.tensor([0.0, 4.0])
    case = harness.Case("agreement", ours=("ours",))
    harness.agree(case, "ours", torch.tensor([0.4, 4.0]), wanted, 0.2)
    assert case.errors["ours"] == pytest.approx(0.1)
    for found in ([1.0, 4.0], [float("nan"), 4.0]):
        with pytest.raises(SystemExit, match="differs from the oracle"):
            harness.agree(case, "ours", torch.tensor(found), wanted, 0.2)


def test_a_label_gets_its_time_less_that_of_labels_inside_it(monkeypatch):
    stopwatch = load("stopwatch")
    clock = itertools.count()  # every look at the clock is a second later
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(clock)))
    watch = stopwatch.Stopwatch()
    with watch("outer"), watch("inner"):
        pass
    assert watch.take() == {"inner": 1.0, "outer": 2.0}
    assert watch.take() == {}


def test_layers_are_timed_by_kind_and_a_whole_takes_what_is_inside():
    stopwatch = load("stopwatch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Bilinear(2, 2, 1))
    model[2].inside = torch.nn.Linear(2, 2)
    watch = stopwatch.Stopwatch()
    model[2].forward = lambda x: model[2].inside(x)
    with stopwatch.watched_layers(watch, model, {"Linear": "products", "Bilinear": "head"}, "head"):
        model(torch.zeros(1, 2))
    assert set(watch.take()) == {"products", "head", "the rest"}
    model(torch.zeros(1, 2))
    assert not watch.take()  # the hooks are gone


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_that_of_the_call():
    size = 96 * 2**20

    def touch() -> None:
        with mmap.mmap(-1, size) as pages:
            pages.write(b"\1" * size)

    # Linux counts resident pages per processor and adds them up late, some tens of pages a processor.
    assert 0.9 < load("memory").peak_mebibytes(touch) / (size / 2**20) < 3


def test_rooms_have_exactly_the_voxels_asked_for():
    scene = load("voxel_scenes").rooms(700)
    rows = [tuple(row) for row in scene.coords.tolist()]
    assert len(set(rows)) == 700 and rows == sorted(rows)
    assert int(scene.coords.min()) >= 0
    assert all(extent > high for extent, high in zip(scene.shape, scene.coords[:, 1:].amax(0).tolist(), strict=True))


def test_pairs_and_coarser_voxels_are_those_of_a_plain_search():
    scenes = load("voxel_scenes")
    coords = scenes.rooms(300).coords
    for stride in (1, 2, 4):
        rows = sorted({(0, *(int(v) // stride * stride for v in row[1:])) for row in coords.tolist()})
        assert scenes.coarser(coords, stride).tolist() == [list(row) for row in rows]
        reach = [stride * step for step in (-1, 0, 1)]
        near = sum(
            (0, x + a, y + b, z + c) in set(rows) for _, x, y, z in rows for a in reach for b in reach for c in reach
        )
        assert scenes.count_pairs(torch.tensor(rows, dtype=torch.int32), 3, stride) == near


def test_the_work_of_a_network_is_that_of_its_convolutions(monkeypatch):
    from mink_decouple.models import minkunet
    from mink_decouple.sparse import layers

    scenes, done = load("voxel_scenes"), []

    def counted(feats, kernel, kernel_map, bias=None):
        done.append(2 * int((kernel_map.table.rows >= 0).sum()) * kernel.shape[1] * kernel.shape[2])
        return convolution(feats, kernel, kernel_map, bias)

    convolution = layers.convolution
    monkeypatch.setattr(layers, "convolution", counted)
    scene = scenes.rooms(300)
    model = minkunet.MinkUNet.from_variant("tiny", 4).train()
    model(load("network").View(scene.coords, scene.feats(4)))
    head = 2 * len(scene) * model.out_channels * 13
    assert scenes.network_work(scene.coords, minkunet.VARIANTS["tiny"], 4, 13) == sum(done) + head


def test_a_building_has_exactly_the_points_asked_for():
    cloud = load("point_scenes").building(2500, rays=1000, different=2)
    assert len(cloud) == len(cloud.labels) == len(cloud.features["rgb"]) == 2500
    assert len(np.unique(cloud.coords.round(3), axis=0)) > 2400  # rooms lie side by side, not on each other


def test_a_cloud_laid_side_by_side_is_whole_copies_shifted_by_cells(tmp_path):
    from mink_decouple.data.cloud import PointCloud
    from mink_decouple.data.io import read_cloud, write_cloud

    large = load("predict_large")
    xyz = np.random.default_rng(0).random((40, 3)).astype(np.float32) * np.float32(3)
    write_cloud(tmp_path / "one.laz", PointCloud("one", xyz))
    assert large.lay_out(tmp_path / "one.laz", tmp_path / "many.laz", 150, 0.25) == 160
    one, many = (read_cloud(tmp_path / f"{name}.laz").world() for name in ("one", "many"))
    moves = many.reshape(4, 40, 3) - one
    np.testing.assert_allclose(moves, np.broadcast_to(moves[:, :1], moves.shape), atol=1e-3)
    np.testing.assert_allclose(moves[:, 0] / 0.25, np.rint(moves[:, 0] / 0.25), atol=1e-2)
    assert len({tuple(move) for move in np.rint(moves[:, 0] / 0.25)}) == 4


@pytest.mark.slow
def test_a_run_killed_at_random_ends_with_the_same_bytes():
    size = ["data.synthetic.points_per_room=1500", "data.synthetic.rooms_per_area=1", "schedule.pretrain.epochs=8"]
    size += ["schedule.i_step.epochs=2", "schedule.steps=2", "eval.votes=1"]
    command = [sys.executable, str(BENCHMARKS / "chaos.py"), "--kills", "3", "--longest", "12", "--"]
    command += [part for one in size for part in ("--set", one)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 files differ" in done.stdout
