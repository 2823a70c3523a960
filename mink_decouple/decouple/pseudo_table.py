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

Packed = tuple[np.ndarray, np.ndarray]
"""(n,) label and round in one number, `3 label + round` or the highest of its type for no label, and the confidence."""
ROUNDS = 3


class PseudoLabelTable(Mapping[str, PseudoLabels]):
    """Pseudo-labels of many clouds, by cloud name; read-only.

    A point takes 2 bytes in memory (3 with more than 85 classes). Labels and rounds are exact, confidences rounded to
    1/255.

    Args:
        classes: C.
        clouds: pairs (cloud name, its pseudo-labels).

    Raises:
        ValueError: a name occurs twice, or a label is not a class.
    """

    def __init__(self, classes: int, clouds: Iterable[tuple[str, PseudoLabels]] = ()) -> None:
        self.classes = classes
        self._packed: dict[str, Packed] = {}
        for name, labels in clouds:
            if name in self._packed:
                raise ValueError(f"pseudo-labels: cloud '{name}' occurs twice")
            label = labels.label.cpu().numpy()
            if len(label) and not (label.min() >= NONE and label.max() < classes):
                raise ValueError(
                    f"pseudo-labels of '{name}': labels {label.min()}..{label.max()}, expected -1..{classes - 1}"
                )
            confidence = (labels.confidence.float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy()
            self._packed[name] = _pack(classes, label, labels.round.cpu().numpy()), confidence

    @classmethod
    def of_packed(cls, classes: int, clouds: Iterable[tuple[str, Packed]]) -> PseudoLabelTable:
        """A table from what `packed` of others gave."""
        table = cls(classes)
        table._packed = dict(clouds)
        return table

    def packed(self, name: str) -> Packed:
        """The stored columns of a cloud, to hand on."""
        return self._packed[name]

    def __getitem__(self, name: str) -> PseudoLabels:
        code, confidence = self._packed[name]
        label, rounds = _unpack(code)
        return PseudoLabels(
            label=torch.from_numpy(label),
            round=torch.from_numpy(rounds),
            confidence=torch.from_numpy(confidence.astype(np.float32) / np.float32(255.0)),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def counts(self) -> Tensor:
        """(2, C) int64 pseudo-labelled points per class, rows certain and uncertain."""
        total = np.zeros((2, self.classes), np.int64)
        for code, _ in self._packed.values():
            found = np.bincount(code, minlength=ROUNDS * self.classes)[: ROUNDS * self.classes]
            total += found.reshape(self.classes, ROUNDS).T[[CERTAIN, UNCERTAIN]]
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
            known = np.where(label[rows] == _stored(classes)[1], NONE, label[rows].astype(np.int64))
            table._packed[name] = _pack(classes, known, rounds[rows]), confidence[rows]
        return table

    def _arrays(self) -> dict[str, np.ndarray]:
        kind, none = _stored(self.classes)
        sizes = np.array([len(code) for code, _ in self._packed.values()], np.int64)
        columns = {"label": kind, "round": np.uint8, "confidence": np.uint8}
        arrays: dict[str, np.ndarray] = {key: np.empty(int(sizes.sum()), dtype) for key, dtype in columns.items()}
        for end, size, (code, confidence) in zip(np.cumsum(sizes), sizes, self._packed.values()):
            rows = slice(end - size, end)
            label, arrays["round"][rows] = _unpack(code)
            arrays["label"][rows] = np.where(label == NONE, none, label)
            arrays["confidence"][rows] = confidence
        return {
            "classes": np.array(self.classes, np.int64),
            "names": np.array(list(self._packed), dtype=np.str_),
            "sizes": sizes,
            **arrays,
        }


def _pack(classes: int, label: np.ndarray, rounds: np.ndarray) -> np.ndarray:
    kind = np.uint8 if ROUNDS * classes <= 255 else np.uint16
    # a type that holds the product: labels may come as bytes
    return np.where(label == NONE, np.iinfo(kind).max, ROUNDS * label.astype(np.int64) + rounds).astype(kind)


def _unpack(code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 labels and uint8 rounds."""
    none = code == np.iinfo(code.dtype).max
    label, rounds = np.divmod(code, ROUNDS)
    return np.where(none, NONE, label.astype(np.int64)), np.where(none, 0, rounds).astype(np.uint8)


def _stored(classes: int) -> tuple[type[np.unsignedinteger], int]:
    """Integer type of a label in a file and the value that stands for none."""
    return (np.uint8, 255) if classes <= 255 else (np.uint16, 65535)


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype.str} {arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return digest.hexdigest()
