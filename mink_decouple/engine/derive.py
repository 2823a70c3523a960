"""Features that follow from others: heights and log intensity, of a whole cloud or of rows of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from mink_decouple.config import Config
from mink_decouple.data.cloud import PointCloud, all_finite
from mink_decouple.data.ground import default_cell, fit_ground

Column = Callable[[slice], np.ndarray]
"""Rows -> their (n,) or (n, k) values."""

VERSION = 2
"""Raised whenever a derived feature changes, so that stored grid clouds are made anew."""


def settings(config: Config) -> dict[str, object]:
    """The settings that `feature_columns` depends on, as plain data."""
    features = sorted(set(config.data.features))
    return {"version": VERSION, "features": features, "height": config.data.height if "height" in features else None}


def feature_columns(name: str, coords: np.ndarray, columns: Mapping[str, Column], config: Config) -> dict[str, Column]:
    """The columns the configuration asks for, out of `columns` and of what follows from them.

    `height` (N,) metres above the lowest points of the scene or above the local ground; `height_wide` (N,) metres above
    a ground estimated on cells twice as wide, which sees wide roofs as roofs; `log_intensity` (N,) in 0..1, since
    intensities spread over orders of magnitude and differ between sensors.

    Args:
        name: scene name.
        coords: (N, 3) float32 metres. Heights look at all of them first, the other columns only at the rows asked for.
        columns: what the scene has.
        config: of the run.

    Raises:
        ValueError: `log_intensity` is asked for and the scene has no intensity. Of a column, when rows are asked of it:
            a value is NaN or infinite; the caller adds the scene's name.
    """
    found, wanted = dict(columns), config.data.features
    if "height" in wanted and "height" not in found:
        if config.data.height == "ground":
            found["height"] = _above(coords, None)
        else:
            floor = np.percentile(coords[:, 2], 1).astype(np.float32)
            found["height"] = lambda rows: coords[rows, 2] - floor
    if "height_wide" in wanted:
        found["height_wide"] = _above(coords, default_cell(coords, 2.0))
    if "log_intensity" in wanted:
        if "intensity" not in found:
            have = ", ".join(sorted(found)) or "none"
            raise ValueError(f"data.features: log_intensity needs the column intensity; {name} has {have}")
        intensity = found["intensity"]
        found["log_intensity"] = lambda rows: _log_intensity(intensity(rows))
    return {key: _checked(key, column) for key, column in found.items() if key in wanted}


def derive_features(cloud: PointCloud, config: Config) -> PointCloud:
    """`cloud` with the features the configuration asks for; see `feature_columns`."""
    columns = {key: _whole(column) for key, column in cloud.features.items()}
    asked = feature_columns(cloud.name, cloud.coords, columns, config)
    try:
        features = {key: column(slice(None)) for key, column in asked.items()}
    except ValueError as error:
        raise ValueError(f"{cloud.name}: {error}") from None
    return replace(cloud, features=features)


def _checked(key: str, column: Column) -> Column:
    """`column`, which refuses what is not finite: one such value makes a network's whole output NaN."""

    def values(rows: slice) -> np.ndarray:
        found = column(rows)
        if not all_finite(found):
            at = int(np.flatnonzero(~np.isfinite(found.reshape(len(found), -1)).all(axis=1))[0])
            raise ValueError(
                f"feature {key!r} is {found[at].tolist()} at point {(rows.start or 0) + at}; replace such values in "
                "the file, or leave the feature out of data.features"
            )
        return found

    return values


def _above(coords: np.ndarray, cell: float | None) -> Column:
    if len(coords) == 0:
        return _whole(np.zeros(0, np.float32))
    ground = fit_ground(coords, cell)
    return lambda rows: ground.heights(coords[rows])


def _whole(values: np.ndarray) -> Column:
    return lambda rows: values[rows]


def _log_intensity(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.log1p(np.maximum(values.astype(np.float32), 0)) / np.float32(np.log(65536))
    return result
