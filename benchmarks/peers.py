"""The libraries that the benchmarks compare with, each only where it imports."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any

from mink_decouple.sparse.engines import import_minkowski


@cache
def peer(name: str) -> Any:
    """The module of a peer, or None, with one line on standard error that names it and says why.

    Args:
        name: MinkowskiEngine, spconv, open3d, pykdtree or another module.
    """
    try:
        if name == "MinkowskiEngine":
            return import_minkowski()
        if name == "spconv":
            return _spconv()
        return importlib.import_module(name)
    except Exception as error:  # compiled packages fail in their own ways where they do not fit
        print(f"{name} is absent: {' '.join(str(error).split())[:160]}", file=sys.stderr, flush=True)
        return None


def _spconv() -> Any:
    import spconv.pytorch
    import spconv.pytorch.ops
    import torch

    if not torch.cuda.is_available():
        # its CPU backward asks for the current CUDA stream, which it then does not use
        spconv.pytorch.ops.get_current_stream = lambda: 0
    return spconv.pytorch
