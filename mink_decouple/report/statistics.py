"""Runs grouped by setting; means and spreads over seeds; paired differences from a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from mink_decouple.report.records import Record

Setting = tuple[str, str, str]
"""Label budget, backbone, title: what the seeds of one row share."""
LEVEL = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class Paired:
    """Difference of two settings over the seeds that both have.

    Attributes:
        pairs: number of seeds.
        mean: mean difference.
        low, high: its 95 % interval by Student's t; equal to the mean with a single pair.
        p: of the paired t-test, two-sided; None with a single pair.
    """

    pairs: int
    mean: float
    low: float
    high: float
    p: float | None


def grouped(records: Sequence[Record]) -> dict[Setting, list[Record]]:
    """Records by setting, in the order of their first one; within, by seed."""
    groups: dict[Setting, list[Record]] = {}
    for record in records:
        groups.setdefault((record.labels, record.backbone, record.title), []).append(record)
    return {setting: sorted(found, key=lambda record: record.seed) for setting, found in groups.items()}


def by_seed(records: Sequence[Record], score: str) -> dict[int, float]:
    """A score in percent by seed; undefined ones are left out."""
    found = {record.seed: record.metrics.get(score) for record in records}
    return {seed: 100 * value for seed, value in found.items() if value is not None}


def mean_of(values: Sequence[float]) -> float | None:
    """Mean, or None without values."""
    return mean(values) if values else None


def deviation_of(values: Sequence[float]) -> float | None:
    """Sample standard deviation, or None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def paired(ours: Mapping[int, float], others: Mapping[int, float]) -> Paired | None:
    """The paired difference `ours - others` over common seeds; None without any."""
    gaps = [value - others[seed] for seed, value in ours.items() if seed in others]
    if not gaps:
        return None
    centre = mean(gaps)
    if len(gaps) == 1:
        return Paired(1, centre, centre, centre, None)
    from scipy.stats import t

    error = stdev(gaps) / math.sqrt(len(gaps))
    if error == 0:
        return Paired(len(gaps), centre, centre, centre, 1.0 if centre == 0 else 0.0)
    freedom = len(gaps) - 1
    reach = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = 2 * float(t.sf(abs(centre) / error, freedom))
    return Paired(len(gaps), centre, centre - reach, centre + reach, p)


def compared(groups: Mapping[Setting, Sequence[Record]], score: str, reference: str) -> dict[Setting, Paired]:
    """Every setting's difference in percent from the reference of its budget and backbone, where they share a seed."""
    found = {}
    for setting, runs in groups.items():
        others = groups.get((*setting[:2], reference), ())
        gap = paired(by_seed(runs, score), by_seed(others, score)) if setting[2] != reference else None
        if gap is not None:
            found[setting] = gap
    return found


def holm(ps: Mapping[Setting, float]) -> dict[Setting, float]:
    """The p of each of several tests, corrected for their number (Holm, Scand. J. Statist. 1979).

    Where nothing differs, any of them is below 0.05 with a probability of at most 5 %.
    """
    corrected, largest = {}, 0.0
    for rank, setting in enumerate(sorted(ps, key=lambda setting: ps[setting])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[setting]))
        corrected[setting] = largest
    return corrected
