"""Every mistake of docs/troubleshooting.md, typed: it gets the line that the page says, and nothing is left behind."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from mink_decouple.cli import main
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import write_cloud

PAGE = Path(__file__).resolve().parents[1] / "docs" / "troubleshooting.md"
MISTAKES = re.findall(r"^    \$ tools/(\w+)\.py ?(.*)\n    error: (.*)$", PAGE.read_text(encoding="utf-8"), re.M)
CLASSES = "classes:\n  floor: {raw: [1]}\n  wall: {raw: [2]}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that the page's commands are typed in."""
    root = tmp_path_factory.mktemp("mistakes")
    rng = np.random.default_rng(0)

    def room(ids):
        labels = np.asarray(ids)[np.arange(300) % len(ids)]
        rgb = rng.random((300, 3), dtype=np.float32)
        return PointCloud("room", rng.uniform(0, 3, (300, 3)).astype(np.float32), features={"rgb": rgb}, labels=labels)

    for name in "abc":
        write_cloud(root / "rooms" / f"{name}.ply", room([1, 2]))
    (root / "rooms" / "classes.yaml").write_text(CLASSES + "splits: {train: [a, b], val: [c]}\n")
    for name in "ab":
        write_cloud(root / "odd_ids" / f"{name}.ply", room([1, 2, 9]))
    (root / "odd_ids" / "classes.yaml").write_text(CLASSES + "splits: {train: [a], val: [b]}\n")
    write_cloud(root / "bare" / "tile.laz", room([0]))
    tile = (root / "bare" / "tile.laz").read_bytes()
    (root / "cut.laz").write_bytes(tile[: len(tile) // 2])
    write_cloud(root / "grey.ply", PointCloud("grey", rng.random((50, 3), dtype=np.float32)))
    rgb = np.full((50, 3), 0.5, np.float32)
    rgb[7, 0] = np.nan
    np.savez(root / "holes.npz", coords=rng.random((50, 3)), rgb=rgb)
    np.savetxt(root / "bare.txt", rng.random((9, 5)))
    short = "schedule: {iterations: 0, steps: 1, pretrain: {epochs: 1}}\nmodel: {variant: tiny}\n"
    (root / "rooms.yaml").write_text(f"data: {{dataset: folder, root: rooms, grid: 0.2}}\n{short}")
    (root / "moved.yaml").write_text("data: {dataset: folder, root: /nowhere/rooms}\n")
    (root / "odd_ids.yaml").write_text("data: {dataset: folder, root: odd_ids}\n")
    (root / "tabs.yaml").write_text("data:\n\tgrid: 0.1\n")
    (root / "notes.pt").write_text("not a network")
    (root / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["train", "--config", "rooms.yaml", "--output", "runs/rooms", "--device", "cpu"]) == 0
    return root


def test_the_page_has_more_than_twenty_mistakes():
    assert len(MISTAKES) >= 20 and len({(name, arguments) for name, arguments, _ in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize(("name", "arguments", "expected"), MISTAKES, ids=[f"{n} {a}" for n, a, _ in MISTAKES])
def test_a_mistake_gets_the_line_that_the_page_says(place, monkeypatch, capsys, name, arguments, expected):
    if "cuda" in arguments:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert main([name, *shlex.split(arguments)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    pattern = ".*".join(re.escape(part) for part in f"error: {expected}".split("..."))
    assert re.fullmatch(pattern, said[0]), said[0]
    assert sorted(place.rglob("*")) == before
