"""Exported networks: read by the safetensors library, predicting as their checkpoint does, refused where damaged."""

import json

import numpy as np
import pytest
import torch

from mink_decouple.cli import main
from mink_decouple.engine import checkpoint
from mink_decouple.engine.export import load_network
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")


@pytest.fixture(params=["minkunet", "randla"])
def run(request, make_config, tmp_path):
    Trainer(make_config(request.param), tmp_path / "run", CPU).run()
    return tmp_path / "run"


def export(run, output, *more):
    last = str(run / "checkpoints" / "last.pt")
    return main(["export", "--checkpoint", last, "--output", str(output), *more])


def test_weights_read_by_the_library_are_those_of_the_checkpoint(run, tmp_path, capsys):
    from safetensors.torch import load_file

    assert export(run, tmp_path / "out", "--licence", "CC-BY-4.0") == 0
    assert "mIoU" in capsys.readouterr().out
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = checkpoint.load(run / "checkpoints" / "last.pt")["model"]
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name].reshape(tensor.shape), tensor), name
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert card["licence"] == "CC-BY-4.0" and card["scores"]["miou"] == metrics["miou"]
    assert card["classes"]["classes"]["box"]["raw"] == [7] and card["classes"]["ignore"] == [0]
    assert card["label_budget"] == metrics["label_budget"] and card["features"] == ["rgb", "height"]
    assert card["parameters"] == sum(metrics["parameters"].values())


def test_an_exported_network_predicts_and_scores_as_its_checkpoint(run, folder, tmp_path, capsys):
    assert export(run, tmp_path / "out") == 0
    results = []
    for number, source in enumerate((run / "checkpoints" / "last.pt", tmp_path / "out")):
        target = tmp_path / f"{number}.npz"
        assert main(["predict", str(folder / "c.npz"), "--checkpoint", str(source), "--output", str(target)]) == 0
        scored = tmp_path / f"scored{number}"
        assert main(["evaluate", "--checkpoint", str(source), "--output", str(scored)]) == 0
        with np.load(target) as arrays:
            scores = json.loads((scored / "metrics.json").read_text())
            results.append((arrays["prediction"], arrays["confidence"], scores["miou"]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def test_scores_of_an_exported_network_lie_beside_it_unless_told_otherwise(run, tmp_path):
    (tmp_path / "networks").mkdir()
    assert export(run, tmp_path / "networks" / "rooms") == 0
    assert main(["evaluate", "--checkpoint", str(tmp_path / "networks" / "rooms")]) == 0
    assert (tmp_path / "networks" / "evaluation-rooms" / "metrics.json").is_file()


def test_a_network_whose_labels_nobody_knows_is_exported_too(run, folder, tmp_path):
    """As one of imported weights."""
    last = run / "checkpoints" / "last.pt"
    checkpoint.save(tmp_path / "imported.pt", {**checkpoint.load(last), "label_budget": None})
    assert main(["export", "--checkpoint", str(tmp_path / "imported.pt"), "--output", str(tmp_path / "out")]) == 0
    assert load_network(tmp_path / "out")["label_budget"] is None
    target = ["--output", str(tmp_path / "c.npz")]
    assert main(["predict", str(folder / "c.npz"), "--checkpoint", str(tmp_path / "out"), *target]) == 0


def test_an_export_is_not_overwritten_and_damage_is_named(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(run, out) == 0
    assert export(run, out) == 2
    assert "holds an exported network already" in capsys.readouterr().err
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: its checksum is not the one in card\.json"):
        load_network(out)
    for text, said in (
        ("{", "not JSON"),
        ("[]", "not the card"),
        ('{"format": 1}', "damaged card: config, classes, weights, scalars, groups, label_budget"),
    ):
        (out / "card.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            load_network(out)
    (out / "card.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither a checkpoint nor an exported network"):
        load_network(out)
