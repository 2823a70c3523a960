"""Class probabilities for every grid point of a scene, by tiles or crops, averaged over augmented passes (votes)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mink_decouple.config import Config
from mink_decouple.data.grid import GridCloud
from mink_decouple.data.sampling import SampleIndex, coverage, middle
from mink_decouple.data.segments import over_segment, pool
from mink_decouple.data.tiles import Tile, tiles
from mink_decouple.data.transforms import Sample, is_on, linear
from mink_decouple.engine.batches import Labelled, SceneLabels, make_batch, prefetch, pyramid_later
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.scenes import Scene
from mink_decouple.models.segmenter import Segmenter


def turned(vote: int, augment: Mapping[str, Any]) -> Callable[[Sample, np.random.Generator], Sample]:
    """The augmentation of a vote: the symmetries of the square about the vertical, then slight scales of them.

    Only those that training showed the network: quarter turns where `augment` has `rotate_z`, mirrored ones where it
    has `flip`, scales where it has `scale`. Vote 0 leaves the sample as it is.
    """
    turns, mirrors = _symmetries(augment)
    quarter, mirror = vote % turns, vote // turns % mirrors
    size = 1.0 + 0.05 * (vote // (turns * mirrors)) if is_on(augment.get("scale")) else 1.0
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter]
    matrix = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag([-1.0 if mirror else 1.0, 1.0, 1.0]) * size
    plain = (quarter, mirror, size) == (0, 0, 1.0)

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        return sample if plain else linear(sample, matrix, size)

    return apply


def _symmetries(augment: Mapping[str, Any]) -> tuple[int, int]:
    """Turns and mirror images that a network trained with `augment` has seen."""
    return (4 if is_on(augment.get("rotate_z")) else 1), (2 if is_on(augment.get("flip")) else 1)


def crops(config: Config, scene: Scene, key: int | str = 0) -> list[SampleIndex]:
    """Crops that together hold every grid point of a scene; the whole scene where `view.crop_points` is 0."""
    size = config.view.crop_points or len(scene.grid)
    rng = generator(config.seed, "coverage", scene.name, key)
    return coverage(scene.name, scene.grid.coords, size, shape=config.view.shape, rng=rng)


WHOLE_POINTS = 1 << 19
"""Grid points of a scene up to which a network that is asked in tiles is given it in one piece."""
MARGIN_VOXELS = 64
"""Surroundings that a tile of a larger scene is predicted with."""


@dataclass(frozen=True)
class Piece:
    """What the network sees at once."""

    index: SampleIndex
    vote: int
    key: tuple[int | str, ...]


def in_tiles(config: Config) -> bool:
    """Whether a network is asked in tiles rather than in crops like those it trained on.

    A tile has its surroundings around it, no point is computed several times, and memory follows the tile. It takes a
    network of any number of points (MinkUNet, or one that trained on whole scenes), whose features do not say where in
    its crop a point lies.
    """
    return config.view.crop_points == 0 or (config.backbone == "minkunet" and "xyz" not in config.data.features)


def probabilities(
    model: Segmenter, config: Config, scene: Scene, classes: int, device: torch.device, votes: int
) -> np.ndarray:
    """Mean class probabilities of every grid point.

    Args:
        model: is put into evaluation mode.
        config: of the run.
        scene: V grid points.
        classes: C.
        device: where the model is.
        votes: augmented passes over the scene.

    Returns:
        (V, C) float32; rows sum to 1.
    """
    total = np.zeros((len(scene.grid), classes), np.float32)
    if in_tiles(config):
        for tile, mean in _tiles(model, config, scene, classes, device, votes):
            total[tile.points[tile.core]] = mean[tile.core]
        return total
    count = np.zeros(len(scene.grid), np.float32)
    for points, probs in _passes(model, config, scene, classes, device, _crop_pieces(config, scene, votes)):
        total[points] += probs
        count[points] += 1
    return total / np.maximum(count, 1)[:, None]


def decide(
    model: Segmenter, config: Config, scene: Scene, classes: int, device: torch.device, votes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest class of every grid point and its mean probability; see `in_tiles` for the memory it takes.

    With `eval.smooth: segments` the probabilities are pooled within segments of the scene first (`over_segment`,
    `pool`), not part of the paper. Segments end at the tiles of a scene of more than `WHOLE_POINTS`.

    Returns:
        (V,) int64 train ids and (V,) float32.
    """
    smoothed = config.eval.smooth == "segments"
    if not smoothed and not in_tiles(config):
        probs = probabilities(model, config, scene, classes, device, votes)
        best: np.ndarray = probs.argmax(1)
        return best, probs.max(1)
    if in_tiles(config):
        parts = _tiles(model, config, scene, classes, device, votes)
    else:
        probs = probabilities(model, config, scene, classes, device, votes)
        cut = tiles(scene.grid.coords, WHOLE_POINTS, _margin(config))
        parts = ((tile, probs[tile.points]) for tile in cut)
    ids, confidence = np.zeros(len(scene.grid), np.int64), np.zeros(len(scene.grid), np.float32)
    for tile, mean in parts:
        if smoothed:
            mean = pool(mean, _segments(config, scene, tile.points))
        core = tile.points[tile.core]
        ids[core], confidence[core] = mean[tile.core].argmax(1), mean[tile.core].max(1)
    return ids, confidence


def _segments(config: Config, scene: Scene, points: np.ndarray) -> np.ndarray:
    """Segments of some grid points; colour counts where the network sees it, as a file may be read without."""
    grid = scene.grid
    colour = {"rgb": grid.features["rgb"][points]} if "rgb" in config.data.features else {}
    part = GridCloud(grid.name, grid.coords[points], colour, None, np.empty(0, np.int64), grid.size)
    return over_segment(part, config.segments)


def _margin(config: Config) -> float:
    """Metres of surroundings that a tile is predicted with."""
    return MARGIN_VOXELS * max(config.view.voxel or [config.data.grid])


def _tiles(
    model: Segmenter, config: Config, scene: Scene, classes: int, device: torch.device, votes: int
) -> Iterator[tuple[Tile, np.ndarray]]:
    """Each tile and the mean (n, C) probabilities of its points, margin and all.

    A tile is predicted with `MARGIN_VOXELS` of its surroundings and the voxels where they lie in the whole, so that
    seams do not show.
    """
    coords = scene.grid.coords
    centre = middle(coords)
    if not is_on(config.augment.get("scale")):
        votes = min(votes, math.prod(_symmetries(config.augment)))  # further ones would see the same again
    for number, tile in enumerate(tiles(coords, WHOLE_POINTS, _margin(config))):
        index = SampleIndex(scene.name, tile.points, centre)
        pieces = [Piece(index, vote, ("vote", scene.name, vote, number)) for vote in range(votes)]
        total = np.zeros((len(tile.points), classes), np.float32)
        for _, probs in _passes(model, config, scene, classes, device, pieces):
            total += probs
        yield tile, total / np.float32(votes)


def _crop_pieces(config: Config, scene: Scene, votes: int) -> Iterator[Piece]:
    for vote in range(votes):
        for number, index in enumerate(crops(config, scene, vote)):
            yield Piece(index, vote, ("vote", scene.name, vote, number))


@torch.no_grad()
def _passes(
    model: Segmenter, config: Config, scene: Scene, classes: int, device: torch.device, pieces: Iterable[Piece]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(n,) grid points of each piece, each once, and their (n, C) float32 probabilities."""
    model.eval()
    labels, later = SceneLabels.none(len(scene.grid)), pyramid_later(config, device)

    def jobs() -> Iterator[Callable[[], Labelled]]:
        for piece in pieces:

            def job(piece: Piece = piece) -> Labelled:
                item = (scene, labels, piece.index)
                return make_batch(
                    config,
                    classes,
                    [item],
                    turned(piece.vote, config.augment),
                    generator(config.seed, *piece.key),
                    later,
                )

            yield job

    for item in prefetch(jobs(), config.view.workers):
        on_device = item.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.optim.precision == "bf16"):
            logits = model(on_device.batch)
        yield item.points.numpy(), logits.float().softmax(1)[on_device.batch.inverse].cpu().numpy()
