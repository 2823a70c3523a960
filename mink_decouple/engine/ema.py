"""The network that learns and, where it is asked for, the exponential moving average of it (mean teacher).

(Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017; not part of the paper.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mink_decouple.config import EmaConfig
from mink_decouple.decouple.schedule import average_decay
from mink_decouple.models.segmenter import Segmenter


class Networks:
    """A network and the average of its weights and batch-norm statistics over the steps of its backbone.

    Args:
        model: learns.
        config: `decay` 0 leaves it without an average.
        make: a network of the same shape on the same device, whose weights become the average.

    Attributes:
        mean: the averaged network, never trained, always in evaluation mode; None without one.
        updates: of the average since it began.
    """

    def __init__(self, model: Segmenter, config: EmaConfig, make: Callable[[], Segmenter]) -> None:
        self.model, self.config, self.updates = model, config, 0
        self.mean: Segmenter | None = None
        if config.decay:
            self.mean = make()
            self.mean.requires_grad_(False)
            self.mean.eval()
            copy_weights(model, self.mean)

    def asked(self, use: str) -> Segmenter:
        """The network that makes pseudo-labels ("pseudo"), or the one that is scored, pictured and kept ("eval")."""
        return self.model if self.mean is None or self.config.use not in (use, "both") else self.mean

    @torch.no_grad()
    def step(self) -> None:
        """Move the average after a step of the optimizer: `mean = d mean + (1 - d) weight`, d of `average_decay`."""
        if self.mean is None:
            return
        decay = average_decay(self.config.decay, self.updates)
        assert isinstance(decay, float)
        means: list[Tensor] = []
        values: list[Tensor] = []
        for mean, value in _pairs(self.mean, self.model):
            if mean.is_floating_point():
                means.append(mean)
                values.append(value)
            else:
                mean.copy_(value)  # batches counted by a batch norm
        torch._foreach_lerp_(means, values, 1.0 - decay)
        self.updates += 1

    def stage_ends(self, kind: str) -> None:
        """What the two exchange at the end of a stage.

        After a II-step the average takes the classifier as it is: one fit, no path to average over. After a stage of
        the backbone, with `restart`, the network goes on from the average, so that the II-step caches features of the
        backbone that is scored; and the average begins anew. Counted on, a decay of 0.999 would hold a stage of a
        hundred steps to where the stage before had left it.
        """
        if self.mean is None:
            return
        if kind == "II":
            copy_weights(self.model.classifier, self.mean.classifier)
        elif self.config.restart:
            copy_weights(self.mean, self.model)
            self.updates = 0

    def unscored(self) -> dict[str, Any]:
        """For a checkpoint: the weights of the network that is not scored, and the updates of the average."""
        return {"updates": self.updates, "weights": self._other().state_dict()}

    def load(self, scored: dict[str, Any], unscored: dict[str, Any] | None) -> None:
        """Restore the weights of `asked("eval")` and what `unscored` gave."""
        self.asked("eval").load_state_dict(scored)
        if unscored is not None:
            self._other().load_state_dict(unscored["weights"])
            self.updates = unscored["updates"]

    def _other(self) -> Segmenter:
        assert self.mean is not None
        return self.model if self.asked("eval") is self.mean else self.mean


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the parameters and buffers of a module into another of its shape, in place."""
    with torch.no_grad():
        for ours, theirs in _pairs(target, source):
            ours.copy_(theirs)


def _pairs(first: nn.Module, second: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return list(zip(first.state_dict().values(), second.state_dict().values(), strict=True))
