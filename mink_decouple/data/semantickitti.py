"""SemanticKITTI as downloaded: `sequences/XX/velodyne/NNNNNN.bin` and `sequences/XX/labels/NNNNNN.label`.

Ids, classes, colours and splits are those of `semantic-kitti.yaml` (PRBonn/semantic-kitti-api).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mink_decouple.data.classes import Classes
from mink_decouple.data.completeness import lacking
from mink_decouple.data.io_kitti import count_points, label_path, read_label, read_points
from mink_decouple.data.raw import Chunk, RawScene, Repair

#: Farther than this (metres) no point of a Velodyne HDL-64E lies, which sees 120 m: beyond it the file is damaged.
MAX_RANGE_METRES = 1000.0

#: Split -> sequences. The labels of the test sequences are not public.
SPLITS = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "test": tuple(str(number) for number in range(11, 22)),
}

_NUMBERS = (4541, 1101, 4661, 801, 271, 2761, 1101, 1101, 4071, 1591, 1201)
_TESTED = (921, 1061, 3281, 631, 1901, 1731, 491, 1801, 4981, 831, 2721)

#: Sequence -> its scans, those of KITTI's odometry benchmark, numbered from 0: 19,130 of training, 4,071 of validation
#: and 20,351 of test.
SCANS = {f"{sequence:02}": number for sequence, number in enumerate((*_NUMBERS, *_TESTED))}

# Name -> (raw ids, RGB). The first raw id is the one that submissions use (`learning_map_inv`); the others are merged
# into the class (`learning_map`), moving ones among them.
_CLASSES: dict[str, tuple[tuple[int, ...], tuple[int, int, int]]] = {
    "car": ((10, 252), (100, 150, 245)),
    "bicycle": ((11,), (100, 230, 245)),
    "motorcycle": ((15,), (30, 60, 150)),
    "truck": ((18, 258), (80, 30, 180)),
    "other-vehicle": ((20, 13, 16, 256, 257, 259), (0, 0, 255)),
    "person": ((30, 254), (255, 30, 30)),
    "bicyclist": ((31, 253), (255, 40, 200)),
    "motorcyclist": ((32, 255), (150, 30, 90)),
    "road": ((40, 60), (255, 0, 255)),
    "parking": ((44,), (255, 150, 255)),
    "sidewalk": ((48,), (75, 0, 75)),
    "other-ground": ((49,), (175, 0, 75)),
    "building": ((50,), (255, 200, 0)),
    "fence": ((51,), (255, 120, 50)),
    "vegetation": ((70,), (0, 175, 0)),
    "trunk": ((71,), (135, 60, 0)),
    "terrain": ((72,), (150, 240, 80)),
    "pole": ((80,), (255, 240, 150)),
    "traffic-sign": ((81,), (255, 0, 0)),
}

#: The 19 classes that are scored; unlabeled, outlier, other-structure and other-object are ignored.
SEMANTICKITTI = Classes(
    names=tuple(_CLASSES),
    colors=np.array([color for _, color in _CLASSES.values()], dtype=np.uint8),
    raw_ids={raw: train for train, (ids, _) in enumerate(_CLASSES.values()) for raw in ids},
    ignored=frozenset({0, 1, 52, 99}),
)


class SemanticKITTI:
    """Scans of SemanticKITTI; a scene is one scan, `XX_NNNNNN`.

    Attributes:
        name: "semantickitti".
        version: of this adapter's output.
        root: the folder that was given.
        classes: the 19 classes.
    """

    name = "semantickitti"
    version = 1
    classes = SEMANTICKITTI

    def __init__(self, root: str | Path, every: int = 1) -> None:
        """Look through the sequences; no scan is read yet.

        Args:
            root: the folder that holds `sequences` or `dataset/sequences`.
            every: keep the training scans whose number is a multiple of this. Validation and test stay whole, since
                scores and submissions are of every scan.

        Raises:
            FileNotFoundError: no `sequences` folder, or labels whose scan is missing.
            ValueError: `every` below 1, an unknown sequence, or a scan whose name is not six digits.
        """
        self.root = Path(root)
        if every < 1:
            raise ValueError(f"every: {every}, expected at least 1")
        self._sequences = _sequences_folder(self.root)
        self._scenes: list[RawScene] = []
        self._found: dict[str, set[str]] = {}
        self._without: dict[str, tuple[str, ...]] = {}
        for folder in sorted(path for path in self._sequences.iterdir() if path.is_dir() and path.name.isdigit()):
            split = next((name for name, sequences in SPLITS.items() if folder.name in sequences), None)
            if split is None:
                raise ValueError(f"{folder}: unknown sequence; choose from 00 to 21")
            self._add(folder, split, every if split == "train" else 1)

    def scenes(self) -> list[RawScene]:
        """Every scan, sorted by name. ValueError where there is none."""
        if not self._scenes:
            raise ValueError(f"{self._sequences}: no scans; looked for XX/velodyne/NNNNNN.bin")
        return list(self._scenes)

    def lacking(self) -> list[str]:
        """Sequences that are not there, or not whole; `every` does not count."""
        found = {sequence: len(numbers) for sequence, numbers in self._found.items()}
        missing = {
            sequence: {f"{number:06}" for number in range(SCANS[sequence])} - numbers
            for sequence, numbers in self._found.items()
        }
        return lacking(found, SCANS, "scans", missing)

    def read(self, scene: RawScene, report: Callable[[Repair], None], chunk_points: int = 2_000_000) -> Iterator[Chunk]:
        """The points of a scan in order; `remission` (n,) float32, no colours.

        The instance half of a label is dropped. The first unlabelled scan of a labelled sequence reports how many
        there are.

        Raises:
            ValueError: a size that does not fit, a coordinate that no scanner gives, or an unknown raw id; names the
                file and the point.
        """
        scan = scene.files[0]
        count = count_points(scan)
        raw = read_label(scene.files[1], count) if scene.labelled else None
        without = self._without.get(scene.group, ())
        if scene.name in without[:1]:
            report(
                Repair(
                    file=label_path(scan).parent.relative_to(self.root).as_posix(),
                    line=None,
                    found=f"no labels for {len(without)} scans of sequence {scene.group}, first {scan.stem}",
                    done="read as unlabelled",
                )
            )
        table = read_points(scan)
        _check_points(scan, table)
        labels = None if raw is None else self._encode(scene.files[1], raw)
        for start in range(0, count, chunk_points):
            rows = slice(start, start + chunk_points)
            yield Chunk(
                xyz=table[rows, :3].astype(np.float64),
                features={"remission": table[rows, 3].copy()},
                labels=None if labels is None else labels[rows],
            )

    def _add(self, folder: Path, split: str, every: int) -> None:
        scans = _numbered(folder / "velodyne", ".bin")
        labels = _numbered(folder / "labels", ".label")
        # The labels come as one archive for all sequences, so a sequence without any scan is one not downloaded.
        orphans = sorted(set(labels) - set(scans)) if scans else []
        if orphans:
            raise FileNotFoundError(
                f"{folder / 'velodyne' / orphans[0]}.bin: no such file, but {labels[orphans[0]].name} has its labels "
                f"({len(orphans)} such scans)"
            )
        self._found[folder.name] = set(scans)
        without = []
        for number in sorted(scans):
            if int(number) % every:
                continue
            name = f"{folder.name}_{number}"
            labelled = number in labels
            files = (scans[number], labels[number]) if labelled else (scans[number],)
            self._scenes.append(RawScene(name, split, folder.name, files, labelled))
            if not labelled and split != "test":
                without.append(name)
        if without:
            self._without[folder.name] = tuple(without)

    def _encode(self, path: Path, raw: np.ndarray) -> np.ndarray:
        try:
            return self.classes.encode(raw)
        except ValueError as error:
            known = [*self.classes.raw_ids, *self.classes.ignored]
            first = int(np.flatnonzero(~np.isin(raw, known))[0])
            raise ValueError(f"{path}: point {first + 1}: {error}") from None


def _sequences_folder(root: Path) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    for folder in (root / "sequences", root / "dataset" / "sequences"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{root}: holds neither sequences nor dataset/sequences")


def _numbered(folder: Path, suffix: str) -> dict[str, Path]:
    """Scan number -> file; hidden files are systems' litter."""
    if not folder.is_dir():
        return {}
    files = {p.stem: p for p in folder.iterdir() if p.suffix == suffix and not p.name.startswith(".")}
    wrong = sorted(stem for stem in files if not re.fullmatch(r"\d{6}", stem))
    if wrong:
        raise ValueError(f"{files[wrong[0]]}: a scan is named by six digits, for example 000000{suffix}")
    return files


def _check_points(path: Path, table: np.ndarray) -> None:
    """Refuse what no scanner gives: the negated comparison catches NaN as well."""
    wrong = ~(np.abs(table[:, :3]) < MAX_RANGE_METRES).all(axis=1) | ~np.isfinite(table[:, 3])
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{path}: point {first + 1}: x y z remission {table[first].tolist()} is not finite or beyond "
            f"{MAX_RANGE_METRES:,.0f} m ({int(wrong.sum())} such points)"
        )
