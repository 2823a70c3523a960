"""Preparing a download: exact, resumable to the byte, and never claiming what is not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fake_raw import CLASSES, FakeRaw, NewVersion, OtherChunks, make_download

import mink_decouple.data.prepare as preparation
from mink_decouple.cli import main
from mink_decouple.config import PREPARED
from mink_decouple.data.adapters import ADAPTERS, adapter
from mink_decouple.data.cloud import from_world
from mink_decouple.data.manifest import read_manifest
from mink_decouple.data.prepare import describe, prepare
from mink_decouple.data.prepared import PreparedDataset
from mink_decouple.data.raw import Chunk, RawScene
from mink_decouple.data.tensors import checksum

HERE = Path(__file__).parent


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def download(tmp_path):
    return make_download(tmp_path / "raw")


@pytest.fixture
def prepared(tmp_path, download):
    prepare(FakeRaw, download, tmp_path / "out", workers=1)
    return tmp_path / "out"


def test_a_prepared_scene_is_the_cloud_of_its_world_coordinates(download, prepared):
    dataset = PreparedDataset(prepared, "fake")
    assert dataset.classes.names == CLASSES.names and dataset.classes.raw_ids == CLASSES.raw_ids
    table = np.load(download / "A" / "two.npy")
    labels = np.where(table[:, 7] == 9, -1, table[:, 7]).astype(np.int64)
    rgb = (table[:, 3:6] / 255).astype(np.float32)
    whole = from_world("A_two", table[:, :3], {"rgb": rgb, "intensity": table[:, 6].astype(np.float32)}, labels)
    cloud = dataset.load("A_two")
    np.testing.assert_array_equal(cloud.coords, whole.coords)
    np.testing.assert_array_equal(cloud.offset, whole.offset)
    np.testing.assert_array_equal(cloud.labels, whole.labels)
    assert cloud.labels.dtype == np.int64 and cloud.features.keys() == whole.features.keys()
    for key, column in whole.features.items():
        np.testing.assert_array_equal(cloud.features[key], column)
        assert cloud.features[key].dtype == column.dtype
    assert np.abs(cloud.world() - table[:, :3]).max() < 1e-3


def test_the_manifest_says_what_the_scenes_hold(download, prepared):
    dataset = PreparedDataset(prepared)
    record, cloud = dataset.record("A_two"), dataset.load("A_two")
    assert (record.points, record.ignored) == (300, int((cloud.labels == -1).sum()))
    assert record.labelled == tuple(np.bincount(cloud.labels[cloud.labels >= 0], minlength=3))
    np.testing.assert_array_equal(record.low, np.load(download / "A" / "two.npy")[:, :3].min(axis=0))
    np.testing.assert_array_equal(record.high, np.load(download / "A" / "two.npy")[:, :3].max(axis=0))
    assert record.checksum == checksum(dataset.path("A_two"))
    assert [(s.file, s.bytes) for s in record.sources] == [("A/two.npy", (download / "A" / "two.npy").stat().st_size)]
    assert [(r.file, r.line, r.found, r.done) for r in record.repairs] == [("two.npy", 6, "9", "ignored")]
    content = json.loads((prepared / "manifest.json").read_text())
    assert content["format"] == 1 and content["adapter"] == 1 and content["missing"] == 0


def test_bytes_do_not_depend_on_processes_or_chunks(tmp_path, download, prepared):
    prepare(FakeRaw, download, tmp_path / "two", workers=2)
    prepare(OtherChunks, download, tmp_path / "whole", workers=1)
    assert files(tmp_path / "two") == files(prepared) == files(tmp_path / "whole")
    assert set(files(prepared)) == {
        "manifest.json",
        *(f"scenes/{n}.safetensors" for n in ("A_one", "A_two", "B_one", "C_one")),
    }


def test_what_is_whole_is_kept_and_what_is_stale_or_damaged_is_made_anew(tmp_path, download, prepared):
    before = files(prepared)
    again = prepare(FakeRaw, download, prepared, workers=1)
    assert (again.done, len(again.kept)) == ((), 4) and files(prepared) == before
    assert "0 scenes prepared, 4 kept" in describe(again) and "two.npy line 6: 9 -> ignored" in describe(again)
    path = prepared / "scenes" / "A_one.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    (prepared / "scenes" / "B_one.safetensors").unlink()
    assert prepare(FakeRaw, download, prepared, workers=1).done == ("A_one", "B_one")
    assert files(prepared) == before
    changed = np.load(download / "C" / "one.npy")
    changed[0, 0] += 1
    np.save(download / "C" / "one.npy", changed)  # of the same size as before
    os.utime(download / "C" / "one.npy", ns=(1, 1))
    assert prepare(FakeRaw, download, prepared, workers=1).done == ("C_one",)
    np.save(download / "C" / "one.npy", np.load(download / "C" / "one.npy")[:100])
    assert prepare(FakeRaw, download, prepared, workers=1).done == ("C_one",)
    assert len(PreparedDataset(prepared).load("C_one")) == 100


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_the_same_command_ends_with_the_bytes_of_an_undisturbed_run(
    tmp_path, download, prepared, workers
):
    out = tmp_path / "killed"
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from pathlib import Path\nfrom fake_raw import Slow\nfrom mink_decouple.data.prepare import prepare\n"
        f"if __name__ == '__main__': prepare(Slow, Path({str(download)!r}), Path({str(out)!r}), {workers})\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    slow = {**environment, "FAKE_RAW_SECONDS": "0.3"}
    for wanted in (0, 1, 2):  # scenes that are done when the process dies
        process = subprocess.Popen([sys.executable, str(script)], env=slow)
        deadline = time.monotonic() + 120
        while len(list(out.glob("scenes/*.safetensors"))) < wanted or not list(out.glob("scenes/.*.part")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "manifest.json").exists()
        if wanted:
            with pytest.raises(ValueError, match="not all of its scenes are prepared"):
                PreparedDataset(out)
        time.sleep(0.5)  # workers notice that their parent is gone
        left = files(out)
        time.sleep(0.7)
        assert files(out) == left, "a worker outlived its parent"
    subprocess.run([sys.executable, str(script)], env=environment, check=True)
    assert files(out) == files(prepared)


def test_a_scene_that_fails_is_named_and_does_not_lose_the_others(tmp_path, download, capsys, monkeypatch):
    table = np.load(download / "B" / "one.npy")
    table[80, 7] = 77
    np.save(download / "B" / "one.npy", table)
    monkeypatch.setitem(ADAPTERS, "fake", FakeRaw)
    out = tmp_path / "out"
    for workers in ("1", "2"):
        args = ["prepare", "--dataset", "fake", "--root", str(download), "--output", str(out), "--workers", workers]
        assert main(args) == 2
        text = capsys.readouterr().err
        assert "one.npy: line 71: label 77" in text and "3 are done and kept" in text
        assert all(line.startswith("error: ") for line in text.splitlines())
        assert not (out / "manifest.json").exists() and len(list(out.glob("scenes/*"))) == 3
    table[80, 7] = 1
    np.save(download / "B" / "one.npy", table)
    assert main(args) == 0
    printed = capsys.readouterr().out
    assert "1 scenes prepared, 3 kept" in printed and "points per second and core" in printed
    assert len(PreparedDataset(out).manifest.scenes) == 4


def test_versions_datasets_and_other_folders_are_not_mixed(tmp_path, download, prepared, monkeypatch):
    before = files(prepared)
    with pytest.raises(
        ValueError, match=r"prepared by another version, or with other .* columns; choose another --output"
    ):
        prepare(NewVersion, download, prepared, workers=1)
    monkeypatch.setattr(FakeRaw, "name", "twin")
    with pytest.raises(ValueError, match=r"prepared with dataset fake, now it would be twin"):
        prepare(FakeRaw, download, prepared, workers=1)
    monkeypatch.undo()
    (download / "C" / "one.npy").rename(download / "C" / "two.npy")
    with pytest.raises(ValueError, match=r"C_one\.safetensors: .* has no scene 'C_one'; delete the file"):
        prepare(FakeRaw, download, prepared, workers=1)
    assert files(prepared) == before
    with pytest.raises(ValueError, match="not empty and not a prepared folder"):
        prepare(FakeRaw, download, download, workers=1)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        prepare(FakeRaw, tmp_path / "none", tmp_path / "new", workers=1)
    assert not (tmp_path / "new").exists()


def test_what_a_download_lacks_is_told(tmp_path, download, prepared):
    assert "not the whole" not in describe(prepare(FakeRaw, download, prepared, workers=1))
    shutil.rmtree(download / "A")
    assert "\nnot the whole of the benchmark: nothing of A" in describe(prepare(FakeRaw, download, tmp_path / "rest"))
    np.save(next((download / "B").glob("*.npy")), np.full((5, 8), 99.0))
    told = r"(?s)label 99.*\nnot the whole of the benchmark: nothing of A\n.* 1 scenes failed"
    with pytest.raises(ValueError, match=told):
        prepare(FakeRaw, download, tmp_path / "broken")


def test_some_scenes_can_be_prepared_first(tmp_path, download, prepared):
    out = tmp_path / "some"
    summary = prepare(FakeRaw, download, out, workers=1, scenes=["A", "B_one"])
    assert summary.done == ("A_one", "A_two", "B_one") and summary.manifest.missing == 1
    assert "1 scenes of the download are left out" in describe(summary)
    with pytest.raises(ValueError, match=r"--scenes D: .*A_one, A_two, B_one, C_one"):
        prepare(FakeRaw, download, out, workers=1, scenes=["D"])
    assert prepare(FakeRaw, download, out, workers=1).done == ("C_one",)
    assert files(out) == files(prepared)


def test_two_processes_do_not_prepare_into_one_folder(download, prepared):
    fcntl = pytest.importorskip("fcntl", reason="no such locks on this system")
    with (prepared / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process prepares into this folder"):
            prepare(FakeRaw, download, prepared, workers=1)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_prepared_into(tmp_path, download, prepared, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl", reason="no such locks on this system")

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    prepare(FakeRaw, download, tmp_path / "out", workers=1)
    assert files(tmp_path / "out") == files(prepared)
    assert not (tmp_path / "out" / ".lock").exists()


def test_scenes_that_another_process_adds_before_the_lock_is_held_are_kept(tmp_path, download, monkeypatch):
    out = tmp_path / "out"
    alone = preparation._alone

    def late(output):
        monkeypatch.setattr(preparation, "_alone", alone)
        prepare(FakeRaw, download, output, workers=1, scenes=["A"])
        return alone(output)

    monkeypatch.setattr(preparation, "_alone", late)
    summary = prepare(FakeRaw, download, out, workers=1, scenes=["B"])
    assert list(read_manifest(out).scenes) == ["A_one", "A_two", "B_one"] and summary.kept == ("A_one", "A_two")


class Wrong(FakeRaw):
    chunks: tuple = ()

    def read(self, scene, report, chunk_points=2_000_000):
        yield from self.chunks


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([Chunk(np.empty((0, 3)))], "no points"),
        ([Chunk(np.zeros((2, 3), np.float32))], r"xyz must be \(n, 3\) float64"),
        ([Chunk(np.full((2, 3), np.nan))], "2 of 2 points have NaN"),
        ([Chunk(np.zeros((2, 3)), {"rgb": np.zeros((2, 3))})], "feature 'rgb' must be"),
        ([Chunk(np.zeros((2, 3)), {"intensity": np.zeros(3, np.float32)})], "feature 'intensity' must be"),
        ([Chunk(np.zeros((2, 3)), {"labels": np.zeros(2)})], "feature 'labels' must .* not named"),
        ([Chunk(np.zeros((2, 3)), labels=np.array([0, 3]))], r"train ids must lie in -1\.\.2, found 0\.\.3"),
        ([Chunk(np.zeros((2, 3)), labels=np.zeros(2, np.uint8))], "labels must be"),
        (
            [Chunk(np.zeros((1, 3))), Chunk(np.zeros((1, 3)), labels=np.zeros(1, np.int64))],
            r"columns \['labels'\] after",
        ),
        ([Chunk(np.array([[0.0, 0, 0], [4e4, 0, 0]]))], "remove stray points, .* or bring millimetres to metres"),
    ],
    ids=range(10),
)
def test_an_adapter_that_breaks_its_contract_is_told(tmp_path, download, monkeypatch, chunks, words):
    monkeypatch.setattr(Wrong, "chunks", chunks)
    with pytest.raises(ValueError, match=words):
        prepare(Wrong, download, tmp_path / "out", workers=1, scenes=["A_one"])
    assert not list((tmp_path / "out" / "scenes").iterdir())


class Long(FakeRaw):
    """A scene of a million points that exist chunk by chunk only."""

    def scenes(self):
        return [RawScene("long", "train", "", (), False)]

    def read(self, scene, report, chunk_points=2_000_000):
        for number in range(50):
            xyz = np.random.default_rng(number).uniform(0, 9, (20_000, 3))
            yield Chunk(xyz, {"rgb": np.zeros((20_000, 3), np.uint8)}, np.zeros(20_000, np.int64))


def test_memory_does_not_grow_with_the_scene(tmp_path, download):
    tracemalloc.start()
    try:
        prepare(Long, download, tmp_path / "out", workers=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(PreparedDataset(tmp_path / "out").load("long")) == 1_000_000
    # Its world coordinates alone take 24 MB; a block of the final pass has 2 ** 20 rows of them at most.
    assert peak < 150e6


def test_splits_name_scenes_or_groups(prepared):
    assert PreparedDataset(prepared).splits == {"train": ["A_one", "A_two", "C_one"], "val": ["B_one"]}
    chosen = PreparedDataset(prepared, splits={"train": ["C_one", "B"], "val": ["A"]})
    assert chosen.scenes("train") == ["C_one", "B_one"] and chosen.scenes("val") == ["A_one", "A_two"]
    with pytest.raises(ValueError, match=r"data\.splits\.train: .* no scene or group 'D'; use groups A, B, C"):
        PreparedDataset(prepared, splits={"train": ["D"]})
    with pytest.raises(ValueError, match="scene 'A_one' is in 'train' and again in 'val'"):
        PreparedDataset(prepared, splits={"train": ["A"], "val": ["A_one"]})
    with pytest.raises(ValueError, match=r"split 'test' is unknown; it has train \(3 scenes\), val \(1 scenes\)"):
        PreparedDataset(prepared).scenes("test")
    with pytest.raises(ValueError, match="split 'val' is empty"):
        PreparedDataset(prepared, splits={"train": ["A"], "val": []}).scenes("val")


def test_wrong_folders_say_what_to_do(tmp_path, download, prepared):
    with pytest.raises(
        ValueError, match=rf"no manifest\.json; prepare .*--dataset s3dis --root {download} --output DIR"
    ):
        PreparedDataset(download, "s3dis")
    with pytest.raises(ValueError, match=r"prepared from 'fake', but data\.dataset is 's3dis'"):
        PreparedDataset(prepared, "s3dis")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        PreparedDataset(tmp_path / "none")
    with pytest.raises(ValueError, match="no scene 'X'"):
        PreparedDataset(prepared).load("X")
    path = prepared / "scenes" / "A_one.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"A_one\.safetensors: its checksum is not the manifest's"):
        PreparedDataset(prepared).verify("A_one")
    PreparedDataset(prepared).verify("A_two")
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"A_one\.safetensors: .* bytes, the manifest says"):
        PreparedDataset(prepared).load("A_one")
    (prepared / "manifest.json").write_text('{"format": 7}')
    with pytest.raises(ValueError, match=r"manifest\.json: .*format 7, this program reads 1"):
        PreparedDataset(prepared)


def test_the_command_knows_the_datasets_of_the_configuration(capsys):
    assert set(ADAPTERS) == {*PREPARED, "folder"}
    assert main(["prepare", "--dataset", "nuscenes", "--root", ".", "--output", "x"]) == 2
    assert "choose from s3dis, scannet, semantic3d, semantickitti, folder" in capsys.readouterr().err


def test_the_command_hands_options_to_the_adapter_and_names_those_there_are(tmp_path, capsys, monkeypatch):
    found = {}

    def run(make, root, output, workers, scenes):
        found["adapter"] = make
        raise ValueError("looked at")

    monkeypatch.setattr("mink_decouple.data.prepare.prepare", run)

    def said(dataset, *options):
        given = [part for option in options for part in ("--set", option)]
        assert main(["prepare", "--dataset", dataset, "--root", "x", "--output", str(tmp_path / "out"), *given]) == 2
        return capsys.readouterr().err

    assert "looked at" in said("semantickitti", "every=10")
    assert found["adapter"].keywords == {"every": 10}
    assert "looked at" in said("scannet", "axis_align=true")
    assert "--set every: scannet has no such option; it has axis_align" in said("scannet", "every=2")
    assert "--set others: semantic3d has no such option; it has none" in said("semantic3d", "others=ignore")
    assert "--set every=ten: expected a whole number" in said("semantickitti", "every=ten")
    assert "--set every=True: expected a whole number" in said("semantickitti", "every=true")


def test_an_option_reaches_the_processes_that_prepare(tmp_path):
    rng = np.random.default_rng(0)
    for sequence, count in (("00", 5), ("08", 3)):
        for number in range(count):
            for part, values in (("velodyne", rng.random((6, 4)).astype("<f4")), ("labels", np.full(6, 40, "<u4"))):
                file = tmp_path / "raw" / "sequences" / sequence / part / f"{number:06}"
                file.parent.mkdir(parents=True, exist_ok=True)
                values.tofile(file.with_suffix(".bin" if part == "velodyne" else ".label"))
    prepare(adapter("semantickitti", {"every": 2}), tmp_path / "raw", tmp_path / "out", workers=2)
    dataset = PreparedDataset(tmp_path / "out", "semantickitti")
    assert [len(dataset.scenes(split)) for split in ("train", "val")] == [3, 3]
