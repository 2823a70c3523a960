"""Peak memory of one call, over what the process held before it."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_mebibytes(run: Callable[[], object]) -> float:
    """Largest resident set during `run()` minus the resident set before, MiB.

    Where the kernel cannot start its record of the largest set anew, the record of the whole process is taken, so call
    it once in a fresh process. Linux adds its counts up late: either reading may be some tens of pages a processor off.
    """
    before = _status("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """A figure of the process, KiB."""
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
