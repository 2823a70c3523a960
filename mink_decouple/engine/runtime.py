"""What a run depends on outside its configuration: device, threads, seeds and versions."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

DEVICES = ("auto", "cpu", "cuda")
PACKAGES = ("torch", "numpy", "scipy", "numba", "scikit-learn", "pyyaml", "tensorboard", "MinkowskiEngine")


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one. Raises ValueError for an unknown name and for CUDA that is not there."""
    if name not in DEVICES:
        raise ValueError(f"--device {name!r}: unknown device; choices: {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Ask glibc not to hand large freed blocks back to the kernel.

    Page faults on fresh tensors of tens of megabytes cost a CPU training step up to half of its time. The price: memory
    once used stays with the process. Without glibc this does nothing.
    """
    if sys.platform.startswith("linux"):
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-4, 0)  # M_MMAP_MAX
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        except (OSError, AttributeError):
            return


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, the same on every machine.

    Generators are derived from (run seed, stage, epoch, step), never carried along, so a resumed run draws what the
    uninterrupted one would have drawn.
    """
    text = "/".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator seeded from any parts."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


def seed_torch(*parts: int | str) -> None:
    """Seed torch's global generators (initial weights, dropout) from any parts."""
    torch.manual_seed(derive_seed(*parts))


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit, host and device, for environment.json."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "commit": _commit(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
    }


def _processor() -> str:
    """The name of the processor; Python leaves it out on most of Linux."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_memory(device: torch.device) -> float | None:
    """Most memory of this process so far, MiB: allocated by torch on a GPU, resident elsewhere; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def write_json(path: Path, value: Any) -> None:
    """Write JSON under its final name only when it is whole."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text under its final name only when it is whole."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        out = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None if out.returncode == 0 else None
