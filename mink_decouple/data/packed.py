"""Ids per point of which few are known, in few bytes: what is kept of every scene at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class PackedIds:
    """(V,) ids, -1 for most: either the known ones with their places, or all of them in one byte each.

    Attributes:
        size: V.
        ids: (m,) ids of the places, or (V,) ids with the highest value of the type for -1.
        places: (m,) int32 ascending, or None.
    """

    size: int
    ids: np.ndarray
    places: np.ndarray | None

    def unpack(self) -> np.ndarray:
        """(V,) int64 ids, -1 where none is known."""
        if self.places is None:
            result: np.ndarray = self.ids.astype(np.int64)
            result[self.ids == np.iinfo(self.ids.dtype).max] = -1
            return result
        result = np.full(self.size, -1, np.int64)
        result[self.places] = self.ids
        return result


def pack_ids(ids: np.ndarray) -> PackedIds:
    """Pack (V,) integers, -1 or 0..65534."""
    kind = np.uint8 if ids.max(initial=-1) < 255 else np.uint16
    places = np.flatnonzero(ids >= 0)
    if len(places) * (4 + np.dtype(kind).itemsize) < len(ids) * np.dtype(kind).itemsize:
        return PackedIds(len(ids), ids[places].astype(kind), places.astype(np.int32))
    return PackedIds(len(ids), np.where(ids < 0, np.iinfo(kind).max, ids).astype(kind), None)
