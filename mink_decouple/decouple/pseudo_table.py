"""The table of pseudo-labels of many clouds: compact in memory, one checked file on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mink_decouple.decouple.pseudo_labels import CERTAIN, NONE, UNCERTAIN, PseudoLabels


class PseudoLabelTable(Mapping[str, PseudoLabels]):
    """Pseudo-labels of many clouds, by cloud name; read-only.

    A point takes 3 bytes in memory (4 with more than 255 classes). Labels and rounds are exact, confidences rounded to
    1/255.

    Args:
        classes: C.
        clouds: pairs (cloud name, its pseudo-labels).

    Raises:
        ValueError: a name occurs twice, or a label is not a class.
    """

    def __init__(self, classes: int, clouds: Iterable[tuple[str, PseudoLabels]] = ()) -> None:
        self.classes = classes
        self._packed: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        dtype, none = _packing(classes)
        for name, labels in clouds:
            if name in self._packed:
                raise ValueError(f"pseudo-labels: cloud '{name}' occurs twice")
            label = labels.label.cpu().numpy()
            if len(label) and not (label.min() >= NONE and label.max() < classes):
                raise ValueError(
                    f"pseudo-labels of '{name}': labels {label.min()}..{label.max()}, expected -1..{classes - 1}"
                )
            confidence = (labels.confidence.float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy()
            packed = np.where(label == NONE, none, label).astype(dtype)
            self._packed[name] = packed, labels.round.to(torch.uint8).cpu().numpy().copy(), confidence

    def __getitem__(self, name: str) -> PseudoLabels:
        packed, rounds, confidence = self._packed[name]
        label = packed.astype(np.int64)
        label[packed == _packing(self.classes)[1]] = NONE
        return PseudoLabels(
            label=torch.from_numpy(label),
            round=torch.from_numpy(rounds.copy()),
            confidence=torch.from_numpy(confidence.astype(np.float32) / np.float32(255.0)),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def counts(self) -> Tensor:
        """(2, C) int64 pseudo-labelled points per class, rows certain and uncertain."""
        total = np.zeros((2, self.classes), np.int64)
        for packed, rounds, _ in self._packed.values():
            for row, r in enumerate((CERTAIN, UNCERTAIN)):
                total[row] += np.bincount(packed[rounds == r], minlength=self.classes)
        return torch.from_numpy(total)

    @property
    def checksum(self) -> str:
        """The SHA-256 of the content, which `save` returns as well."""
        return _checksum(self._arrays())

    def save(self, path: str | Path) -> str:
        """Write one .npz in one move, so that no half-written file is ever seen.

        Returns:
            The SHA-256 of the content, which the file also holds.
        """
        path = Path(path)
        arrays = self._arrays()
        digest = _checksum(arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                content: dict[str, Any] = {"checksum": np.array(digest), **arrays}
                np.savez_compressed(file, **content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return digest

    @classmethod
    def load(cls, path: str | Path) -> PseudoLabelTable:
        """Read `save()`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a table of pseudo-labels, or its content does not match its checksum.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"pseudo-labels: no file {path}")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            digest = str(arrays.pop("checksum"))
            sound = digest == _checksum(arrays)
            names, classes = [str(name) for name in arrays["names"]], int(arrays["classes"])
            label, rounds, confidence = (arrays[key] for key in ("label", "round", "confidence"))
            ends = np.cumsum(arrays["sizes"])
        except Exception as error:  # NumPy, zipfile and zlib raise a dozen types, by the place of the damage
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"{path}: not a readable table of pseudo-labels ({reason}); make it anew") from error
        if not sound:
            raise ValueError(f"{path}: content does not match its checksum, the file is damaged; make it anew")
        table = cls(classes)
        for name, end, size in zip(names, ends, arrays["sizes"]):
            rows = slice(end - size, end)
            table._packed[name] = label[rows], rounds[rows], confidence[rows]
        return table

    def _arrays(self) -> dict[str, np.ndarray]:
        kinds: dict[str, type[np.unsignedinteger]] = {
            "label": _packing(self.classes)[0],
            "round": np.uint8,
            "confidence": np.uint8,
        }
        columns = {
            key: np.concatenate([np.empty(0, kind), *(packed[i] for packed in self._packed.values())])
            for i, (key, kind) in enumerate(kinds.items())
        }
        return {
            "classes": np.array(self.classes, np.int64),
            "names": np.array(list(self._packed), dtype=np.str_),
            "sizes": np.array([len(rounds) for _, rounds, _ in self._packed.values()], np.int64),
            **columns,
        }


def _packing(classes: int) -> tuple[type[np.unsignedinteger], int]:
    """Integer type of a stored label and the value that stands for none."""
    return (np.uint8, 255) if classes <= 255 else (np.uint16, 65535)


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype.str} {arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return digest.hexdigest()
