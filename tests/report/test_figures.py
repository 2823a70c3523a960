from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data.classes import S3DIS, Classes, default_palette, load_classes
from mink_decouple.data.scannet_labels import SCANNET
from mink_decouple.data.semantic3d import SEMANTIC3D
from mink_decouple.data.semantickitti import SEMANTICKITTI
from mink_decouple.report import figures

CLASSES = Classes(
    ("ceiling", "floor", "wall"), np.array([[0, 255, 0], [0, 0, 255], [0, 255, 255]], np.uint8), {0: 0, 1: 1, 2: 2}
)
FILES = sorted((Path(__file__).parents[2] / "configs" / "dataset").glob("*_classes.yaml"))
SHIPPED = {"S3DIS": S3DIS, "ScanNet": SCANNET, "Semantic3D": SEMANTIC3D, "SemanticKITTI": SEMANTICKITTI}
SHIPPED |= {file.stem: load_classes(file) for file in FILES}
TILE = Classes(("ground", "tree"), np.array([[150, 100, 50], [0, 160, 0]], np.uint8), {2: 0, 5: 1})


def room(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A box of 4 x 6 x 3 m: ceiling, floor and one wall, 400 points each."""
    rng = np.random.default_rng(seed)
    flat = rng.uniform((0, 0), (4, 6), (800, 2))
    level = np.repeat([3.0, 0.0], 400)
    wall = np.column_stack([np.zeros(400), rng.uniform(0, 6, 400), rng.uniform(0, 3, 400)])
    return np.vstack([np.column_stack([flat, level]), wall]).astype(np.float32), np.repeat([0, 1, 2], 400)


def read_png(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


def near(image: np.ndarray, color: tuple[int, int, int]) -> int:
    """Pixels of that hue, however shaded: the direction of the colour is compared."""
    target = np.asarray(color) / np.linalg.norm(color)
    length = np.linalg.norm(image, axis=-1)
    return int((((image @ target) > 0.995 * length) & (length > 0.2)).sum())


def test_ceiling_is_cut_only_where_a_class_is_called_so():
    coords, labels = room()
    kept = figures.below_ceiling(coords, labels, CLASSES.names)
    assert not kept[labels == 0].any() and kept[labels == 1].all()
    assert coords[kept, 2].max() < 2.9
    assert figures.below_ceiling(coords, labels, ("a", "b", "c")).all()
    assert figures.below_ceiling(coords, np.ones_like(labels), CLASSES.names).all()


def test_error_is_grey_red_or_unknown():
    colors = figures.error_colors(np.array([0, 1, -1]), np.array([0, 0, 0]))
    assert colors.tolist() == [list(figures.CORRECT), list(figures.WRONG), list(figures.UNLABELLED)]


@pytest.mark.parametrize("name", [*SHIPPED, "default"])
def test_points_without_a_label_have_a_colour_of_their_own(name: str):
    """Against a light grey, such as S3DIS' board, the distance in RGB was 9 and 43."""
    palette = default_palette(20) if name == "default" else SHIPPED[name].colors
    taken = np.vstack([palette, [(255, 255, 255), figures.CORRECT, figures.WRONG]]).astype(float)
    assert np.linalg.norm(taken - figures.UNLABELLED, axis=1).min() > 50


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"-1\.\.2, found 0\.\.3"):
        figures.label_colors(np.array([0, 3]), CLASSES)


def test_picture_of_a_room_has_the_asked_width_and_shows_floor_and_wall_but_no_ceiling(tmp_path: Path):
    coords, labels = room()
    prediction = np.where(labels == 2, 1, labels)
    path = figures.room_picture(
        coords, labels, prediction, CLASSES, tmp_path / "new" / "room.png", title="room", width=800
    )
    image = read_png(path)
    assert image.shape[1] == 800
    panels = np.array_split(image[60:-40], 3, axis=1)
    truth, predicted, error = panels
    assert near(truth, (0, 0, 255)) > 1000 and near(truth, (0, 255, 255)) > 1000
    assert near(truth, (0, 255, 0)) == 0
    assert near(predicted, (0, 255, 255)) == 0
    assert near(error, figures.WRONG) > 500 and near(error, figures.WRONG) < near(error, figures.CORRECT)


def test_score_in_the_title_is_the_mean_iou_of_the_scene():
    # floor 400 right and 400 taken from the wall: 0.5; ceiling 1; wall 0. Mean of three: 50 %.
    _, labels = room()
    assert figures._score(labels, np.where(labels == 2, 1, labels), 3) == "mIoU 50.0 % over 3 classes"
    assert figures._score(np.full(3, -1), np.zeros(3, int), 3) == ""


def test_an_outdoor_scene_and_a_scene_without_truth_can_be_drawn(tmp_path: Path):
    coords, labels = room()
    prediction = (labels == 2).astype(np.int64)
    assert figures.room_picture(coords, None, prediction, TILE, tmp_path / "a.png", width=400).is_file()
    assert figures.room_picture(coords, prediction, None, TILE, tmp_path / "b.png", width=400).is_file()
    extra = {"pre-trained": prediction}
    assert figures.room_picture(coords, prediction, prediction, TILE, tmp_path / "c.png", extra, width=400).is_file()


def test_a_single_point_can_be_drawn(tmp_path: Path):
    one = np.zeros((1, 3), np.float32)
    assert figures.room_picture(one, np.array([0]), np.array([1]), TILE, tmp_path / "one.png", width=400).is_file()


def test_pictures_without_anything_to_draw_are_refused(tmp_path: Path):
    coords, labels = room()
    with pytest.raises(ValueError, match="0 columns"):
        figures.room_picture(coords, None, None, CLASSES, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"'prediction' has shape \(3,\)"):
        figures.room_picture(coords, labels, labels[:3], CLASSES, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no run"):
        figures.bars({}, ("a",), tmp_path / "x.png")
    with pytest.raises(ValueError, match="for 2 classes"):
        figures.confusion_picture(np.zeros((3, 3), int), ("a", "b"), tmp_path / "x.png")
    with pytest.raises(ValueError, match="run 'r'"):
        figures.bars({"r": np.zeros(3)}, ("a", "b"), tmp_path / "x.png")


def test_confusion_and_bars_are_drawn_with_absent_classes(tmp_path: Path):
    confusion = np.array([[50, 50, 0], [0, 100, 0], [0, 0, 0]])
    assert read_png(figures.confusion_picture(confusion, CLASSES.names, tmp_path / "c.png")).std() > 0
    runs = {"a": np.array([0.5, np.nan, 1.0]), "b": np.full(3, np.nan)}
    assert read_png(figures.bars(runs, CLASSES.names, tmp_path / "b.png", spread={"a": np.full(3, 0.1)})).std() > 0


def test_drawing_touches_no_global_state_of_matplotlib(tmp_path: Path):
    before = set(sys.modules)
    coords, labels = room()
    figures.room_picture(coords, labels, labels, CLASSES, tmp_path / "r.png", width=400)
    assert "matplotlib.pyplot" not in set(sys.modules) - before
