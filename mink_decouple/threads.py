"""Sharing compiled work among threads.

Plain Python threads run kernels that release the interpreter lock: no OpenMP or TBB pool is started, idle threads
never spin, and a forked data-loading worker is safe.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

MIN_PARALLEL_OPERATIONS = 1_000_000
"""Work below this costs less than waking another thread."""
_PIECES_PER_THREAD = 4

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    # A forked child inherits the executor but none of its threads.
    os.register_at_fork(after_in_child=_forget_pool)


def share(work: Callable[[int, int], None], count: int, operations: int) -> None:
    """Run ``work(first, last)`` over pieces of ``range(count)`` on up to ``torch.get_num_threads()`` threads.

    Args:
        work: handles ``first <= i < last``; pieces must not write to the same place.
        count: number of items.
        operations: rough number of arithmetic operations, to leave small work on the calling thread.
    """
    global _pool
    threads = min(torch.get_num_threads(), count)
    if threads <= 1 or operations < MIN_PARALLEL_OPERATIONS:
        work(0, count)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="share")
    number = min(count, _PIECES_PER_THREAD * threads)
    pieces = iter([(count * i // number, count * (i + 1) // number) for i in range(number)])

    def drain() -> None:
        for first, last in pieces:
            work(first, last)

    others = [_pool.submit(drain) for _ in range(threads - 1)]
    drain()
    for other in others:
        other.result()


def share_from_main(work: Callable[[int, int], None], count: int, operations: int) -> None:
    """`share` in the main thread; in any other, such as a loader thread beside the network, all of it there."""
    if threading.current_thread() is threading.main_thread():
        share(work, count, operations)
    else:
        work(0, count)
