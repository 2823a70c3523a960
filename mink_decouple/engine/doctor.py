"""What works on this machine: engines, libraries and devices are tried, not only looked up."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mink_decouple import compiled

if TYPE_CHECKING:
    from mink_decouple.sparse.engines import Engine

# What the engines need is imported by the checks themselves: a library that is broken is a finding, not the end.

STATES = ("ok", "slow", "missing", "broken")
NEEDED = {
    "numpy": "numpy",
    "scipy": "scipy",
    "numba": "numba",
    "scikit-learn": "sklearn.metrics",
    "pyyaml": "yaml",
    "tensorboard": "torch.utils.tensorboard",
    "tqdm": "tqdm",
    "filelock": "filelock",
    "plyfile": "plyfile",
    "pypcd4": "pypcd4",
    "matplotlib": "matplotlib",
}
OPTIONAL = {
    "laspy": ("laspy", "LAS files"),
    "lazrs": ("lazrs", "LAZ files"),
    "open3d": ("open3d", "the viewer"),
}
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        state: "ok"; "slow": works, but could be faster; "missing": optional and not there; "broken": training needs it.
        subject: what was looked at.
        text: what was found and, unless ok, what mends it.
    """

    state: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<8} {self.subject}: {self.text}"


def examine() -> list[Finding]:
    """Try everything that a training may use. Nothing is written but compiled kernels."""
    checks = (_machine, _torch, _gpu, _native, _compiled_cache, _minkowski, _needed, _optional, _disk)
    return [finding for check in checks for finding in check()]


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    vector = torch.backends.cpu.get_cpu_capability()
    text = f"{platform.system()} {platform.machine()}, {cores} cores for this process, vector instructions {vector}"
    yield Finding("ok", "machine", f"{text}, Python {platform.python_version()}")
    threads = torch.get_num_threads()
    # Without a limit torch takes one thread for each physical core, which may be half of what the system counts.
    limits = [name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name)]
    if threads < cores and limits:
        yield Finding("slow", "threads", f"torch uses {threads} of {cores} cores; unset {limits[0]} or raise it")


def _torch() -> Iterator[Finding]:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield Finding("ok", "torch", f"{torch.__version__}, {build} build, {torch.get_num_threads()} threads")


def _gpu() -> Iterator[Finding]:
    card = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            yield Finding(
                "ok",
                f"cuda:{index}",
                f"{properties.name}, {memory:.0f} GiB, compute capability {properties.major}.{properties.minor}",
            )
    elif card and not torch.version.cuda:
        yield Finding("slow", "cuda", "an NVIDIA card is here, but torch is a CPU build; install a CUDA build")
    elif card:
        yield Finding("slow", "cuda", "an NVIDIA card is here, but torch cannot use it; compare driver and build")
    else:
        yield Finding("missing", "cuda", "no NVIDIA card; everything runs on the CPU")


def _native() -> Iterator[Finding]:
    for device in _devices(cuda=torch.cuda.is_available()):
        yield from _tried("native", device, "broken", _native_speed)


def _native_speed(device: str) -> tuple[str, str]:
    if device != "cpu":
        from mink_decouple.sparse import triton_runtime

        reason = triton_runtime.obstacle(torch.device(device))
        return ("slow", f"plain torch operations: {reason}") if reason else ("ok", "Triton kernels")
    from mink_decouple.sparse import cpu_kernel

    if cpu_kernel.usable(torch.zeros(1)):
        return "ok", "fused float32 kernels"
    return "slow", "plain torch operations: the fused kernels need a CPU with AVX2, AVX-512 or NEON"


def _compiled_cache() -> Iterator[Finding]:
    place = compiled.kept_in()
    if place is not None:
        yield Finding("ok", "compiled kernels", f"kept in {place}")
    else:
        yield Finding(
            "slow",
            "compiled kernels",
            f"{compiled.BESIDE} cannot be written: compiled anew at every start; set {compiled.GIVEN}",
        )


def _minkowski() -> Iterator[Finding]:
    from mink_decouple.sparse.engines import import_minkowski

    try:
        version, cuda = import_minkowski().__version__, import_minkowski().is_cuda_available()
    except ValueError as error:
        yield Finding("missing", "engine minkowski", str(error))
        return
    text = f"MinkowskiEngine {version}, single and double precision only"
    for device in _devices(cuda=cuda and torch.cuda.is_available()):
        yield from _tried("minkowski", device, "missing", lambda _: ("ok", text))
    if torch.cuda.is_available() and not cuda:
        yield Finding(
            "missing", "engine minkowski on cuda", "a CPU build; docker/install_minkowski.sh --cuda --force builds it"
        )


def _needed() -> Iterator[Finding]:
    found = []
    for name, module in NEEDED.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken binary package raises what it likes
            yield Finding("broken", name, f"{_reason(error)}; install it: pip install {name}")
        else:
            found.append(f"{name} {_version(name)}")
    if found:
        yield Finding("ok", "libraries", ", ".join(found))


def _optional() -> Iterator[Finding]:
    for name, (module, purpose) in OPTIONAL.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            yield Finding("missing", name, f"{_reason(error)}; for {purpose}: pip install {name}")
        except Exception as error:  # there, but what it needs of the system is not
            yield Finding("missing", name, f"{_reason(error)}; for {purpose}; it is installed but does not load")
        else:
            yield Finding("ok", name, f"{_version(name)}, for {purpose}")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < 1:
        yield Finding("broken", "disk", f"{free:.1f} GiB free here; checkpoints of a run need about 1 GiB")
    else:
        yield Finding("ok", "disk", f"{free:.0f} GiB free here")


def _tried(name: str, device: str, failed: str, speed: Callable[[str], tuple[str, str]]) -> Iterator[Finding]:
    subject = f"engine {name} on {device}"
    try:
        from mink_decouple.sparse.engines import engine

        error = convolution_error(engine(name), device)
    except Exception as problem:  # whatever an engine does wrong is the finding
        yield Finding(failed, subject, _reason(problem))
        return
    if error <= TOLERANCE:
        state, text = speed(device)
        yield Finding(state, subject, f"{text}; agrees with a dense convolution to {error:.0e}")
    else:
        yield Finding(failed, subject, f"wrong results: differs from a dense convolution by {error:.0e}")


def convolution_error(on: Engine, device: str) -> float:
    """Largest relative difference between an engine's 3x3x3 convolution and torch's dense one, on a full 6^3 block.

    The dense one is computed in double precision on the CPU: on a GPU torch's own rounds its inputs to TF32.
    """
    side, generator = 6, torch.Generator().manual_seed(0)
    axis = torch.arange(side, dtype=torch.int32)
    places = torch.cartesian_prod(axis, axis, axis)
    voxels = torch.cat([torch.zeros(len(places), 1, dtype=torch.int32), places - 2], 1).to(device)
    feats = torch.randn(len(places), 4, generator=generator).to(device)
    layer = on.conv(4, 8).to(device)
    kernel: Tensor = layer.get_parameter("kernel")
    # offsets run x fastest: (27, 4, 8) is (z, y, x, in, out), and the dense block is (x, y, z)
    weight = kernel.cpu().double().view(3, 3, 3, 4, 8).permute(4, 3, 2, 1, 0)
    block = feats.cpu().double().view(side, side, side, 4).permute(3, 0, 1, 2).unsqueeze(0)
    with torch.no_grad():
        expected = F.conv3d(block, weight, padding=1)[0].permute(1, 2, 3, 0).reshape(-1, 8)
        found = on.apply(layer, voxels, feats, 8).cpu()
    return float((found - expected).abs().max() / expected.abs().max())


def _devices(cuda: bool) -> tuple[str, ...]:
    return ("cpu", "cuda") if cuda else ("cpu",)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(version unknown)"


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
