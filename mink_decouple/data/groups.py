"""Majority label and mean of groups of points, such as the points of a cell.

The kernels release the GIL: loader threads call them side by side, and the main thread shares a call among its threads.
"""

from __future__ import annotations

import numpy as np

from mink_decouple.jit import njit
from mink_decouple.threads import share_from_main


@njit(cache=True, nogil=True)
def _members(inverse: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    begins = np.zeros(size + 1, np.int64)
    for group in inverse:
        begins[group + 1] += 1
    for g in range(size):
        begins[g + 1] += begins[g]
    free = begins[:size].copy()
    members = np.empty(len(inverse), np.int32)
    for i in range(len(inverse)):
        members[free[inverse[i]]] = i
        free[inverse[i]] += 1
    return members, begins


@njit(cache=True, nogil=True)
def _majority(
    values: np.ndarray,
    members: np.ndarray,
    begins: np.ndarray,
    classes: int,
    ignore_ties: bool,
    result: np.ndarray,
    first: int,
    last: int,
) -> None:
    counts, held = np.zeros(classes, np.int64), np.empty(16, np.int64)
    for g in range(first, last):
        best, tied, labelled = np.int64(-1), False, 0
        if len(held) < begins[g + 1] - begins[g]:
            held = np.empty(2 * (begins[g + 1] - begins[g]), np.int64)
        for j in range(begins[g], begins[g + 1]):
            value = values[members[j]]
            if value >= 0:
                counts[value] += 1
                held[labelled] = value
                labelled += 1
        for value in held[:labelled]:
            if best < 0 or counts[value] > counts[best]:
                best, tied = value, False
            elif value != best and counts[value] == counts[best]:
                tied = True
                best = min(best, value)
        for value in held[:labelled]:
            counts[value] = 0
        result[g] = -1 if tied and ignore_ties else best


@njit(cache=True, nogil=True)
def _mean(
    array: np.ndarray, members: np.ndarray, begins: np.ndarray, result: np.ndarray, first: int, last: int
) -> None:
    width = array.shape[1]
    total = np.empty(width, np.float64)
    for g in range(first, last):
        if width == 3:
            # the usual width, kept in registers
            x = y = z = 0.0
            for j in range(begins[g], begins[g + 1]):
                row = array[members[j]]
                x, y, z = x + row[0], y + row[1], z + row[2]
            count = max(begins[g + 1] - begins[g], 1)
            result[g, 0], result[g, 1], result[g, 2] = x / count, y / count, z / count
            continue
        total[:] = 0.0
        for j in range(begins[g], begins[g + 1]):
            for k in range(width):
                total[k] += array[members[j], k]
        for k in range(width):
            result[g, k] = total[k] / max(begins[g + 1] - begins[g], 1)


class Groups:
    """Points by group: listed once, for any number of columns.

    Args:
        inverse: (N,) integer group of every point, in 0..size-1.
        size: number of groups V.

    Raises:
        ValueError: a group outside 0..V-1.
    """

    def __init__(self, inverse: np.ndarray, size: int) -> None:
        # A kernel without bounds checks would write outside its buffers.
        if len(inverse) and not (inverse.min() >= 0 and inverse.max() < size):
            raise ValueError(f"inverse map spans {inverse.min()}..{inverse.max()}; must lie in 0..{size - 1}")
        self.points, self.size = len(inverse), size
        self._members, self._begins = _members(inverse, size)

    def majority(self, values: np.ndarray, classes: int, ties: str = "lowest") -> np.ndarray:
        """See `majority`."""
        if ties not in ("lowest", "ignore"):
            raise ValueError(f"ties: {ties!r}; choose 'lowest' or 'ignore'")
        self._check(values)
        if len(values) and values.max() >= classes:
            raise ValueError(f"class id {values.max()} is outside 0..{classes - 1}")
        result = np.empty(self.size, np.int64)
        arrays = values.astype(np.int64, copy=False), self._members, self._begins, classes, ties == "ignore", result
        share_from_main(lambda a, b: _majority(*arrays, a, b), self.size, 20 * self.points)
        return result

    def mean(self, array: np.ndarray) -> np.ndarray:
        """See `group_mean`."""
        self._check(array)
        rows = np.ascontiguousarray(array if array.ndim == 2 else array[:, None])
        if rows.dtype == bool or rows.dtype == np.float16:
            rows = rows.astype(np.float32)  # numba sums neither
        result = np.empty((self.size, rows.shape[1]), np.float32)
        arrays = rows, self._members, self._begins, result
        share_from_main(lambda a, b: _mean(*arrays, a, b), self.size, 10 * rows.size)
        return result if array.ndim == 2 else result[:, 0]

    def _check(self, values: np.ndarray) -> None:
        if len(values) != self.points:
            raise ValueError(f"{len(values)} values but {self.points} entries in the inverse map; lengths must agree")


def majority(values: np.ndarray, inverse: np.ndarray, size: int, classes: int, ties: str = "lowest") -> np.ndarray:
    """The commonest label of every group, counting labelled entries only.

    So a single labelled point decides its voxel however many unlabelled points share it.

    Args:
        values: (N,) integer class ids; negative means unlabelled.
        inverse: (N,) integer group of every entry, in 0..size-1.
        size: number of groups V.
        classes: number of classes C.
        ties: ``lowest`` gives the lowest tied id, ``ignore`` gives -1.

    Returns:
        (V,) int64; -1 where nothing is labelled.

    Raises:
        ValueError: unknown ``ties``, unequal lengths, a group outside 0..V-1 or a class id outside -1..C-1.
    """
    return Groups(inverse, size).majority(values, classes, ties)


def group_mean(array: np.ndarray, inverse: np.ndarray, size: int) -> np.ndarray:
    """Mean of every group, summed in float64.

    Args:
        array: (N,) or (N, k) numbers.
        inverse: (N,) integer group of every row.
        size: number of groups V.

    Returns:
        (V,) or (V, k) float32; 0 for an empty group.

    Raises:
        ValueError: unequal lengths or a group outside 0..V-1.
    """
    return Groups(inverse, size).mean(array)
