"""Complete checkpoints: written whole or not at all, loaded without running code from the file."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mink_decouple.data.classes import Classes

FORMAT = 1
_WRITER = ("PytorchStreamWriter", "inline_container")
"""In torch's messages of a file that it could not write."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint: `state` is tensors, numbers, text, and lists or dicts of them."""
    write(path, {"format": FORMAT, **state})


def write(path: Path, content: dict[str, Any]) -> None:
    """Write plain data and tensors under `path` only when they are whole on disk.

    Raises:
        OSError: the disk is full or the folder is gone; what stood under `path` stands there still.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch speaks of its own writer where the disk is full
        if isinstance(error, RuntimeError) and not any(name in str(error) for name in _WRITER):
            raise
        raise OSError(_why(path, error)) from error


def _why(path: Path, error: OSError | RuntimeError) -> str:
    if not path.parent.is_dir():
        return f"{path.parent}: the folder is gone; nothing can be written there"
    free = f"{shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB free without it"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "it could not be written whole"
    rest = "the last good one is untouched; a training goes on with --resume"
    return f"{path}: cannot be written ({reason}; {free}); {rest}"


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds anything but plain data, or has another format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    state = read(path, device)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path}: not a checkpoint of this program (format {found!r}, expected {FORMAT})")
    return state


def read(path: Path, device: torch.device | str = "cpu") -> Any:
    """What a file written by `torch.save` holds, loaded with `weights_only=True`.

    Raises:
        ValueError: the file is damaged or holds anything but plain data and tensors.
    """
    try:
        _require_sums(path)
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises a dozen kinds, by the place of the damage
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        if type(error).__name__ == "UnpicklingError":  # torch's text is of its own history
            reason = "not written by torch.save, or it holds more than plain data and tensors"
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from None


def _require_sums(path: Path) -> None:
    """Raises BadZipFile where a record differs from its CRC-32, which `torch.save` writes and `torch.load` ignores."""
    if zipfile.is_zipfile(path):  # files of torch before 1.6 are none
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"{broken} differs from its checksum")


def tensors(value: Any) -> Any:
    """Nested plain data with every NumPy array as a tensor, which `weights_only` loading accepts."""
    if isinstance(value, dict):
        return {key: tensors(item) for key, item in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def pack_classes(classes: Classes) -> dict[str, Any]:
    """Classes as plain data for a checkpoint."""
    return {
        "names": list(classes.names),
        "colors": torch.from_numpy(classes.colors.copy()),
        "raw_ids": dict(classes.raw_ids),
        "ignored": sorted(classes.ignored),
    }


def classes_of(state: dict[str, Any]) -> Classes:
    """The classes a checkpoint was trained on."""
    packed = state["classes"]
    colors = np.asarray(packed["colors"].numpy(), np.uint8)
    return Classes(tuple(packed["names"]), colors, dict(packed["raw_ids"]), frozenset(packed["ignored"]))


def require_classes(path: Path, state: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raises ValueError where the checkpoint was trained on other classes, or on the same in another order."""
    trained = tuple(state["classes"]["names"])
    if trained != names:
        raise ValueError(f"{path}: trained on classes {', '.join(trained)}; the data has {', '.join(names)}")
