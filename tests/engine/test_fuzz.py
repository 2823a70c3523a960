"""Damaged files: every one is refused with a line that names it, or read as what it was. None is run, none hangs."""

import random

import numpy as np
import pytest
import torch
from damage import damaged

from mink_decouple.config import Config, dump, load_config
from mink_decouple.data.budget import LabelSet
from mink_decouple.decouple.pseudo_labels import PseudoLabels
from mink_decouple.decouple.pseudo_table import PseudoLabelTable
from mink_decouple.engine import checkpoint

CLASSES = ("floor", "wall", "box")


def same(first, second):
    """Whether two nested contents are equal in types and values."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def write_checkpoint(path):
    checkpoint.save(path, {"model": {"weight": torch.arange(300.0)}, "config": dump(Config()), "epoch": 3})


def write_labels(path):
    index = {"a": np.array([1, 5, 7]), "b": np.array([0, 2])}
    label = {"a": np.array([0, 1, 2]), "b": np.array([2, 0])}
    meta = {"budget": "1pt", "seed": 0, "unit": "raw", "points": {"a": 9, "b": 4}, "hash": {"a": "0", "b": "1"}}
    LabelSet(index, label, {**meta, "classes": list(CLASSES)}).save(path)


def write_table(path):
    label, rounds = torch.tensor([0, -1, 2, 1]), torch.tensor([1, 0, 2, 1], dtype=torch.int8)
    PseudoLabelTable(3, [("a", PseudoLabels(label, rounds, torch.tensor([0.9, 0.0, 0.5, 0.7])))]).save(path)


FORMATS = {
    "last.pt": (write_checkpoint, checkpoint.load, lambda content: content),
    "labels.npz": (write_labels, LabelSet.load, lambda labels: (labels.checksum, dict(labels.meta))),
    "iter_00.npz": (write_table, PseudoLabelTable.load, lambda table: table.checksum),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path, name):
    write, read, content = FORMATS[name]
    sound, broken = tmp_path / "sound" / name, tmp_path / name
    sound.parent.mkdir()
    write(sound)
    original, wanted, rng, refused = sound.read_bytes(), content(read(sound)), random.Random(name), 0
    for _ in range(500):
        broken.write_bytes(damaged(original, rng))
        try:
            found = content(read(broken))
        except ValueError as error:
            refused += 1
            assert str(broken) in str(error) and "\n" not in str(error)
            continue
        assert same(found, wanted)
    assert refused > 250


def test_a_damaged_configuration_is_refused_or_valid(tmp_path):
    original, rng, refused = dump(Config()).encode(), random.Random("config"), 0
    broken = tmp_path / "config.yaml"
    for _ in range(500):
        broken.write_bytes(damaged(original, rng))
        try:
            assert isinstance(load_config(broken), Config)
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert str(broken) in str(error) or "recipe" in str(error) or "backbone" in str(error)
    assert refused > 250


def test_a_flipped_bit_among_the_weights_is_noticed(tmp_path):
    """`torch.load` does not look at the checksums of its records."""
    path = tmp_path / "last.pt"
    write_checkpoint(path)
    weights = np.arange(300, dtype=np.float32).tobytes()
    data = bytearray(path.read_bytes())
    data[data.find(weights) + 400] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"last\.pt: not a readable checkpoint .*differs from its checksum"):
        checkpoint.load(path)
