"""Made stations of Semantic3D from the raw files to the zip of the server, far from the origin."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_semantic3d import make_semantic3d

from mink_decouple.cli import main
from mink_decouple.config import configs_dir
from mink_decouple.data.io import read_cloud
from mink_decouple.data.prepared import PreparedDataset

SMOKE = str(configs_dir() / "smoke" / "semantic3d.yaml")
SHORT = (
    "data.grid=1.0",
    "schedule.steps=1",
    "schedule.pretrain.epochs=1",
    "schedule.i_step.epochs=1",
    "schedule.ii_step.epochs=1",
    "view.workers=0",
)


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
def test_made_stations_pass_from_raw_files_to_a_submission_and_keep_a_millimetre(tmp_path: Path, backbone: str) -> None:
    raw, out, run, output = (tmp_path / name for name in ("raw", "out", "run", "reduced8.zip"))
    names = (*make_semantic3d.STATIONS, *make_semantic3d.TESTS)
    made = {name: make_semantic3d.station(name, 1500, 0) for name in names}
    for name in made:
        make_semantic3d.write(raw, name, 1500, 0, labelled=name in make_semantic3d.STATIONS)
    assert main(["prepare", "--dataset", "semantic3d", "--root", str(raw), "--output", str(out), "--workers", "1"]) == 0
    settings = ["--config", SMOKE, "--backbone", backbone]
    settings += [word for pair in (f"data.root={out}", *SHORT) for word in ("--set", pair)]
    assert main(["check", *settings]) == 0
    assert main(["train", *settings, "--labels", "1pt", "--output", str(run), "--device", "cpu"]) == 0
    saved = ["--checkpoint", str(run / "checkpoints" / "last.pt"), "--device", "cpu"]
    assert main(["submit", *saved, "--server", "reduced-8", "--output", str(output)]) == 0

    dataset = PreparedDataset(out)
    scored = sum(int((made[name][3] > 0).sum()) for name in dataset.scenes("val"))
    assert json.loads((run / "metrics.json").read_text())["points"] == scored
    for name, (xyz, _, _, label) in made.items():
        cloud = dataset.load(name)
        assert np.abs(cloud.world() - xyz).max() < 1e-3
        assert cloud.labels is None or (cloud.labels == label - 1).all()
    pictured = sorted((run / "pictures").rglob("*.ply"))
    assert pictured
    for path in pictured:
        world = read_cloud(path).world()
        assert any(world.shape == xyz.shape and np.abs(world - xyz).max() < 1e-3 for xyz, *_ in made.values()), path
    with zipfile.ZipFile(output) as archive:
        assert sorted(len(archive.read(name).split()) for name in archive.namelist()) == sorted(
            len(made[name][0]) for name in make_semantic3d.TESTS
        )
