"""What a run tells: a line per evaluation in metrics.jsonl, TensorBoard scalars, and lines on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Silent:
    """`Events` of a process that writes nothing."""

    bytes = 0

    def record(self, event: str, step: int, **values: Any) -> None:
        """Nothing."""

    def scalars(self, prefix: str, values: Mapping[str, float | None], step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Events:
    """Writers of one run folder.

    Args:
        folder: the run folder.
        keep_bytes: length of metrics.jsonl at the checkpoint that is resumed; work behind later lines is done again.
        purge_step: TensorBoard events after this step are hidden for the same reason.
    """

    def __init__(self, folder: Path, keep_bytes: int = 0, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        if keep_bytes and (not self.path.is_file() or self.path.stat().st_size < keep_bytes):
            raise ValueError(
                f"{self.path}: shorter than its checkpoint says ({keep_bytes} bytes); the run folder is damaged"
            )
        with self.path.open("ab") as file:
            file.truncate(keep_bytes)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

    @property
    def bytes(self) -> int:
        """Length of metrics.jsonl, for the checkpoint."""
        return self.path.stat().st_size

    def record(self, event: str, step: int, **values: Any) -> None:
        """One line of metrics.jsonl."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": step, **values}, allow_nan=False) + "\n")

    def scalars(self, prefix: str, values: Mapping[str, float | None], step: int) -> None:
        """TensorBoard scalars `prefix/name`; None is skipped."""
        for name, value in values.items():
            if value is not None:
                self.board.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the writers."""
        self.board.close()


_silent = False


def be_silent() -> None:
    """Let `say` and `progress` of this process show nothing: another one speaks."""
    global _silent
    _silent = True


def say(text: str) -> None:
    """A line for the person at the terminal, above any progress bar."""
    if _silent:
        return
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def progress(items: Iterable[T], label: str, total: int | None = None, delay: float = 0.0) -> Iterator[T]:
    """A progress bar on a terminal, `delay` seconds after the start, silence elsewhere."""
    quiet = _silent or not sys.stderr.isatty()
    yield from tqdm(items, desc=label, total=total, leave=False, disable=quiet, dynamic_ncols=True, delay=delay)
