"""A copy of a point file with a class and a confidence for each of its points, everything else as it was.

| suffix | the class | the confidence |
|---|---|---|
| `.las` `.laz` | `classification`; `prediction` where ids do not fit or `label` is | extra dimension `confidence` |
| `.ply` `.pcd` | column `prediction` | column `confidence` |
| `.npy` | field `prediction`; of a plain array the last column but one | field `confidence`; the last column |
| `.npz` | array `prediction` | array `confidence` |
| `.txt` `.csv` `.xyz` | the last column but one, named where the file has names | the last column |
| `.bin` | `NAME.label` beside it | `NAME.confidence.npy` beside it |

Columns of these names that a file has already, of an earlier prediction, are overwritten; where they are not its last
two columns it is refused. Points pass in blocks, except those of `.npz` and of compressed `.pcd`.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mink_decouple.data.annotate_las import annotate_las
from mink_decouple.data.annotate_tables import annotate_npy, annotate_npz, annotate_pcd, annotate_ply, annotate_text
from mink_decouple.data.blocks import Block, Supply
from mink_decouple.data.io_columns import one_line
from mink_decouple.data.io_kitti import CONFIDENCE, LABELS, count_points, scan_columns

_WRITERS: dict[str, Callable[[Path, Path, Supply], None]] = {
    ".las": annotate_las,
    ".laz": annotate_las,
    ".ply": annotate_ply,
    ".pcd": annotate_pcd,
    ".npy": annotate_npy,
    ".npz": annotate_npz,
    ".txt": annotate_text,
    ".csv": annotate_text,
    ".xyz": annotate_text,
}

SUFFIXES = (*_WRITERS, ".bin")


def annotate(
    source: Path, target: Path, blocks: Iterable[Block], ids: Collection[int], columns: Sequence[str] | None = None
) -> None:
    """Write `target`: the file `source` with what `blocks` say of its points. Nothing is seen before it is whole.

    Args:
        source: a file with one of `SUFFIXES`.
        target: another path with the same suffix; `.laz` may stand for `.las` and the other way round.
        blocks: the points in the order of the file, some at a time: (n,) int64 raw class ids and (n,) float32
            confidences in 0..1.
        ids: the raw ids that there are, which decide the column of a LAS file.
        columns: names of the columns of a `.bin` file, see `io.read_cloud`.

    Raises:
        ValueError: unlike suffixes, `target` is `source`, more or fewer predictions than points, or a file of a layout
            that takes no further columns.
    """
    suffix = source.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{source}: unknown suffix '{source.suffix}'; choose from {', '.join(SUFFIXES)}")
    require_format(source, target)
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target}: is the input itself; choose another output")
    target.parent.mkdir(parents=True, exist_ok=True)
    supply = Supply(str(source), blocks, ids)
    if suffix == ".bin":
        _annotate_bin(source, target, supply, columns)
        return
    # the suffix stays last: laspy compresses by it
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        _WRITERS[suffix](source, temporary, supply)
        supply.finish()
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def require_layout(source: Path, ids: Collection[int], columns: Sequence[str] | None = None) -> None:
    """Refuse a file as `annotate` would for its layout, before anything is known of its points.

    Raises:
        ValueError: as there, or a file so damaged that its layout cannot be told.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            annotate(source, Path(folder) / source.name, _asked(), ids, columns)
        except _Asked:
            pass
        except (MemoryError, ImportError):
            raise
        except Exception as error:  # a dozen types, by the format and the place of the damage
            # EINVAL is a seek to where a damaged archive says that it goes on
            of_the_system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
            if of_the_system or (isinstance(error, ValueError) and str(source) in str(error)):
                raise
            raise ValueError(f"{source}: damaged, or no {source.suffix} file: {one_line(error)}") from error


class _Asked(Exception):
    """Everything that comes before the first point has passed."""


def _asked() -> Iterator[Block]:
    raise _Asked
    yield  # what makes it an iterator, so that it is raised when the first point is asked for


def require_format(source: Path, target: Path) -> None:
    """Raises ValueError where a target has another suffix than its source; `.las` and `.laz` are as good as alike."""
    suffix = source.suffix.lower()
    if target.suffix.lower() != suffix and {suffix, target.suffix.lower()} != {".las", ".laz"}:
        raise ValueError(f"{target}: must end in {suffix} as {source.name} does")


def outputs(target: Path) -> tuple[Path, ...]:
    """The files that `annotate` writes for a target."""
    if target.suffix.lower() != ".bin":
        return (target,)
    return side_file(target, LABELS), side_file(target, CONFIDENCE), target  # the last: what has a scan has its labels


def side_file(target: Path, ending: str) -> Path:
    """`NAME.label` or `NAME.confidence.npy` of a KITTI scan `NAME.bin`."""
    return target.with_name(target.stem + ending)


def _annotate_bin(source: Path, target: Path, supply: Supply, columns: Sequence[str] | None) -> None:
    count = count_points(source, len(scan_columns(source, columns)))
    if not supply.within(0, 0xFFFF):
        raise ValueError(f"{source}: KITTI labels are 0..65535, the classes have other ids; write .npz instead")
    made = {place: place.with_name(f".{place.name}.{os.getpid()}.tmp") for place in outputs(target)}
    try:
        labels, confidence, points = made.values()
        with labels.open("wb") as ids_file, confidence.open("wb") as sure_file:
            np.lib.format.write_array_header_1_0(sure_file, {"descr": "<f4", "fortran_order": False, "shape": (count,)})
            for block in _all(supply, count):
                _put(ids_file, block.ids.astype("<u4"))
                _put(sure_file, block.confidence.astype("<f4"))
        supply.finish()
        shutil.copyfile(source, points)
        for place, temporary in made.items():
            os.replace(temporary, place)
    finally:
        for temporary in made.values():
            temporary.unlink(missing_ok=True)


def _all(supply: Supply, count: int) -> Iterator[Block]:
    for begin in range(0, count, 1 << 20):
        yield supply.take(min(1 << 20, count - begin))


def _put(file: BinaryIO, array: np.ndarray) -> None:
    file.write(array.tobytes())
