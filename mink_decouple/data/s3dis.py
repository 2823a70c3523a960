"""S3DIS as downloaded: one text file per object in `Area_k/ROOM/Annotations` (Armeni et al., CVPR 2016).

Layout and corruptions as in the preparations of PointNet, RandLA-Net, superpoint_graph and Pointcept. Version 1.2 reads
the same with and without alignment.
"""

from __future__ import annotations

import filecmp
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mink_decouple.data.classes import IGNORE
from mink_decouple.data.classes import S3DIS as CLASSES
from mink_decouple.data.completeness import lacking
from mink_decouple.data.raw import Chunk, RawScene, Repair
from mink_decouple.data.text_rows import printable, read_rows

VERSION = 1
"""Raised whenever the output changes."""

REACH = 1000.0
"""Metres from the origin that no building of the dataset comes near."""

OTHERS = ("clutter", "ignore")
"""What may become of an object of another class than the 13, such as "stairs"."""

ROOMS = {"Area_1": 44, "Area_2": 40, "Area_3": 23, "Area_4": 49, "Area_5": 68, "Area_6": 48}
"""Rooms with annotations in each area, as in RandLA-Net's list of them: 272, one more than Armeni et al. count."""

_AREA = re.compile(r"Area_[1-6]")
_ROOM = re.compile(r"[A-Za-z]+_\d+")
_OBJECT = re.compile(r"([A-Za-z]+)_\d+\.txt")
_COPY = re.compile(r"([A-Za-z]+_\d+) \(\d+\)\.txt")
_FORM = "one text file per object, named CLASS_NUMBER.txt such as wall_3.txt"


class S3DIS:
    """The rooms of a Stanford3dDataset_v1.2 folder, aligned or not.

    Points come in the order of the sorted names of a room's annotation files. Known corruptions are mended and
    reported: bytes that lost a bit inside numbers, copies such as "wall_3 (1).txt", misnamed room files, system files.
    The room files beside the annotations are not needed. A room is `Area_k_ROOM`, its group `Area_k`; Area 5 is "val",
    the others are "train".

    Attributes:
        name: "s3dis".
        version: of the output; differs between the two values of `others`.
        root: the folder of the areas.
        classes: the 13 classes in the order of PointNet and RandLA-Net, mapped by name.
    """

    name = "s3dis"
    classes = CLASSES

    def __init__(self, root: str | Path, others: str = "clutter") -> None:
        """List the rooms.

        Args:
            root: the folder that holds `Area_1` to `Area_6`, or some of them.
            others: what becomes of an object of another class: "clutter" (PointNet, RandLA-Net) or "ignore".

        Raises:
            FileNotFoundError: no such folder, no areas in it, or a room without annotations.
            ValueError: unknown `others`, or a folder or file that the layout has no place for.
        """
        if others not in OTHERS:
            raise ValueError(f"s3dis: others {others!r}: choose from {', '.join(OTHERS)}")
        self.root, self.others = Path(root), others
        self.version = 2 * VERSION + (others == "ignore")  # prepared files of the two are never to be mixed
        self._scenes: dict[str, RawScene] = {}
        self._left_out: dict[str, list[Repair]] = {}
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder")
        areas = _folders(self.root, re.compile(r"(?!Area)"), _AREA, "an area: Area_1 to Area_6")
        if not areas:
            raise FileNotFoundError(
                f"{self.root}: no folder Area_1 to Area_6; give Stanford3dDataset_v1.2_Aligned_Version itself"
            )
        for area in areas:
            for room in _folders(area, None, _ROOM, "a room such as office_1"):
                self._add(area.name, room)

    def scenes(self) -> list[RawScene]:
        """Every room, sorted by name.

        Raises:
            ValueError: there is none.
        """
        if not self._scenes:
            raise ValueError(f"{self.root}: no rooms in its areas; expected folders such as Area_1/office_1")
        return [self._scenes[name] for name in sorted(self._scenes)]

    def lacking(self) -> list[str]:
        """Areas that are not there, or not whole."""
        return lacking(Counter(scene.group for scene in self._scenes.values()), ROOMS, "rooms")

    def read(self, scene: RawScene, report: Callable[[Repair], None], chunk_points: int = 2_000_000) -> Iterator[Chunk]:
        """The points of a room: world coordinates, `rgb` and labels.

        Args:
            scene: one of `scenes()`.
            report: told of every repair.
            chunk_points: points of a chunk at most; the points do not depend on it.

        Raises:
            ValueError: a line that is not x y z r g b, coordinates beyond `REACH` or colours that are not whole numbers
                in 0..255, unless it is a known corruption; names file, line and content.
        """
        if scene.name not in self._scenes:
            raise ValueError(f"{self.root}: no room {scene.name!r}; choose from scenes()")
        for repair in self._left_out[scene.name]:
            report(repair)
        for path in scene.files:
            yield from self._read_object(path, report, chunk_points)

    def _read_object(self, path: Path, report: Callable[[Repair], None], chunk_points: int) -> Iterator[Chunk]:
        where, label = path.relative_to(self.root).as_posix(), self._label(path, report)

        def mended(line: int, before: bytes, after: bytes) -> None:
            report(Repair(where, line, printable(before), f"read as {printable(after)}: a byte had lost its bit 0x20"))

        first = 1
        for table in read_rows(path, 6, chunk_points, restore_bit, mended):
            yield Chunk(*_split(path, first, table), np.full(len(table), label, np.int64))
            first += len(table)
        with path.open("rb") as file:
            file.seek(-1, 2)
            if file.read() != b"\n":
                done = "kept; compare the file with the archive, its end may be missing"
                report(Repair(where, first - 1, "the last line has no end", done))

    def _label(self, path: Path, report: Callable[[Repair], None]) -> int:
        prefix = path.name.split("_")[0]
        if prefix in self.classes.names:
            return self.classes.names.index(prefix)
        label = IGNORE if self.others == "ignore" else self.classes.names.index("clutter")
        done = "ignored" if label == IGNORE else "taken as clutter"
        report(Repair(path.relative_to(self.root).as_posix(), None, f"an object of class {prefix!r}", done))
        return label

    def _add(self, area: str, room: Path) -> None:
        folder = room / "Annotations"
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; the points and labels of a room are read from it")
        files, left_out = [], _misnamed_room_file(room)
        for path in sorted(folder.iterdir()):
            copy = _COPY.fullmatch(path.name)
            if _is_litter(path.name):
                left_out.append((path, "a file of an operating system or of the alignment", "skipped"))
            elif copy and path.with_name(f"{copy[1]}.txt").is_file():
                same = filecmp.cmp(path, path.with_name(f"{copy[1]}.txt"), shallow=False)
                found = f"a copy of {copy[1]}.txt by its name, with {'the same' if same else 'other'} bytes"
                left_out.append((path, found, "skipped"))
            elif _OBJECT.fullmatch(path.name) and path.is_file():
                files.append(path)
            else:
                raise ValueError(f"{path}: no place for it in the layout; Annotations holds {_FORM}")
        if not files:
            raise FileNotFoundError(f"{folder}: empty; expected {_FORM}")
        name = f"{area}_{room.name}"
        split = "val" if area == "Area_5" else "train"
        self._scenes[name] = RawScene(name, split, area, tuple(files), labelled=True)
        self._left_out[name] = [
            # "Icon" ends with a carriage return, which would wipe out its line on a terminal
            Repair(path.relative_to(self.root).as_posix().rstrip("\r"), None, found, done)
            for path, found, done in left_out
        ]


def restore_bit(line: bytes) -> bytes:
    """Set the bit 0x20 again in the one byte of a line that lost it.

    All control bytes found in the dataset are of this kind: 0x00 for a blank, 0x10 for "0", 0x11 for "1", 0x16 for "6"
    (whence -9.1<16>0 is -9.160, as its neighbours say). A line with several is left alone: whole blocks of NUL bytes
    are a broken download.
    """
    lost = [at for at, byte in enumerate(line) if byte in b"\x00\x0e" or 0x10 <= byte <= 0x19]
    if len(lost) != 1:
        return line
    return line[: lost[0]] + bytes([line[lost[0]] | 0x20]) + line[lost[0] + 1 :]


def _split(path: Path, first: int, table: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Coordinates and colours of the lines from `first` on; ValueError for impossible ones."""
    xyz = np.ascontiguousarray(table[:, :3])
    with np.errstate(invalid="ignore"):  # colours beyond 0..255 come out as others, whatever those are
        rgb = table[:, 3:].astype(np.uint8)
    wrong = (rgb != table[:, 3:]).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"{path}: line {first + row}: colours must be whole numbers in 0..255, found {_numbers(table[row])}"
        )
    if np.abs(xyz).max() > REACH:
        row = int(np.argmax(np.abs(xyz).max(axis=1) > REACH))
        raise ValueError(f"{path}: line {first + row}: more than {REACH:g} m away, found {_numbers(table[row])}")
    return xyz, {"rgb": rgb}


def _numbers(row: np.ndarray) -> str:
    return " ".join(f"{value:.12g}" for value in row)


def _is_litter(name: str) -> bool:
    """Whether a file belongs to no object: .DS_Store, "Icon" with its carriage return, an area's alignment angle."""
    return name.startswith(".") or name.rstrip("\r") == "Icon" or name.endswith("alignmentAngle.txt")


def _folders(parent: Path, others: re.Pattern[str] | None, form: re.Pattern[str], what: str) -> list[Path]:
    """Folders named by `form`, sorted; ValueError for one that is not, unless it fits `others` or is hidden."""
    found = []
    for path in sorted(parent.iterdir()):
        if not path.is_dir() or path.name.startswith((".", "__MACOSX")):
            continue
        if form.fullmatch(path.name):
            found.append(path)
        elif others is None or not others.match(path.name):
            raise ValueError(f"{path}: not the name of {what}; rename it or move it away")
    return found


def _misnamed_room_file(room: Path) -> list[tuple[Path, str, str]]:
    """The room file under another name, as Area_6/copyRoom_1/copy_Room_1.txt, where there is one."""
    texts = [path for path in sorted(room.glob("*.txt")) if not _is_litter(path.name)]
    if len(texts) != 1 or texts[0].stem == room.name:
        return []
    return [(texts[0], f"a room file that should be {room.name}.txt", "not needed: points come from Annotations")]
