"""Networks that begin with the weights of others: which weights are taken, by which names, and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mink_decouple.cli import main
from mink_decouple.data.tensors import checksum
from mink_decouple.engine import checkpoint
from mink_decouple.engine.export import export_network
from mink_decouple.engine.settings import check_settings
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")
OTHERS = """
classes:
  box: {raw: [7]}
  pillar: {raw: [9]}
  floor: {raw: [1]}
  wall: {raw: [2]}
ignore: [0]
splits: {train: [a, b], val: [c]}
"""
"""Of the same files: one class more, in another order."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(make_config, backbone)` -> last.pt of a short training; one for each backbone."""
    found = {}

    def get(make_config, backbone):
        if backbone not in found:
            folder = tmp_path_factory.mktemp(backbone) / "run"
            Trainer(make_config(backbone), folder, CPU).run()
            found[backbone] = folder / "checkpoints" / "last.pt"
        return found[backbone]

    return get


@pytest.fixture
def others(folder, tmp_path):
    """A folder of the same clouds whose classes are others."""
    root = tmp_path / "others"
    shutil.copytree(folder, root)
    (root / "classes.yaml").write_text(OTHERS)
    for name in "ab":
        with np.load(root / f"{name}.npz") as stored:
            arrays = dict(stored)
        arrays["label"][:20] = 9
        np.savez(root / f"{name}.npz", **arrays)
    return root


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
@pytest.mark.parametrize("exported", [False, True])
def test_the_backbone_and_the_rows_of_known_classes_are_taken(
    make_config, others, tmp_path, trained, backbone, exported, capsys
):
    source = trained(make_config, backbone)
    theirs = checkpoint.load(source)["model"]
    if exported:
        export_network(source, tmp_path / "network")
        source = tmp_path / "network"
    settings = {"data": {"root": str(others)}, "model": {"weights": str(source)}}
    config = make_config(backbone, **settings)
    fresh = Trainer(replace(config, model=replace(config.model, weights=None)), tmp_path / "fresh", CPU)
    ours = Trainer(config, tmp_path / "run", CPU)
    assert "the backbone, and the classifier of 3 of 4 classes" in capsys.readouterr().out
    last = "classifier.linear" if backbone == "minkunet" else "classifier.fc3"
    for name, value in ours.model.state_dict().items():
        if name in (f"{last}.weight", f"{last}.bias"):
            assert torch.equal(value[[2, 3, 0]], theirs[name])  # floor, wall and box in the order of the first run
            assert torch.equal(value[1], fresh.model.state_dict()[name][1])
        else:
            assert torch.equal(value, theirs[name])
    weights = source / "model.safetensors" if exported else source
    about = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert about["weights_sha256"] == checksum(weights)
    assert ours.run().metrics["miou"] is not None


def test_classifiers_of_another_kind_stay_fresh(make_config, tmp_path, trained, capsys):
    source = trained(make_config, "minkunet")
    settings = {"model": {"weights": str(source), "head": "mlp"}, "data": {"grid": 0.12}}
    ours = Trainer(make_config(**settings), tmp_path / "run", CPU)
    said = capsys.readouterr().out
    assert "the classifier of 0 of 3 classes" in said
    assert "trained with data.grid 0.1, this run has 0.12" in said
    theirs = checkpoint.load(source)["model"]
    assert torch.equal(ours.model.state_dict()["backbone.conv0p1s1.kernel"], theirs["backbone.conv0p1s1.kernel"])


@pytest.mark.parametrize(
    ("backbone", "settings", "said"),
    [
        ("randla", {}, "backbone minkunet, this run has randla"),
        ("minkunet", {"model": {"variant": "14A"}}, "model.variant tiny, this run has 14A"),
        ("minkunet", {"data": {"features": ["height", "rgb"]}}, r"data.features \['rgb', 'height'\], this run has"),
    ],
)  # fmt: skip
def test_a_network_of_another_shape_is_refused_before_a_cloud_is_read(make_config, trained, backbone, settings, said):
    source = trained(make_config, "minkunet")
    model = {**settings.get("model", {}), "weights": str(source)}
    with pytest.raises(ValueError, match=rf"model\.weights .*last\.pt: was trained with {said}"):
        check_settings(make_config(backbone, **{**settings, "model": model}))


def test_a_file_that_is_not_there_is_named_before_a_cloud_is_read(make_config):
    with pytest.raises(FileNotFoundError, match=r"model\.weights: gone\.pt: no such checkpoint or exported network"):
        check_settings(make_config(model={"weights": "gone.pt"}))


def test_a_begun_run_goes_on_and_is_scored_without_the_file(make_config, tmp_path, trained, folder):
    """The weights are its own from the first checkpoint on."""
    source = tmp_path / "other.pt"
    shutil.copyfile(trained(make_config, "minkunet"), source)
    config = make_config(model={"weights": str(source)})
    whole, parts = Trainer(config, tmp_path / "whole", CPU).run(), tmp_path / "parts"
    Trainer(config, parts, CPU).release()
    source.unlink()
    again = Trainer(config, parts, CPU, resume=True).run()
    assert again.metrics == whole.metrics
    assert main(["evaluate", "--checkpoint", str(parts / "checkpoints" / "last.pt"), "--device", "cpu"]) == 0
