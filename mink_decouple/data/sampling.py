"""Which points of which scene make the next training sample: whole scenes or spatially regular crops."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mink_decouple.jit import njit

SHAPES = ("sphere", "column")

WHOLE_SCENE_WEIGHT = 0.25
"""What a visit adds to all points of a scene that fits a crop. In larger scenes the smallest possibility was measured
to rise by 1 every three to five visits per point, so this shares the draws evenly per point."""


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """One draw.

    Attributes:
        scene: scene name.
        points: (n,) int64 grid points, ascending. A network that needs a random order shuffles them itself.
        center: (3,) float64 centre of the crop, metres, in the scene's frame.
    """

    scene: str
    points: np.ndarray
    center: np.ndarray


@njit(cache=True, nogil=True)
def _squared_distance(coords: np.ndarray, center: np.ndarray, axes: int) -> np.ndarray:
    result = np.empty(coords.shape[0], np.float32)
    for i in range(coords.shape[0]):
        total = 0.0
        for axis in range(axes):
            difference = coords[i, axis] - center[axis]
            total += difference * difference
        result[i] = total
    return result


def nearest(coords: np.ndarray, center: np.ndarray, count: int, shape: str = "sphere") -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` points nearest to ``center``, exactly, by one pass over the scene.

    A pass costs a few milliseconds even for 5 M points, less than a KD-tree query for tens of thousands of
    neighbours, and needs neither the seconds to build the tree nor its memory.

    Args:
        coords: (V, 3) float32 metres.
        center: (3,) float64 metres.
        count: number of points; the whole scene if it has no more.
        shape: ``sphere`` measures in x, y, z; ``column`` in x, y only, for aerial tiles.

    Returns:
        (n,) int64 ascending indices and their (n,) float32 squared distances.
    """
    squared = _squared_distance(coords, center, 2 if shape == "column" else 3)
    size = len(squared)
    if count >= size:
        return np.arange(size), squared
    # A strided sample bounds the k-th distance, so that only the points inside the bound are partitioned.
    sample = np.sort(squared[:: max(1, size // 4096)])
    guess = len(sample) * (count / size)
    bound = sample[min(len(sample) - 1, int(guess + 4 * np.sqrt(guess)) + 4)]
    candidates = np.flatnonzero(squared <= bound)
    if len(candidates) < count:
        candidates = np.arange(size)
    if len(candidates) > count:
        candidates = candidates[np.argpartition(squared[candidates], count - 1)[:count]]
        candidates.sort()
    return candidates, squared[candidates]


def visit_weight(squared: np.ndarray) -> np.ndarray:
    """RandLA-Net's increment of the possibility, ``(1 - d^2 / max d^2)^2``: 1 at the centre, 0 at the rim."""
    furthest = squared.max(initial=0.0)
    if furthest == 0:
        return np.ones_like(squared)
    return (1 - squared / furthest) ** 2


def epoch_steps(sizes: Iterable[int], crop_points: int) -> int:
    """Number of draws that look at as many points as there are: the sum over scenes of ceil(V / crop_points)."""
    return sum(-(-size // crop_points) for size in sizes)


def epoch_batches(sizes: Sequence[int], crop_points: int, batch: int, max_points: int = 0) -> int:
    """Number of micro-batches that look at about as many points as there are.

    Args:
        sizes: grid points of every scene.
        crop_points: of a crop; 0 for whole scenes.
        batch: samples of a micro-batch at most.
        max_points: grid points of a micro-batch at most; 0 for no limit.
    """
    samples = epoch_steps(sizes, crop_points) if crop_points else len(sizes)
    if not max_points:
        return -(-samples // batch)
    if crop_points:
        return -(-samples // max(1, min(batch, max_points // crop_points)))
    return max(-(-samples // batch), -(-sum(sizes) // max_points))


class SceneSampler:
    """Whole scenes, each once per round, in an order drawn anew for every round."""

    def __init__(self, coords: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> None:
        """Args: ``coords`` name -> (V, 3) float32, which may load lazily; ``names`` restricts it to some scenes."""
        self.coords = coords
        self.names = _names(coords, names)
        self._queue: list[str] = []

    def next(self, rng: np.random.Generator) -> SampleIndex:
        """The next scene; its centre is the middle of its bounding box."""
        name = self._fill(rng).pop(0)
        return _whole(name, self.coords[name])

    def coming(self, rng: np.random.Generator) -> int:
        """Points that `next` would give at most."""
        return len(self.coords[self._fill(rng)[0]])

    def _fill(self, rng: np.random.Generator) -> list[str]:
        if not self._queue:
            self._queue = [self.names[i] for i in rng.permutation(len(self.names))]
        return self._queue

    def state_dict(self) -> dict[str, Any]:
        """The scenes still to come in this round."""
        return {"queue": list(self._queue)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a saved round.

        Raises:
            ValueError: the state names a scene this sampler does not have.
        """
        _known(state["queue"], self.names)
        self._queue = list(state["queue"])


class CropSampler:
    """Spatially regular crops by possibility (RandLA-Net), optionally centred on labelled points.

    Every grid point has a possibility, at first U(0, 1e-3). A draw takes the scene with the smallest minimum, centres
    on that point, takes the nearest points and raises their possibility by ``visit_weight``. A scene that fits a crop
    is taken whole, about the middle of its bounding box, and all its points rise alike.
    """

    def __init__(
        self,
        coords: Mapping[str, np.ndarray],
        crop_points: int,
        *,
        names: Sequence[str] | None = None,
        shape: str = "sphere",
        noise: float = 0.0,
        label_centred: float = 0.0,
        visible: Mapping[str, np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare the draws; no scene is loaded before it is first drawn.

        Args:
            coords: scene name -> (V, 3) float32 metres; may load lazily.
            crop_points: points per crop.
            names: the scenes to use; all of ``coords`` by default.
            shape: ``sphere`` or ``column`` (nearest in x, y only).
            noise: standard deviation, metres, of Gaussian noise on the centre (RandLA-Net's S3DIS: 0.35).
            label_centred: share of draws centred on a visible label, uniform over classes and then over that class's
                points.
            visible: scene name -> (V,) int64 visible train ids (-1 = none); needed if ``label_centred`` > 0.
            seed: seeds the initial possibilities, per scene and independently of the other scenes.

        Raises:
            ValueError: a value outside its range, no scene, or ``label_centred`` without any visible label.
        """
        if crop_points < 1:
            raise ValueError(f"crop_points: {crop_points}; must be at least 1")
        if shape not in SHAPES:
            raise ValueError(f"shape: {shape!r}; choose one of {', '.join(SHAPES)}")
        if not noise >= 0:
            raise ValueError(f"noise: {noise}; must be 0 or more metres")
        if not 0 <= label_centred <= 1:
            raise ValueError(f"label_centred: {label_centred}; must be a share from 0 to 1")
        self.coords = coords
        self.names = _names(coords, names)
        self.crop_points, self.shape, self.noise, self.seed = crop_points, shape, noise, seed
        self.label_centred = label_centred
        self._possibility: dict[str, np.ndarray] = {}
        # A scene not drawn yet counts as below every other; among those the seed decides.
        self._lowest = -1 - np.array([self._generator(name).random() for name in self.names])
        self._labelled: list[tuple[np.ndarray, np.ndarray]] = []
        if visible is not None:
            self.set_visible(visible)
        if label_centred > 0 and not self._labelled:
            raise ValueError(f"label_centred: {label_centred}, but no scene has a visible label; set it to 0")

    def set_visible(self, visible: Mapping[str, np.ndarray]) -> None:
        """Exchange the labels that label-centred draws look for (scene name -> (V,) int64, -1 = none)."""
        scenes, points, ids = [], [], []
        for number, name in enumerate(self.names):
            shown = visible[name] if name in visible else np.empty(0, np.int64)
            found = np.flatnonzero(shown >= 0)
            scenes.append(np.full(len(found), number, np.int32))
            points.append(found)
            ids.append(shown[found])
        label = np.concatenate(ids)
        scene, point = np.concatenate(scenes), np.concatenate(points)
        self._labelled = [(scene[label == c], point[label == c]) for c in np.unique(label)]

    def next(self, rng: np.random.Generator) -> SampleIndex:
        """Draw one crop; ``rng`` gives the centre noise and the label-centred choice."""
        number, point = self._pick(rng)
        name = self.names[number]
        coords = self.coords[name]
        possibility = self._load(name, len(coords))
        whole = len(coords) <= self.crop_points
        if whole:
            center = middle(coords)
        else:
            center = coords[point if point >= 0 else possibility.argmin()].astype(np.float64)
        if self.noise > 0:
            center += rng.normal(scale=self.noise, size=3)
        points, squared = nearest(coords, center, self.crop_points, self.shape)
        possibility[points] += WHOLE_SCENE_WEIGHT if whole else visit_weight(squared)
        # An empty scene is never wanted again.
        self._lowest[number] = possibility.min(initial=np.inf)
        return SampleIndex(name, points, center)

    def coming(self, rng: np.random.Generator) -> int:
        """Points that `next` would give at most."""
        return self.crop_points

    def _pick(self, rng: np.random.Generator) -> tuple[int, int]:
        if self.label_centred > 0 and self._labelled and rng.random() < self.label_centred:
            scene, point = self._labelled[rng.integers(len(self._labelled))]
            chosen = rng.integers(len(scene))
            return int(scene[chosen]), int(point[chosen])
        return int(self._lowest.argmin()), -1

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def _load(self, name: str, size: int) -> np.ndarray:
        if name not in self._possibility:
            self._possibility[name] = self._generator(name).random(size, dtype=np.float32) * np.float32(1e-3)
        if len(self._possibility[name]) != size:
            raise ValueError(
                f"{name}: the saved sampler state has {len(self._possibility[name])} points, the scene {size}"
            )
        return self._possibility[name]

    def state_dict(self) -> dict[str, Any]:
        """The possibilities of the scenes drawn so far, as copies: scene name -> (V,) float32."""
        return {"possibility": {name: values.copy() for name, values in self._possibility.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a saved stream: with an equally placed ``rng`` the draws equal the uninterrupted ones bit for bit.

        Raises:
            ValueError: the state names a scene this sampler does not have.
        """
        _known(state["possibility"], self.names)
        saved = state["possibility"]
        self._possibility = {name: np.asarray(values).astype(np.float32) for name, values in saved.items()}
        self._lowest = -1 - np.array([self._generator(name).random() for name in self.names])
        for number, name in enumerate(self.names):
            if name in self._possibility:
                self._lowest[number] = self._possibility[name].min(initial=np.inf)


def coverage(
    name: str,
    coords: np.ndarray,
    crop_points: int,
    *,
    shape: str = "sphere",
    overlap: float = 0.0,
    rng: np.random.Generator | None = None,
) -> list[SampleIndex]:
    """Crops that together hold every point of a scene, for evaluation.

    Args:
        name: scene name.
        coords: (V, 3) float32 metres.
        crop_points: points per crop; a scene with no more is one sample.
        shape: ``sphere`` or ``column``.
        overlap: go on until every possibility exceeds this (RandLA-Net votes until 0.5 on S3DIS); 0 stops at full
            coverage.
        rng: starts from random instead of equal possibilities, for passes that should differ; None is deterministic.

    Returns:
        The crops in order; empty for an empty scene.

    Raises:
        ValueError: ``crop_points`` below 1 or an unknown ``shape``.
    """
    if crop_points < 1 or shape not in SHAPES:
        raise ValueError(f"crop_points {crop_points}, shape {shape!r}; need at least 1 and one of {', '.join(SHAPES)}")
    if len(coords) <= crop_points:
        return [_whole(name, coords)] if len(coords) else []
    possibility = np.zeros(len(coords), np.float32)
    if rng is not None:
        possibility = rng.random(len(coords), dtype=np.float32) * np.float32(1e-3)
    # The rim of a crop has weight 0, so coverage is kept apart: a point not yet seen lies one below every seen one.
    possibility -= 1
    crops: list[SampleIndex] = []
    while True:
        lowest = possibility.argmin()
        seen = possibility[lowest] > -0.5
        if seen and (overlap <= 0 or possibility[lowest] > overlap):
            break
        center = coords[lowest].astype(np.float64)
        points, squared = nearest(coords, center, crop_points, shape)
        if possibility[points].min() > possibility[lowest]:
            # More points than a crop holds share the centre's place: the least seen of them, and so an end.
            same = np.flatnonzero(_squared_distance(coords, center, 2 if shape == "column" else 3) == 0)
            points = np.sort(same[np.argsort(possibility[same], kind="stable")[:crop_points]])
        possibility[points[possibility[points] < -0.5]] += 1
        possibility[points] += visit_weight(squared)
        crops.append(SampleIndex(name, points, center))
    return crops


def _whole(name: str, coords: np.ndarray) -> SampleIndex:
    return SampleIndex(name, np.arange(len(coords)), middle(coords))


def middle(coords: np.ndarray) -> np.ndarray:
    """(3,) float64 middle of the bounding box, where a whole scene is centred."""
    return (coords.min(axis=0).astype(np.float64) + coords.max(axis=0)) / 2 if len(coords) else np.zeros(3)


def _names(coords: Mapping[str, np.ndarray], names: Sequence[str] | None) -> list[str]:
    chosen = list(coords if names is None else names)
    if not chosen:
        raise ValueError("no scene to sample from")
    return chosen


def _known(saved: Iterable[str], names: Sequence[str]) -> None:
    unknown = sorted(set(saved) - set(names))
    if unknown:
        raise ValueError(
            f"saved sampler state is of another split: scene {unknown[0]!r} is not among the {len(names)} here"
        )
