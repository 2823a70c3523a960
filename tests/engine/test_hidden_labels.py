"""What training weighs classes by comes from visible labels only: other hidden labels change nothing of it."""

import numpy as np
import pytest
import torch

from mink_decouple.config import override
from mink_decouple.data.budget import LabelSet, draw, parse_budget
from mink_decouple.engine import checkpoint
from mink_decouple.engine.pseudo import labelled_counts, make_pseudo_labels
from mink_decouple.engine.scenes import load_split, open_dataset, training_labels
from mink_decouple.engine.train import Trainer


@pytest.fixture
def planted(folder, make_config, tmp_path):
    """Two configurations of equal clouds and equal visible labels; in the second every hidden label is another."""
    config = make_config()
    dataset = open_dataset(config)
    scenes = {s.name: s for s in load_split(config, dataset, "train")}
    names = dataset.classes.names
    labels = draw(
        list(scenes), lambda name: (scenes[name].cloud, scenes[name].grid), parse_budget("uniform:6%"), names, 1
    )
    assert not labels.missing
    labels.save(tmp_path / "labels.npz")
    other = tmp_path / "other"
    other.mkdir()
    (other / "classes.yaml").write_text((folder / "classes.yaml").read_text())
    for path in folder.glob("*.npz"):
        with np.load(path) as stored:
            content = dict(stored)
        kept = labels.index.get(path.stem, np.empty(0, np.int64))
        hidden = np.ones(len(content["label"]), bool)
        hidden[kept] = False
        content["label"][hidden] = 7  # all of them "box", the rarest by far where they are visible
        np.savez(other / path.name, **content)
    budget = {"budget": str(tmp_path / "labels.npz")}
    return [make_config(labels=budget, data={"root": str(root)}) for root in (folder, other)]


@pytest.mark.parametrize("source", ["labels", "predicted", "auto"])
def test_class_weights_and_imbalance_ratios_do_not_see_hidden_labels(planted, source, tmp_path, make_config):
    found = []
    for number, config in enumerate(planted):
        pseudo = type(config.pseudo)(**{**vars(config.pseudo), "rho_source": source})
        config = type(config)(**{**vars(config), "pseudo": pseudo})
        trainer = Trainer(config, tmp_path / f"run{number}", torch.device("cpu"))
        selection = make_pseudo_labels(trainer.model, config, trainer.scenes, trainer.count, trainer.device)
        truth = np.concatenate([s.truth for s in trainer.scenes])
        found.append((trainer.weight, labelled_counts(trainer.scenes, 3), selection.rho, selection.predicted, truth))
        trainer.events.close()
    (*one, truth), (*other, planted_truth) = found
    assert (truth != planted_truth).mean() > 0.4
    for a, b in zip(one, other):
        assert torch.equal(a, b)
    weight, counts = one[0], one[1].sum(0).double()
    torch.testing.assert_close(weight, (1 / (counts / counts.sum() + 0.02)).float())


def test_a_label_file_says_nothing_of_hidden_labels(planted):
    sets: list[LabelSet] = []
    for config in planted:
        dataset = open_dataset(config)
        sets.append(training_labels(config, dataset, load_split(config, dataset, "train")))
    assert sets[0].checksum == sets[1].checksum
    for key in ("raw_counts", "raw_share", "raw_points", "grid_points", "grid_counts", "grid_share"):
        assert sets[0].meta[key] == sets[1].meta[key], key


def test_a_class_that_a_blind_budget_misses_is_named_and_other_budgets_without_labels_are_refused(
    make_config, capsys, tmp_path
):
    config = make_config(labels={"budget": "uniform:0.1%"})
    dataset = open_dataset(config)
    scenes = load_split(config, dataset, "train")
    labels = training_labels(config, dataset, scenes)
    assert labels.missing
    assert f"no labelled point of class {', '.join(labels.missing)} in the training split" in capsys.readouterr().out
    labels.save(tmp_path / "drawn.npz")
    assert training_labels(config, dataset, scenes, tmp_path / "drawn.npz").checksum == labels.checksum
    with pytest.raises(ValueError, match="leave the class out of the classes"):
        training_labels(make_config(labels={"budget": "1x"}), dataset, scenes)
    empty = LabelSet(
        {name: index[:0] for name, index in labels.index.items()},
        {name: label[:0] for name, label in labels.label.items()},
        labels.meta,
    )
    empty.save(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match="no labelled point in the training split"):
        training_labels(make_config(labels={"budget": str(tmp_path / "empty.npz")}), dataset, scenes)


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["segments", "forest"])
def test_a_run_with_every_switch_beyond_the_paper_does_not_see_hidden_labels(planted, tmp_path, spread):
    switches = {
        "ema": {"decay": 0.9},
        "view": {"mix": 0.7},
        "loss": {"erda": 0.1},
        "ii": {"labels": "spread", "class_weight": "inv", "sampler": "balanced", "logit_adjust": 0.3},
        "pseudo": {"smooth": "segments", "delta_d": 0.0, "delta_len": 0.05},
        "labels": {"spread": spread, "spread_in": "all"},
        "forest": {"trees": 5},
    }
    found = []
    for number, config in enumerate(planted):
        output = tmp_path / f"run{number}"
        Trainer(override(config, switches), output, torch.device("cpu")).run()
        table = (output / "pseudo_labels" / "iter_00.npz").read_bytes()
        found.append((checkpoint.load(output / "checkpoints" / "last.pt"), table))
    (one, table), (other, planted_table) = found
    assert table == planted_table
    for key in one["model"]:
        assert torch.equal(one["model"][key], other["model"][key]), key
    for key in one["alignment"]:
        assert torch.equal(one["alignment"][key], other["alignment"][key]), key
