"""The exponential moving average of a network: mean teacher, and the network that a run is scored by.

(Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mink_decouple.decouple.schedule import average_decay
from mink_decouple.models.segmenter import Segmenter


class Teacher:
    """A network whose weights and batch-norm statistics follow those of another, the student, as their average.

    Args:
        network: of the student's shape, on its device; its weights become the average and it never learns.
        student: whose weights the average begins with.
        decay: of the average in the long run; see `average_decay`.
    """

    def __init__(self, network: Segmenter, student: Segmenter, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        network.requires_grad_(False)
        network.eval()
        copy_weights(student, network)

    @torch.no_grad()
    def update(self, student: Segmenter) -> None:
        """Move towards the student, after one of its optimizer steps: `mean = d mean + (1 - d) weight`."""
        decay = average_decay(self.decay, self.updates)
        assert isinstance(decay, float)
        means: list[Tensor] = []
        values: list[Tensor] = []
        for mean, value in _pairs(self.network, student):
            if mean.is_floating_point():
                means.append(mean)
                values.append(value)
            else:
                mean.copy_(value)  # batches counted by a batch norm
        torch._foreach_lerp_(means, values, 1.0 - decay)
        self.updates += 1

    def hand_over(self, student: Segmenter) -> None:
        """The student goes on from the average, whose count of updates begins anew.

        A stage may be a hundred steps, too few for a decay of 0.999: counted on, the average would hold the student to
        where the stage before had left it.
        """
        copy_weights(self.network, student)
        self.updates = 0

    def take_classifier(self, student: Segmenter) -> None:
        """The student's classifier as it is: what a II-step has trained is one fit, no path to average over."""
        copy_weights(student.classifier, self.network.classifier)

    def state_dict(self, with_weights: bool) -> dict[str, Any]:
        """Plain data for a checkpoint, with the weights or with their number of updates alone."""
        weights = {"weights": self.network.state_dict()} if with_weights else {}
        return {"updates": self.updates, **weights}


def copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copy the parameters and buffers of a module into another of its shape, in place."""
    with torch.no_grad():
        for ours, theirs in _pairs(target, source):
            ours.copy_(theirs)


def _pairs(first: torch.nn.Module, second: torch.nn.Module) -> list[tuple[Tensor, Tensor]]:
    return list(zip(first.state_dict().values(), second.state_dict().values(), strict=True))
