"""Triton where it is installed and works: the one place that imports it, and the question whether a tensor may use it.

Every kernel lives in a module named ``triton_*``. These modules import without Triton too; their kernels are then never
launched. With ``TRITON_INTERPRET=1`` in the environment before the first import, the kernels run on CPU tensors in
Triton's interpreter, which is how they are tested on a machine without a GPU.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Whether the kernels of this process run in Triton's interpreter."""
SWITCH = "MINK_DECOUPLE_TRITON"
"""Environment variable: 0 keeps CUDA tensors on plain torch operations."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST_GPU = (8, 0)
_OLDEST_TRITON = (3, 2)


def jit(*unspecialised: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorator of a kernel; the arguments named do not make Triton compile it anew when they change."""

    def decorate(function: Callable[..., Any]) -> Any:
        return function if triton is None else triton.jit(function, do_not_specialize=list(unspecialised))

    return decorate


def usable(x: Tensor) -> bool:
    """Whether kernels on features take ``x``: 16-bit or float32, on a device that Triton works on."""
    return x.is_cuda and x.dtype in DTYPES and works(x.device)


def works(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device. Found out once by running the smallest one; never raises."""
    return device.type == "cuda" and _works(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _works(index: int) -> bool:
    if triton is None or INTERPRETED or os.environ.get(SWITCH) == "0" or torch.version.cuda is None:
        return False
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _OLDEST_TRITON or torch.cuda.get_device_capability(index) < _OLDEST_GPU:
        return False
    try:
        with torch.cuda.device(index):
            probe = torch.zeros(16, dtype=torch.int32, device="cuda")
            _count[(1,)](probe, SIZE=16)
            return probe.tolist() == list(range(16))
    except Exception as error:  # no C compiler, no driver library, an unknown card: each fails in its own way
        reason = " ".join(str(error).split())[:160]
        warnings.warn(
            f"Triton does not work on cuda:{index} ({type(error).__name__}: {reason}); plain torch serves instead",
            stacklevel=2,
        )
        return False


@jit()
def _count(out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def] # Triton reads the types of its arguments itself
    place = tl.arange(0, SIZE)
    tl.store(out + place, place)
