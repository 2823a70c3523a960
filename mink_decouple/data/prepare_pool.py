"""Scenes prepared side by side in processes, none of which outlives the one that started it."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from mink_decouple.data.adapters import Adapter
from mink_decouple.data.manifest import SceneRecord
from mink_decouple.data.prepare_scene import write_scene
from mink_decouple.data.raw import RawDataset, RawScene

Result = tuple[str, SceneRecord | str, float]


def write_scenes(
    make: Adapter, root: Path, raw: RawDataset, folder: Path, todo: Sequence[RawScene], workers: int | None
) -> Iterator[Result]:
    """Write scenes as `prepare_scene.write_scene` does.

    Args:
        make: gives every process its adapter.
        root: of the download.
        raw: the adapter of this process.
        folder: of the scenes' files.
        todo: the scenes.
        workers: processes; None for one per core, 1 for none but this one.

    Yields:
        The scene's name, its record or what is wrong with it, and the seconds it took, as they come.

    Raises:
        ValueError: a process was killed from outside.
    """
    count = min(workers or os.cpu_count() or 1, len(todo))
    bar = functools.partial(tqdm, total=len(todo), desc="preparing", unit="scene", disable=None, leave=False)
    if count <= 1:
        yield from bar(_one(raw, folder, scene) for scene in todo)
        return
    # A fresh interpreter inherits no thread, lock or open file of this one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            futures = [pool.submit(_elsewhere, make, root, folder, scene) for scene in todo]
            for future in bar(as_completed(futures)):
                yield future.result()
        except BrokenProcessPool:
            raise ValueError(
                f"{folder.parent}: a worker process was killed, perhaps for want of memory; what is done is kept: run "
                "the same prepare command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _elsewhere(make: Adapter, root: Path, folder: Path, scene: RawScene) -> Result:
    return _one(_adapter(make, root), folder, scene)


def _one(raw: RawDataset, folder: Path, scene: RawScene) -> Result:
    started = time.perf_counter()
    try:
        result: SceneRecord | str = write_scene(raw, scene, folder)
    except (ValueError, OSError) as error:
        result = " ".join(str(error).split())
    return scene.name, result, time.perf_counter() - started


@functools.lru_cache(maxsize=1)
def _adapter(make: Adapter, root: Path) -> RawDataset:
    """The adapter of a worker: it lists the download once, not once a scene."""
    return make(root)


def _end_with_parent() -> None:
    """Let a worker die with the process that started it, which a killed process cannot see to."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
