"""MinkUNet over spconv 2.x with the weights of ours: the same blocks, maps shared by `indice_key`, as its users do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mink_decouple.models.minkunet import Variant
from mink_decouple.models.segmenter import Segmenter


class Norm(nn.Module):
    """Batch norm over the rows; `bn` as in our layer, so that its parameters have the same names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Any, residual: Any = None, rectify: bool = False) -> Any:
        """A sparse tensor of C channels -> another on the same voxels."""
        rows = self.bn(x.features)
        rows = rows if residual is None else rows + residual.features
        return x.replace_feature(F.relu(rows) if rectify else rows)


class Block(nn.Module):
    """The basic residual block: two convolutions of kernel 3 beside a shortcut."""

    def __init__(self, sp: Any, in_channels: int, channels: int, key: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = _submanifold(sp, in_channels, channels, 3, key), Norm(channels)
        self.conv2, self.norm2 = _submanifold(sp, channels, channels, 3, key), Norm(channels)
        self.downsample: nn.Module | None = None
        if in_channels != channels:
            self.downsample = nn.Sequential(_submanifold(sp, in_channels, channels, 1, f"{key}k1"), Norm(channels))

    def forward(self, x: Any) -> Any:
        """C_in -> C channels on the same voxels."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.norm2(self.conv2(self.norm1(self.conv1(x), rectify=True)), residual=shortcut, rectify=True)


class SpconvMinkUNet(nn.Module):
    """MinkUNet and its linear classifier.

    Args:
        sp: the module `spconv.pytorch`.
        variant: sizes.
        in_channels: F.
        classes: C.
    """

    def __init__(self, sp: Any, variant: Variant, in_channels: int, classes: int) -> None:
        super().__init__()
        self.sp = sp
        how = algorithm(sp)
        self.conv0p1s1 = _submanifold(sp, in_channels, variant.stem, variant.stem_kernel, "stem")
        self.bn0 = Norm(variant.stem)
        skips = [variant.stem, *variant.planes[:3]]
        for stage, width in enumerate(skips, start=1):
            down = sp.SparseConv3d(width, width, 2, 2, bias=False, indice_key=f"down{stage}", algo=how)
            self.add_module(f"conv{stage}p{2 ** (stage - 1)}s2", down)
            self.add_module(f"bn{stage}", Norm(width))
            blocks = _stage(sp, width, variant.planes[stage - 1], variant.layers[stage - 1], f"level{stage}")
            self.add_module(f"block{stage}", blocks)
        width = variant.planes[3]
        for stage in range(4, 8):
            channels, level = variant.planes[stage], 7 - stage
            up = sp.SparseInverseConv3d(width, channels, 2, indice_key=f"down{level + 1}", bias=False, algo=how)
            self.add_module(f"convtr{stage}p{2 ** (8 - stage)}s2", up)
            self.add_module(f"bntr{stage}", Norm(channels))
            joined = channels + skips[level]
            blocks = _stage(sp, joined, channels, variant.layers[stage], f"level{level}")
            self.add_module(f"block{stage + 1}", blocks)
            width = channels
        self.classifier = nn.Linear(width, classes)

    def forward(self, voxels: Tensor, feats: Tensor, shape: list[int]) -> Tensor:
        """Logits (n, C) of the rows.

        Args:
            voxels: (n, 4) int32 ``[batch, x, y, z]``, none negative.
            feats: (n, F) float32.
            shape: extent along x, y, z, multiples of 16.
        """
        modules = dict(self.named_children())
        x = self.sp.SparseConvTensor(feats, voxels, shape, int(voxels[-1, 0]) + 1)
        x = self.bn0(self.conv0p1s1(x), rectify=True)
        skips = []
        for stage in range(1, 5):
            skips.append(x)
            x = modules[f"bn{stage}"](modules[f"conv{stage}p{2 ** (stage - 1)}s2"](x), rectify=True)
            x = modules[f"block{stage}"](x)
        for stage in range(4, 8):
            x = modules[f"bntr{stage}"](modules[f"convtr{stage}p{2 ** (8 - stage)}s2"](x), rectify=True)
            skip = skips.pop()
            x = modules[f"block{stage + 1}"](x.replace_feature(torch.cat([x.features, skip.features], dim=1)))
        logits: Tensor = self.classifier(x.features)
        return logits

    def load(self, model: Segmenter) -> SpconvMinkUNet:
        """Take the weights of our network with a linear head."""
        own = self.state_dict()
        for name, value in model.backbone.state_dict().items():
            if name.endswith(".kernel"):
                own[f"{name.removesuffix('.kernel')}.weight"].copy_(spconv_weight(value))
            else:
                own[name].copy_(value)
        head = model.classifier.state_dict()
        own["classifier.weight"].copy_(head["linear.weight"])
        own["classifier.bias"].copy_(head["linear.bias"])
        return self


def spconv_weight(kernel: Tensor) -> Tensor:
    """Our (K^3, C_in, C_out), x fastest, or (C_in, C_out) as spconv's (C_out, x, y, z, C_in)."""
    if kernel.ndim == 2:
        # its 1x1 convolution reads the weight's memory as (C_in, C_out), whatever the shape says
        return kernel.reshape(kernel.shape[1], 1, 1, 1, kernel.shape[0])
    edge = round(kernel.shape[0] ** (1 / 3))
    return kernel.view(edge, edge, edge, *kernel.shape[1:]).permute(4, 2, 1, 0, 3)


def algorithm(sp: Any) -> Any:
    """The only one that spconv has for CPUs; on a GPU its own choice."""
    return None if torch.cuda.is_available() else sp.ConvAlgo.Native


def _submanifold(sp: Any, in_channels: int, channels: int, kernel_size: int, key: str) -> nn.Module:
    made: nn.Module = sp.SubMConv3d(in_channels, channels, kernel_size, bias=False, indice_key=key, algo=algorithm(sp))
    return made


def _stage(sp: Any, in_channels: int, channels: int, blocks: int, key: str) -> nn.Sequential:
    return nn.Sequential(*(Block(sp, in_channels if i == 0 else channels, channels, key) for i in range(blocks)))
