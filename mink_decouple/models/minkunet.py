"""MinkUNet: the sparse residual U-Net of Choy et al. (4D Spatio-Temporal ConvNets, CVPR 2019), without its classifier.

Modules carry the names of MinkowskiEngine's public example, so state dicts map name for name; its ``final`` layer is
the segmenter's classifier here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from mink_decouple.sparse.engines import Engine, engine


class VoxelBatch(Protocol):
    """What the network reads of a batch: ``voxels`` (n, 4) int32 ``[batch, x, y, z]`` and ``feats`` (n, F) float32."""

    voxels: Tensor
    feats: Tensor


@dataclass(frozen=True)
class Variant:
    """Sizes of one MinkUNet: residual blocks and channels of the 4 down and 4 up stages, and the stem."""

    layers: tuple[int, ...]
    planes: tuple[int, ...]
    stem: int = 32
    stem_kernel: int = 5


VARIANTS = {
    "14A": Variant((1,) * 8, (32, 64, 128, 256, 128, 128, 96, 96)),
    "18A": Variant((2,) * 8, (32, 64, 128, 256, 128, 128, 96, 96)),
    "34C": Variant((2, 3, 4, 6, 2, 2, 2, 2), (32, 64, 128, 256, 256, 128, 96, 96)),
    "tiny": Variant((1,) * 8, (16, 32, 64, 96, 64, 48, 32, 32), stem=16, stem_kernel=3),
}


class BasicBlock(nn.Module):
    """conv3-BN-ReLU-conv3-BN plus a shortcut (1x1 convolution and BN where the channels change), then ReLU."""

    def __init__(self, on: Engine, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = on.conv(in_channels, channels), on.batch_norm(channels)
        self.conv2, self.norm2 = on.conv(channels, channels), on.batch_norm(channels)
        self.conv_norm = on.conv_norm
        self.downsample: nn.Module | None = None
        if in_channels != channels:
            self.downsample = nn.Sequential(on.conv(in_channels, channels, kernel_size=1), on.batch_norm(channels))

    def forward(self, x: Any) -> Any:
        """A sparse tensor with C_in channels -> one with C channels on the same voxels."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.conv_norm(self.conv1, self.norm1, x, rectify=True)
        return self.conv_norm(self.conv2, self.norm2, out, residual=shortcut, rectify=True)


class MinkUNet(nn.Module):
    """Features per voxel from a sparse residual U-Net with four strided stages.

    Args:
        in_channels: input features F per voxel.
        layers: residual blocks of the 8 stages (4 down, 4 up).
        planes: channels of the 8 stages.
        stem: channels of the first convolution.
        stem_kernel: its kernel size, 5 in the reference networks.
        engine_name: what computes it: native | minkowski | auto (= native). Weights fit either.

    Attributes:
        out_channels: features D per voxel, ``planes[7]``.
        engine: the engine it runs on.

    Raises:
        ValueError: ``layers`` or ``planes`` do not have 8 entries, or the engine is unknown or does not import.
    """

    def __init__(
        self,
        in_channels: int,
        layers: Sequence[int],
        planes: Sequence[int],
        stem: int = 32,
        stem_kernel: int = 5,
        engine_name: str = "auto",
    ) -> None:
        super().__init__()
        for name, values in (("layers", layers), ("planes", planes)):
            if len(values) != 8:
                raise ValueError(f"MinkUNet {name} needs 8 values (4 down, 4 up), got {list(values)}")
        self.in_channels, self.out_channels = in_channels, planes[7]
        self.engine = on = engine(engine_name)
        self.conv0p1s1, self.bn0 = on.conv(in_channels, stem, stem_kernel), on.batch_norm(stem)
        # Channels of the tensors the up stages are joined to, coarsest last.
        skips = [stem, *planes[:3]]
        for stage, width in enumerate(skips, start=1):
            stride = 2 ** (stage - 1)
            self.add_module(f"conv{stage}p{stride}s2", on.conv(width, width, kernel_size=2, stride=2))
            self.add_module(f"bn{stage}", on.batch_norm(width))
            self.add_module(f"block{stage}", _stage(on, width, planes[stage - 1], layers[stage - 1]))
        width = planes[3]
        for stage in range(4, 8):
            stride = 2 ** (8 - stage)
            self.add_module(f"convtr{stage}p{stride}s2", on.conv_transpose(width, planes[stage]))
            self.add_module(f"bntr{stage}", on.batch_norm(planes[stage]))
            joined = planes[stage] + skips[7 - stage]
            self.add_module(f"block{stage + 1}", _stage(on, joined, planes[stage], layers[stage]))
            width = planes[stage]
        self.reset_parameters()

    @classmethod
    def from_variant(cls, name: str, in_channels: int, engine_name: str = "auto") -> MinkUNet:
        """Build one of ``VARIANTS``.

        Raises:
            ValueError: unknown name or engine.
        """
        if name not in VARIANTS:
            raise ValueError(f"unknown MinkUNet variant {name!r}; choices: {', '.join(VARIANTS)}")
        variant = VARIANTS[name]
        return cls(in_channels, **vars(variant), engine_name=engine_name)

    def reset_parameters(self) -> None:
        """Kaiming-normal (fan-out, ReLU) kernels; transposed ones keep their uniform default, as in the reference.

        The fan-out of a 1x1 kernel is C_out. The reference takes C_in there, for its kernels have no third axis.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(".kernel") and not name.startswith("convtr"):
                fan_out = parameter.numel() // parameter.shape[-2]  # kernel volume times C_out
                nn.init.normal_(parameter, std=math.sqrt(2 / fan_out))

    def forward(self, batch: VoxelBatch) -> Tensor:
        """Features (n, D), one row per row of ``batch.voxels``.

        Raises:
            ValueError: wrong number of input features, or voxels that are no valid sparse tensor of the engine.
        """
        if batch.feats.ndim != 2 or batch.feats.shape[1] != self.in_channels:
            raise ValueError(f"feats must be (n, {self.in_channels}), got {tuple(batch.feats.shape)}")
        return self.engine.apply(self._features, batch.voxels, batch.feats, self.out_channels)

    def _features(self, x: Any) -> Any:
        modules, conv_norm = dict(self.named_children()), self.engine.conv_norm
        x = conv_norm(self.conv0p1s1, self.bn0, x, rectify=True)
        skips = []
        for stage in range(1, 5):
            skips.append(x)
            x = conv_norm(modules[f"conv{stage}p{2 ** (stage - 1)}s2"], modules[f"bn{stage}"], x, rectify=True)
            x = modules[f"block{stage}"](x)
        for stage in range(4, 8):
            x = conv_norm(modules[f"convtr{stage}p{2 ** (8 - stage)}s2"], modules[f"bntr{stage}"], x, rectify=True)
            x = modules[f"block{stage + 1}"](self.engine.cat(x, skips.pop()))
        return x


def _stage(on: Engine, in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(BasicBlock(on, in_channels if i == 0 else channels, channels) for i in range(blocks)))
