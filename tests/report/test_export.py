from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data.classes import Classes
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import read_cloud
from mink_decouple.report.export import confidence_colors, write_views
from mink_decouple.report.figures import CORRECT, UNLABELLED, WRONG

CLASSES = Classes(("floor", "wall"), np.array([[10, 20, 30], [200, 0, 100]], np.uint8), {0: 0, 1: 1})


def cloud(labels: list[int] | None = None) -> PointCloud:
    coords = np.arange(12, dtype=np.float32).reshape(4, 3)
    truth = None if labels is None else np.asarray(labels, np.int64)
    return PointCloud("Area_5/office 1", coords, np.array([650_000.0, 6_860_000.0, 0.0]), {}, truth)


def colors(path: Path) -> np.ndarray:
    return np.round(read_cloud(path).features["rgb"] * 255).astype(int)


def test_every_view_is_written_with_its_colours_and_numbers(tmp_path: Path):
    prediction = np.array([0, 0, 1, 1])
    confidence = np.array([0.0, 0.25, 0.5, 1.0])
    files = write_views(tmp_path, cloud([0, 1, 1, -1]), CLASSES, prediction, confidence, np.array([-1, -1, 1, 0]))
    assert list(files) == ["truth", "prediction", "error", "confidence", "pseudo_labels"]
    assert files["truth"].name == "Area_5_office_1_truth.ply"
    floor, wall = CLASSES.colors.tolist()
    assert colors(files["truth"]).tolist() == [floor, wall, wall, list(UNLABELLED)]
    assert colors(files["prediction"]).tolist() == [floor, floor, wall, wall]
    assert colors(files["error"]).tolist() == [list(c) for c in (CORRECT, WRONG, CORRECT, UNLABELLED)]
    assert colors(files["pseudo_labels"]).tolist() == [list(UNLABELLED), list(UNLABELLED), wall, floor]
    assert read_cloud(files["prediction"]).labels.tolist() == prediction.tolist()
    np.testing.assert_allclose(read_cloud(files["confidence"]).features["confidence"], confidence)
    np.testing.assert_array_equal(read_cloud(files["error"]).features["error"], [0, 1, 0, -1])


def test_files_hold_world_coordinates(tmp_path: Path):
    original = cloud([0, 0, 1, 1])
    back = read_cloud(write_views(tmp_path, original, CLASSES)["truth"])
    np.testing.assert_allclose(back.coords + back.offset, original.coords + original.offset, atol=1e-3)


def test_without_truth_there_is_no_truth_and_no_error(tmp_path: Path):
    assert list(write_views(tmp_path, cloud(), CLASSES, np.zeros(4, int))) == ["prediction"]


def test_nothing_to_write_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="neither labels nor a prediction"):
        write_views(tmp_path, cloud(), CLASSES)


def test_a_column_of_another_length_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match=r"confidence has shape \(3,\) for 4 points"):
        write_views(tmp_path, cloud([0, 0, 1, 1]), CLASSES, np.zeros(4, int), np.zeros(3))
    assert not list(tmp_path.iterdir())


def test_brightness_grows_with_confidence():
    brightness = confidence_colors(np.linspace(0, 1, 11)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(brightness) > 0).all()
    assert confidence_colors(np.array([np.nan])).tolist() == confidence_colors(np.array([0.0])).tolist()
