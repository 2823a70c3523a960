"""One process to a run folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

NAME = ".lock"


class RunLock:
    """Holds a folder until `release`, or until the process ends however it ends: the system keeps the lock, not a file.

    Raises:
        ValueError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        self._file: IO[str] | None = path.open("a+", encoding="utf-8")
        try:
            _lock(self._file)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip()
            self.release()
            who = f" (process {holder})" if holder else ""
            raise ValueError(f"{folder}: another process trains into it{who}; choose another --output") from None
        except OSError as error:
            self.release()
            raise ValueError(f"{path}: cannot be locked ({error.strerror}); try an --output on another disk") from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        """Lock one byte far behind the text, so that others can read who holds it."""
        file.seek(1 << 20)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        """Lock the file without waiting."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
