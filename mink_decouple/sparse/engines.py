"""The engines a sparse network runs on, behind one interface: our own, and MinkowskiEngine.

Both have the same parameter names, shapes, offset order and initial draws, so a network built on one takes the weights
of the other and, from one seed, starts from the same ones.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHOICES = ("auto", "native", "minkowski")
INSTALL = "install it with docker/install_minkowski.sh, or set model.engine to native"


@dataclass(frozen=True)
class Engine:
    """Layers that share one kind of sparse tensor, and the way in and out of it.

    Attributes:
        name: "native" or "minkowski".
        conv: ``(in_channels, out_channels, kernel_size=3, stride=1)`` -> module.
        conv_transpose: ``(in_channels, out_channels)`` -> module with kernel 2 and stride 2.
        batch_norm: ``(channels)`` -> module called as ``norm(x, residual=None, rectify=False)``.
        conv_norm: ``(conv, norm, x, residual=None, rectify=False)``: ``norm(conv(x), residual, rectify)``, fused where
            it can be.
        cat: joins the channels of two tensors on the same voxels.
        apply: ``(network, voxels, feats, width)``: sends features (n, F) on voxels (n, 4) int32 ``[batch, x, y, z]``
            through a network of this engine's tensors; returns (n, width), row i belonging to voxel i.
    """

    name: str
    conv: Callable[..., nn.Module]
    conv_transpose: Callable[..., nn.Module]
    batch_norm: Callable[..., nn.Module]
    conv_norm: Callable[..., Any]
    cat: Callable[[Any, Any], Any]
    apply: Callable[[Callable[[Any], Any], Tensor, Tensor, int], Tensor]

    def __reduce__(self) -> tuple[Any, ...]:
        """A network is copied and saved with the name of its engine, whose functions are not to be."""
        return engine, (self.name,)


def engine(name: str) -> Engine:
    """An engine by name; ``auto`` is the native one.

    Raises:
        ValueError: unknown name, or MinkowskiEngine does not import.
    """
    if name not in CHOICES:
        raise ValueError(f"model.engine is {name!r}; choose one of {', '.join(CHOICES)}")
    return _minkowski() if name == "minkowski" else _native()


def import_minkowski() -> Any:
    """The module MinkowskiEngine, without its warning that a CPU build is one.

    Raises:
        ValueError: it does not import; says why in one line.
    """
    # Read once, when its BLAS is loaded. Further threads there only wait beside OpenMP's: they gain nothing on an idle
    # machine and cost half of the speed on a busy one.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import MinkowskiEngine
    except Exception as error:  # a build for another torch fails in its own ways: undefined symbols, missing libraries
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"MinkowskiEngine does not import ({type(error).__name__}: {reason}); {INSTALL}") from None
    return MinkowskiEngine


def require_device(name: str | None, device: torch.device) -> None:
    """Raises ValueError where the engine of that name is a build that cannot compute on the device."""
    if name == "minkowski" and device.type == "cuda" and not import_minkowski().is_cuda_available():
        raise ValueError(
            "MinkowskiEngine is a CPU build here: build it with docker/install_minkowski.sh --cuda --force, "
            "take --device cpu, or set model.engine to native"
        )


@cache
def _native() -> Engine:
    from mink_decouple.sparse.layers import BatchNorm, Conv3d, ConvTranspose3d, cat, conv_norm
    from mink_decouple.sparse.tensor import MapCache, SparseTensor

    def apply(network: Callable[[SparseTensor], SparseTensor], voxels: Tensor, feats: Tensor, width: int) -> Tensor:
        given = MapCache(voxels)
        order = given.level(1).order
        if order is None:
            return network(SparseTensor(voxels, feats, maps=given)).feats
        # Sorted rows keep neighbours close in memory at every level: two small permutations pay for themselves.
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        maps = given.in_key_order()
        return network(SparseTensor(maps.level(1).coords, feats[order], maps=maps)).feats[back]

    return Engine("native", Conv3d, ConvTranspose3d, BatchNorm, conv_norm, cat, apply)


@cache
def _minkowski() -> Engine:
    ME = import_minkowski()

    def conv(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Module:
        made: nn.Module = ME.MinkowskiConvolution(in_channels, out_channels, kernel_size, stride, dimension=3)
        return made

    def conv_transpose(in_channels: int, out_channels: int) -> nn.Module:
        made: nn.Module = ME.MinkowskiConvolutionTranspose(in_channels, out_channels, 2, 2, dimension=3)
        return made

    class BatchNorm(ME.MinkowskiBatchNorm):  # type: ignore[misc,name-defined] # the engine has no types
        """MinkowskiEngine's batch norm, followed by its own addition and ReLU where they are asked for."""

        def forward(self, x: Any, residual: Any = None, rectify: bool = False) -> Any:
            bn = self.bn
            if bn.training and len(x) < 2:  # one row has no variance; torch refuses it
                rows = F.batch_norm(x.F, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps)
                x = ME.SparseTensor(
                    rows, coordinate_map_key=x.coordinate_map_key, coordinate_manager=x.coordinate_manager
                )
            else:
                x = super().forward(x)
            if residual is not None:
                x += residual
            return ME.MinkowskiFunctional.relu(x, inplace=True) if rectify else x

    def apply(network: Callable[[Any], Any], voxels: Tensor, feats: Tensor, width: int) -> Tensor:
        if not len(voxels):  # its convolution ends the process on an empty tensor
            return feats.new_zeros(0, width, requires_grad=torch.is_grad_enabled())
        with torch.autocast(feats.device.type, enabled=False):  # it computes in single or double precision only
            x = ME.SparseTensor(feats.float() if feats.dtype.itemsize < 4 else feats, voxels)
            if len(x) != len(voxels):
                raise ValueError(f"coords repeat a voxel: {len(x)} of {len(voxels)} rows are distinct")
            rows: Tensor = network(x).F
        # on a GPU its coordinate map chooses the order of rows
        return rows[x.inverse_mapping.long()] if voxels.is_cuda else rows

    def conv_norm(conv: nn.Module, norm: nn.Module, x: Any, residual: Any = None, rectify: bool = False) -> Any:
        return norm(conv(x), residual, rectify)

    return Engine("minkowski", conv, conv_transpose, BatchNorm, conv_norm, ME.cat, apply)
