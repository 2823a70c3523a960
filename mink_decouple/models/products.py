"""Matrix products of rows by weights: tall and thin, as a 1x1 convolution has them."""

from __future__ import annotations

import llvmlite.binding
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

# A 1x1 kernel is the same at any dilation, but torch passes one batch on one thread to oneDNN only if it is dilated.
_DILATION = 2
_AMD = llvmlite.binding.get_host_cpu_name().startswith("znver")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for x (rows, C_in) and weight (C_out, C_in): (rows, C_out).

    On an AMD CPU, tall thin matrices are posed as a 1x1 convolution, since torch gives those to oneDNN, which is two to
    four times as fast there as MKL behind a matrix product. No data moves: rows by channels is the channels-last layout
    of an image. On others MKL is the faster one.
    """
    if not _is_tall(x, weight.shape[0]):
        return F.linear(x, weight, bias)
    return _as_rows(F.conv2d(_as_image(x), weight[:, :, None, None], bias, dilation=_DILATION))


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """`grad.T @ x` for grad (rows, C_out) and x (rows, C_in): (C_out, C_in)."""
    if not _is_tall(x, grad.shape[1]):
        return grad.t() @ x
    size = (grad.shape[1], x.shape[1], 1, 1)
    return conv2d_weight(_as_image(x), size, _as_image(grad), dilation=_DILATION).view(size[:2])


def _is_tall(x: Tensor, out_channels: int) -> bool:
    # oneDNN takes 16-bit matrix products anyway
    single = _AMD and x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return single and x.shape[0] >= 4 * max(x.shape[1], out_channels)


def _as_image(x: Tensor) -> Tensor:
    """(rows, C) as a channels-last image (1, C, rows, 1), without a copy."""
    return x.view(1, x.shape[0], 1, x.shape[1]).permute(0, 3, 1, 2)


def _as_rows(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).reshape(image.shape[2], image.shape[1])
