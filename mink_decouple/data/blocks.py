"""Predictions that come in blocks, handed on in portions of another size."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np


class Block(NamedTuple):
    """What is said of consecutive points: (n,) int64 raw class ids, (n,) float32 confidences in 0..1."""

    ids: np.ndarray
    confidence: np.ndarray


class Supply:
    """Takes blocks of any size and gives portions of the size asked for, in order.

    Args:
        where: the file they are for, for messages.
        blocks: the predictions.
        ids: the raw ids that there are.
    """

    def __init__(self, where: str, blocks: Iterable[Block], ids: Collection[int]) -> None:
        self._where, self._blocks, self._ids = where, iter(blocks), ids
        self._held = Block(np.empty(0, np.int64), np.empty(0, np.float32))
        self.given = 0

    def within(self, low: int, high: int) -> bool:
        """Whether every raw id there is lies in `low` to `high`."""
        return all(low <= value <= high for value in self._ids)

    def take(self, count: int) -> Block:
        """The next `count` predictions. Raises ValueError where there are fewer."""
        parts, have = [self._held], len(self._held.ids)
        while have < count:
            block = next(self._blocks, None)
            if block is None:
                raise ValueError(f"{self._where}: {self.given + have} predictions, but the file has more points")
            parts.append(block)
            have += len(block.ids)
        ids, confidence = (np.concatenate(column) for column in zip(*parts, strict=True))
        self._held = Block(ids[count:], confidence[count:])
        self.given += count
        return Block(ids[:count], confidence[:count])

    def finish(self) -> None:
        """Raises ValueError where predictions are left over."""
        if len(self._held.ids) or any(len(block.ids) for block in self._blocks):
            raise ValueError(f"{self._where}: has {self.given} points, but there are more predictions")
