"""Names of raw datasets, their adapters and the options of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mink_decouple.data.raw import RawDataset

Adapter = Callable[[Path], RawDataset]
"""Root of a download -> its adapter; a function of a module, or a `partial` of one: other processes import it."""


def _s3dis(root: Path, **options: Any) -> RawDataset:
    from mink_decouple.data.s3dis import S3DIS

    return S3DIS(root, **options)


def _scannet(root: Path, **options: Any) -> RawDataset:
    from mink_decouple.data.scannet import ScanNet

    return ScanNet(root, **options)


def _semantic3d(root: Path, **options: Any) -> RawDataset:
    from mink_decouple.data.semantic3d import Semantic3D

    return Semantic3D(root, **options)


def _semantickitti(root: Path, **options: Any) -> RawDataset:
    from mink_decouple.data.semantickitti import SemanticKITTI

    return SemanticKITTI(root, **options)


def _folder(root: Path, **options: Any) -> RawDataset:
    from mink_decouple.data.raw_folder import RawFolder

    return RawFolder(root, **options)


ADAPTERS: dict[str, Callable[..., RawDataset]] = {
    "s3dis": _s3dis,
    "scannet": _scannet,
    "semantic3d": _semantic3d,
    "semantickitti": _semantickitti,
    "folder": _folder,
}
OPTIONS: dict[str, dict[str, type]] = {
    "s3dis": {"others": str},
    "scannet": {"axis_align": bool},
    "semantickitti": {"every": int},
    "folder": {"classes": str},
}
"""What may be asked of an adapter beside its root: name -> kind of value. Their docstrings say what they do."""


def adapter(name: str, options: Mapping[str, Any] | None = None) -> Adapter:
    """The adapter of a dataset.

    Raises:
        ValueError: an unknown dataset or option, or a value of another kind, with the choices.
    """
    if name not in ADAPTERS:
        raise ValueError(f"--dataset {name!r}: unknown dataset; choose from {', '.join(ADAPTERS)}")
    known = OPTIONS.get(name, {})
    for key, value in (options or {}).items():
        if key not in known:
            raise ValueError(f"--set {key}: {name} has no such option; it has {', '.join(known) or 'none'}")
        if type(value) is not known[key]:
            raise ValueError(f"--set {key}={value}: expected {_KINDS[known[key]]}")
    return partial(ADAPTERS[name], **options) if options else ADAPTERS[name]


_KINDS = {str: "text", bool: "true or false", int: "a whole number"}
