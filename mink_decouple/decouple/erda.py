"""Entropy-regularised distribution alignment (ERDA) of unlabelled rows with class prototypes; not part of the paper.

(Tang et al., "All Points Matter", NeurIPS 2023, arXiv 2305.15832; code LiyaoTang/ERDA.) Every unlabelled row has a
pseudo-distribution p, by the similarity of its projected features to prototypes of the classes, and a prediction q.
Entropy of p and divergence of the two add up to a cross-entropy, `H(p) + KL(p || q) = -sum_c p_c log q_c`, and both are
trained by it: no row is left out by a threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mink_decouple.decouple.losses import IGNORE, log_softmax
from mink_decouple.decouple.schedule import average_decay

SLOPE = 0.2


class Alignment(nn.Module):
    """Projector and class prototypes.

    From the source: the projector (two dense layers as wide as the features, batch norm and LeakyReLU 0.2 between
    them), prototypes as a moving average of the mean projected features of the labelled rows of a batch, no gradient to
    them, cosine similarity, softmax over the classes with a temperature of 1.

    Our reading: the average forgets its start (`average_decay`); the source begins at random values. A class without a
    labelled row in a batch keeps its prototype; the source's update sets it to zero. A class never seen has no share in
    p; in the source it is a random direction or zero. Nothing is computed in half precision.

    Args:
        width: D, columns of the features.
        classes: C.
        momentum: decay of the prototypes (the source: 0.999).
        temperature: divisor of the similarities.
        seed: of the projector's weights. The global random state is left as it was.
    """

    if TYPE_CHECKING:
        prototypes: Tensor
        updates: Tensor

    def __init__(
        self, width: int, classes: int, momentum: float = 0.999, temperature: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds the GPUs' as well
            self.projector = nn.Sequential(
                nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.LeakyReLU(SLOPE), nn.Linear(width, width)
            )
        self.register_buffer("prototypes", torch.zeros(classes, width))
        self.register_buffer("updates", torch.zeros(classes, dtype=torch.int64))

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Pseudo-distributions of all rows, after the prototypes have moved to those of this batch.

        Args:
            features: (n, D) of the backbone, n >= 2.
            target: (n,) int64 given labels, -1 hidden.

        Returns:
            (n, C) probabilities; uniform while no class has been seen.
        """
        with torch.autocast(features.device.type, enabled=False):
            half = features.dtype in (torch.float16, torch.bfloat16)
            projected = self.projector(features.float() if half else features)
            if self.training:
                self._move(projected.detach(), target)
            near = F.normalize(projected, dim=1) @ F.normalize(self.prototypes, dim=1).t()
            seen = self.updates > 0
            logits = (near / self.temperature).masked_fill(~(seen | ~seen.any()), float("-inf"))
            return logits.softmax(1)

    def _move(self, projected: Tensor, target: Tensor) -> None:
        classes = torch.arange(len(self.updates), device=target.device)
        members = (target.unsqueeze(0) == classes.unsqueeze(1)).to(projected.dtype)  # (C, n); a hidden row is in none
        count, total = members.sum(1), members @ projected
        here = count > 0
        decay = average_decay(self.momentum, self.updates)
        assert isinstance(decay, Tensor)
        keep = torch.where(here, decay, torch.ones_like(decay)).unsqueeze(1)
        mean = total / count.clamp_min(1.0).unsqueeze(1)
        self.prototypes.copy_(keep * self.prototypes + (1.0 - keep) * mean)
        self.updates += here


def alignment_loss(probs: Tensor, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`-sum_c p_c log q_c` of the rows without a given label; gradients reach p and q.

    Args:
        probs: (n, C) pseudo-distributions p.
        logits: (n, C) of the classifier; q is their softmax.
        target: (n,) int64 given labels, -1 hidden.

    Returns:
        `(sum, count)`, count being the number of hidden rows.
    """
    hidden = target == IGNORE
    wide = logits.to(probs.dtype)
    row = -(probs * log_softmax(wide)).sum(1)
    return torch.where(hidden, row, torch.zeros_like(row)).sum(), hidden.sum().to(row.dtype)
