"""What the terminal and TensorBoard show of a finished training."""

from __future__ import annotations

from pathlib import Path

from mink_decouple.engine.outcome import Result
from mink_decouple.metrics import table
from mink_decouple.report.board import last_step, write_board
from mink_decouple.report.export import write_views
from mink_decouple.report.figures import bars, confusion_picture, room_picture
from mink_decouple.report.scenes import arrays_of


def present(result: Result, output: Path) -> None:
    """The table on the terminal; pictures of the scores and of one scene, and that scene as coloured clouds."""
    classes, cloud, folder = result.classes, result.scene.cloud, output / "pictures"
    print(table(classes.names, result.matrices, result.groups))
    folder.mkdir(exist_ok=True)
    first, final = result.predictions["pre-trained"], result.predictions["final"]
    views = write_views(folder, cloud, classes, final)
    pictures = {
        "scene": room_picture(
            cloud.coords, cloud.labels, final, classes, folder / f"{cloud.name}.png", extra={"pre-trained": first}
        ),
        "iou": bars({name: matrix.iou for name, matrix in result.matrices.items()}, classes.names, folder / "iou.png"),
        "confusion": confusion_picture(result.matrices["final"].counts, classes.names, folder / "confusion.png"),
    }
    labels = {"pre-trained": first, "prediction": final}
    if cloud.labels is not None:
        labels = {"truth": cloud.labels, **labels}
    kept = arrays_of(output, "features").get(cloud.name, {})
    features = {stage: (kept[stage], kept["truth"]) for stage in result.metrics["stages"] if stage in kept}
    board = output / "tensorboard"
    write_board(board, last_step(output), pictures, cloud.coords, labels, classes, features)
    files = (*pictures.values(), *views.values())
    print("\n".join(f"wrote {path}" for path in (output / "metrics.json", *files)))
    print(f"everything over time: tensorboard --logdir {board}")
