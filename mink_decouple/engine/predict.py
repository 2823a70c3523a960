"""Class probabilities for every grid point of a scene, averaged over crops and augmented passes (votes)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from mink_decouple.config import Config
from mink_decouple.data.sampling import SampleIndex, coverage
from mink_decouple.data.transforms import Sample, linear
from mink_decouple.engine.batches import Labelled, SceneLabels, make_batch, prefetch
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.scenes import Scene
from mink_decouple.models.segmenter import Segmenter


def turned(vote: int) -> Callable[[Sample, np.random.Generator], Sample]:
    """The augmentation of a vote: the eight symmetries of the square about the vertical, then slight scales of them.

    Vote 0 leaves the sample as it is.
    """
    quarter, mirror, size = vote % 4, vote // 4 % 2, 1.0 + 0.05 * (vote // 8)
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter]
    matrix = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag([-1.0 if mirror else 1.0, 1.0, 1.0]) * size

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        return sample if vote == 0 else linear(sample, matrix, size)

    return apply


def crops(config: Config, scene: Scene, key: int | str = 0) -> list[SampleIndex]:
    """Crops that together hold every grid point of a scene; the whole scene where `view.crop_points` is 0."""
    size = config.view.crop_points or len(scene.grid)
    rng = generator(config.seed, "coverage", scene.name, key)
    return coverage(scene.name, scene.grid.coords, size, shape=config.view.shape, rng=rng)


@torch.no_grad()
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
    model.eval()
    labels = SceneLabels.given(scene)
    total = np.zeros((len(scene.grid), classes), np.float32)
    count = np.zeros(len(scene.grid), np.float32)

    def jobs() -> Iterator[Callable[[], Labelled]]:
        for vote in range(votes):
            for number, index in enumerate(crops(config, scene, vote)):
                rng = generator(config.seed, "vote", scene.name, vote, number)

                def job(index: SampleIndex = index, vote: int = vote, rng: np.random.Generator = rng) -> Labelled:
                    return make_batch(config, classes, [(scene, labels, index)], turned(vote), rng, device)

                yield job

    for item in prefetch(jobs(), config.view.workers):
        on_device = item.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.optim.precision == "bf16"):
            logits = model(on_device.batch)
        probs = logits.float().softmax(1)[on_device.batch.inverse].cpu().numpy()
        points = item.points.numpy()  # unique within a crop
        total[points] += probs
        count[points] += 1
    return total / np.maximum(count, 1)[:, None]
