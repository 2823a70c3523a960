"""Where the time of nested calls goes: each label gets the time inside its calls less that inside labels below them."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch import nn

BESIDE = " (beside, in loader threads)"


class Stopwatch:
    """Seconds by label. Calls in other threads than the first one's have labels of their own, marked as such.

    Attributes:
        seconds: label -> seconds so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._own, self._lock, self._local = threading.get_ident(), threading.Lock(), threading.local()

    @contextmanager
    def __call__(self, label: str) -> Iterator[None]:
        """Time a block."""
        self.start(label)
        try:
            yield
        finally:
            self.stop()

    def start(self, label: str) -> None:
        """Begin a label, inside the one that runs."""
        self._stack().append([label, time.perf_counter(), 0.0])

    def stop(self) -> None:
        """End the label begun last."""
        stack = self._stack()
        label, began, inside = stack.pop()
        spent = time.perf_counter() - began
        if stack:
            stack[-1][2] += spent
        if threading.get_ident() != self._own:
            label += BESIDE
        with self._lock:
            self.seconds[label] = self.seconds.get(label, 0.0) + spent - inside

    def current(self) -> str | None:
        """The innermost label that runs."""
        stack = self._stack()
        return str(stack[-1][0]) if stack else None

    def take(self) -> dict[str, float]:
        """The seconds so far; counting starts anew."""
        with self._lock:
            taken, self.seconds = self.seconds, {}
        return taken

    def wrapped(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self(label):
                return function(*args, **kwargs)

        return call

    @contextmanager
    def watching(self, *places: tuple[Any, str, str]) -> Iterator[None]:
        """Time functions, (module or class, name, label), while the block runs."""
        with ExitStack() as stack:
            for owner, name, label in places:
                stack.enter_context(mock.patch.object(owner, name, self.wrapped(getattr(owner, name), label)))
            yield

    def iterate(self, items: Iterator[Any], label: str) -> Iterator[Any]:
        """The items, the wait for each being timed."""
        while True:
            with self(label):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _stack(self) -> list[list[Any]]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[list[Any]] = self._local.stack
        return stack


@contextmanager
def watched_layers(watch: Stopwatch, model: nn.Module, kinds: Mapping[str, str], whole: str) -> Iterator[None]:
    """Time the forward of every module by the kind that its class name stands for.

    Args:
        watch: where the seconds go.
        model: whose modules are timed.
        kinds: class name -> label; a module of another class counts with the one around it.
        whole: a label whose inner modules all count as the label itself.
    """
    handles = []

    def enter(module: nn.Module, inputs: Any) -> None:
        current = watch.current()
        named = kinds.get(type(module).__name__, current or "the rest")
        watch.start(current if current == whole else named)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        watch.stop()

    for module in model.modules():
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
