"""Mappings whose values are made when asked for, and kept or not."""

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


class Kept(PerScene[T]):
    """The same, made once and kept in memory."""

    def __init__(self, scenes: Sequence[Scene], make: Callable[[Scene], T]) -> None:
        super().__init__(scenes, make)
        self._held: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._held:
            self._held[name] = super().__getitem__(name)
        return self._held[name]
