"""Damaged files of prepared data, exported networks and run folders: refused in a line that names them, or read."""

import random
import shutil

import pytest
import torch
from damage import damaged

from mink_decouple.data.adapters import adapter
from mink_decouple.data.classes import load_classes
from mink_decouple.data.manifest import read_manifest
from mink_decouple.data.prepare import prepare
from mink_decouple.data.prepared import PreparedDataset
from mink_decouple.engine.export import export_network, load_network
from mink_decouple.engine.train import Trainer
from mink_decouple.engine.view import sights_of_run
from mink_decouple.report.records import read_run
from mink_decouple.report.scenes import arrays_of

READERS = {
    "prepared scene": ("prepared", "**/a.safetensors", lambda root: PreparedDataset(root / "prepared").load("a")),
    "manifest": ("prepared", "manifest.json", lambda root: read_manifest(root / "prepared")),
    "classes": ("rooms", "classes.yaml", lambda root: load_classes(root / "rooms" / "classes.yaml")),
    "card": ("network", "card.json", lambda root: load_network(root / "network")),
    "network": ("network", "model.safetensors", lambda root: load_network(root / "network")),
    "views": ("run/views", "*.npz", lambda root: arrays_of(root / "run", "views")),
    "views seen": ("run/views", "*.npz", lambda root: sights_of_run(root / "run")),
    "metrics.json": ("run", "metrics.json", lambda root: read_run(root / "run")),
    "metrics.jsonl": ("run", "metrics.jsonl", lambda root: read_run(root / "run")),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "root"


@pytest.fixture
def root(place, folder, make_config):
    """`rooms` and, made of them by the first test, `prepared`, `run` and `network`."""
    if not place.exists():
        shutil.copytree(folder, place / "rooms")
        prepare(adapter("folder"), place / "rooms", place / "prepared", 1, None)
        config = make_config(data={"root": str(place / "rooms")})
        Trainer(config, place / "run", torch.device("cpu")).run()
        export_network(place / "run" / "checkpoints" / "last.pt", place / "network")
    return place


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_of_a_folder_is_refused_or_read(root, name):
    inside, pattern, read = READERS[name]
    path = sorted((root / inside).glob(pattern))[0]
    original, rng, refused = path.read_bytes(), random.Random(name), 0
    try:
        read(root)
        for _ in range(120):
            path.write_bytes(damaged(original, rng))
            try:
                read(root)
            except (ValueError, OSError) as error:
                refused += 1
                assert path.name in str(error) and "\n" not in str(error)
    finally:
        path.write_bytes(original)
    assert refused > 40
