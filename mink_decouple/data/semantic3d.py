"""Semantic3D as downloaded: `<station>.txt` with x y z intensity r g b, `<station>.labels` with one id a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np

from mink_decouple.data.classes import Classes
from mink_decouple.data.cloud import MAX_EXTENT_METRES
from mink_decouple.data.completeness import lacking
from mink_decouple.data.raw import Chunk, RawScene, Repair
from mink_decouple.data.text_rows import printable, read_rows

#: The two stations that RandLA-Net, KPConv and Open3D-ML hold out of the 15 training stations.
VALIDATION = ("bildstein_station3", "sg27_station2")

#: Training stations, without the suffixes of the file names (`_xyz_intensity_rgb`, `_intensity_rgb`).
TRAINING = (
    "bildstein_station1",
    "bildstein_station5",
    "domfountain_station1",
    "domfountain_station2",
    "domfountain_station3",
    "neugasse_station1",
    "sg27_station1",
    "sg27_station4",
    "sg27_station5",
    "sg27_station9",
    "sg28_station4",
    "untermaederbrunnen_station1",
    "untermaederbrunnen_station3",
)

#: Place of a test station in small letters -> how the benchmark server spells it; the names of semantic-8.
TEST_PLACES = {
    "birdfountain_station1": "birdfountain1",
    "castleblatten_station1": "castleblatten1",
    "castleblatten_station5": "castleblatten5",
    "marketplacefeldkirch_station1": "marketsquarefeldkirch1",
    "marketplacefeldkirch_station4": "marketsquarefeldkirch4",
    "marketplacefeldkirch_station7": "marketsquarefeldkirch7",
    "sg27_station3": "sg27_3",
    "sg27_station6": "sg27_6",
    "sg27_station8": "sg27_8",
    "sg27_station10": "sg27_10",
    "sg28_station2": "sg28_2",
    "sg28_station5": "sg28_5",
    "stgallencathedral_station1": "stgallencathedral1",
    "stgallencathedral_station3": "stgallencathedral3",
    "stgallencathedral_station6": "stgallencathedral6",
}

_REDUCED = "-reduced"  # end of the names of reduced-8's files

#: Places of the four test stations of reduced-8.
REDUCED = {"marketplacefeldkirch_station4", "sg27_station10", "sg28_station2", "stgallencathedral_station6"}

# The archive of this station holds a file without its place.
_MISNAMED, _NAMED = "station1_xyz_intensity_rgb", "neugasse_station1_xyz_intensity_rgb"

# The benchmark publishes no colours; these follow what is seen in the scenes.
_COLORS = {
    "man-made terrain": (160, 160, 160),
    "natural terrain": (140, 105, 60),
    "high vegetation": (0, 110, 40),
    "low vegetation": (150, 205, 60),
    "buildings": (205, 70, 60),
    "hard scape": (120, 70, 190),
    "scanning artefacts": (0, 220, 230),
    "cars": (245, 200, 30),
}

#: The 8 classes of Semantic3D (Hackel et al. 2017); raw ids 1 to 8, 0 is unlabelled.
SEMANTIC3D = Classes(
    names=tuple(_COLORS),
    colors=np.array(list(_COLORS.values()), dtype=np.uint8),
    raw_ids={train + 1: train for train in range(len(_COLORS))},
    ignored=frozenset({0}),
)


def place(stem: str) -> str:
    """`MarketplaceFeldkirch_Station4_rgb_intensity-reduced` -> `marketplacefeldkirch_station4`; "" for another name."""
    match = re.match(r"(.+_station\d+)(?=_|-|$)", stem.lower())
    return match[1] if match else ""


class Semantic3D:
    """Stations of Semantic3D; a scene is one station, named by its file.

    A `.txt` is a scene if it has `.labels` or names a station; others, such as a readme, are left out. The files lie in
    the root or in folders directly below it.

    Attributes:
        name: "semantic3d".
        version: of this adapter's output.
        root: the folder of the `.txt` and `.labels` files.
        classes: the 8 classes.
    """

    name = "semantic3d"
    version = 1
    classes = SEMANTIC3D

    def __init__(self, root: str | Path) -> None:
        """List the stations; none is read yet.

        Raises:
            FileNotFoundError: no such folder, or a training station without labels.
            ValueError: a station that is there twice.
        """
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder")
        labels = self._files(".labels", lambda name: True)
        clouds = self._files(".txt", lambda name: name in labels or place(name) != "")
        self._scenes = []
        for name, cloud in sorted(clouds.items()):
            labelled = name in labels
            at = place(name)
            if not labelled and (at in TRAINING or at in VALIDATION):
                raise FileNotFoundError(
                    f"{cloud.with_name(name)}.labels: no such file, but {cloud.name} is a training station"
                )
            split = "val" if at in VALIDATION else "test" if at in TEST_PLACES or not labelled else "train"
            files = (cloud, labels[name]) if labelled else (cloud,)
            self._scenes.append(RawScene(name, split, "", files, labelled))

    def scenes(self) -> list[RawScene]:
        """Every station, sorted by name. ValueError where there is none."""
        if not self._scenes:
            raise ValueError(
                f"{self.root}: no stations; looked for PLACE_stationN*.txt and NAME.labels, also one level down"
            )
        return list(self._scenes)

    def lacking(self) -> list[str]:
        """Splits without all of their stations; of a test split in files of reduced-8 its four are the whole."""
        whole = {"train": set(TRAINING), "val": set(VALIDATION), "test": set(TEST_PLACES)}
        if all(scene.name.endswith(_REDUCED) for scene in self._scenes if scene.split == "test"):
            whole["test"] = REDUCED
        there = {split: {place(s.name) for s in self._scenes if s.split == split} & whole[split] for split in whole}
        return lacking(
            {split: len(places) for split, places in there.items()},
            {split: len(places) for split, places in whole.items()},
            "stations",
            {split: whole[split] - there[split] for split in whole},
        )

    def read(self, scene: RawScene, report: Callable[[Repair], None], chunk_points: int = 2_000_000) -> Iterator[Chunk]:
        """The points of a station in order; `intensity` (n,) float32, `rgb` (n, 3) uint8.

        Memory follows `chunk_points`, not the station. That both files have as many lines shows only at the end, after
        every chunk.

        Raises:
            ValueError: a line that is not 7 finite numbers, a colour or label outside its range, a point too far from
                the first, or another number of labels than of points; names file, line and content.
        """
        cloud = scene.files[0]
        if cloud.stem == _MISNAMED:
            where = cloud.relative_to(self.root).as_posix()
            report(Repair(file=where, line=None, found=cloud.name, done=f"read as {scene.name}, whose place it lacks"))
        first, done = None, 0
        for table, column in _pairs(scene, chunk_points):
            xyz = table[:, :3].copy()
            first = xyz[0] if first is None else first
            _check_extent(cloud, xyz, first, done)
            yield Chunk(
                xyz=xyz,
                features={"intensity": table[:, 3].astype(np.float32), "rgb": _colours(cloud, table[:, 4:], done)},
                labels=None if column is None else self.classes.encode(_ids(scene.files[1], column[:, 0], done)),
            )
            done += len(table)

    def _files(self, suffix: str, wanted: Callable[[str], bool]) -> dict[str, Path]:
        """Station -> file, the misnamed one under its right name."""
        found: dict[str, Path] = {}
        for path in sorted([*self.root.glob(f"*{suffix}"), *self.root.glob(f"*/*{suffix}")]):
            name = _NAMED if path.stem == _MISNAMED else path.stem
            if path.name.startswith(".") or not path.is_file() or not wanted(name):
                continue
            if name in found:
                raise ValueError(f"{path}: the same station as {found[name]}; remove one of them")
            found[name] = path
        return found


def _pairs(scene: RawScene, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Tables of points with as many labels, or None for an unlabelled station."""
    points = read_rows(scene.files[0], 7, rows)
    if not scene.labelled:
        yield from ((table, None) for table in points)
        return
    labels = read_rows(scene.files[1], 1, rows)
    done = 0
    for table, column in zip_longest(points, labels, fillvalue=np.empty((0, 1))):
        if len(table) != len(column):
            lines = done + len(table) + sum(map(len, points))
            ids = done + len(column) + sum(map(len, labels))
            raise ValueError(
                f"{scene.files[1]}: {ids} labels for the {lines} points of {scene.files[0].name}: "
                f"the files part at line {min(lines, ids) + 1}"
            )
        yield table, column
        done += len(table)


def _check_extent(path: Path, xyz: np.ndarray, first: np.ndarray, done: int) -> None:
    """No point is farther from the first than float32 keeps to 1 mm."""
    furthest = max((xyz.max(axis=0) - first).max(), (first - xyz.min(axis=0)).max())
    if furthest >= MAX_EXTENT_METRES:
        wrong = (np.abs(xyz - first) >= MAX_EXTENT_METRES).any(axis=1)
        raise ValueError(_at(path, wrong, done, f"{MAX_EXTENT_METRES:,.0f} m or more from the first point"))


def _colours(path: Path, values: np.ndarray, done: int) -> np.ndarray:
    """(n, 3) uint8 of whole numbers 0..255."""
    with np.errstate(invalid="ignore"):
        rgb = values.astype(np.uint8)
    same = rgb == values
    if not same.all():
        raise ValueError(_at(path, ~same.all(axis=1), done, "a colour is not a whole number 0..255"))
    return rgb


def _ids(path: Path, values: np.ndarray, done: int) -> np.ndarray:
    """(n,) int64 raw ids."""
    with np.errstate(invalid="ignore"):
        ids = values.astype(np.int64)
    known = (ids == values) & (ids >= 0) & (ids <= len(SEMANTIC3D))
    if not known.all():
        raise ValueError(_at(path, ~known, done, f"the label is not a whole number 0..{len(SEMANTIC3D)}"))
    return ids


def _at(path: Path, wrong: np.ndarray, done: int, what: str) -> str:
    """Message with the first wrong line and its content; the file is read again up to there."""
    number = done + int(np.flatnonzero(wrong)[0]) + 1
    with path.open("rb") as file:
        line = next(islice(file, number - 1, None)).rstrip(b"\r\n")
    return f"{path}: line {number}: {what}: {printable(line)}"
