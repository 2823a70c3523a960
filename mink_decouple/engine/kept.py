"""The checkpoints that a run goes on from: the newest, and earlier ones in case it cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mink_decouple.engine import checkpoint
from mink_decouple.engine.events import say


def names(keep: int) -> list[str]:
    """`last.pt` and the earlier `last-1.pt`, `last-2.pt`, ..., newest first."""
    return ["last.pt", *(f"last-{number}.pt" for number in range(1, keep))]


def save(folder: Path, content: dict[str, Any], keep: int) -> None:
    """Write `folder/last.pt`; the one before becomes `last-1.pt`, and so on up to `keep` in all.

    The new one is whole on disk before the first of the old ones moves, and at every moment one of them can be read.
    """
    if folder.parent.is_dir():
        folder.mkdir(exist_ok=True)
    new, files = folder / "next.pt", [folder / name for name in names(keep)]
    checkpoint.save(new, content)
    for older, newer in reversed(list(zip(files[1:], files))):
        if not newer.exists():
            continue
        if newer is files[0]:
            _copy_name(newer, older)
        else:
            os.replace(newer, older)
    os.replace(new, files[0])


def load(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, None where there is none at all.

    Damaged ones are named, and renamed, or they would take the place of a sound one at the next save.

    Raises:
        ValueError: there are some, none of which can be read.
    """
    numbers = (path.stem.removeprefix("last-") for path in folder.glob("last-*.pt"))
    found = sorted(int(number) for number in numbers if number.isdecimal())
    files = [folder / "last.pt", *(folder / f"last-{number}.pt" for number in found)]
    damaged: list[str] = []
    for path in files:
        if not path.is_file():
            continue
        try:
            content = checkpoint.load(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        for line in damaged:
            say(f"warning: {line}; going on from {path.name}")
        for broken in files[: files.index(path)]:
            if broken.is_file():
                os.replace(broken, folder / f"damaged-{broken.name}")
        return content
    if damaged:
        raise ValueError("\n".join(damaged))
    return None


def _copy_name(source: Path, target: Path) -> None:
    """Let both names stand for one file; where the file system cannot, the first name is given up."""
    spare = target.with_name(f".{target.name}.part")
    spare.unlink(missing_ok=True)
    try:
        os.link(source, spare)
        os.replace(spare, target)
    except OSError:
        os.replace(source, target)
