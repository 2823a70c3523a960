"""numba, whose cache on disk several processes may fill at once.

As it comes, it numbers the files of a function's overloads by what its index held a moment ago: of two processes that
compile different overloads at once, one can end up with the code of the other under its own name, and computes wrong
numbers. Here a file is named by what it holds, and stands there before the index speaks of it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numba
from numba import njit
from numba.core import caching

__all__ = ["njit", "numba"]

_PARTS = ("_load_index", "_save_index", "_save_data", "_data_name")


def _save(self: Any, key: Any, data: Any) -> None:
    """In place of `IndexDataCacheFile.save`."""
    name = self._data_name(int(hashlib.sha256(repr(key).encode()).hexdigest()[:12], 16))
    self._save_data(name, data)
    overloads = self._load_index()
    if overloads.get(key) != name:
        self._save_index({**overloads, key: name})


if all(hasattr(getattr(caching, "IndexDataCacheFile", None), part) for part in _PARTS):
    caching.IndexDataCacheFile.save = _save  # type: ignore[method-assign]  # numba has no hook for it
