"""Scene mixing: two samples laid into each other, so that no object can be told by its usual surroundings.

(Mix3D; Nekrasov et al., 3DV 2021, arXiv 2110.02210; code kumuji/mix3d.) Each scene is centred and augmented on its own;
the union of their points is one sample with the labels of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mink_decouple.data.transforms import Sample


def join(samples: Sequence[Sample]) -> Sample:
    """The union of the points of several samples, one after another; `points` counts in the scene of each.

    Raises:
        ValueError: no sample, or samples with different features.
    """
    if not samples:
        raise ValueError("no samples to join; needs at least one")
    if len(samples) == 1:
        return samples[0]
    first = samples[0]
    for other in samples[1:]:
        if other.features.keys() != first.features.keys():
            have, lack = (", ".join(sorted(s.features)) for s in (first, other))
            raise ValueError(f"cannot mix {first.name} with features {have} and {other.name} with {lack}")
    return replace(
        first,
        name="+".join(s.name for s in samples),
        coords=np.concatenate([s.coords for s in samples]),
        features={key: np.concatenate([s.features[key] for s in samples]) for key in first.features},
        target=np.concatenate([s.target for s in samples]),
        points=np.concatenate([s.points for s in samples]),
    )


def thin(sample: Sample, count: int, rng: np.random.Generator) -> Sample:
    """A random `count` of a sample's points in their order, labelled ones before others; all where it has no more."""
    if len(sample) <= count:
        return sample
    rank = rng.random(len(sample)) - (sample.target >= 0)
    return sample.select(np.sort(np.argsort(rank, kind="stable")[:count]))


def halves(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """A random half of the points of each of two samples (`thin`); two of n points leave n in all."""
    return [thin(sample, (len(sample) + 1 - place) // 2, rng) for place, sample in enumerate(samples)]
