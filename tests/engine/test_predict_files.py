"""Files predicted with a checkpoint: the scores of evaluation, in every format, whole, streamed or in tiles."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mink_decouple.cli import main
from mink_decouple.data.classes import load_classes
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import read_cloud, write_cloud
from mink_decouple.engine import predict, predict_files
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")
RAW = np.array([1, 2, 7])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """`trained(backbone)` -> the run folder of a short training; one for each backbone."""
    runs = {}

    def get(make_config, backbone="minkunet"):
        if backbone not in runs:
            runs[backbone] = tmp_path_factory.mktemp(backbone) / "run"
            Trainer(make_config(backbone), runs[backbone], CPU).run()
        return runs[backbone]

    return get


def run(*arguments):
    return main(["predict", *map(str, arguments), "--device", "cpu"])


def checkpoint(folder):
    return folder / "checkpoints" / "last.pt"


def miou(truth, found):
    """By hand: classes are raw ids, 0 is ignored."""
    known = truth > 0
    truth, found = truth[known], found[known]
    scores = []
    for raw in RAW:
        union = ((truth == raw) | (found == raw)).sum()
        if union:
            scores.append(((truth == raw) & (found == raw)).sum() / union)
    return float(np.mean(scores))


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
def test_the_file_has_the_scores_that_the_run_has(make_config, folder, tmp_path, trained, backbone, capsys):
    run_folder = trained(make_config, backbone)
    assert run(folder / "c.npz", "--checkpoint", checkpoint(run_folder), "--output", tmp_path / "c.npz") == 0
    with np.load(tmp_path / "c.npz") as out, np.load(folder / "c.npz") as source:
        for key in source.files:
            np.testing.assert_array_equal(out[key], source[key])
        expected = json.loads((run_folder / "metrics.json").read_text())["miou"]
        assert miou(source["label"].astype(int), out["prediction"]) == pytest.approx(expected, abs=1e-5)
        assert out["confidence"].min() >= 1 / 3 - 1e-6 and out["confidence"].max() <= 1
    said = capsys.readouterr().out
    assert f"{100 * expected:.1f}" in next(line.split() for line in said.splitlines() if line.startswith("mIoU"))
    assert "400 points" in said


def test_smoothing_is_that_of_the_scores_unless_asked_for(make_config, folder, tmp_path, trained):
    """A network scored with it predicts with it; both ways the option wins."""
    smoothed = tmp_path / "run"
    Trainer(make_config(eval={"smooth": "segments"}), smoothed, CPU).run()
    found = {}
    for run_folder in (trained(make_config), smoothed):
        for option in ((), ("--smooth", "none"), ("--smooth", "segments")):
            target = tmp_path / f"{len(found)}.npz"
            assert run(folder / "c.npz", "--checkpoint", checkpoint(run_folder), "--output", target, *option) == 0
            with np.load(target) as out:
                found[run_folder, option] = out["confidence"]
    for run_folder, own, other in ((trained(make_config), "none", "segments"), (smoothed, "segments", "none")):
        np.testing.assert_array_equal(found[run_folder, ()], found[run_folder, ("--smooth", own)])
        assert (found[run_folder, ()] != found[run_folder, ("--smooth", other)]).any()


def test_labelled_files_of_another_folder_are_scored(make_config, folder, tmp_path, trained):
    """The command of docs/predict.md."""
    run_folder, other = trained(make_config), tmp_path / "other"
    other.mkdir()
    for name in ("c.npz", "classes.yaml"):
        (other / name.replace("c.", "d.")).write_bytes((folder / name).read_bytes())
    split = "data.splits={train: [], val: [d]}"
    arguments = [
        "--checkpoint",
        checkpoint(run_folder),
        "--set",
        f"data.root={other}",
        "--set",
        split,
        "--device",
        "cpu",
    ]
    assert main(["evaluate", *map(str, arguments), "--output", str(tmp_path / "scores")]) == 0
    found, own = (json.loads((at / "metrics.json").read_text()) for at in (tmp_path / "scores", run_folder))
    assert found["confusion"] == own["confusion"] and found["iou"] == own["iou"]


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".npy", ".txt", ".csv", ".las", ".laz"])
def test_every_format_says_the_same_of_the_same_points(make_config, folder, tmp_path, trained, suffix):
    cloud = read_cloud(folder / "c.npz")
    eight = {"rgb": (np.rint(cloud.features["rgb"] * 255) / 255).astype(np.float32)}
    # whole tenths of a millimetre, which every format keeps
    cloud = PointCloud("c", np.round(cloud.coords, 4).astype(np.float32), cloud.offset, eight, cloud.labels)
    place = tmp_path / "in"
    write_cloud(place / "c.npz", cloud)
    write_cloud(place / f"c{suffix}", cloud)
    found = []
    for name in ("c.npz", f"c{suffix}"):
        target = tmp_path / "out" / name
        assert run(place / name, "--checkpoint", checkpoint(trained(make_config)), "--output", target) == 0
        out = read_cloud(target)
        labels = out.labels if suffix in (".las", ".laz") and name != "c.npz" else out.features["prediction"]
        found.append((np.asarray(labels, int), np.asarray(out.features["confidence"], np.float64)))
    assert (found[0][0] == found[1][0]).mean() > 0.99  # a point may fall to the other side of a cell
    assert np.median(np.abs(found[0][1] - found[1][1])) < 1e-3


def test_kitti_scans_of_a_folder(make_config, tmp_path, trained):
    rng = np.random.default_rng(0)
    for name in ("1", "2"):
        (tmp_path / "in").mkdir(exist_ok=True)
        rng.random((300, 4), dtype=np.float32).tofile(tmp_path / "in" / f"{name}.bin")
    code = run(tmp_path / "in", "--checkpoint", checkpoint(trained(make_config)), "--output", tmp_path / "out")
    assert code == 2  # the network was trained with colours
    config = make_config("minkunet", data={"features": ["height"]})
    Trainer(config, tmp_path / "run", CPU).run()
    assert run(tmp_path / "in", "--checkpoint", checkpoint(tmp_path / "run"), "--output", tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{n}{e}" for n in ("1", "2") for e in (".bin", ".confidence.npy", ".label")]
    assert set(np.fromfile(tmp_path / "out" / "1.label", "<u4")) <= set(RAW)


def test_a_prediction_of_a_kitti_scan_is_neither_a_cloud_nor_truth(make_config, folder, tmp_path, capsys):
    scan, out = tmp_path / "in" / "1.bin", tmp_path / "out"
    write_cloud(scan, replace(read_cloud(folder / "c.npz"), features={}))
    config = make_config(data={"features": ["height"]})
    network = predict_files.Network(None, config, load_classes(folder / "classes.yaml"), CPU)
    cloud, found = read_cloud(scan), np.zeros(400, np.int64)
    with predict_files._scene(network, scan, out, None) as (scene, _):
        assert predict_files._scores(network, scan, cloud, scene, found) is not None
        np.save(tmp_path / "in" / "1.confidence.npy", np.ones(400, np.float32))
        assert predict_files._scores(network, scan, cloud, scene, found) is None
    assert capsys.readouterr().out.strip().endswith("so is itself a prediction")
    assert predict_files._pairs([tmp_path / "in"], out, False) == [(scan, out / "1.bin")]


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_a_streamed_file_is_that_in_memory_to_the_byte(make_config, folder, tmp_path, trained, monkeypatch, suffix):
    laspy = pytest.importorskip("laspy")
    source = tmp_path / f"c{suffix}"
    write_cloud(source, read_cloud(folder / "c.npz"))
    las = laspy.read(source)
    las.red, las.green, las.blue = ((np.asarray(las[c]) >> 8) * 257 for c in ("red", "green", "blue"))
    las.write(source)  # eight bits in sixteen, as most scanners write them
    arguments = (source, "--checkpoint", checkpoint(trained(make_config)), "--output")
    assert run(*arguments, tmp_path / f"held{suffix}") == 0
    monkeypatch.setattr(predict_files, "HELD_POINTS", 0)
    assert run(*arguments, tmp_path / f"streamed{suffix}") == 0
    held, streamed = (laspy.read(tmp_path / f"{name}{suffix}") for name in ("held", "streamed"))
    assert held.points.array.tobytes() == streamed.points.array.tobytes()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([f"c{suffix}", f"held{suffix}", f"streamed{suffix}"])


def test_heights_that_a_file_has_go_before_those_of_its_points(make_config, folder, tmp_path, monkeypatch):
    """In memory and streamed, as in training."""
    pytest.importorskip("laspy")
    cloud = read_cloud(folder / "c.npz")
    height = {"height": np.linspace(5, 6, len(cloud), dtype=np.float32)}
    write_cloud(tmp_path / "c.las", replace(cloud, features={**cloud.features, **height}))
    network = predict_files.Network(None, make_config(), load_classes(folder / "classes.yaml"), CPU)
    for held in (len(cloud) + 1, 0):
        monkeypatch.setattr(predict_files, "HELD_POINTS", held)
        with predict_files._scene(network, tmp_path / "c.las", tmp_path / "out.las", None) as (scene, _):
            found = scene.grid.features["height"]
            assert found.min() >= 5 and found.max() <= 6


def test_tiles_with_their_surroundings_are_the_whole(make_config, folder, tmp_path, trained, monkeypatch):
    rng = np.random.default_rng(3)
    xyz = (rng.random((3000, 3)) * [60, 6, 1]).astype(np.float32)
    write_cloud(
        tmp_path / "long.npz", PointCloud("long", xyz, features={"rgb": rng.random((3000, 3), dtype=np.float32)})
    )
    arguments = (tmp_path / "long.npz", "--checkpoint", checkpoint(trained(make_config)), "--output")
    assert run(*arguments, tmp_path / "whole.npz") == 0
    monkeypatch.setattr(predict, "WHOLE_POINTS", 500)
    sizes = []
    original = predict.tiles
    monkeypatch.setattr(predict, "tiles", lambda *a: (sizes.append(len(t.points)) or t for t in original(*a)))
    assert run(*arguments, tmp_path / "tiles.npz") == 0
    assert len(sizes) >= 6 and max(sizes) < 2000  # 64 voxels of 10 cm on either side of some 10 m
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "tiles.npz") as tiled:
        assert (whole["prediction"] == tiled["prediction"]).mean() >= 0.999
        np.testing.assert_allclose(tiled["confidence"], whole["confidence"], atol=2e-3)
    # without surroundings seams do show: the test can tell
    monkeypatch.setattr(predict, "MARGIN_VOXELS", 0)
    assert run(*arguments, tmp_path / "cut.npz") == 0
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "cut.npz") as cut:
        assert np.abs(cut["confidence"] - whole["confidence"]).max() > 2e-3


def test_mistakes_are_one_line_and_nothing_is_computed(make_config, folder, tmp_path, trained, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = ("--checkpoint", checkpoint(trained(make_config)))
    (tmp_path / "there.npz").write_bytes((folder / "c.npz").read_bytes())
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.e57").write_text("")
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "there.npz").write_bytes((folder / "c.npz").read_bytes())
    np.savez(tmp_path / "grey.npz", coords=np.random.default_rng(0).random((50, 3)))
    with np.load(folder / "c.npz") as source:
        holes = {**source, "rgb": source["rgb"].copy()}
    holes["rgb"][7, 1] = np.nan
    np.savez(tmp_path / "holes.npz", **holes)
    (tmp_path / "scan.bin").write_bytes(bytes(16))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "scan.label").write_bytes(bytes(4))
    capsys.readouterr()
    cases = [
        (("there.npz", "--checkpoint", "none.pt", "--output", "o.npz"), "none.pt: no such checkpoint"),
        (("gone.npz", *good, "--output", "o.npz"), "gone.npz: no such file or folder"),
        (("empty", *good, "--output", "o"), "empty: no point clouds; known suffixes"),
        (("odd.e57", *good, "--output", "o.e57"), "odd.e57: unknown suffix '.e57'; choose from"),
        (("there.npz", *good, "--output", "there.npz"), "there.npz: is the input itself"),
        (
            ("twin/there.npz", *good, "--output", "there.npz"),
            "there.npz: exists; choose another --output, or --overwrite",
        ),
        (("there.npz", "twin/there.npz", *good, "--output", "o"), "inputs of the same name, 'there.npz'"),
        (("there.npz", "grey.npz", *good, "--output", "there.npz"), "there.npz: is a file; the predictions of 2"),
        (("grey.npz", *good, "--output", "o.npz"), "grey.npz: has no column rgb, which the network was trained on"),
        (("scan.bin", *good, "--output", "labels/scan.bin"), "scan.label: exists; choose another --output, or"),
        (("holes.npz", *good, "--output", "o.npz"), "holes: feature 'rgb' is ["),
        (("there.npz", *good, "--output", "o.npz", "--votes", "0"), "--votes 0: must be at least 1"),
    ]
    for arguments, expected in cases:
        assert run(*arguments) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and expected in said[0], said
    assert not (tmp_path / "o.npz").exists() and not (tmp_path / "o").exists()
    assert run("there.npz", *good, "--output", "twin/there.npz", "--overwrite") == 0


def test_a_failure_leaves_what_was_there(make_config, folder, tmp_path, trained, monkeypatch):
    target = tmp_path / "out.npz"
    target.write_bytes(b"earlier")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    code = run(folder / "c.npz", "--checkpoint", checkpoint(trained(make_config)), "--output", target, "--overwrite")
    assert code == 2 and target.read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_a_wrong_suffix_is_told_before_the_network_runs(make_config, folder, tmp_path, trained, capsys, monkeypatch):
    monkeypatch.setattr(predict_files, "decide", lambda *_: pytest.fail("the network ran"))
    given = folder / "c.npz", "--checkpoint", checkpoint(trained(make_config)), "--output", tmp_path / "c.ply"
    assert run(*given) == 2
    assert "c.ply: must end in .npz as c.npz does" in capsys.readouterr().err


def test_a_layout_without_room_is_told_before_the_first_file(
    make_config, folder, tmp_path, trained, capsys, monkeypatch
):
    monkeypatch.setattr(predict_files, "decide", lambda *_: pytest.fail("the network ran"))
    clouds = tmp_path / "clouds"
    clouds.mkdir()
    write_cloud(clouds / "a.ply", read_cloud(folder / "c.npz"))
    text = "ply\nformat ascii 1.0\nelement vertex 1\nproperty float confidence\nproperty float x\nend_header\n0 0\n"
    (clouds / "b.ply").write_text(text)
    assert run(clouds, "--checkpoint", checkpoint(trained(make_config)), "--output", tmp_path / "out") == 2
    assert "b.ply: has a column of its own named confidence" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_with_labels_are_scored_class_by_class_as_one(make_config, folder, tmp_path, trained, capsys):
    clouds = tmp_path / "clouds"
    clouds.mkdir()
    truth, found = [], []
    for name in "bcd":
        cloud = read_cloud(folder / f"{name.replace('d', 'c')}.npz")
        write_cloud(clouds / f"{name}.ply", replace(cloud, labels=None) if name == "d" else cloud)
    assert run(clouds, "--checkpoint", checkpoint(trained(make_config)), "--output", tmp_path / "out") == 0
    for name in "bc":
        truth.append(read_cloud(clouds / f"{name}.ply").labels)
        found.append(read_cloud(tmp_path / "out" / f"{name}.ply").features["prediction"])
    head, rows = capsys.readouterr().out.split("IoU against the labels of 2 of 3 files, in percent:")
    assert head.count("against the labels that the file has") == 2
    scores = dict(line.split() for line in rows.splitlines() if len(line.split()) == 2)
    truth, found = np.concatenate(truth), np.concatenate(found).astype(int)
    assert scores["mIoU"] == f"{100 * miou(truth, found):.1f}"
    known = truth > 0
    both, either = (known & (truth == 1) & (found == 1)).sum(), (known & ((truth == 1) | (found == 1))).sum()
    assert scores["floor"] == f"{100 * both / either:.1f}"


def test_no_score_of_labels_that_are_all_ignored(make_config, folder, tmp_path, trained, capsys):
    with np.load(folder / "c.npz") as source:
        np.savez(tmp_path / "c.npz", **{**source, "label": np.zeros_like(source["label"])})
    assert (
        run(tmp_path / "c.npz", "--checkpoint", checkpoint(trained(make_config)), "--output", tmp_path / "out.npz") == 0
    )
    assert "mIoU" not in capsys.readouterr().out


def test_a_prediction_in_a_las_file_is_no_truth(make_config, folder, tmp_path, trained, capsys):
    pytest.importorskip("laspy")
    cloud = read_cloud(folder / "c.npz")
    write_cloud(tmp_path / "c.las", cloud)
    network = "--checkpoint", checkpoint(trained(make_config))
    assert run(tmp_path / "c.las", *network, "--output", tmp_path / "once.las") == 0
    assert "IoU against the labels of the file, in percent:" in capsys.readouterr().out
    assert run(tmp_path / "once.las", *network, "--output", tmp_path / "twice.las") == 0
    said = capsys.readouterr().out
    assert "once.las: no score, " in said and "mIoU" not in said


def test_the_lines_of_the_page_predict_from_python(make_config, folder, tmp_path, trained):
    page = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
    part = page[page.index("## From Python") : page.index("`found` has a class")]
    lines = [line[4:] for line in part.splitlines() if line.startswith("    ")]
    network = checkpoint(trained(make_config))
    names = {"runs/mine/checkpoints/last.pt": network, "scan.laz": folder / "c.npz"}
    script = "\n".join([*lines, f"import numpy; numpy.save({str(tmp_path / 'raw.npy')!r}, raw)"])
    for name, path in names.items():
        assert name in script
        script = script.replace(name, str(path))
    (tmp_path / "script.py").write_text(script)
    subprocess.run([sys.executable, tmp_path / "script.py"], check=True)
    assert (
        run(folder / "c.npz", "--checkpoint", names["runs/mine/checkpoints/last.pt"], "--output", tmp_path / "c.npz")
        == 0
    )
    with np.load(tmp_path / "c.npz") as out:
        np.testing.assert_array_equal(np.load(tmp_path / "raw.npy"), out["prediction"])
