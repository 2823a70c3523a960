"""Stations in the raw format of Semantic3D: for tests and trial runs, since the real ones are downloads of gigabytes.

A street with houses, a park, cars and people who walked through the scan, seen from stations far from the origin: all
8 classes and unlabelled points, x y z in millimetres, signed intensity, the file names of the benchmark. The scenes are
simple; a score on them says that the chain works, nothing of the method.

    python benchmarks/make_semantic3d.py --output data/semantic3d_raw --points 200000
    python tools/prepare.py --dataset semantic3d --root data/semantic3d_raw --output data/semantic3d
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np

FAR = (500_000.0, 5_400_000.0, 350.0)
"""A place as in UTM coordinates, metres."""

STATIONS = (
    "bildstein_station1_xyz_intensity_rgb",
    "bildstein_station3_xyz_intensity_rgb",
    "sg27_station1_intensity_rgb",
    "sg27_station2_intensity_rgb",
    "untermaederbrunnen_station1_xyz_intensity_rgb",
)
TESTS = (
    "MarketplaceFeldkirch_Station4_rgb_intensity-reduced",
    "StGallenCathedral_station6_rgb_intensity-reduced",
    "sg27_station10_rgb_intensity-reduced",
    "sg28_Station2_rgb_intensity-reduced",
)

# Raw id -> share of the points, mean colour, mean intensity.
LOOKS = {
    1: (0.24, (125, 125, 122), -1200),
    2: (0.16, (120, 110, 60), -1000),
    3: (0.20, (60, 95, 45), -1500),
    4: (0.06, (95, 130, 60), -1450),
    5: (0.24, (190, 165, 140), -900),
    6: (0.05, (150, 145, 135), -1050),
    7: (0.02, (90, 80, 85), -1700),
    8: (0.03, (70, 85, 125), -600),
}
UNLABELLED = 0.08
"""Share of the points that carry the label 0."""


def box(rng: np.random.Generator, count: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(count, 3) points on the sides and the top of boxes; low and high are (b, 3) corners."""
    which = rng.integers(0, len(low), count)
    place = rng.random((count, 3))
    side = rng.integers(0, 5, count)
    for axis in (0, 1):
        for end in (0, 1):
            place[side == 2 * axis + end, axis] = end
    place[side == 4, 2] = 1.0
    return low[which] + place * (high - low)[which]


def ball(rng: np.random.Generator, count: int, centre: np.ndarray, radius: np.ndarray, solid: float) -> np.ndarray:
    """(count, 3) points in balls, between `solid` of the radius and the radius."""
    which = rng.integers(0, len(centre), count)
    way = rng.normal(size=(count, 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    return centre[which] + way * radius[which, None] * rng.uniform(solid, 1, count)[:, None]


def shape(rng: np.random.Generator, raw_id: int, count: int) -> np.ndarray:
    """(count, 3) points of one class, metres from the middle of the street."""
    flat = np.c_[rng.uniform(-40, 40, count), rng.uniform(-6, 6, count), np.zeros(count)]
    if raw_id == 1:
        return flat
    if raw_id == 2:
        flat[:, 1] = rng.uniform(6, 30, count)
        flat[:, 2] = 0.3 * np.sin(flat[:, 0] / 5) * np.cos(flat[:, 1] / 4)
        return flat
    if raw_id == 3:
        stems = np.c_[rng.uniform(-35, 35, 6), rng.uniform(12, 28, 6), np.zeros(6)]
        crown = ball(rng, count, stems + np.array([0, 0, 6]), rng.uniform(1.5, 3, 6), 0.3)
        trunk = rng.random(count) < 0.15
        of = stems[rng.integers(0, 6, count)]
        turn = rng.uniform(0, 2 * np.pi, count)
        ring = of + np.c_[0.25 * np.cos(turn), 0.25 * np.sin(turn), rng.uniform(0, 4, count)]
        return np.where(trunk[:, None], ring, crown)
    if raw_id == 4:
        bushes = np.c_[rng.uniform(-38, 38, 10), rng.uniform(7, 11, 10), np.full(10, 0.5)]
        return ball(rng, count, bushes, rng.uniform(0.4, 0.8, 10), 0.6)
    if raw_id == 5:
        left = np.arange(-40, 40, 16.0)
        low = np.c_[left, np.full(5, -16.0), np.zeros(5)]
        return box(rng, count, low, low + np.c_[rng.uniform(10, 14, 5), np.full(5, 9.0), rng.uniform(6, 12, 5)])
    if raw_id == 6:
        low = np.c_[np.arange(-36, 36, 12.0), np.full(6, 6.0), np.zeros(6)]
        return box(rng, count, low, low + np.array([8.0, 0.3, 1.1]))
    if raw_id == 7:
        walk = np.c_[rng.uniform(-15, 15, 4), rng.uniform(-4, 4, 4)][rng.integers(0, 4, count)]
        return np.c_[walk + rng.normal(0, [0.6, 0.08], (count, 2)), rng.uniform(0, 1.8, count)]
    low = np.c_[rng.uniform(-36, 32, 5), rng.choice([-4.5, 2.5], 5), np.full(5, 0.2)]
    return box(rng, count, low, low + np.array([4.2, 1.8, 1.3]))


def station(
    name: str, points: int, seed: int, far: tuple[float, float, float] = FAR
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One station: xyz (N, 3) float64 in whole millimetres, intensity (N,), rgb (N, 3) and raw ids 0..8 (N,), integers.

    Every class has at least 30 points, so N is a little more than `points` where there are few.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    xyz, labels, rgb, intensity = [], [], [], []
    for raw_id, (share, colour, strength) in LOOKS.items():
        count = max(30, round(share * points))
        xyz.append(shape(rng, raw_id, count) + rng.normal(0, 0.01, (count, 3)))
        labels.append(np.full(count, raw_id))
        rgb.append(np.clip(colour + rng.normal(0, 12, (count, 1)) + rng.normal(0, 8, (count, 3)), 0, 255).round())
        intensity.append(rng.normal(strength, 150, count).round())
    order = rng.permutation(sum(map(len, labels)))
    label = np.concatenate(labels)[order]
    label[rng.random(len(label)) < UNLABELLED] = 0
    world = np.round(np.concatenate(xyz)[order] + far, 3)
    return world, np.concatenate(intensity)[order].astype(int), np.concatenate(rgb)[order].astype(int), label


def write(folder: Path, name: str, points: int, seed: int, labelled: bool = True) -> None:
    """Write `name.txt` and, if it is labelled, `name.labels`."""
    xyz, intensity, rgb, label = station(name, points, seed)
    folder.mkdir(parents=True, exist_ok=True)
    table = np.c_[xyz, intensity, rgb]
    np.savetxt(folder / f"{name}.txt", table, fmt=["%.3f"] * 3 + ["%d"] * 4)
    if labelled:
        np.savetxt(folder / f"{name}.labels", label, fmt="%d")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the stations")
    parser.add_argument("--points", type=int, default=200_000, help="points of a station (default: 200000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in STATIONS + TESTS:
        write(args.output, name, args.points, args.seed, labelled=name in STATIONS)
        print(f"wrote {args.output / name}.txt")


if __name__ == "__main__":
    main()
