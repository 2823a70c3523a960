"""ScanNet-V2 as downloaded: vertices of the decimated meshes and their labels (Dai et al., CVPR 2017)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mink_decouple.data.completeness import lacking
from mink_decouple.data.ply_vertices import read_vertices
from mink_decouple.data.raw import Chunk, RawScene, Repair
from mink_decouple.data.scannet_labels import SCANNET, encode, read_label_map, segment_labels

VERSION = 1
"""Raised whenever the output changes."""

REACH = 1000.0
"""Metres from the origin that no scan of the dataset comes near."""

SPLITS = ("train", "val", "test")
LABEL_MAP = "scannetv2-labels.combined.tsv"

_NAME = re.compile(r"scene\d{4}_\d{2}")
_PLACES = (".", "Tasks/Benchmark")
_SAME = 1e-3  # metres between a vertex of the mesh and of its labels


class ScanNet:
    """The scans below `scans/` (labelled) and `scans_test/`.

    Points are the vertices of `_vh_clean_2.ply` in file order: those that the benchmark scores. Labels are those of
    `_vh_clean_2.labels.ply`, or, where that is missing, of segments, aggregation and label map. Splits are the lists
    `scannetv2_{train,val,test}.txt`, in `root` or in `root/Tasks/Benchmark`; scans of "test" have no labels.

    Attributes:
        name: "scannet".
        version: of the output; differs between the two values of `axis_align`.
        root: the folder of `scans`.
        classes: the 20 classes of the benchmark; raw ids are nyu40 ids.
    """

    name = "scannet"
    classes = SCANNET

    def __init__(self, root: str | Path, axis_align: bool = False) -> None:
        """List the scans.

        Args:
            root: the folder that holds `scans`, `scans_test` or both, and the lists of the splits.
            axis_align: turn every scan by the `axisAlignment` of its `.txt` file, so that walls follow the axes. Off by
                default: it is another frame than that of the files, and test scans have no such matrix.

        Raises:
            FileNotFoundError: no such folder, no scans, no lists, or a scan without a file that it needs.
            ValueError: a folder that is not named like a scan, a scan in no list or in both folders.
        """
        self.root, self.axis_align = Path(root), bool(axis_align)
        self.version = 2 * VERSION + self.axis_align  # prepared files of the two are never to be mixed
        self._scenes: dict[str, RawScene] = {}
        self._label_map: dict[str, int] | None = None
        folders = [self.root / part for part in ("scans", "scans_test") if (self.root / part).is_dir()]
        if not folders:
            found = "no folder scans or scans_test in it" if self.root.is_dir() else "no such folder"
            raise FileNotFoundError(f"{self.root}: {found}; give the folder that ScanNet's download script wrote")
        splits = self._splits()
        self._listed = splits
        for folder in sorted(path for parent in folders for path in parent.iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                self._add(folder, splits)

    def scenes(self) -> list[RawScene]:
        """Every scan, sorted by name.

        Raises:
            ValueError: there is none.
        """
        if not self._scenes:
            raise ValueError(f"{self.root}: no scans; expected folders such as scans/scene0000_00")
        return [self._scenes[name] for name in sorted(self._scenes)]

    def lacking(self) -> list[str]:
        """Splits whose lists name more scans than there are."""
        missing: dict[str, list[str]] = {split: [] for split in SPLITS}
        for name, split in self._listed.items():
            if name not in self._scenes:
                missing[split].append(name)
        found = Counter(scene.split for scene in self._scenes.values())
        return lacking(found, Counter(self._listed.values()), "scans", missing)

    def read(self, scene: RawScene, report: Callable[[Repair], None], chunk_points: int = 2_000_000) -> Iterator[Chunk]:
        """The vertices of a scan: coordinates, `rgb` and, unless it is of "test", labels.

        Args:
            scene: one of `scenes()`.
            report: told of every repair.
            chunk_points: points of a chunk at most; the points do not depend on it.

        Raises:
            ValueError: a damaged file, coordinates that are NaN or beyond `REACH`, or labels of another mesh; names the
                file and what stood there.
        """
        if scene.name not in self._scenes:
            raise ValueError(f"{self.root}: no scan {scene.name!r}; choose from scenes()")
        mesh = scene.files[0]
        vertices = _columns(mesh, read_vertices(mesh), "x", "y", "z", "red", "green", "blue")
        xyz, rgb = _stack(vertices, "xyz", np.float64), _stack(vertices, ("red", "green", "blue"), np.uint8)
        _check_coordinates(mesh, xyz)
        labels = self._labels(scene, xyz, report) if scene.labelled else None
        if self.axis_align:
            xyz = self._align(scene, xyz, report)
        for start in range(0, len(xyz), chunk_points):
            part = slice(start, start + chunk_points)
            yield Chunk(xyz[part], {"rgb": rgb[part]}, None if labels is None else labels[part])

    def _splits(self) -> dict[str, str]:
        """Scan -> split."""
        result: dict[str, str] = {}
        for split in SPLITS:
            path = self._find(f"scannetv2_{split}.txt")
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
                name = line.strip()
                if name and not _NAME.fullmatch(name):
                    raise ValueError(f"{path}: line {number} is not the name of a scan: {name[:80]!a}")
                if name and result.setdefault(name, split) != split:
                    raise ValueError(f"{path}: line {number}: {name} stands in the list of {result[name]} too")
        return result

    def _find(self, name: str) -> Path:
        for place in _PLACES:
            if (self.root / place / name).is_file():
                return self.root / place / name
        raise FileNotFoundError(
            f"{self.root}: no file {name}, here or in Tasks/Benchmark; it is part of github.com/ScanNet/ScanNet "
            "(Tasks/Benchmark) and of ScanNet's download"
        )

    def _add(self, folder: Path, splits: dict[str, str]) -> None:
        name = folder.name
        if not _NAME.fullmatch(name):
            raise ValueError(f"{folder}: not the name of a scan such as scene0000_00; rename it or move it away")
        if name not in splits:
            raise ValueError(f"{folder}: {name} is in none of the lists of train, val and test")
        if name in self._scenes:
            raise ValueError(f"{folder}: {name} is in {self._scenes[name].files[0].parent} too; remove one of them")
        mesh, labels = (folder / f"{name}_vh_clean_2{suffix}" for suffix in (".ply", ".labels.ply"))
        segments, groups = folder / f"{name}_vh_clean_2.0.010000.segs.json", folder / f"{name}.aggregation.json"
        files = [mesh]
        if splits[name] != "test":
            files += [labels] if labels.is_file() else [segments, groups]
        missing = [path.name for path in files if not path.is_file()]
        if mesh.is_file() and missing:
            raise FileNotFoundError(f"{folder}: no labels: neither {labels.name} nor {' and '.join(missing)}")
        if missing:
            raise FileNotFoundError(f"{folder}: no mesh {mesh.name}")
        if len(files) == 3:
            files.append(self._find(LABEL_MAP))
        if self.axis_align and (folder / f"{name}.txt").is_file():
            files.append(folder / f"{name}.txt")
        self._scenes[name] = RawScene(name, splits[name], "", tuple(files), labelled=splits[name] != "test")

    def _labels(self, scene: RawScene, xyz: np.ndarray, report: Callable[[Repair], None]) -> np.ndarray:
        """(V,) train ids of a scan."""
        source = scene.files[1]
        if source.name.endswith(".labels.ply"):
            rows = _columns(source, read_vertices(source), "x", "y", "z", "label")
            if rows["label"].dtype.kind not in "iu":
                raise ValueError(f"{source}: the property label must hold whole numbers, found {rows['label'].dtype}")
            ids = rows["label"].astype(np.int64)
            if len(rows) == len(xyz):
                apart = ~(np.abs(_stack(rows, "xyz", np.float64) - xyz) <= _SAME).all(axis=1)
                if apart.any():
                    at = int(np.argmax(apart))
                    raise ValueError(
                        f"{source}: vertex {at} is at {[float(rows[axis][at]) for axis in 'xyz']}, but at "
                        f"{xyz[at].tolist()} in {scene.files[0].name}; one of them is damaged, or of another mesh"
                    )
        else:
            source, table = scene.files[2], scene.files[3]
            if self._label_map is None:
                self._label_map = read_label_map(table)
            ids = segment_labels(scene.files[1], source, self._label_map, self._where(source), report)
        if len(ids) != len(xyz):
            raise ValueError(
                f"{scene.files[1]}: labels of {len(ids)} vertices, but {scene.files[0].name} has {len(xyz)}"
            )
        return encode(ids, self._where(source), report)

    def _align(self, scene: RawScene, xyz: np.ndarray, report: Callable[[Repair], None]) -> np.ndarray:
        path = scene.files[0].parent / f"{scene.name}.txt"
        matrix = read_axis_alignment(path) if path.is_file() else None
        if matrix is not None:
            return xyz @ matrix[:3, :3].T + matrix[:3, 3]
        if scene.split != "test":
            raise ValueError(
                f"{path}: no line 'axisAlignment = ...'; read the scan without axis_align, or get the file"
            )
        report(
            Repair(self._where(path), None, "no axisAlignment, as in every test scan", "left in the scan's own frame")
        )
        return xyz

    def _where(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def read_axis_alignment(path: Path) -> np.ndarray | None:
    """The (4, 4) float64 rigid motion of a scan's `.txt` file, row by row in it; None where it has none.

    Raises:
        ValueError: not 16 numbers, or no rotation followed by a shift.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        key, _, value = line.partition("=")
        if key.strip() != "axisAlignment":
            continue
        try:
            matrix = np.array([float(word) for word in value.split()]).reshape(4, 4)
        except ValueError:
            raise ValueError(f"{path}: line {number}: axisAlignment must be 16 numbers, found {value[:80]!a}") from None
        turn = matrix[:3, :3]
        rigid = np.isfinite(matrix).all() and np.abs(turn @ turn.T - np.eye(3)).max() < 1e-3 and np.linalg.det(turn) > 0
        if not rigid or not (matrix[3] == (0, 0, 0, 1)).all() or np.abs(matrix[:3, 3]).max() > REACH:
            raise ValueError(f"{path}: line {number}: axisAlignment is no rigid motion: {value[:80]!a}")
        return matrix
    return None


def _columns(path: Path, vertices: np.ndarray, *names: str) -> np.ndarray:
    """`vertices`, if it has these properties and any rows."""
    missing = [name for name in names if name not in (vertices.dtype.names or ())]
    if missing:
        raise ValueError(f"{path}: no property {', '.join(missing)}; found: {', '.join(vertices.dtype.names or ())}")
    for name in ("red", "green", "blue"):
        if name in names and vertices.dtype[name] != np.uint8:
            raise ValueError(f"{path}: property {name} must be uchar, found {vertices.dtype[name]}")
    if not len(vertices):
        raise ValueError(f"{path}: no vertices")
    return vertices


def _stack(vertices: np.ndarray, names: str | tuple[str, ...], dtype: type) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a signalling NaN; whoever asked for the columns looks for it
        return np.stack([vertices[name] for name in names], axis=1).astype(dtype)


def _check_coordinates(path: Path, xyz: np.ndarray) -> None:
    bad = ~(np.abs(xyz) <= REACH).all(axis=1)
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(f"{path}: vertex {at} is at {xyz[at].tolist()}: not finite, or more than {REACH:g} m away")
