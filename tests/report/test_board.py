"""What TensorBoard gets, read back by its own library."""

import numpy as np

from mink_decouple.data.classes import Classes
from mink_decouple.report.board import last_step, write_board
from mink_decouple.report.figures import confusion_picture

CLASSES = Classes(("floor", "wall"), np.array([[0, 0, 255], [0, 200, 0]], np.uint8), {1: 0, 2: 1})


def test_pictures_clouds_and_features_come_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rng = np.random.default_rng(0)
    coords, truth = rng.random((50, 3)), np.arange(50) % 2
    picture = confusion_picture(np.array([[3, 1], [0, 4]]), CLASSES.names, tmp_path / "confusion.png")
    features = {"pretrain": (rng.random((20, 4)).astype(np.float16), np.arange(20) % 3 - 1)}
    labels = {"truth": truth, "prediction": np.zeros(50, np.int64)}
    write_board(tmp_path / "board", 7, {"confusion": picture}, coords, labels, CLASSES, features)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["confusion"] and events.Images("confusion")[0].step == 7
    assert {tag.split("_")[0] for tag in tags["tensors"]} == {"scene/truth", "scene/prediction", "scene/error"}
    colors = next(tag for tag in tags["tensors"] if tag.startswith("scene/truth") and "COLOR" in tag)
    content = events.Tensors(colors)[0].tensor_proto
    assert [d.size for d in content.tensor_shape.dim] == [1, 50, 3]
    (table,) = (tmp_path / "board").rglob("tensors.tsv")
    assert np.loadtxt(table).shape == (20, 4)
    names = (table.parent / "metadata.tsv").read_text().split()
    assert names[:3] == ["unknown", "floor", "wall"]


def test_the_last_step_is_that_of_the_last_event(tmp_path):
    assert last_step(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"step": 12}\n')
    assert last_step(tmp_path) == 12
