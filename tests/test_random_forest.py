from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mink_decouple.config import load_config
from mink_decouple.data import eigen_features as eigen
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import write_cloud

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


rf = load("random_forest")


def described(coords, places, radius, max_neighbors=64, attributes=None):
    return eigen.Spheres(coords, radius, max_neighbors, attributes).describe(places)


def column(table: np.ndarray, name: str) -> np.ndarray:
    return table[:, eigen.SHAPE_NAMES.index(name)]


def shape_of(points: np.ndarray) -> np.ndarray:
    return described(points, np.zeros((1, 3)), radius=1.0, max_neighbors=2000)


def test_a_line_a_plane_and_a_ball_are_told_apart():
    rng = np.random.default_rng(0)
    line = np.outer(rng.uniform(-1, 1, 500), [1.0, 1.0, 0.0]) / np.sqrt(2)
    disc = rng.normal(size=(4000, 2))
    disc *= (np.sqrt(rng.uniform(size=(4000, 1))) / np.linalg.norm(disc, axis=1, keepdims=True)) * 0.99
    plane = np.column_stack([disc[:1500], np.zeros(1500)])
    ball = rng.normal(size=(1500, 3))
    ball *= 0.99 * np.cbrt(rng.uniform(size=(1500, 1))) / np.linalg.norm(ball, axis=1, keepdims=True)
    for points, name in ((line, "linearity"), (plane, "planarity"), (ball, "sphericity")):
        found = shape_of(points)
        assert column(found, name)[0] > 0.85
        total = sum(column(found, n)[0] for n in ("linearity", "planarity", "sphericity"))
        assert total == pytest.approx(1, abs=1e-5)
    assert column(shape_of(plane), "verticality")[0] == pytest.approx(0, abs=1e-5)
    assert column(shape_of(plane[:, [2, 0, 1]]), "verticality")[0] == pytest.approx(1, abs=1e-5)
    assert column(shape_of(ball), "surface_variation")[0] == pytest.approx(1 / 3, abs=0.05)
    assert column(shape_of(ball), "eigenentropy")[0] == pytest.approx(np.log(3), abs=0.02)


def test_features_equal_a_loop_over_the_neighbours():
    rng = np.random.default_rng(1)
    coords, value = rng.uniform(0, 1, (80, 3)), rng.normal(size=(80, 1))
    table = described(coords, coords[:10], 0.4, 500, value)
    for query, row in zip(coords[:10], table):
        near = np.linalg.norm(coords - query, axis=1) < 0.4
        points = coords[near]
        c, b, a = np.linalg.eigvalsh(np.cov(points.T, bias=True))
        expected = {
            "linearity": (a - b) / a,
            "omnivariance": np.cbrt(a * b * c),
            "anisotropy": (a - c) / a,
            "surface_variation": c / (a + b + c),
            "eigenvalue_sum": a + b + c,
            "neighbors": len(points),
            "distance_to_mean": np.linalg.norm(points.mean(0) - query),
            "z_range": np.ptp(points[:, 2]),
            "z_above_min": query[2] - points[:, 2].min(),
            "z_below_max": points[:, 2].max() - query[2],
            "z_std": points[:, 2].std(),
            "z_to_mean": points[:, 2].mean() - query[2],
        }
        for name, number in expected.items():
            assert row[eigen.SHAPE_NAMES.index(name)] == pytest.approx(number, rel=1e-4, abs=1e-6), name
        assert row[-2] == pytest.approx(value[near].mean(), rel=1e-4)
        assert row[-1] == pytest.approx(value[near].std(), rel=1e-4)


def test_features_do_not_change_when_the_scene_moves_or_turns_about_the_vertical():
    rng = np.random.default_rng(2)
    coords = rng.uniform(0, 1, (200, 3))
    moved = Rotation.from_euler("z", 40, degrees=True).apply(coords) + np.array([1000.0, -500.0, 80.0])
    first, second = described(coords, coords, 0.3), described(moved, moved, 0.3)
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)


def test_lonely_points_have_finite_features():
    coords = np.array([[0.0, 0, 0], [10, 0, 0], [10.1, 0, 0]])
    table = described(coords, np.vstack([coords, [[50.0, 50, 50]]]), 1.0, attributes=np.ones((3, 1)))
    assert np.isfinite(table).all()
    assert column(table, "neighbors").tolist() == [1, 2, 2, 0]
    assert (column(table, "linearity") == 0).all()


def test_no_more_neighbours_than_asked_are_used():
    coords = np.random.default_rng(3).uniform(0, 1, (300, 3))
    assert column(described(coords, coords, 5.0, 20), "neighbors").max() == 20


def test_thinning_keeps_one_point_per_cell():
    coords = np.array([[0.0, 0, 0], [0.1, 0, 0], [0.6, 0, 0], [0.7, 0.6, 0]])
    assert eigen.thin(coords, 0.5).tolist() == [0, 2, 3]


def test_asking_for_some_points_gives_their_rows_of_the_whole():
    rng = np.random.default_rng(4)
    coords = rng.uniform(0, 4, (150, 3)).astype(np.float32)
    recorded = {"intensity": rng.uniform(size=150).astype(np.float32), "unknown": np.zeros(150)}
    settings = rf.Settings(radii=(0.5, 1.0), ground=False)
    rows = np.array([3, 90, 20])
    np.testing.assert_array_equal(
        rf.features(coords, recorded, settings, rows), rf.features(coords, recorded, settings)[rows]
    )


def test_a_forest_learns_is_repeatable_and_says_how_it_chose():
    rng = np.random.default_rng(6)
    target = np.repeat([0, 2], 40)
    rows = (rng.normal(size=(80, 3)) + 3 * target[:, None]).astype(np.float32)
    settings = rf.Settings((1.0,), trees=10, class_weights=(None, "balanced"), min_samples_leaf=(1,))
    forest, scores = rf.fit(rows, target, 0, settings)
    classes, share = rf.predict(forest, rows)
    assert (classes == target).mean() > 0.95
    assert len(scores) == 2 and max(scores.values()) > 0.9
    assert ((share >= 0.5) & (share <= 1)).all()
    np.testing.assert_array_equal(classes, rf.predict(rf.fit(rows, target, 0, settings)[0], rows)[0])


def test_one_labelled_point_per_class_is_enough_to_fit():
    forest, scores = rf.fit(np.eye(3, dtype=np.float32), np.array([0, 1, 4]), 0, rf.Settings((1.0,), trees=5))
    assert scores == {} and set(rf.predict(forest, np.eye(3, dtype=np.float32))[0]) <= {0, 1, 4}


def test_no_label_is_refused():
    with pytest.raises(ValueError, match="0 labelled points"):
        rf.fit(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), 0, rf.Settings((1.0,)))


def test_spread_is_the_sample_deviation_over_known_values():
    mean, deviation = rf.spread([1.0, 2.0, 3.0, float("nan")])
    assert mean == 2.0 and deviation == pytest.approx(1.0)
    mean, deviation = rf.spread([4.0])
    assert mean == 4.0 and np.isnan(deviation)


def test_clouds_of_different_columns_are_described_by_those_they_share(tmp_path):
    """As tiles of two deliveries are, one of them with colours."""
    rng = np.random.default_rng(0)
    for number in range(3):
        coloured = {} if number == 1 else {"rgb": rng.random((200, 3), dtype=np.float32)}
        label, coords = 1 + np.arange(200) % 2, rng.random((200, 3), dtype=np.float32)
        values = {"intensity": (label + 0.1 * rng.random(200)).astype(np.float32), **coloured}
        write_cloud(tmp_path / "clouds" / f"{number}.npz", PointCloud("c", coords, features=values, labels=label))
    (tmp_path / "classes.yaml").write_text("classes: {a: {raw: [1]}, b: {raw: [2]}}\n")
    data = {
        "dataset": "folder",
        "root": str(tmp_path / "clouds"),
        "classes": str(tmp_path / "classes.yaml"),
        "splits": {"train": ["0", "1"], "val": ["2"]},
        "features": ["intensity"],
    }
    config = load_config(overrides={"data": data, "labels": {"budget": "10%"}})
    assert rf.run(config, [0], radii=[0.5], trees=5)["mean"]["oa"] > 0.9


def test_the_command_scores_the_embedded_rooms_and_refuses_a_wrong_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINK_DECOUPLE_CACHE", str(tmp_path / "cache"))
    small = ["data.synthetic.areas=5", "data.synthetic.rooms_per_area=1", "data.synthetic.points_per_room=1000"]
    common = ["--seeds", "0", "1", "--trees", "10", "--radii", "0.5", "--output", str(tmp_path), "--set", *small]
    assert rf.main(["--labels", "5%", *common]) == 0
    result = json.loads((tmp_path / "random_forest.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    assert result["mean"]["miou"] == pytest.approx(np.mean([run["miou"] for run in result["runs"]]))
    assert result["mean"]["oa"] > 2 / 13  # well above a guess, which is all that so few rays and trees promise
    capsys.readouterr()
    assert rf.main(["--labels", "some", *common]) == 2
    assert capsys.readouterr().err.startswith("error: label budget 'some'")
