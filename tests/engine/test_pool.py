"""Pooling folds: the sum of what was counted, and nothing that does not belong together."""

import json

import numpy as np
import pytest

from mink_decouple.cli import main
from mink_decouple.engine.pool import pool_runs
from mink_decouple.metrics import ConfusionMatrix

NAMES = ("floor", "wall", "box")


def fold(folder, seed, names=NAMES, **more):
    """A run folder whose metrics.json is of random points; returns (folder, prediction, truth)."""
    rng = np.random.default_rng(seed)
    pred, truth = rng.integers(0, 3, 50), rng.integers(-1, 2 + seed % 2, 50)
    matrix = ConfusionMatrix(3)
    matrix.update(pred, truth)
    content = {**matrix.report(names), "backbone": "randla", "confusion": matrix.confusion.tolist(), **more}
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder, pred, truth


def test_pooled_scores_are_those_of_all_points_together(tmp_path):
    folds = [fold(tmp_path / f"fold{i}", i) for i in range(3)]
    whole = ConfusionMatrix(3)
    whole.update(np.concatenate([f[1] for f in folds]), np.concatenate([f[2] for f in folds]))
    output = tmp_path / "out" / "pooled.json"
    assert main(["pool", *(str(f[0]) for f in folds), "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    expected = whole.report(NAMES)
    assert {key: content[key] for key in ("miou", "iou", "oa", "macc", "points")} == {
        key: expected[key] for key in ("miou", "iou", "oa", "macc", "points")
    }
    assert content["confusion"] == whole.counts[:, :-1].tolist() and content["backbone"] == "randla"
    assert len(content["runs"]) == 3
    # Not the mean of the folds' scores.
    means = [json.loads((f[0] / "metrics.json").read_text())["miou"] for f in folds]
    assert content["miou"] != pytest.approx(np.mean(means), abs=1e-6)


def test_a_pooled_file_may_be_pooled_again(tmp_path):
    a, b, c = (fold(tmp_path / name, i)[0] for i, name in enumerate("abc"))
    pool_runs([a, b], tmp_path / "ab.json")
    nested, flat = pool_runs([tmp_path / "ab.json", c], tmp_path / "1.json"), pool_runs([a, b, c], tmp_path / "2.json")
    assert nested["confusion"] == flat["confusion"] and nested["miou"] == flat["miou"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"confusion": [[1, 2], [3, 4]]}, "'confusion' must be 3 x 3 counts"),
        ({"confusion": [[1], [3, 4], []]}, "'confusion' must be 3 x 3 counts"),
        ({"confusion": [[-1, 0, 0], [0, 0, 0], [0, 0, 0]]}, "'confusion' must be 3 x 3 counts"),
        ({"points": 7}, "points, but 7 were scored"),
        ({"backbone": "minkunet"}, r"backbone 'minkunet'; .* has 'randla'"),
        ({"iou": {"floor": 1, "box": 1, "wall": 1}}, "classes floor, box, wall; .* has floor, wall, box"),
        ({"iou": 3}, "not the metrics.json of a run"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, change, words):
    first, second = fold(tmp_path / "a", 0)[0], fold(tmp_path / "b", 1, **change)[0]
    with pytest.raises(ValueError, match=words) as caught:
        pool_runs([first, second], tmp_path / "pooled.json")
    assert "b/metrics.json" in str(caught.value) and not (tmp_path / "pooled.json").exists()


def test_two_runs_on_one_fold_and_runs_of_two_budgets_are_no_folds(tmp_path):
    first = fold(tmp_path / "a", 0, label_budget={"budget": "1pt"})[0]
    again = tmp_path / "again"  # another network, scored on the same points
    again.mkdir()
    content = json.loads((first / "metrics.json").read_text())
    content["confusion"] = [row[::-1] for row in content["confusion"]]
    (again / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"again.*as many points of every class as .*hence the same scenes twice"):
        pool_runs([first, again], tmp_path / "p.json")
    other = fold(tmp_path / "b", 1, label_budget={"budget": "1%"})[0]
    with pytest.raises(ValueError, match=r"b.metrics\.json: label budget '1%'; .* has '1pt'"):
        pool_runs([first, other], tmp_path / "p.json")


def test_a_fold_counts_once_and_must_be_there(tmp_path):
    first = fold(tmp_path / "a", 0)[0]
    with pytest.raises(ValueError, match="named twice"):
        pool_runs([first, first / "metrics.json"], tmp_path / "p.json")
    with pytest.raises(ValueError, match="needs at least two folds"):
        pool_runs([first], tmp_path / "p.json")
    with pytest.raises(FileNotFoundError, match=r"nothing.*: no such file"):
        pool_runs([first, tmp_path / "nothing"], tmp_path / "p.json")
    old = fold(tmp_path / "old", 2)[0] / "metrics.json"
    content = json.loads(old.read_text())
    del content["confusion"]
    old.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has no 'confusion'; score the checkpoint again"):
        pool_runs([first, old], tmp_path / "p.json")
    old.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        pool_runs([first, old], tmp_path / "p.json")
