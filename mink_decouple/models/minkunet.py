"""MinkUNet: the sparse residual U-Net of Choy et al. (4D Spatio-Temporal ConvNets, CVPR 2019), without its classifier.

Modules carry the names of MinkowskiEngine's public example, so state dicts map name for name; its ``final`` layer is
the segmenter's classifier here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mink_decouple.sparse.layers import BatchNorm, Conv3d, ConvTranspose3d, cat
from mink_decouple.sparse.tensor import MapCache, SparseTensor


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

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = Conv3d(in_channels, channels), BatchNorm(channels)
        self.conv2, self.norm2 = Conv3d(channels, channels), BatchNorm(channels)
        self.downsample: nn.Module | None = None
        if in_channels != channels:
            self.downsample = nn.Sequential(Conv3d(in_channels, channels, kernel_size=1), BatchNorm(channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """(N, C_in) -> (N, C)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.norm1(self.conv1(x), rectify=True)
        out = self.norm2(self.conv2(out), residual=shortcut, rectify=True)
        return out  # type: ignore[no-any-return] # torch's call is untyped


class MinkUNet(nn.Module):
    """Features per voxel from a sparse residual U-Net with four strided stages.

    Args:
        in_channels: input features F per voxel.
        layers: residual blocks of the 8 stages (4 down, 4 up).
        planes: channels of the 8 stages.
        stem: channels of the first convolution.
        stem_kernel: its kernel size, 5 in the reference networks.

    Attributes:
        out_channels: features D per voxel, ``planes[7]``.

    Raises:
        ValueError: ``layers`` or ``planes`` do not have 8 entries.
    """

    def __init__(
        self, in_channels: int, layers: Sequence[int], planes: Sequence[int], stem: int = 32, stem_kernel: int = 5
    ) -> None:
        super().__init__()
        for name, values in (("layers", layers), ("planes", planes)):
            if len(values) != 8:
                raise ValueError(f"MinkUNet {name} needs 8 values (4 down, 4 up), got {list(values)}")
        self.in_channels, self.out_channels = in_channels, planes[7]
        self.conv0p1s1, self.bn0 = Conv3d(in_channels, stem, stem_kernel), BatchNorm(stem)
        # Channels of the tensors the up stages are joined to, coarsest last.
        skips = [stem, *planes[:3]]
        for stage, width in enumerate(skips, start=1):
            stride = 2 ** (stage - 1)
            self.add_module(f"conv{stage}p{stride}s2", Conv3d(width, width, kernel_size=2, stride=2))
            self.add_module(f"bn{stage}", BatchNorm(width))
            self.add_module(f"block{stage}", _stage(width, planes[stage - 1], layers[stage - 1]))
        width = planes[3]
        for stage in range(4, 8):
            stride = 2 ** (8 - stage)
            self.add_module(f"convtr{stage}p{stride}s2", ConvTranspose3d(width, planes[stage]))
            self.add_module(f"bntr{stage}", BatchNorm(planes[stage]))
            self.add_module(f"block{stage + 1}", _stage(planes[stage] + skips[7 - stage], planes[stage], layers[stage]))
            width = planes[stage]
        self.reset_parameters()

    @classmethod
    def from_variant(cls, name: str, in_channels: int) -> MinkUNet:
        """Build one of ``VARIANTS``.

        Raises:
            ValueError: unknown name.
        """
        if name not in VARIANTS:
            raise ValueError(f"unknown MinkUNet variant {name!r}; choices: {', '.join(VARIANTS)}")
        variant = VARIANTS[name]
        return cls(in_channels, variant.layers, variant.planes, variant.stem, variant.stem_kernel)

    def reset_parameters(self) -> None:
        """Kaiming-normal (fan-out, ReLU) kernels; transposed ones keep their uniform default, as in the reference."""
        for module in self.modules():
            if isinstance(module, Conv3d):
                fan_out = module.kernel_size**3 * module.out_channels
                nn.init.normal_(module.kernel, std=math.sqrt(2 / fan_out))

    def forward(self, batch: VoxelBatch) -> Tensor:
        """Features (n, D), one row per row of ``batch.voxels``.

        Raises:
            ValueError: wrong number of input features, or voxels that are no valid :class:`SparseTensor`.
        """
        if batch.feats.ndim != 2 or batch.feats.shape[1] != self.in_channels:
            raise ValueError(f"feats must be (n, {self.in_channels}), got {tuple(batch.feats.shape)}")
        order = MapCache(batch.voxels).level(1).order
        if order is None:
            return self._features(SparseTensor(batch.voxels, batch.feats)).feats
        # Sorted rows keep neighbours close in memory at every level: two small permutations pay for themselves.
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return self._features(SparseTensor(batch.voxels[order], batch.feats[order])).feats[back]

    def _features(self, x: SparseTensor) -> SparseTensor:
        modules = dict(self.named_children())
        x = self.bn0(self.conv0p1s1(x), rectify=True)
        skips = []
        for stage in range(1, 5):
            skips.append(x)
            x = modules[f"bn{stage}"](modules[f"conv{stage}p{2 ** (stage - 1)}s2"](x), rectify=True)
            x = modules[f"block{stage}"](x)
        for stage in range(4, 8):
            x = modules[f"bntr{stage}"](modules[f"convtr{stage}p{2 ** (8 - stage)}s2"](x), rectify=True)
            x = modules[f"block{stage + 1}"](cat(x, skips.pop()))
        return x


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(BasicBlock(in_channels if i == 0 else channels, channels) for i in range(blocks)))
