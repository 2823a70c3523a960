"""numba, with a cache on disk that several processes may fill at once and that notices every change of our code.

As it comes, it numbers the files of a function's overloads by what its index held a moment ago: of two processes that
compile different overloads at once, one can end up with the code of the other under its own name, and computes wrong
numbers. Here a file is named by what it holds, and stands there before the index speaks of it. And it knows a function
by the file that defines it alone, so that after an upgrade old code of helpers in other files went on running. Here by
all files of the package that hold compiled code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import IndexDataCacheFile


def fingerprint(package: Path) -> str:
    """SHA-256 of the sources below a folder that use this module."""
    sources = {file: file.read_bytes() for file in sorted(package.rglob("*.py"))}
    digest = hashlib.sha256()
    for file, text in sources.items():
        if b"mink_decouple.jit import" in text:
            digest.update(file.name.encode() + b"\0" + text)
    return digest.hexdigest()


SOURCES = fingerprint(Path(__file__).parent)


class CacheFile(IndexDataCacheFile):  # type: ignore[misc]  # numba has no types
    """The index and the files of one function."""

    def save(self, key: Any, data: Any) -> None:
        """Keep the code of an overload."""
        name = self._data_name(int(hashlib.sha256(repr(key).encode()).hexdigest()[:12], 16))
        self._save_data(name, data)
        overloads = self._load_index()
        if overloads.get(key) != name:
            self._save_index({**overloads, key: name})


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with options; with ``cache=True`` in such a cache, where this numba keeps one as we know it."""
    compile_later = numba.njit(**options)

    def decorate(function: Callable[..., Any]) -> Any:
        made = compile_later(function)
        cache: Any = getattr(made, "_cache", None)  # none where NUMBA_DISABLE_JIT leaves the function as it is
        given = getattr(cache, "_cache_file", None)
        if type(given) is IndexDataCacheFile:
            ours = CacheFile.__new__(CacheFile)
            vars(ours).update(vars(given), _source_stamp=(given._source_stamp, SOURCES))
            cache._cache_file = ours
        return made

    return decorate
