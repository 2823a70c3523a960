"""A small raw dataset with an adapter, for tests of what prepares one."""

import os
import time
from pathlib import Path

import numpy as np

from mink_decouple.data.classes import Classes, default_palette
from mink_decouple.data.raw import Chunk, RawScene, Repair

CLASSES = Classes(("ground", "tree", "house"), default_palette(3), {10: 0, 20: 1, 21: 1, 30: 2}, frozenset({0}))
FAR = (652_000.0, 6_861_000.0, 120.0)


class FakeRaw:
    """`ROOT/GROUP/NAME.npy`: rows of x y z r g b intensity train-id; 9 in place of a class id is a known corruption."""

    name = "fake"
    version = 1
    classes = CLASSES
    chunk = 70

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")

    def scenes(self) -> list[RawScene]:
        found = []
        for path in sorted(self.root.glob("*/*.npy")):
            group = path.parent.name
            found.append(RawScene(f"{group}_{path.stem}", "val" if group == "B" else "train", group, (path,), True))
        return found

    def lacking(self) -> list[str]:
        return [] if (self.root / "A").is_dir() else ["nothing of A"]

    def read(self, scene, report, chunk_points=2_000_000):
        table = np.load(scene.files[0])
        for begin in range(0, len(table), self.chunk):
            rows = table[begin : begin + self.chunk]
            labels = rows[:, 7].astype(np.int64)
            for row in np.flatnonzero(labels == 9):
                report(Repair(scene.files[0].name, begin + int(row) + 1, "9", "ignored"))
            labels[labels == 9] = -1
            if (labels > 50).any():
                raise ValueError(f"{scene.files[0]}: line {begin + 1}: label {labels.max()}")
            yield Chunk(
                rows[:, :3], {"rgb": rows[:, 3:6].astype(np.uint8), "intensity": rows[:, 6].astype(np.float32)}, labels
            )


class OtherChunks(FakeRaw):
    chunk = 1000


class NewVersion(FakeRaw):
    version = 2


class Slow(FakeRaw):
    """Takes a while over every chunk."""

    def read(self, scene, report, chunk_points=2_000_000):
        for chunk in super().read(scene, report):
            time.sleep(float(os.environ.get("FAKE_RAW_SECONDS", "0")))
            yield chunk


def make_download(root: Path, points: int = 300, scenes=("A/one", "A/two", "B/one", "C/one")) -> Path:
    for number, name in enumerate(scenes):
        rng = np.random.default_rng(number)
        xyz = np.rint(rng.uniform(0, 20, (points, 3)) * 1000) / 1000 + FAR
        table = np.c_[
            xyz, rng.integers(0, 256, (points, 3)), rng.integers(0, 4000, points), rng.integers(-1, 3, points)
        ]
        if name == "A/two":
            table[5, 7] = 9
        path = root / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, table)
    return root
