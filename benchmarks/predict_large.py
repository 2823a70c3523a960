"""Predicting a cloud of tens of millions of points: peak memory, points per second, and whether its tiles show.

A LAS or LAZ file is laid side by side until there are enough points, every copy shifted by whole cells of the grid.
`tools/predict.py` predicts the result in a process of its own, whose resident set, time and temporary files are
measured. A smaller one is predicted twice, in tiles and in one piece, and the classes of its points compared.

    python benchmarks/predict_large.py CHECKPOINT ../shared/data/lidar_hd_dense/crop_1.laz --points 50000000
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import laspy
import numpy as np
import torch

from mink_decouple import config as configuration
from mink_decouple.engine import predict, predict_files
from mink_decouple.engine.export import load_network
from mink_decouple.engine.runtime import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]


def lay_out(source: Path, target: Path, points: int, grid: float) -> int:
    """Write at least `points` points: copies of `source` in a square, shifted by whole cells; returns how many."""
    las = laspy.read(source)
    xyz, record = las.xyz, las.points.array
    shift = np.ceil((xyz.max(axis=0) - xyz.min(axis=0)) / grid) * grid
    steps = np.rint(shift / las.header.scales)
    if not np.allclose(steps * las.header.scales, shift):
        sys.exit(f"{source}: a grid of {grid} m is not a whole number of its scales {las.header.scales}")
    copies = math.ceil(points / len(record))
    side = math.ceil(math.sqrt(copies))
    places = las.header.scales, las.header.offsets
    with laspy.open(str(target), mode="w", header=las.header) as writer:
        for number in range(copies):
            moved = record.copy()
            moved["X"] += np.int32(number % side * steps[0])
            moved["Y"] += np.int32(number // side * steps[1])
            writer.write_points(laspy.ScaleAwarePointRecord(moved, las.point_format, *places))
    return copies * len(record)


def timed(checkpoint: Path, source: Path, target: Path) -> dict[str, float]:
    """Seconds, peak resident set and peak size of temporary files of one run of `tools/predict.py`."""
    before, disk, done = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            disk[0] = max(disk[0], sum(f.stat().st_size for f in target.parent.rglob("*") if f.is_file()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), "--checkpoint", str(checkpoint), str(source)]
    try:
        subprocess.run([*command, "--output", str(target), "--device", "cpu"], check=True)
    finally:
        done.set()
        watcher.join()
    seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if peak <= before:
        sys.exit("an earlier process took more memory; the peak is not known")
    return {"seconds": seconds, "peak_mib": peak / 1024, "disk_mib": disk[0] / 2**20}


def seams(checkpoint: Path, source: Path, folder: Path) -> tuple[int, float]:
    """Points of `source`, and the share of them that get the same class in tiles and in one piece."""
    found = []
    for title, whole in (("tiles", predict.WHOLE_POINTS), ("one", sys.maxsize)):
        with mock.patch.object(predict, "WHOLE_POINTS", whole):
            target = folder / f"{title}.las"
            predict_files.predict_files(checkpoint, [source], target, torch.device("cpu"))
            found.append(np.asarray(laspy.read(target).classification))
    return len(found[0]), float((found[0] == found[1]).mean())


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("source", type=Path, help="LAS or LAZ file that the network can predict")
    parser.add_argument("--points", type=int, default=50_000_000)
    parser.add_argument("--seam-points", type=int, default=8_000_000, help="of the one predicted twice; 0: none")
    parser.add_argument("--format", choices=("las", "laz"), default="laz")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    args = parser.parse_args()
    keep_freed_memory()
    config = configuration.loads(load_network(args.checkpoint)["config"], str(args.checkpoint))
    figures: dict[str, float] = {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        big = folder / f"big.{args.format}"
        count = lay_out(args.source, big, args.points, config.data.grid)
        (folder / "out").mkdir()
        figures |= {"points": count, **timed(args.checkpoint, big, folder / "out" / big.name)}
        print(
            f"{count:,} points in {figures['seconds']:.0f} s, {count / figures['seconds']:,.0f} points a second; "
            f"peak memory {figures['peak_mib']:,.0f} MiB, files of the run up to {figures['disk_mib']:,.0f} MiB"
        )
        if args.seam_points:
            part = folder / "part.las"
            lay_out(args.source, part, args.seam_points, config.data.grid)
            compared, same = seams(args.checkpoint, part, folder)
            figures |= {"seam_points": compared, "seam_agreement": same}
            print(f"{compared:,} points in tiles and in one piece: {100 * same:.4f} % of the classes equal")
    if args.output:
        args.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
