"""Triton where it is installed and works: the one place that imports it, and the question whether a tensor may use it.

Every kernel lives in a module named ``triton_*``. These modules import without Triton too; their kernels are then never
launched. With ``TRITON_INTERPRET=1`` in the environment before the first import, the kernels run on CPU tensors in
Triton's interpreter, which is how they are tested on a machine without a GPU.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mink_decouple.sparse.triton_launch import Kernel

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
        if triton is None:
            return function
        compiled = triton.jit(function, do_not_specialize=list(unspecialised))
        return Kernel(compiled, list(inspect.signature(function).parameters), unspecialised)

    return decorate


def inline(function: Callable[..., Any]) -> Any:
    """Decorator of a function that kernels call."""
    return function if triton is None else triton.jit(function)


def usable(x: Tensor) -> bool:
    """Whether kernels on features take ``x``: 16-bit or float32, on a device that Triton works on."""
    return x.is_cuda and x.dtype in DTYPES and works(x.device)


def works(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device; never raises."""
    return device.type == "cuda" and obstacle(device) is None


def obstacle(device: torch.device) -> str | None:
    """What keeps Triton's kernels off a device, in one line; None: nothing. Found out once by running the smallest one.

    Kernels are launched on the current device, so any other is left to plain torch.
    """
    if device.type != "cuda":
        return f"{device} is no GPU"
    current = torch.cuda.current_device()
    return _obstacle(current) if device.index in (None, current) else f"{device} is not the current device"


@cache
def _obstacle(index: int) -> str | None:
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if triton is None:
        return "Triton is not installed"
    if INTERPRETED or torch.version.cuda is None:
        return "TRITON_INTERPRET is 1" if INTERPRETED else "torch is no CUDA build"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST_TRITON:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, _OLDEST_TRITON))}"
    if torch.cuda.get_device_capability(index) < _OLDEST_GPU:
        return f"the GPU's compute capability is below {'.'.join(map(str, _OLDEST_GPU))}"
    try:
        reason = None if _counts(index) else "its kernels give wrong results"
    except Exception as error:  # no C compiler, no driver library, an unknown card: each fails in its own way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    if reason is None:
        Kernel.direct = _launches_directly(index)
    else:
        warnings.warn(f"Triton does not work on cuda:{index} ({reason}); plain torch serves instead", stacklevel=2)
    return reason


def _counts(index: int) -> bool:
    probe = torch.zeros(16, dtype=torch.int32, device=torch.device("cuda", index))
    _count[(1,)](probe, 3, SIZE=16)
    return bool(probe.tolist() == list(range(3, 19)))


def _launches_directly(index: int) -> bool:
    """Whether launches that go past Triton work with the Triton at hand, whose inner calls may change."""
    Kernel.direct = True
    try:
        return _counts(index) and _counts(index)  # the second one finds what the first one compiled
    except Exception:  # another version may take other arguments: then every launch is Triton's own
        return False
    finally:
        Kernel.direct = False


@jit()
def _count(out, first, SIZE: tl.constexpr):  # type: ignore[no-untyped-def] # Triton reads the types of its arguments itself
    place = tl.arange(0, SIZE)
    tl.store(out + place, first + place)
