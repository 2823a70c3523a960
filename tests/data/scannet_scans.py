"""A made ScanNet download of one scan of twelve vertices, with its labels by either way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

NAME = "scene0001_00"
# The benchmark's own list, evaluate_semantic_label.py: CLASS_LABELS and VALID_CLASS_IDS.
LABELS = (
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, desk, curtain, "
    "refrigerator, shower curtain, toilet, sink, bathtub, otherfurniture"
)
IDS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39]
NYU40 = [1, 1, 2, 0, 13, 39, 40, 5, 33, 1, 2, 16]
SEGMENTS = [7, 7, 3, 90, 41, 2, 5, 6, 8, 7, 3, 4]
RAW = {"wall": 1, "floor": 2, "blinds": 13, "ottoman": 39, "bag": 40, "chair": 5, "toilet": 33, "curtain": 16}


def vertices(count: int = 12, seed: int = 0) -> np.ndarray:
    """The columns of a mesh."""
    rng = np.random.default_rng(seed)
    table = np.zeros(count, [*((a, "<f4") for a in "xyz"), *((c, "u1") for c in ("red", "green", "blue", "alpha"))])
    for axis in "xyz":
        table[axis] = rng.uniform(-4, 4, count).round(3)
    for channel in ("red", "green", "blue"):
        table[channel] = rng.integers(0, 256, count)
    table["alpha"] = 255
    return table


def write_ply(path: Path, table: np.ndarray, faces: int = 4, order: str = "<") -> None:
    """A mesh through plyfile, faces behind the vertices."""
    from plyfile import PlyData, PlyElement

    rows = np.zeros(faces, [("vertex_indices", "i4", (3,))])
    elements = [PlyElement.describe(table, "vertex"), PlyElement.describe(rows, "face", len_types={})]
    PlyData(elements, byte_order=order).write(str(path))


def labelled(table: np.ndarray, ids: list[int], dtype: str = "u2") -> np.ndarray:
    """The columns of labels.ply."""
    out = np.zeros(len(table), [*table.dtype.descr, ("label", dtype)])
    for name in table.dtype.names or ():
        out[name] = table[name]
    out["label"] = ids
    return out


def lists(root: Path, **scans: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        (root / f"scannetv2_{split}.txt").write_text(scans.get(split, "") + "\n")


def download(root: Path, ids: list[int] | None = NYU40) -> Path:  # type: ignore[assignment]  # None: segments instead
    """A download of one scan of the train list; `ids` None leaves labels.ply out and gives segments instead."""
    folder = root / "scans" / NAME
    folder.mkdir(parents=True)
    lists(root, train=NAME)
    write_ply(folder / f"{NAME}_vh_clean_2.ply", vertices())
    if ids is not None:
        write_ply(folder / f"{NAME}_vh_clean_2.labels.ply", labelled(vertices(), ids))
    else:
        write_segments(folder)
        rows = "".join(f"{i}\t{raw}\t{raw}\t9\t{nyu}\n" for i, (raw, nyu) in enumerate(RAW.items()))
        (root / "scannetv2-labels.combined.tsv").write_text("id\traw_category\tcategory\tcount\tnyu40id\n" + rows)
    return folder


def write_segments(folder: Path, groups: list[dict] | None = None) -> None:
    """Segments of every vertex and the objects made of them; they say what NYU40 says."""
    owners = {"wall": [7], "floor": [3], "blinds": [41], "ottoman": [2], "bag": [5], "chair": [6], "toilet": [8]}
    groups = groups or [{"label": raw, "segments": listed} for raw, listed in {**owners, "curtain": [4]}.items()]
    numbered = [{"id": i, "objectId": i, **group} for i, group in enumerate(groups)]
    segments = {"params": {}, "sceneId": NAME, "segIndices": SEGMENTS}
    (folder / f"{NAME}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(segments))
    (folder / f"{NAME}.aggregation.json").write_text(json.dumps({"sceneId": NAME, "segGroups": numbered}))


def expected_rows(table: np.ndarray) -> np.ndarray:
    return np.stack([table[name].astype(float) for name in ("x", "y", "z", "red", "green", "blue")], axis=1)


def train_ids(nyu40: list[int]) -> list[int]:
    return [IDS.index(i) if i in IDS else -1 for i in nyu40]
