"""Tile sizes of the Triton kernels: chosen by timing a handful on the GPU, then remembered on disk.

The best tile depends on the number of rows (its power of two), the channels, the pass and the dtype. In Triton's
interpreter, and while a CUDA graph is captured, nothing is timed and the first candidate serves.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mink_decouple.sparse.triton_runtime import INTERPRETED, triton

_WARM_UP, _ROUNDS = 2, 7


@dataclass(frozen=True)
class Tile:
    """Work of one program of a matrix kernel.

    Attributes:
        rows: of the output.
        columns: of the output.
        depth: summed over per step.
        warps: threads of the program, in units of 32.
        stages: steps whose loads are in flight at once.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


_known: dict[tuple[object, ...], Tile] = {}


def choose(key: tuple[object, ...], candidates: Callable[[], Sequence[Tile]], run: Callable[[Tile], object]) -> Tile:
    """The fastest candidate for a case; one look into a table where the case is known.

    Args:
        key: what the choice depends on besides the GPU; made of words and numbers.
        candidates: gives at least one; the first is the default.
        run: launches the kernel with a tile; may be called often, so it must overwrite its result.
    """
    known = _known.get(key)
    if known is not None:
        return known
    tiles = list(dict.fromkeys(candidates()))
    if len(tiles) == 1 or not _may_time():
        return tiles[0]
    name, path = " ".join(map(str, key)), _path()
    tile = _read(path).get(name)
    if tile not in tiles:
        tile, all_fit = _fastest(tiles, run)
        if all_fit:  # else another might be the fastest on a GPU with more room
            _write(path, {**_read(path), name: tile})
    _known[key] = tile
    return tile


def _may_time() -> bool:
    return not INTERPRETED and torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()


def _fastest(candidates: Sequence[Tile], run: Callable[[Tile], object]) -> tuple[Tile, bool]:
    """The fastest tile, and whether there was memory for all; raises OutOfMemoryError where there was for none."""
    seconds: dict[Tile, float] = {}
    failure: Exception | None = None
    full: torch.OutOfMemoryError | None = None
    for tile in candidates:
        try:
            seconds[tile] = _seconds(lambda tile=tile: run(tile))  # type: ignore[misc] # bound now
        except torch.OutOfMemoryError as error:
            full = error
        except Exception as error:  # a tile may ask for more shared memory or registers than the GPU has
            failure = error
    if not seconds and full is not None:
        raise full
    if not seconds:
        raise RuntimeError("no tile size of the Triton kernel runs on this GPU") from failure
    return min(seconds, key=lambda tile: seconds[tile]), full is None


def _seconds(run: Callable[[], object]) -> float:
    """Smallest time of a few runs on the GPU."""
    best = float("inf")
    for index in range(_WARM_UP + _ROUNDS):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        run()
        after.record()
        after.synchronize()
        if index >= _WARM_UP:
            best = min(best, before.elapsed_time(after) / 1000)
    return best


def _path() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
    return Path(home) / "mink_decouple" / f"tiles-{gpu}-triton-{getattr(triton, '__version__', 'none')}.json"


def _read(path: Path) -> dict[str, Tile]:
    try:
        return {name: Tile(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # none yet, or not ours: it is written anew


def _write(path: Path, table: dict[str, Tile]) -> None:
    text = json.dumps({name: asdict(tile) for name, tile in sorted(table.items())}, indent=1)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        pass  # a home that cannot be written: the choice lasts as long as the process
