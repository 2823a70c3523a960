"""Running statistics of batch norm over the micro-batches of a step, whichever process has seen them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mink_decouple.engine.processes import Processes


class RunningStatistics:
    """Moves the running statistics by all micro-batches of a step alike.

    Each micro-batch begins with the statistics r of the beginning of the step and would move them by
    `d_k = m (s_k - r)`, m the momentum and s_k its own statistics. N of them move them by
    `(1 - (1 - m)^N) / (m N) sum_k d_k`: as far as one after the other would, with equal weights. A norm that a
    micro-batch leaves out (a level of one row has no variance) has a smaller N.

    Args:
        module: has the norms; those that do not learn (`training` False) keep their statistics.
        processes: share the micro-batches.
        count: of micro-batches; a single one is left to itself.
    """

    def __init__(self, module: nn.Module, processes: Processes, count: int) -> None:
        self.processes = processes
        learning = (m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats)
        norms = list(learning) if count > 1 else []
        self.buffers: list[Tensor] = []
        self.tracked: list[Tensor] = []
        momentum: list[float] = []
        for norm in norms:
            assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
            assert norm.num_batches_tracked is not None
            self.buffers += [norm.running_mean, norm.running_var]
            self.tracked.append(norm.num_batches_tracked)
            momentum.append(norm.momentum)
        if not norms:
            return
        self.start, self.begun = torch.cat(self.buffers), torch.stack(self.tracked)
        self.moved, self.updates = torch.zeros_like(self.start), torch.zeros_like(self.begun)
        device, widths = self.start.device, torch.tensor([2 * norm.num_features for norm in norms])
        self.owner = torch.repeat_interleave(torch.arange(len(norms)), widths).to(device)  # norm of every value
        self.momentum = torch.tensor(momentum, device=device, dtype=torch.float64)

    @torch.no_grad()
    def begin(self) -> None:
        """Before the forward pass of a micro-batch."""
        if self.buffers:
            self._set(self.start, self.begun)

    @torch.no_grad()
    def end(self) -> None:
        """After it."""
        if self.buffers:
            self.moved += torch.cat(self.buffers) - self.start
            self.updates += torch.stack(self.tracked) - self.begun

    @torch.no_grad()
    def settle(self) -> None:
        """At the end of the step: every process has the same statistics."""
        if not self.buffers:
            return
        moved, updates = self.processes.total(self.moved), self.processes.total(self.updates)
        number = updates.clamp_min(1)
        factor = (1 - (1 - self.momentum) ** number) / (self.momentum * number)
        self._set(self.start + factor.to(moved.dtype)[self.owner] * moved, self.begun + updates)

    def _set(self, values: Tensor, tracked: Tensor) -> None:
        sizes = [len(buffer) for buffer in self.buffers]
        torch._foreach_copy_(self.buffers, list(values.split(sizes)))
        torch._foreach_copy_(self.tracked, list(tracked.unbind()))
