"""A mapping whose values are made when asked for and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from mink_decouple.engine.scenes import Scene

T = TypeVar("T")


class PerScene(Mapping[str, T]):
    """Scene name -> `make(scene)`, computed at every look-up, so that no more than the scenes in use take memory."""

    def __init__(self, scenes: Sequence[Scene], make: Callable[[Scene], T]) -> None:
        self._scenes = {scene.name: scene for scene in scenes}
        self._make = make

    def __getitem__(self, name: str) -> T:
        return self._make(self._scenes[name])

    def __contains__(self, name: object) -> bool:
        return name in self._scenes  # the inherited test would make the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._scenes)

    def __len__(self) -> int:
        return len(self._scenes)
