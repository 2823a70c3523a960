"""The processes of one run, started by torchrun: who they are and what they tell each other.

Each holds the whole network and the labels of all scenes. The micro-batches of a step, the scenes of an evaluation and
those of a pseudo-labelling are shared out, and what is summed over them is summed over the processes. The first one
alone writes files and speaks.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from mink_decouple.engine.events import be_silent

PATIENCE = timedelta(days=1)
"""How long a process waits for another: preparing data may take hours, and torchrun ends the rest where one ends."""


class Left(RuntimeError):
    """Another process of the run has ended."""


@contextmanager
def _together() -> Iterator[None]:
    """Turns a call that failed for want of another process into Left."""
    try:
        yield
    except RuntimeError as error:
        raise Left("another process of the run has ended") from error


class Processes:
    """One of `size` processes, `rank` among them; every one calls the same methods in the same order."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            with _together():
                distributed.barrier()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes of tensors of one shape and type, on the device of `values`."""
        return self._reduced(values, "SUM")

    def largest(self, values: Tensor) -> Tensor:
        """The element-wise maximum over all processes."""
        return self._reduced(values, "MAX")

    def most(self, value: float) -> float:
        """The largest of one number a process."""
        return float(self.largest(torch.tensor(value, dtype=torch.float64)))

    def handed(self, array: np.ndarray | None, owner: int) -> np.ndarray:
        """The array of the process `owner`, handed to all; the others give None."""
        if self.size == 1:
            assert array is not None
            return array
        head = torch.zeros(12, dtype=torch.int64)
        if self.rank == owner:
            assert array is not None
            code = array.dtype.str.encode().ljust(8)
            head[:3] = torch.tensor([array.ndim, int.from_bytes(code, "little"), array.nbytes])
            head[3 : 3 + array.ndim] = torch.tensor(array.shape)
        with _together():
            distributed.broadcast(head, owner)
        shape = head[3 : 3 + int(head[0])].tolist()
        kind = np.dtype(int(head[1]).to_bytes(8, "little").decode().strip())
        if self.rank == owner:
            assert array is not None
            result = np.ascontiguousarray(array)
        else:
            result = np.empty(shape, kind)
        if result.nbytes:
            # bytes, for not every type can be sent
            with _together():
                distributed.broadcast(torch.from_numpy(result.reshape(-1).view(np.uint8)), owner)
        return result

    def text(self, value: str) -> str:
        """The text of the first process."""
        own = np.frombuffer(value.encode(), np.uint8) if self.first else None
        return self.handed(own, 0).tobytes().decode()

    def owners(self, sizes: Sequence[int]) -> list[int]:
        """The process that each of several scenes belongs to: the largest scene first, to whoever has least.

        Args:
            sizes: points of each scene.

        Returns:
            A rank for each; every scene has one owner, so nothing is counted twice.
        """
        load, result = [0] * self.size, [0] * len(sizes)
        for scene in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
            result[scene] = min(range(self.size), key=lambda rank: (load[rank], rank))
            load[result[scene]] += sizes[scene]
        return result

    def averaged(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the processes at the end of each backward pass outside `no_sync`."""
        if self.size == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        # Statistics of batch norm are settled once a step (`RunningStatistics`), not handed on before each pass.
        kind = nn.parallel.DistributedDataParallel
        names = inspect.signature(kind).parameters
        now, before = "forward_sync_buffers", "broadcast_buffers"  # since torch 2.13
        switch: dict[str, Any] = {now if now in names else before: False}
        return kind(module, **switch)

    def level(self, module: nn.Module) -> None:
        """Let all processes take over the parameters and buffers of the first.

        On a GPU the same work need not give the same bits twice.
        """
        if self.size > 1:
            with _together(), torch.no_grad():
                for value in module.state_dict().values():
                    held = value.cpu()
                    distributed.broadcast(held, 0)
                    value.copy_(held)

    def _reduced(self, values: Tensor, operation: str) -> Tensor:
        if self.size == 1:
            return values
        reduced = values.detach().cpu().clone()
        with _together():
            distributed.all_reduce(reduced, getattr(distributed.ReduceOp, operation))
        return reduced.to(values.device)


ALONE = Processes()
"""What a program is that torchrun did not start."""


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started, until the block ends; `ALONE` where it did not, or started one.

    A GPU process takes the GPU of its local rank. Processes on a CPU share the cores out where torchrun has set one
    thread to each for want of an `OMP_NUM_THREADS`. All but the first are silent.

    Raises:
        ValueError: torch was built without `torch.distributed`, or there are fewer GPUs than processes on a machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if not distributed.is_available():
        raise ValueError(f"WORLD_SIZE {size}: this torch was built without torch.distributed; start one process")
    backend = "gloo"
    if device.type == "cuda":
        local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= here:
            raise ValueError(f"--nproc-per-node: process {local + 1} of this machine has no GPU, there are {here}")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    elif os.environ.get("OMP_NUM_THREADS") == "1":
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // beside))
    distributed.init_process_group(backend, timeout=PATIENCE, **_meeting_place())
    try:
        processes = Processes(distributed.get_rank(), size)
        if not processes.first:
            be_silent()
        yield processes
    finally:
        distributed.destroy_process_group()


def _meeting_place() -> dict[str, Any]:
    """Where the processes find each other, for `init_process_group`.

    torchrun keeps one store over its restarts, in which the addresses of killed processes stay: who reads one of them
    before it is written anew waits as long as `PATIENCE`. On one machine every restart has a name; on several, where
    only the machine of the failure counts it, none is known to all.
    """
    if not restarted() or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, rank, size = next(distributed.rendezvous("env://", timeout=PATIENCE))
    attempt = distributed.PrefixStore(f"restart-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    return {"store": attempt, "rank": rank, "world_size": size}


def restarted() -> bool:
    """Whether torchrun started this program again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Whether torchrun would start this program again after a failure."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
