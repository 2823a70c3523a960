"""SIGINT and SIGTERM as a wish to stop that a run fulfils where nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A run was asked to stop and its state is on disk.

    Attributes:
        code: exit status of the process, 128 plus the number of the signal.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}; go on with --resume")
        self.code = 128 + number


class Interrupt:
    """The handler of both signals while a run is under way.

    A signal ends the run at once where the last checkpoint holds all there is to keep. Inside `until_saved` it only
    sets `asked`, and the run stops after its next step. A second signal ends the process as if nobody handled it.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._waits = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take both signals over; in another thread than the main one, where Python allows no handlers, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def until_saved(self) -> Iterator[None]:
        """A part of the run that is to be saved before it stops."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def stop_if_asked(self, where: str) -> None:
        """Raises Stopped where a signal has come."""
        if self.asked:
            raise Stopped(self.asked, where)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = number
        if not self._waits:
            raise Stopped(number, "between two steps, all before is saved")
