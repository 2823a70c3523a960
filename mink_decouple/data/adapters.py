"""Names of raw datasets and their adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mink_decouple.data.raw import RawDataset

Adapter = Callable[[Path], RawDataset]
"""Root of a download -> its adapter; a function of a module, so that other processes can import it."""


def _s3dis(root: Path) -> RawDataset:
    from mink_decouple.data.s3dis import S3DIS

    return S3DIS(root)


def _scannet(root: Path) -> RawDataset:
    from mink_decouple.data.scannet import ScanNet

    return ScanNet(root)


def _semantic3d(root: Path) -> RawDataset:
    from mink_decouple.data.semantic3d import Semantic3D

    return Semantic3D(root)


def _semantickitti(root: Path) -> RawDataset:
    from mink_decouple.data.semantickitti import SemanticKITTI

    return SemanticKITTI(root)


def _folder(root: Path) -> RawDataset:
    from mink_decouple.data.raw_folder import RawFolder

    return RawFolder(root)


ADAPTERS: dict[str, Adapter] = {
    "s3dis": _s3dis,
    "scannet": _scannet,
    "semantic3d": _semantic3d,
    "semantickitti": _semantickitti,
    "folder": _folder,
}


def adapter(name: str) -> Adapter:
    """The adapter of a dataset; ValueError with the choices for an unknown name."""
    if name not in ADAPTERS:
        raise ValueError(f"--dataset {name!r}: unknown dataset; choose from {', '.join(ADAPTERS)}")
    return ADAPTERS[name]
