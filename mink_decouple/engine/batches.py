"""Samples to batches: drawn in order in the calling thread, prepared ahead in loader threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mink_decouple.config import Config
from mink_decouple.data.collate import Batch, View, collate, point_view, rows_from_points, voxel_view
from mink_decouple.data.neighbors import Level
from mink_decouple.data.sampling import CropSampler, SampleIndex, SceneSampler
from mink_decouple.data.transforms import Sample, assemble_features, compose, take
from mink_decouple.engine.lazy import PerScene
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.scenes import Scene
from mink_decouple.models import device_pyramid
from mink_decouple.models.randlanet import VARIANTS

T = TypeVar("T")
NONE = -1


@dataclass(frozen=True)
class Labelled:
    """A batch with what is known of its rows.

    Attributes:
        batch: what the network sees; `batch.target` holds the visible labels.
        pseudo: (n,) int64 pseudo-labels of the rows, -1 where there is none or where a given label is visible.
        confidence: (n,) float32 mean confidence of a row's pseudo-labelled points, 0 where there is none.
        points: (r,) int64 grid point of every sample point.
        later: ratios and neighbours of the pyramid where `to` shall make it, on the device; None where none is wanted.
    """

    batch: Batch
    pseudo: Tensor
    confidence: Tensor
    points: Tensor
    later: tuple[Sequence[int], int] | None = None

    def to(self, device: torch.device) -> Labelled:
        """The same on another device."""
        batch = self.batch.to(device)
        if self.later is not None:
            levels = device_pyramid.pyramid_on(batch.coords, self.batch.sizes.tolist(), *self.later)
            batch = replace(batch, pyramid=[Level(*level) for level in levels])
        return Labelled(batch, self.pseudo.to(device), self.confidence.to(device), self.points)


@dataclass(frozen=True)
class SceneLabels:
    """Labels of one scene's grid points: given (-1 hidden), pseudo (-1 none) and its confidence."""

    visible: np.ndarray
    pseudo: np.ndarray
    confidence: np.ndarray

    @classmethod
    def given(cls, scene: Scene) -> SceneLabels:
        """Only the given labels."""
        shown = scene.visible
        # One value stands for the whole array and takes no memory.
        none, unsure = (np.broadcast_to(value, shown.shape) for value in (np.int64(NONE), np.float32(0)))
        return cls(shown, none, unsure)


def pyramid_later(config: Config, device: torch.device | None) -> tuple[Sequence[int], int] | None:
    """Ratios and neighbours of a pyramid that the device makes faster than a loader thread, else None."""
    if config.backbone != "randla" or device is None or not device_pyramid.usable(device):
        return None
    return VARIANTS[config.model.variant]["ratios"], config.view.k


def make_view(config: Config, sample: Sample, rng: np.random.Generator, with_pyramid: bool = True) -> View:
    """What the configured backbone sees of a sample.

    The feature `offset` (n, 3) is a point's place in its voxel, -0.5 to 0.5 an axis: the geometry that voxels lose.
    """
    edges = np.asarray(config.view.voxel or [config.data.grid] * 3, np.float32)
    cells = sample.coords / edges
    features = {**sample.features, "offset": cells - np.floor(cells) - np.float32(0.5)}
    feats = assemble_features(features, sample.coords, config.data.features, config.data.factors)
    if config.backbone == "minkunet":
        return voxel_view(sample.name, sample.coords, feats, sample.target, edges)
    ratios = VARIANTS[config.model.variant]["ratios"] if with_pyramid else ()
    return point_view(sample.name, sample.coords, feats, sample.target, ratios, config.view.k, rng)


def make_batch(
    config: Config,
    classes: int,
    items: Sequence[tuple[Scene, SceneLabels, SampleIndex]],
    augment: Callable[[Sample, np.random.Generator], Sample],
    rng: np.random.Generator,
    device: torch.device | None = None,
) -> Labelled:
    """Cut, augment and view several samples, and carry their labels to the rows.

    A row that merges several points takes their majority label; a given label hides any pseudo-label of the row. Where
    the batch is bound for a `device` that searches neighbours faster, that is left to `Labelled.to`.
    """
    views, pseudo, confidence, points = [], [], [], []
    later = pyramid_later(config, device)
    for scene, labels, index in items:
        sample = augment(take(scene.grid, index, labels.visible, config.data.centre), rng)
        views.append(make_view(config, sample, rng, with_pyramid=later is None))
        pseudo.append(labels.pseudo[sample.points])
        confidence.append(labels.confidence[sample.points])
        points.append(sample.points)
    batch = collate(views)
    point_pseudo = torch.from_numpy(np.concatenate(pseudo))
    rows = rows_from_points(point_pseudo, batch, classes)
    rows = torch.where(batch.target == NONE, rows, torch.full_like(rows, NONE))
    chosen = (point_pseudo >= 0).float()
    weight = torch.zeros(len(rows)).index_add_(0, batch.inverse, chosen)
    total = torch.zeros(len(rows)).index_add_(0, batch.inverse, torch.from_numpy(np.concatenate(confidence)) * chosen)
    return Labelled(batch, rows, total / weight.clamp_min(1.0), torch.from_numpy(np.concatenate(points)), later)


def make_sampler(config: Config, scenes: Sequence[Scene]) -> CropSampler | SceneSampler:
    """The sampler of a training set: whole scenes, or crops where `view.crop_points` is set."""
    coords = PerScene(scenes, lambda scene: scene.grid.coords)
    if config.view.crop_points == 0:
        return SceneSampler(coords)
    return CropSampler(
        coords,
        config.view.crop_points,
        shape=config.view.shape,
        noise=config.view.center_noise,
        label_centred=config.view.label_centred,
        visible=PerScene(scenes, lambda scene: scene.visible),
        seed=config.seed,
    )


def training_batches(
    config: Config,
    classes: int,
    scenes: dict[str, Scene],
    labels: Mapping[str, SceneLabels],
    sampler: CropSampler | SceneSampler,
    count: int,
    key: tuple[int | str, ...],
    device: torch.device | None = None,
) -> Generator[Labelled, None, None]:
    """`count` batches; the draw of batch i depends on the sampler's state and on (seed, key, i) only."""
    augment = compose(config.augment)

    def jobs() -> Iterator[Callable[[], Labelled]]:
        for i in range(count):
            rng = generator(config.seed, *key, i)
            drawn = [sampler.next(rng) for _ in range(config.view.batch)]
            items = [(scenes[d.scene], labels[d.scene], d) for d in drawn]

            def job(items: Any = items, rng: np.random.Generator = rng) -> Labelled:
                return make_batch(config, classes, items, augment, rng, device)

            yield job

    return prefetch(jobs(), config.view.workers)


def prefetch(jobs: Iterator[Callable[[], T]], workers: int) -> Generator[T, None, None]:
    """Results of `jobs` in order, up to `workers + 1` of them prepared ahead; 0 workers: none ahead, no thread."""
    if workers == 0:
        for job in jobs:
            yield job()
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
