"""Loops over rows of float32 or bfloat16 features.

NumPy has no bfloat16, so the bits travel as int16 and are widened as they are read.
"""

# mypy: allow-untyped-defs
# numba infers the types of the functions it compiles.

from __future__ import annotations

import numpy as np
import torch
from numba.core import types
from numba.extending import overload
from torch import Tensor

from mink_decouple.jit import njit


def array(values: Tensor) -> np.ndarray:
    """A NumPy view of a tensor; bfloat16 as the int16 of the same bits."""
    values = values.detach()
    bits: np.ndarray = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
    return bits


_VALUES = 512
"""Values worked on at a time. Rows are taken in groups of about so many values, with the channels' parameters repeated
to the same length: loops over the few channels of one row would be too short for vector instructions."""


@njit(nogil=True)
def group(channels):
    """How many values a group of whole rows has."""
    return max(1, _VALUES // max(channels, 1)) * channels


@njit(nogil=True)
def repeated(parameter, length):
    """The values of the channels, over and over, up to a length."""
    out = np.empty(length, np.float32)
    for i in range(length):
        out[i] = parameter[i % len(parameter)]
    return out


@njit(nogil=True)
def _widen(x, first, last, room):
    values, bits = x[first:last], room.view(np.int32)
    for i in range(len(values)):
        bits[i] = np.int32(values[i]) << 16
    return room[: last - first]


@njit(nogil=True)
def _narrow(values, out, first):
    bits, place = values.view(np.int32), out[first : first + len(values)]
    for i in range(len(values)):
        # to the nearest, ties to even; a number that is none stays none
        near = (bits[i] + 0x7FFF + ((bits[i] >> 16) & 1)) >> 16
        place[i] = near if values[i] == values[i] else 0x7FC0


@njit(nogil=True)
def _copy(values, out, first):
    place = out[first : first + len(values)]
    for i in range(len(values)):
        place[i] = values[i]


def floats(x, first, last, room):  # pragma: no cover - stands for its compiled forms
    """``x[first:last]`` of a flat array as float32: a view of float32, or bfloat16 bits widened into ``room``."""


def store(values, out, first):  # pragma: no cover - stands for its compiled forms
    """Write float32 values to a flat array from ``first`` on, rounded to nearest where that holds bfloat16 bits."""


@overload(floats)
def _floats(x, first, last, room):
    if x.dtype == types.float32:
        return lambda x, first, last, room: x[first:last]
    return lambda x, first, last, room: _widen(x, first, last, room)


@overload(store)
def _store(values, out, first):
    if out.dtype == types.float32:
        return lambda values, out, first: _copy(values, out, first)
    return lambda values, out, first: _narrow(values, out, first)
