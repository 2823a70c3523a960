"""Out of memory said in the words of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mink_decouple.config import Config

_CPU = ("not enough memory", "can't allocate memory", "cannot allocate memory")


class OutOfMemory(RuntimeError):
    """The machine or the GPU has less memory than a step needs; the message names the settings to lower."""


@contextmanager
def named_settings(config: Config, training: bool) -> Iterator[None]:
    """Turns an allocation that failed inside into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (on_gpu or isinstance(error, MemoryError) or any(word in str(error).lower() for word in _CPU)):
            raise
        place = "GPU" if on_gpu else "machine"
        view = config.view
        crop = f"view.crop_points (now {view.crop_points or '0, whole scenes'})"
        batch = f"view.batch (now {view.batch}; view.accumulate keeps the step as large)"
        grid = f"a larger data.grid (now {config.data.grid:g} m)"
        half = "optim.precision=bf16" if config.optim.precision == "fp32" and on_gpu else ""
        network = f"a smaller model.variant (now {config.model.variant})"
        limit = f"view.max_points (now {view.max_points or '0, no limit'})"
        lower = f"{batch}, {limit} or {crop}" if training else crop
        take = ", ".join(way for way in (half, network, grid) if way) if training else grid
        raise OutOfMemory(f"out of memory on the {place}: lower {lower}, or take {take}") from error
