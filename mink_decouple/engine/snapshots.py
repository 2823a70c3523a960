"""Small files of a run folder for pictures of what happened: features, predictions and pseudo-labels of two scenes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mink_decouple.config import Config
from mink_decouple.decouple.pseudo_labels import PseudoLabels
from mink_decouple.engine.batches import SceneLabels, make_batch, pyramid_later
from mink_decouple.engine.predict import crops, turned
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.scenes import Scene
from mink_decouple.models.segmenter import Segmenter

FEATURE_POINTS = 2000
"""Grid points of a scene whose features are kept."""
TITLES = {"pre-trained": "pretrained", "final": "final"}


def richest(scenes: Sequence[Scene], counts: np.ndarray) -> Scene:
    """The scene with the most classes, the first of several; (S, C) points of each scene and class."""
    return scenes[int(np.count_nonzero(counts, axis=1).argmax())]


class Snapshots:
    """Arrays of one training and one evaluation scene, added to as the run goes on.

    `features/SCENE.npz`: `coords` (n, 3) float32, `truth` and `visible` (n,) int64 of at most `FEATURE_POINTS` grid
    points, given labels among them (all where they are less than half), and by the name of each stage that ends in an
    evaluation (n, D) float16: their features, which the classifier sees, of one pass without augmentation by the
    network that is scored.

    `views/SCENE.npz`: `coords` (V, 3), `truth` (V,) int64 of every grid point. Of the evaluation scene also
    `pretrained` and `final` (V,) int16 predictions; of the training scene `visible` (V,) int64, and by iteration
    `iter_NN_label` (V,) int16 (-1 none) and `iter_NN_round` (V,) uint8 (1 certain, 2 uncertain, 0 none).

    A file is written whole, under its name only when it is complete. Arrays that are made anew replace those there, so
    a resumed run leaves the bytes of an uninterrupted one.

    Args:
        output: the run folder.
        config: of the run.
        classes: C.
        device: where the network is.
        train: the training scene.
        pictured: the evaluation scene.
    """

    def __init__(
        self, output: Path, config: Config, classes: int, device: torch.device, train: Scene, pictured: Scene
    ) -> None:
        self.output, self.config, self.classes, self.device = output, config, classes, device
        self.train, self.pictured = train, pictured

    def features(self, model: Segmenter, stage: str) -> None:
        """Keep the features of both scenes at the end of a stage."""
        for scene in {s.name: s for s in (self.train, self.pictured)}.values():
            visible = scene.visible
            rows = _some(visible, generator(self.config.seed, "features", scene.name))
            found: dict[str, np.ndarray] = {
                "coords": scene.grid.coords[rows],
                "truth": scene.truth[rows],
                "visible": visible[rows],
                stage: scene_features(model, self.config, scene, self.classes, self.device, rows).astype(np.float16),
            }
            add_arrays(self.output / "features" / f"{scene.name}.npz", found)

    def prediction(self, title: str, best: np.ndarray) -> None:
        """Keep the (V,) predicted train ids of the evaluation scene: "pre-trained" or "final"."""
        self._view(self.pictured, {TITLES[title]: best.astype(np.int16)})

    def pseudo_labels(self, iteration: int, labels: PseudoLabels) -> None:
        """Keep the pseudo-labels of the training scene; those of a later epoch of the iteration replace them."""
        prefix = f"iter_{iteration:02d}"
        found: dict[str, np.ndarray] = {
            "visible": self.train.visible,
            f"{prefix}_label": labels.label.numpy().astype(np.int16),
            f"{prefix}_round": labels.round.numpy().astype(np.uint8),
        }
        self._view(self.train, found)

    def _view(self, scene: Scene, arrays: dict[str, np.ndarray]) -> None:
        known: dict[str, np.ndarray] = {"coords": scene.grid.coords, "truth": scene.truth}
        add_arrays(self.output / "views" / f"{scene.name}.npz", {**known, **arrays})


def _some(visible: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows whose features are kept, ascending: those with a given label first, which few draws would find."""
    order = rng.permutation(len(visible))
    given = order[visible[order] >= 0][: FEATURE_POINTS // 2]
    rest = order[np.isin(order, given, invert=True)]
    return np.sort(np.concatenate([given, rest])[:FEATURE_POINTS])


@torch.no_grad()
def scene_features(
    model: Segmenter, config: Config, scene: Scene, classes: int, device: torch.device, rows: np.ndarray
) -> np.ndarray:
    """(n, D) float32 features of some grid points of a scene, without augmentation; `rows` (n,) int64.

    Of crops that overlap the last one counts.
    """
    model.eval()
    place = np.full(len(scene.grid), -1, np.int64)
    place[rows] = np.arange(len(rows))
    labels = SceneLabels.given(scene)
    result = np.zeros((len(rows), 0), np.float32)
    for number, index in enumerate(crops(config, scene, "features")):
        if not (place[index.points] >= 0).any():
            continue
        rng = generator(config.seed, "features", scene.name, number)
        item = make_batch(
            config, classes, [(scene, labels, index)], turned(0, config.augment), rng, pyramid_later(config, device)
        )
        moved = item.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.optim.precision == "bf16"):
            features = model.features(moved.batch)
        to = place[item.points.numpy()]
        wanted = torch.from_numpy(np.flatnonzero(to >= 0)).to(device)
        found = features[moved.batch.inverse[wanted]].float().cpu().numpy()
        if result.shape[1] == 0:
            result = np.zeros((len(rows), found.shape[1]), np.float32)
        result[to[to >= 0]] = found
    return result


def add_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Add arrays to a .npz or replace those of the same names, in one move; names are in alphabetical order.

    Those there of other points (`coords`) make way: an earlier version kept others.

    Raises:
        ValueError: the file there is damaged.
    """
    held: dict[str, np.ndarray] = {}
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                held = {key: stored[key] for key in stored.files}
        except Exception as error:  # NumPy, tokenize, zipfile and zlib raise a dozen types, by the place of the damage
            raise ValueError(f"{path}: damaged ({error}); delete it") from None
    if "coords" in arrays and not np.array_equal(held.get("coords", ()), arrays["coords"]):
        held = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            merged = {**held, **arrays}
            # NumPy dates every member 1980, so equal arrays are equal bytes
            np.savez_compressed(file, **{key: merged[key] for key in sorted(merged)})  # type: ignore[arg-type]  # its stub takes the names for allow_pickle
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
