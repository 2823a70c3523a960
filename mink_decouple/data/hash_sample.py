"""Count different rows, repeated rows and rows in common without keeping them all: samples chosen by their hash.

A value is in a sample if its hash lies below a bound that falls as values come (adaptive sampling: Flajolet, Computing
43, 1990). Equal values have equal hashes, so what one sample holds, another that has seen the value holds too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_HIGHEST = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_values(values: np.ndarray) -> np.ndarray:
    """(n,) uint64 hashes of (n,) int64: the finaliser of splitmix64, one to one."""
    key = values.view(np.uint64) + _GOLDEN
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = key ^ (key >> np.uint64(31))
    return mixed


def hash_rows(rows: np.ndarray) -> np.ndarray:
    """(n,) uint64 hashes of the rows of (n, k) int64."""
    key = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        key = hash_values((key ^ column.astype(np.int64).view(np.uint64)).view(np.int64))
    return key


@dataclass(frozen=True, eq=False)
class Sample:
    """Hashes below a bound, of everything that was added.

    Attributes:
        keys: (m,) uint64, ascending, each once.
        counts: (m,) int64 times each was added.
        shift: the bound is 2**64 >> shift, so the sample holds one value in 2**shift; 0: all.
    """

    keys: np.ndarray
    counts: np.ndarray
    shift: int

    @property
    def distinct(self) -> int:
        """Number of different values; an estimate where `shift` is above 0."""
        return len(self.keys) << self.shift

    @property
    def repeated_share(self) -> float:
        """Share of the values that were there before; an estimate where `shift` is above 0."""
        total = int(self.counts.sum())
        return (total - len(self.keys)) / total if total else 0.0

    def below(self, shift: int) -> np.ndarray:
        """The keys that a sample with this larger shift would hold."""
        kept: np.ndarray = self.keys[self.keys <= np.uint64(_HIGHEST >> shift)]
        return kept


class Sampler:
    """Gathers a `Sample` of at most `limit` different values; memory does not grow with what is added."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shift = 0
        self._keys: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._held = 0

    def add(self, hashes: np.ndarray) -> None:
        """Add (n,) uint64 hashes."""
        kept = hashes[hashes <= np.uint64(_HIGHEST >> self._shift)] if self._shift else hashes
        self._keys.append(kept)
        self._counts.append(np.ones(len(kept), np.int64))
        self._held += len(kept)
        if self._held > 2 * self._limit:
            self._settle()

    def sample(self) -> Sample:
        """What was gathered so far."""
        self._settle()
        return Sample(self._keys[0], self._counts[0], self._shift)

    def _settle(self) -> None:
        keys = np.concatenate([np.empty(0, np.uint64), *self._keys])
        counts = np.concatenate([np.empty(0, np.int64), *self._counts])
        order = np.argsort(keys)
        keys, counts = keys[order], counts[order]
        if len(keys):
            first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            keys, counts = keys[first], np.add.reduceat(counts, first)
        while len(keys) > self._limit:
            self._shift += 1
            inside = keys <= np.uint64(_HIGHEST >> self._shift)
            keys, counts = keys[inside], counts[inside]
        self._keys, self._counts, self._held = [keys], [counts], len(keys)


def common(one: Sample, other: Sample) -> tuple[int, float]:
    """Values that both samples hold, and the share that they are of the smaller of the two sets.

    Both samples are complete below the lower of their bounds, so the share is exact where neither has a shift.
    """
    shift = max(one.shift, other.shift)
    a, b = one.below(shift), other.below(shift)
    found = len(np.intersect1d(a, b, assume_unique=True))
    return found, found / max(min(len(a), len(b)), 1)
