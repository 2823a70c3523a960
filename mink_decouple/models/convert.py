"""Weights between this project and MinkowskiEngine's public example network (`examples/minkunet.py` there).

The example is one module: the backbone under the same names as here, and its classifier as the 1x1x1 convolution
`final` with `kernel` (D, C) and `bias` (1, C). Here the classifier is a part of its own, a linear layer with `weight`
(C, D) and `bias` (C,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mink_decouple.models.minkunet import VARIANTS

HEAD = ("classifier.linear.weight", "classifier.linear.bias")
_WRAPPERS = ("module.", "model.", "backbone.", "net.")


def from_example(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of a segmenter with a MinkUNet and a linear head from one of the example network.

    Args:
        state: tensors by the example's names. A dict that holds one under "state_dict" or "model" is looked into, and
            the prefix that a wrapper put before every name ("module." of DataParallel) is dropped.

    Raises:
        ValueError: a part of the network is missing, or a name is none of the network's.
    """
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state.get(key), Mapping):
            return from_example(state[key])
    for prefix in _WRAPPERS:
        if state and all(str(name).startswith(prefix) for name in state):
            return from_example({name[len(prefix) :]: value for name, value in state.items()})
    wrong = [str(name) for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    needed = [name for name in ("conv0p1s1.kernel", "block8.0.conv1.kernel", "final.kernel") if name not in state]
    if wrong or needed:
        found = ", ".join(list(map(str, state))[:4]) or "nothing"
        raise ValueError(
            f"not the weights of MinkowskiEngine's example MinkUNet: "
            f"{'no ' + needed[0] if needed else wrong[0] + ' is no named tensor'}; it begins with {found}"
        )
    result = {f"backbone.{name}": value for name, value in state.items() if not name.startswith("final.")}
    kernel = state["final.kernel"]
    if kernel.ndim not in (2, 3) or kernel.shape[:-2].numel() != 1:
        raise ValueError(f"final.kernel is {tuple(kernel.shape)}, not that of a 1x1x1 convolution, (D, C)")
    kernel = kernel.reshape(kernel.shape[-2:])
    result[HEAD[0]] = kernel.t().contiguous()
    result[HEAD[1]] = state["final.bias"].reshape(-1) if "final.bias" in state else kernel.new_zeros(kernel.shape[1])
    return result


def to_example(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`from_example`: a state dict that the example network loads.

    Raises:
        ValueError: the segmenter has another backbone or another head.
    """
    if "backbone.conv0p1s1.kernel" not in state:
        raise ValueError("only a minkunet can be written as MinkowskiEngine's example; this is another backbone")
    if set(HEAD) - set(state):
        raise ValueError("MinkowskiEngine's example network has a linear classifier; this one has model.head mlp")
    result = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    result["final.kernel"] = state[HEAD[0]].t().contiguous()
    result["final.bias"] = state[HEAD[1]].reshape(1, -1).clone()
    return result


def sizes_of(state: Mapping[str, Tensor]) -> tuple[str, int, int]:
    """Variant, input channels and classes of a converted state dict.

    Raises:
        ValueError: no known variant has these sizes; the example's MinkUNet50 and 101 have blocks of another kind.
    """
    missing = [i for i in range(1, 9) if f"backbone.block{i}.0.conv1.kernel" not in state]
    if missing:
        raise ValueError(f"no block{missing[0]}.0.conv1.kernel: not the whole of a MinkUNet")
    blocks = {name.split(".")[1] + name.split(".")[2] for name in state if name.startswith("backbone.block")}
    layers = tuple(sum(name.startswith(f"block{i}") for name in blocks) for i in range(1, 9))
    first = [state[f"backbone.block{i}.0.conv1.kernel"] for i in range(1, 9)]
    planes = tuple(kernel.shape[-1] for kernel in first)
    stem = state["backbone.conv0p1s1.kernel"]
    plain = all(kernel.ndim == 3 for kernel in (stem, *first))
    for name, variant in VARIANTS.items():
        same = (variant.layers, variant.planes, variant.stem, variant.stem_kernel**3)
        if plain and same == (layers, planes, stem.shape[2], stem.shape[0]):
            return name, stem.shape[1], state[HEAD[0]].shape[0]
    raise ValueError(
        f"no MinkUNet variant has blocks {layers}, channels {planes} and a first kernel {tuple(stem.shape)}; "
        f"known variants: {', '.join(VARIANTS)}"
    )
