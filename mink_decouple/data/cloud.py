"""The record every reader returns and every dataset hands on: a named point cloud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

#: Beyond this distance from the origin (metres) `from_world` splits off an offset. float32 steps are 0.06 mm there.
LARGE_METRES = 1000.0
#: Longest side of a cloud whose float32 coordinates are still rounded by less than 1 mm.
MAX_EXTENT_METRES = 2.0**15


def _zero_offset() -> np.ndarray:
    return np.zeros(3, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Coordinates, features and labels of one scene.

    Attributes:
        name: scene name, unique in its dataset; error messages quote it.
        coords: (N, 3) float32, metres, relative to `offset`.
        offset: (3,) float64, metres; world coordinates are `coords + offset`.
        features: name -> (N,) or (N, k) array. `rgb` is (N, 3) float32 in 0..1, `intensity` (N,) float32 in file units;
            `return_number`, `number_of_returns`, `remission` and any other column keep their names.
        labels: (N,) int64, or None for an unlabelled scene. Raw ids when read from a file, train ids (-1 = ignored)
            when loaded by a dataset.
        finite: whether the coordinates are known to be finite. They are then not scanned, which would read a
            memory-mapped scene from end to end.

    Raises:
        ValueError: a shape or dtype differs from the above, lengths differ, or coordinates are NaN or infinite.
    """

    name: str
    coords: np.ndarray
    offset: np.ndarray = field(default_factory=_zero_offset)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None
    finite: bool = False

    def __post_init__(self) -> None:
        """Check every rule of the record."""
        coords, offset = self.coords, self.offset
        if not isinstance(coords, np.ndarray) or coords.ndim != 2 or coords.shape[1] != 3 or coords.dtype != np.float32:
            raise ValueError(f"{self.name}: coords must be (N, 3) float32, found {_describe(coords)}")
        if not isinstance(offset, np.ndarray) or offset.shape != (3,) or offset.dtype != np.float64:
            raise ValueError(f"{self.name}: offset must be (3,) float64, found {_describe(offset)}")
        if not np.isfinite(offset).all():
            raise ValueError(f"{self.name}: offset must be finite, found {offset.tolist()}")
        if not self.finite:
            check_finite(self.name, coords)
        for key, column in self.features.items():
            if not isinstance(column, np.ndarray) or column.ndim not in (1, 2) or column.dtype == object:
                raise ValueError(
                    f"{self.name}: feature '{key}' must be a (N,) or (N, k) array, found {_describe(column)}"
                )
            if len(column) != len(coords):
                raise ValueError(f"{self.name}: feature '{key}' has {len(column)} rows for {len(coords)} points")
        rgb = self.features.get("rgb")
        if rgb is not None and (rgb.shape[1:] != (3,) or rgb.dtype != np.float32):
            raise ValueError(f"{self.name}: feature 'rgb' must be (N, 3) float32 in 0..1, found {_describe(rgb)}")
        labels = self.labels
        if labels is not None:
            if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype != np.int64:
                raise ValueError(f"{self.name}: labels must be (N,) int64, found {_describe(labels)}")
            if len(labels) != len(coords):
                raise ValueError(f"{self.name}: {len(labels)} labels for {len(coords)} points")

    def __len__(self) -> int:
        """Number of points."""
        return len(self.coords)

    def select(self, index: np.ndarray) -> PointCloud:
        """Points at `index`: (M,) integers in any order, or a (N,) boolean mask."""
        return replace(
            self,
            coords=self.coords[index],
            features={key: column[index] for key, column in self.features.items()},
            labels=None if self.labels is None else self.labels[index],
        )

    def world(self) -> np.ndarray:
        """World coordinates, (N, 3) float64, metres."""
        return self.coords.astype(np.float64) + self.offset


def from_world(
    name: str,
    xyz: np.ndarray,
    features: Mapping[str, np.ndarray] | None = None,
    labels: np.ndarray | None = None,
) -> PointCloud:
    """Build a cloud from world coordinates, keeping them to better than 1 mm.

    Where any coordinate lies beyond `LARGE_METRES`, the offset is the floor of the minimum (whole metres, all axes);
    otherwise it is zero.

    Args:
        name: scene name.
        xyz: (N, 3) world coordinates, metres; pass float64 for projected (UTM) coordinates.
        features: name -> (N,) or (N, k).
        labels: (N,) integers or None.

    Raises:
        ValueError: as `PointCloud`; or a side of the cloud longer than `MAX_EXTENT_METRES`, often one stray point.
    """
    xyz = np.asarray(xyz, dtype=np.float64)
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"{name}: coordinates must be (N, 3), found {_describe(xyz)}")
    check_finite(name, xyz)
    offset = choose_offset(name, xyz.min(axis=0), xyz.max(axis=0)) if len(xyz) else _zero_offset()
    return PointCloud(
        name=name,
        coords=(xyz - offset).astype(np.float32),
        offset=offset,
        features=dict(features or {}),
        labels=None if labels is None else np.asarray(labels, dtype=np.int64),
    )


def choose_offset(name: str, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The offset of a cloud with the world corners `low` and `high`, (3,) float64 metres; see `from_world`.

    Raises:
        ValueError: a side is `MAX_EXTENT_METRES` or longer.
    """
    extent = float((high - low).max())
    if extent >= MAX_EXTENT_METRES:
        raise ValueError(
            f"{name}: the cloud is {extent:,.0f} m long, more than {MAX_EXTENT_METRES:,.0f} m; "
            "remove stray points, cut it into tiles, or bring millimetres to metres "
            f"(corners {low.tolist()} and {high.tolist()})"
        )
    return np.floor(low) if max(abs(low).max(), abs(high).max()) >= LARGE_METRES else _zero_offset()


def check_finite(name: str, xyz: np.ndarray) -> None:
    """Raise ValueError with the count and the first row where `xyz` (N, 3) has NaN or infinite entries."""
    if all_finite(xyz):
        return
    bad = np.flatnonzero(~np.isfinite(xyz).all(axis=1))
    raise ValueError(
        f"{name}: {len(bad)} of {len(xyz)} points have NaN or infinite coordinates, first at index {bad[0]}: "
        f"{xyz[bad[0]].tolist()}"
    )


def all_finite(values: np.ndarray) -> bool:
    """Whether no number is NaN or infinite."""
    if values.dtype.kind != "f":
        return True
    # a finite sum has finite terms: the common case needs no boolean array per point
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.isfinite(values.sum(dtype=np.float64)) or np.isfinite(values).all())


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    return type(value).__name__
