"""Where Triton's kernels are tested: compiled on a GPU where there is one, else in Triton's interpreter on the CPU.

``tests/conftest.py`` decides which of the two happens. A module that imports this one is skipped where Triton is
missing.
"""

from typing import Any

import numpy as np
import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytest.importorskip("triton", minversion="3.2", reason="Triton 3.2 or newer is not installed")

import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

# Two faults of the interpreter (triton 3.6.0 with NumPy 2.4) are mended here; compiled kernels never see them.
_patch_lang_tensor = interpreter._patch_lang_tensor
_create_dot = interpreter.InterpreterBuilder.create_dot


def _patch_with_index(tensor: Any, scope: Any) -> None:
    _patch_lang_tensor(tensor, scope)
    # Scalars are arrays of one element there, which NumPy 2.4 no longer takes for an integer.
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_with_index


def _wide(handle: Any) -> Any:
    if handle.dtype != tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _create_dot_of_values(self: Any, a: Any, b: Any, *others: Any) -> Any:
    # bfloat16 is kept as its bits, which the interpreter's matrix product takes for integers.
    return _create_dot(self, _wide(a), _wide(b), *others)


interpreter.InterpreterBuilder.create_dot = _create_dot_of_values


# Every call of one compiled function from another patches the language anew, which takes longer than the call: once a
# launch is enough.
_patch_lang = interpreter._patch_lang
_launch = interpreter.GridExecutor.__call__
_patched: set[frozenset[int]] = set()


def _patch_lang_once(function: Any) -> Any:
    modules = frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)
    if modules in _patched:
        return interpreter._LangPatchScope()
    _patched.add(modules)
    return _patch_lang(function)


def _launch_patching_once(self: Any, *args: Any, **kwargs: Any) -> Any:
    _patched.clear()
    return _launch(self, *args, **kwargs)


interpreter._patch_lang = _patch_lang_once
interpreter.GridExecutor.__call__ = _launch_patching_once
