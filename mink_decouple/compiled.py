"""Where numba keeps compiled kernels: beside the sources, with the user, or for one process alone.

Without any place numba refuses to define a kernel, so that nothing could be imported.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

GIVEN = "NUMBA_CACHE_DIR"
BESIDE = Path(__file__).parent / "sparse" / "__pycache__"

_own: Path | None = None


def ensure_place() -> None:
    """Set `NUMBA_CACHE_DIR` to a temporary folder, gone when the process ends, where kernels cannot be kept longer."""
    global _own
    if kept_in() is not None:
        return
    try:
        _own = Path(tempfile.mkdtemp(prefix="mink_decouple-"))
    except OSError:
        return  # numba says what it misses
    atexit.register(shutil.rmtree, _own, ignore_errors=True)
    os.environ[GIVEN] = str(_own)
    if "numba" in sys.modules:  # it has read its environment
        sys.modules["numba"].config.CACHE_DIR = str(_own)


def kept_in() -> Path | None:
    """The folder that compiled kernels outlive this process in; None where none can be written."""
    given = os.environ.get(GIVEN)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = [*([Path(given)] if given else []), BESIDE, *([Path(home) / "numba"] if os.path.isabs(home) else [])]
    return next((place for place in places if place != _own and _writable(place)), None)


def _writable(folder: Path) -> bool:
    """Tried, as numba does: permissions tell little of a file system that is read-only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
