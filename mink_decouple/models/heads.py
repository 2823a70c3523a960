"""Classifiers: one row of backbone features to one row of logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mink_decouple.models.rows import Dense, truncated_normal_


class LinearHead(nn.Module):
    """One linear layer, the last 1x1x1 convolution of MinkUNet: (n, in_channels) -> (n, num_classes)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, in_channels) -> logits (n, num_classes)."""
        logits: Tensor = self.linear(features)
        return logits


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`; on a CPU from a byte of random bits per value, where torch draws a double, ten times as slow.

    A share that is no multiple of 1/256 takes torch's own draw.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; the values kept are divided by 1 - p. The draw depends on torch's generator alone."""
        if not self.training or x.device.type != "cpu" or not 0 < self.p < 1 or 256 * self.p % 1:
            dropped: Tensor = super().forward(x)
            return dropped
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= int(256 * self.p)
        return x * kept * (1 / (1 - self.p))


class MLPHead(nn.Module):
    """The last three dense layers of RandLA-Net, "MLPs-c" of the decoupled training: in -> 64 -> 32 -> num_classes."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.fc1 = Dense(in_channels, 64)
        self.fc2 = Dense(64, 32)
        self.dropout = Dropout(dropout)
        self.fc3 = nn.Linear(32, num_classes)
        truncated_normal_(self.fc3.weight)
        nn.init.zeros_(self.fc3.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, in_channels) -> logits (n, num_classes)."""
        logits: Tensor = self.fc3(self.dropout(self.fc2(self.fc1(features))))
        return logits


HEADS: dict[str, type[LinearHead] | type[MLPHead]] = {"linear": LinearHead, "mlp": MLPHead}


def build_head(kind: str, in_channels: int, num_classes: int) -> LinearHead | MLPHead:
    """The classifier called `kind`.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in HEADS:
        raise ValueError(f"head is {kind!r}; choose one of {', '.join(HEADS)}")
    return HEADS[kind](in_channels, num_classes)
