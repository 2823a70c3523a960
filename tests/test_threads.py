import multiprocessing
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch

from mink_decouple.threads import MIN_PARALLEL_OPERATIONS, share


def count(length: int) -> np.ndarray:
    seen = np.zeros(length, np.int64)

    def work(first: int, last: int) -> None:
        seen[first:last] += 1

    share(work, length, MIN_PARALLEL_OPERATIONS)
    return seen


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("length", [0, 1, 3, 100])
def test_every_item_is_worked_on_once(threads: int, length: int) -> None:
    torch.set_num_threads(threads)
    assert (count(length) == 1).all()


def test_an_error_in_a_piece_reaches_the_caller() -> None:
    torch.set_num_threads(2)

    def fail(first: int, last: int) -> None:
        raise RuntimeError(f"piece {first}")

    with pytest.raises(RuntimeError, match="piece"):
        share(fail, 10, MIN_PARALLEL_OPERATIONS)


def _count_in_child(sender: Connection) -> None:
    sender.send(count(100).tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_forked_process_gets_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    count(100)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_count_in_child, args=(sender,))
    child.start()
    try:
        assert receiver.poll(30), "the forked process hangs"
        assert receiver.recv() == [1] * 100
    finally:
        child.kill()
        child.join()
