"""Launches of Triton's kernels without Triton's look-up, which takes longer on the host than most of them on the GPU.

Triton finds the compiled form of a kernel anew at every launch, from the names of all options and the properties of
every argument, and asks the driver about each pointer. For the kernels of a network on one scan that is most of a step.
Here the first launch of a case goes through Triton; later ones with arguments of the same kind call what it compiled
with the bare addresses. Debug mode and launch hooks of Triton's profiler see first launches alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

_ALIGNED = 16
"""Triton compiles other code for addresses and whole numbers that this divides."""
_WIDE = 2**31


class Kernel:
    """A kernel: ``kernel[grid](*arguments, **constants)`` launches it on the current stream.

    Args:
        function: what ``triton.jit`` made. Its compile-time constants are its last parameters.
        names: its parameters.
        unspecialised: parameters whose value does not matter to the compiled code, only whether 32 bits hold it.
    """

    direct = False
    """Whether later launches go straight to the compiled code; ``triton_runtime`` finds out whether that works."""

    def __init__(self, function: Any, names: Sequence[str], unspecialised: Sequence[str]) -> None:
        self.function, self.names = function, tuple(names)
        self.special = tuple(name not in unspecialised for name in names)
        self._compiled: dict[tuple[object, ...], tuple[Any, Any, Any, Any, tuple[object, ...]]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """What launches the kernel on a grid of one to three dimensions."""
        return lambda *arguments, **constants: self._launch(grid, arguments, constants)

    def _launch(self, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        found = self._values(arguments) if Kernel.direct else None
        if found is None:
            self.function[grid](*arguments, **constants)
            return
        values, kinds = found
        index = arguments[0].get_device()
        key = (index, *kinds, *constants, *constants.values())
        known = self._compiled.get(key)
        if known is None:
            compiled = self.function[grid](*arguments, **constants)
            if compiled is not None:
                rest = tuple(constants[name] for name in self.names[len(arguments) :])
                self._compiled[key] = (compiled.run, compiled.function, compiled.packed_metadata, _stream(), rest)
            return
        run, function, metadata, stream, rest = known
        across, down, deep = (*grid, 1, 1)[:3]
        run(across, down, deep, stream(index), function, metadata, None, None, None, *values, *rest)

    def _values(self, arguments: tuple[Any, ...]) -> tuple[list[object], list[object]] | None:
        """Arguments as the compiled code takes them, and all that decides which code that is; None: let Triton see."""
        values: list[object] = []
        kinds: list[object] = []
        for argument, special in zip(arguments, self.special):
            kind = type(argument)
            if kind is int:
                values.append(argument)
                if not -_WIDE <= argument < _WIDE:
                    return None
                kinds.append((argument == 1, argument % _ALIGNED == 0) if special else None)
            elif kind is float:
                values.append(argument)
                kinds.append(None)
            elif isinstance(argument, Tensor):
                address = argument.data_ptr()
                if address % _ALIGNED:
                    return None
                values.append(address)
                kinds.append(argument.dtype)
            else:
                return None
        return values, kinds


def _stream() -> Any:
    """Function from a device's index to its current stream."""
    from triton.runtime import driver

    return driver.active.get_current_stream
