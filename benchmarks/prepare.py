"""How fast `prepare` is on one core, and how much memory it takes, for each raw format.

The scenes of the real samples are linked several times under new names, so that start-up does not count; stations of
Semantic3D are made (`make_semantic3d.py`), since no sample of it is to be had.

    python benchmarks/prepare.py --samples ../shared/data --copies 20 --points 500000
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def link_s3dis(samples: Path, raw: Path, copies: int) -> None:
    """`copies` rooms that are the sample's."""
    room = samples / "s3dis" / "Stanford3dDataset_v1.2_Aligned_Version" / "Area_3" / "hallway_3"
    (raw / "Area_3").mkdir(parents=True)
    for number in range(copies):
        (raw / "Area_3" / f"hallway_{number + 1}").symlink_to(room)


def link_scannet(samples: Path, raw: Path, copies: int) -> None:
    """`copies` scans that are the sample's first."""
    scan = samples / "scannet" / "scans" / "scene0000_00"
    names = [f"scene0000_{number:02d}" for number in range(copies)]
    for name in names:
        folder = raw / "scans" / name
        folder.mkdir(parents=True)
        for suffix in ("_vh_clean_2.ply", "_vh_clean_2.labels.ply"):
            (folder / f"{name}{suffix}").symlink_to(scan / f"scene0000_00{suffix}")
    for split, listed in (("train", names), ("val", []), ("test", [])):
        (raw / f"scannetv2_{split}.txt").write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")


def link_semantickitti(samples: Path, raw: Path, copies: int) -> None:
    """`copies` scans that are the sample's labelled one."""
    source, target = samples / "semantickitti" / "sequences" / "00", raw / "sequences" / "00"
    for folder, suffix in (("velodyne", "bin"), ("labels", "label")):
        (target / folder).mkdir(parents=True)
        for number in range(copies):
            (target / folder / f"{number:06d}.{suffix}").symlink_to(source / folder / f"000000.{suffix}")


FORMATS: dict[str, Callable[[Path, Path, int], None]] = {
    "s3dis": link_s3dis,
    "scannet": link_scannet,
    "semantickitti": link_semantickitti,
}


def run(dataset: str, raw: Path, output: Path) -> tuple[str, int]:
    """What `prepare` said of its speed, and the largest resident set of all its runs so far, in KiB."""
    command = [sys.executable, str(ROOT / "tools" / "prepare.py"), "--dataset", dataset, "--root", str(raw)]
    done = subprocess.run([*command, "--output", str(output), "--workers", "1"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found = re.search(r"^.* points per second and core$", done.stdout, re.MULTILINE)
    return found[0] if found else done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def main() -> None:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the samples")
    parser.add_argument("--copies", type=int, default=20, help="scenes of each sample")
    parser.add_argument("--points", type=int, default=500_000, help="points of a made station; there are nine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for dataset, link in FORMATS.items():
            if not (args.samples / dataset).is_dir():
                print(f"{dataset}: left out, {args.samples / dataset} is not there")
                continue
            raw = Path(name) / f"{dataset}_raw"
            link(args.samples.resolve(), raw, args.copies)
            said, memory = run(dataset, raw, Path(name) / dataset)
            print(f"{dataset}: {said}, peak {memory / 1024:.0f} MiB so far", flush=True)
        raw = Path(name) / "semantic3d_raw"
        made = [sys.executable, str(ROOT / "benchmarks" / "make_semantic3d.py"), "--output", str(raw)]
        subprocess.run([*made, "--points", str(args.points)], check=True, stdout=subprocess.DEVNULL)
        text = sum(path.stat().st_size for path in raw.iterdir())
        said, peak = run("semantic3d", raw, Path(name) / "semantic3d")
        print(f"semantic3d: {said} ({text / 2**30:.1f} GiB of text), peak {peak / 1024:.0f} MiB so far")
    print(f"{os.cpu_count()} cores; one is used")


if __name__ == "__main__":
    main()
