"""Augmentation as small pure functions on a sample, and the input features of a network.

Every transform is ``f(sample, rng, ...) -> Sample``: it returns a new sample and never writes into its input. Vectors
in the feature ``normal`` follow the geometry. The features in ``HEIGHTS`` (metres above floor or ground) follow z: a
scale multiplies them, every other motion adds the point's change of z. Colours (feature ``rgb``) are in 0..1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from mink_decouple.data.grid import GridCloud
from mink_decouple.data.sampling import SampleIndex

Rng = np.random.Generator
HEIGHTS = frozenset({"height", "height_wide"})
"""Features in metres above something that stays where it is."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A crop of a grid cloud, ready for augmentation.

    Attributes:
        name: scene name.
        coords: (n, 3) float32 metres, centred.
        features: name -> (n,) or (n, k) float32.
        target: (n,) int64 visible train ids, -1 = none.
        points: (n,) int64 grid points the rows come from.
        center: (3,) float64 metres; ``coords + center`` was the place in the scene.
    """

    name: str
    coords: np.ndarray
    features: Mapping[str, np.ndarray]
    target: np.ndarray
    points: np.ndarray
    center: np.ndarray

    def __len__(self) -> int:
        return len(self.coords)

    def select(self, rows: np.ndarray) -> Sample:
        """The sample reduced to (m,) integer rows, in that order, or to a (n,) boolean mask."""
        return replace(
            self,
            coords=self.coords[rows],
            features={key: column[rows] for key, column in self.features.items()},
            target=self.target[rows],
            points=self.points[rows],
        )


def take(grid: GridCloud, index: SampleIndex, target: np.ndarray, centre: str = "xyz") -> Sample:
    """Cut a sample out of a grid cloud.

    Args:
        grid: the scene; unless it has a feature ``height``, one is made: metres above its lowest point.
        index: the points and the centre.
        target: (V,) int64 visible train ids of the whole scene.
        centre: the axes on which the centre is subtracted: ``xyz`` (S3DIS), ``xy`` (aerial tiles keep their z) or
            empty.

    Raises:
        ValueError: ``centre`` names another axis, or ``target`` is not of the scene's length.
    """
    if not set(centre) <= set("xyz"):
        raise ValueError(f"centre: {centre!r}; must hold axes out of x, y, z")
    if len(target) != len(grid):
        raise ValueError(f"scene {grid.name}: {len(target)} targets for {len(grid)} grid points")
    shift = np.where([axis in centre for axis in "xyz"], index.center, 0.0)
    coords = grid.coords[index.points]
    features = {key: column[index.points] for key, column in grid.features.items()}
    if "height" not in features:
        features["height"] = coords[:, 2] - grid.coords[:, 2].min(initial=np.inf)
    return Sample(
        grid.name,
        (coords - shift).astype(np.float32),
        features,
        target[index.points],
        index.points,
        shift.astype(np.float64),
    )


def linear(sample: Sample, matrix: np.ndarray, height_factor: float | None = None) -> Sample:
    """Apply x -> matrix @ x; the height is multiplied by the factor, or moves with z if there is none."""
    coords = (sample.coords @ matrix.T).astype(np.float32)
    features = dict(sample.features)
    if "normal" in features:
        # Normals are covectors: only the inverse transpose keeps them orthogonal to the surface.
        normal = features["normal"] @ np.linalg.inv(matrix)
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        features["normal"] = (normal / np.maximum(length, 1e-12)).astype(np.float32)
    for name in HEIGHTS & features.keys():
        if height_factor is None:
            features[name] = features[name] + (coords[:, 2] - sample.coords[:, 2])
        else:
            features[name] = features[name] * np.float32(height_factor)
    return replace(sample, coords=coords, features=features)


def _displace(sample: Sample, shift: np.ndarray) -> Sample:
    features = dict(sample.features)
    for name in HEIGHTS & features.keys():
        features[name] = features[name] + shift[:, 2].astype(np.float32)
    return replace(sample, coords=(sample.coords + shift).astype(np.float32), features=features)


def _recolour(sample: Sample, rgb: np.ndarray) -> Sample:
    return replace(sample, features={**sample.features, "rgb": np.clip(rgb, 0, 1).astype(np.float32)})


def _rotation(axis: int, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.eye(3)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = cos, -sin, sin, cos
    return matrix


def drop_points(sample: Sample, rng: Rng, share: float = 0.1) -> Sample:
    """Drop each unlabelled point with probability ``share``; labelled points stay, and so does at least one point."""
    keep = (rng.random(len(sample)) >= share) | (sample.target >= 0)
    if not keep.any():
        keep[:1] = True
    return sample.select(keep)


def rotate_z(sample: Sample, rng: Rng, quarter: bool = False) -> Sample:
    """Turn about the vertical by an angle uniform on the circle, or by a multiple of 90 degrees (``quarter``)."""
    if quarter:
        # Written out, so that aligned walls stay exactly aligned.
        cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[rng.integers(4)]
        return linear(sample, np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float64))
    return linear(sample, _rotation(2, rng.uniform(0, 2 * np.pi)))


def tilt(sample: Sample, rng: Rng, degrees: float = 2.8125) -> Sample:
    """Turn about x and then about y, each by a uniform angle up to ``degrees`` (default pi/64)."""
    about_x, about_y = np.deg2rad(rng.uniform(-degrees, degrees, 2))
    return linear(sample, _rotation(1, about_y) @ _rotation(0, about_x))


def flip(sample: Sample, rng: Rng, x: float = 0.5, y: float = 0.5) -> Sample:
    """Mirror the x and the y axis with the given probabilities."""
    signs = np.where(rng.random(2) < (x, y), -1.0, 1.0)
    return linear(sample, np.diag([*signs, 1.0]))


def scale(sample: Sample, rng: Rng, low: float = 0.9, high: float = 1.1, anisotropic: bool = False) -> Sample:
    """Multiply coordinates by one factor uniform in ``low`` .. ``high``, or by one per axis (``anisotropic``)."""
    factors = rng.uniform(low, high, 3 if anisotropic else 1) * np.ones(3)
    return linear(sample, np.diag(factors), factors[2])


def elastic(sample: Sample, rng: Rng, granularity: float = 0.8, magnitude: float = 0.16) -> Sample:
    """Bend space smoothly: Gaussian noise on a coarse grid, blurred and interpolated linearly.

    Args:
        sample: n points.
        rng: source of the noise.
        granularity: grid step, metres; coarser where the sample would need more than 64 steps along an axis.
        magnitude: standard deviation of the displacement along each axis, metres, reached approximately.
    """
    if len(sample) == 0:
        return sample
    low, high = sample.coords.min(axis=0), sample.coords.max(axis=0)
    step = max(granularity, float((high - low).max()) / 64)
    noise = rng.normal(size=(3, *(np.ceil((high - low) / step).astype(int) + 2)))
    noise = ndimage.gaussian_filter(noise, sigma=(0, 1, 1, 1))
    noise *= magnitude / max(noise.std(), 1e-12)
    place = ((sample.coords - low) / step).T
    return _displace(sample, np.stack([ndimage.map_coordinates(field, place, order=1) for field in noise], axis=1))


def jitter(sample: Sample, rng: Rng, sigma: float = 0.005, clip: float = 0.02) -> Sample:
    """Move every point by Gaussian noise of ``sigma`` metres, cut off at ``clip`` metres."""
    return _displace(sample, np.clip(rng.normal(scale=sigma, size=(len(sample), 3)), -clip, clip))


def colour_contrast(sample: Sample, rng: Rng, probability: float = 0.2) -> Sample:
    """With ``probability`` stretch each channel to 0..1 and blend that with the original by a random weight."""
    active, blend = rng.random() < probability, rng.random()
    if "rgb" not in sample.features or len(sample) == 0 or not active:
        return sample
    rgb = sample.features["rgb"]
    low, high = rgb.min(axis=0), rgb.max(axis=0)
    stretched = (rgb - low) / np.maximum(high - low, 1e-6)
    return _recolour(sample, (1 - blend) * rgb + blend * stretched)


def colour_shift(sample: Sample, rng: Rng, probability: float = 0.95, amount: float = 0.05) -> Sample:
    """With ``probability`` add one uniform offset of up to ``amount`` to each channel."""
    active, offset = rng.random() < probability, rng.uniform(-amount, amount, 3)
    if "rgb" not in sample.features or not active:
        return sample
    return _recolour(sample, sample.features["rgb"] + offset)


def colour_jitter(sample: Sample, rng: Rng, sigma: float = 0.02) -> Sample:
    """Add Gaussian noise of ``sigma`` to every channel of every point."""
    if "rgb" not in sample.features:
        return sample
    rgb = sample.features["rgb"]
    return _recolour(sample, rgb + rng.normal(scale=sigma, size=rgb.shape))


def drop_colour(sample: Sample, rng: Rng, probability: float = 0.2) -> Sample:
    """With ``probability`` replace all colours by mid-grey, which is 0 in ``assemble_features``."""
    dropped = rng.random() < probability
    if "rgb" not in sample.features or not dropped:
        return sample
    return _recolour(sample, np.full_like(sample.features["rgb"], 0.5))


TRANSFORMS: dict[str, Callable[..., Sample]] = {
    f.__name__: f
    for f in (
        drop_points,
        elastic,
        rotate_z,
        tilt,
        flip,
        scale,
        jitter,
        colour_contrast,
        colour_shift,
        colour_jitter,
        drop_colour,
    )
}
"""The choices of a configuration, in the order in which they are applied."""


def compose(spec: Mapping[str, Mapping[str, Any] | bool | None]) -> Callable[[Sample, Rng], Sample]:
    """Make one callable of a named mapping of transforms.

    Args:
        spec: transform name -> its parameters; True means the defaults, None or False switches it off. The order of
            application is that of ``TRANSFORMS`` whatever the order of the mapping, so that configurations can be
            merged.

    Raises:
        ValueError: an unknown transform or parameter, or a value of the wrong type, with the choices.
    """
    unknown = sorted(set(spec) - set(TRANSFORMS))
    if unknown:
        raise ValueError(f"transform {unknown[0]!r}: choose from {', '.join(TRANSFORMS)}")
    steps = [(TRANSFORMS[name], _arguments(name, spec[name])) for name in TRANSFORMS if is_on(spec.get(name))]

    def apply(sample: Sample, rng: Rng) -> Sample:
        for transform, arguments in steps:
            sample = transform(sample, rng, **arguments)
        return sample

    return apply


def is_on(value: Mapping[str, Any] | bool | None) -> bool:
    """Whether a transform of a configuration is applied."""
    return value is not None and value is not False


def _arguments(name: str, given: Mapping[str, Any] | bool | None) -> dict[str, Any]:
    if given is True:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"transform {name}: {given!r}; must be a mapping of parameters, true, false or null")
    parameters = list(inspect.signature(TRANSFORMS[name]).parameters.values())[2:]
    defaults = {p.name: p.default for p in parameters}
    arguments: dict[str, Any] = {}
    for key, value in given.items():
        if key not in defaults:
            raise ValueError(f"transform {name}: unknown parameter {key!r}; choose from {', '.join(defaults)}")
        if isinstance(defaults[key], bool):
            if not isinstance(value, bool):
                raise ValueError(f"transform {name}.{key}: {value!r}; must be true or false")
            arguments[key] = value
            continue
        try:
            arguments[key] = float(value)  # YAML reads 1e-3 as text
        except (TypeError, ValueError):
            raise ValueError(f"transform {name}.{key}: {value!r}; must be a number") from None
    return arguments


_WIDTHS = {"rgb": 3, "xyz": 3, "normal": 3, "offset": 3}


def feature_width(names: Sequence[str]) -> int:
    """Number of input channels F of these features: 3 for ``rgb``, ``xyz`` and ``normal``, 1 for any other.

    Raises:
        ValueError: no or repeated names.
    """
    if not names or len(set(names)) != len(names):
        raise ValueError(f"features: {list(names)}; need at least one name and none twice")
    return sum(_WIDTHS.get(name, 1) for name in names)


def assemble_features(
    features: Mapping[str, np.ndarray],
    coords: np.ndarray,
    names: Sequence[str],
    factors: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Build a network's input rows.

    Args:
        features: name -> (n,) or (n, k).
        coords: (n, 3) float32 metres.
        names: in order: ``xyz`` (the coordinates), ``one`` (a constant 1), ``rgb`` (shifted from 0..1 to -0.5..0.5),
            or any column.
        factors: multiplies a named column, to bring e.g. a 16-bit ``intensity`` near 1.

    Returns:
        (n, F) float32 with F = ``feature_width(names)``.

    Raises:
        ValueError: a feature the cloud lacks or of another width (the message lists what the cloud has), or a
            repeated name.
    """
    width = feature_width(names)
    rows = np.empty((len(coords), width), np.float32)
    at = 0
    for name in names:
        wanted = _WIDTHS.get(name, 1)
        if name == "xyz":
            column = coords
        elif name == "one":
            column = np.ones(len(coords), np.float32)
        elif name in features:
            column = features[name] - np.float32(0.5) if name == "rgb" else features[name]
        else:
            raise ValueError(
                f"feature {name!r}: not in the cloud, which has {', '.join(sorted(features)) or 'none'}; also: xyz, one"
            )
        found = column.shape[1] if column.ndim == 2 else 1
        if found != wanted:
            raise ValueError(f"feature {name!r}: {found} columns in the cloud, {wanted} expected")
        rows[:, at : at + wanted] = column.reshape(len(coords), wanted)
        if factors is not None and name in factors:
            rows[:, at : at + wanted] *= np.float32(factors[name])
        at += wanted
    return rows
