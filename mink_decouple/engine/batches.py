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
from mink_decouple.data.mixing import halves, join
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
        points: (r,) int64 grid point of every sample point; in a mixed sample, of the scene that the point is from.
        present: (b, C) bool classes that the rows of each sample may be of (`Scene.possible`); None where `loss.absent`
            does not ask for it.
        later: ratios and neighbours of the pyramid where `to` shall make it, on the device; None where none is wanted.
    """

    batch: Batch
    pseudo: Tensor
    confidence: Tensor
    points: Tensor
    present: Tensor | None = None
    later: tuple[Sequence[int], int] | None = None

    def to(self, device: torch.device) -> Labelled:
        """The same on another device."""
        batch = self.batch.to(device)
        if self.later is not None:
            levels = device_pyramid.pyramid_on(batch.coords, self.batch.sizes.tolist(), *self.later)
            batch = replace(batch, pyramid=[Level(*level) for level in levels])
        present = None if self.present is None else self.present.to(device)
        return Labelled(batch, self.pseudo.to(device), self.confidence.to(device), self.points, present)


@dataclass(frozen=True)
class SceneLabels:
    """Labels of one scene's grid points: given (-1 hidden), pseudo (-1 none) and its confidence."""

    visible: np.ndarray
    pseudo: np.ndarray
    confidence: np.ndarray

    @classmethod
    def given(cls, scene: Scene) -> SceneLabels:
        """Only the given labels."""
        return replace(cls.none(len(scene.grid)), visible=scene.visible)

    @classmethod
    def none(cls, count: int) -> SceneLabels:
        """No labels for `count` points."""
        # One value stands for the whole array and takes no memory.
        none, unsure = (np.broadcast_to(value, (count,)) for value in (np.int64(NONE), np.float32(0)))
        return cls(none, none, unsure)


def pyramid_later(config: Config, device: torch.device | None) -> tuple[Sequence[int], int] | None:
    """Ratios and neighbours of a pyramid that the device makes faster than a loader thread, else None.

    Ask in the thread that trains: in others torch's current GPU is the first one, whichever the process has taken.
    """
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
    later: tuple[Sequence[int], int] | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> Labelled:
    """Cut, augment and view several samples, and carry their labels to the rows.

    A row that merges several points takes their majority label; a given label hides any pseudo-label of the row. A
    pyramid that is made `later` (`pyramid_later`) is left to `Labelled.to`. `groups` names the items that are laid into
    each other as one sample (see `draw`); None leaves each by itself.
    """
    views, pseudo, confidence, points, present = [], [], [], [], []
    for group in groups or [(number,) for number in range(len(items))]:
        samples = []
        for scene, labels, index in (items[number] for number in group):
            samples.append(augment(take(scene.grid, index, labels.visible, config.data.centre), rng))
        if len(group) > 1 and halves_samples(config):
            samples = halves(samples, rng)
        views.append(make_view(config, join(samples), rng, with_pyramid=later is None))
        if config.loss.absent:
            present.append(np.any([items[number][0].possible(classes) for number in group], axis=0))
        for number, sample in zip(group, samples, strict=True):
            labels = items[number][1]
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
    known = torch.from_numpy(np.stack(present)) if present else None
    where = torch.from_numpy(np.concatenate(points))
    return Labelled(batch, rows, total / weight.clamp_min(1.0), where, known, later)


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


def halves_samples(config: Config) -> bool:
    """Whether a mixed sample is made of halves: of RandLA-Net, whose crops have one size, and where a step has one."""
    return config.backbone == "randla" or config.view.batch == 1


def draw(
    config: Config, sampler: CropSampler | SceneSampler, rng: np.random.Generator, mix: float
) -> tuple[list[SampleIndex], list[tuple[int, ...]] | None]:
    """The crops of a micro-batch, and which of them are one sample; None for each by itself.

    With probability `mix` the first and the second crop are laid into each other, the third and the fourth, and so on:
    as in the source, half as many samples of twice the points. With one crop a step, and for RandLA-Net, each crop
    instead gets with that probability a partner drawn like it, and `make_batch` keeps a random half of the points of
    each. Either way a step has no more points than without.

    `view.max_points` ends a micro-batch before the sample that would be too much; the next one begins with it.
    """
    limit, drawn = config.view.max_points, [sampler.next(rng)]
    while len(drawn) < config.view.batch:
        if limit and sum(len(d.points) for d in drawn) + sampler.coming(rng) > limit:
            break
        drawn.append(sampler.next(rng))
    if mix == 0:
        return drawn, None
    count = len(drawn)
    groups: list[tuple[int, ...]] = []
    if halves_samples(config):
        for number in range(count):
            groups.append((number,))
            if rng.random() < mix:
                groups[-1] = (number, len(drawn))
                drawn.append(sampler.next(rng))
        return drawn, groups
    for number in range(0, count, 2):
        pair = tuple(range(number, min(number + 2, count)))
        groups += [pair] if rng.random() < mix else [(one,) for one in pair]
    return drawn, groups


def training_batches(
    config: Config,
    classes: int,
    scenes: dict[str, Scene],
    labels: Mapping[str, SceneLabels],
    sampler: CropSampler | SceneSampler,
    count: int,
    key: tuple[int | str, ...],
    device: torch.device | None = None,
    mix: float = 0.0,
    wanted: Callable[[int], bool] = lambda _: True,
) -> Generator[Labelled, None, None]:
    """`count` batches; the draw of batch i depends on the sampler's state and on (seed, key, i) only.

    `mix` is the probability of `draw`. A batch that is not `wanted` is drawn and not made: the sampler moves on.
    """
    augment, later = compose(config.augment), pyramid_later(config, device)

    def jobs() -> Iterator[Callable[[], Labelled]]:
        for i in range(count):
            rng = generator(config.seed, *key, i)
            drawn, groups = draw(config, sampler, rng, mix)
            if not wanted(i):
                continue
            items = [(scenes[d.scene], labels[d.scene], d) for d in drawn]

            def job(items: Any = items, rng: np.random.Generator = rng, groups: Any = groups) -> Labelled:
                return make_batch(config, classes, items, augment, rng, later, groups)

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
