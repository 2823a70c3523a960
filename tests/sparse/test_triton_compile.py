"""Every kernel compiles to machine code of an H100, without one: what the interpreter accepts, the compiler may not."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest


def version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in metadata.version("triton").split(".")[:2])
    except metadata.PackageNotFoundError:
        return (0,)


pytestmark = pytest.mark.skipif(version() < (3, 6), reason="needs Triton 3.6 or newer")

CODE = """
import re

import torch
from gpu_compiler import SHARED_MEMORY, compiling
from voxel_sets import random_voxels

from mink_decouple.models import triton_knn
from mink_decouple.sparse import kernel_map, normalization, triton_kernel, triton_layout, triton_maps
from mink_decouple.sparse import triton_normalization, triton_runtime, triton_tuning
from mink_decouple.sparse.tensor import MapCache
from mink_decouple.sparse.triton_launch import Kernel

modules = [triton_kernel, triton_knn, triton_layout, triton_maps, triton_normalization, triton_runtime]
kernels = {k.function.__name__ for m in modules for k in vars(m).values() if isinstance(k, Kernel)}

def largest(key, candidates, run):
    tiles = candidates()
    for tile in {*tiles[:1], max(tiles, key=lambda t: (t.rows * t.columns, t.depth, t.stages))}:
        run(tile)
    return tiles[0]
triton_kernel.choose = largest
table = MapCache(random_voxels(0)).submanifold(1, 3).table
with compiling() as made:
    triton_runtime._count[(1,)](torch.zeros(16, dtype=torch.int32), 3, SIZE=16)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for tf32 in (False, True)[: 1 + (dtype == torch.float32)]:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            x = torch.zeros(table.n_source, 128, dtype=dtype)
            triton_kernel.gather_matmul_sum(x, torch.zeros(27, 128, 128, dtype=dtype), table)
            triton_kernel.gather_outer_sum(x, x, table)
    x = torch.zeros(table.n_source, 3, dtype=torch.bfloat16)
    triton_kernel.gather_matmul_sum(x, torch.zeros(27, 3, 5, dtype=torch.bfloat16), table)
    triton_kernel.gather_outer_sum(x, x, table)
    x = torch.zeros(table.n_source, 20)
    one = torch.ones(24)
    end = triton_kernel.Epilogue(one, one, one, one, 1e-5, torch.zeros(len(x), 24), True)
    triton_kernel.gather_matmul_sum(x, torch.zeros(27, 24, 20).transpose(1, 2), table, True, end)
    keys, order = kernel_map.sort_keys(kernel_map.pack(random_voxels(0)))
    # Wide 16-bit features reach the matrix units of a Hopper GPU by asynchronous copies of 16 bytes.
    wide = [k for k in made if k.name == "_matmul_tiles" and k.signature["x"] in ("*bf16", "*fp16")][:4]
    assert len(wide) == 4
    for kernel in wide:
        assert "wgmma.mma_async" in kernel.ptx, kernel.signature
        assert re.search(r"cp\\.async\\.c[ag].*, 0x10", kernel.ptx), kernel.signature
    triton_maps.submanifold_table(keys, order, 3)
    triton_maps.submanifold_table(keys, None, 5, 2)
    triton_maps.strided_tables(keys, order, keys, 10, 0)
    triton_maps.unpack(keys)
    normalization._fused = lambda x, bn: triton_normalization.Normalize
    for momentum in (0.1, None):
        x = torch.zeros(100, 96, dtype=torch.bfloat16, requires_grad=True)
        residual = torch.zeros_like(x, requires_grad=True)
        bn = torch.nn.BatchNorm1d(96, momentum=momentum)
        normalization.normalize(x, bn, residual, True).sum().backward()
        normalization.normalize(x, bn.eval()).sum().backward()
    points = torch.rand(100, 3)
    index = triton_knn.build(points)
    triton_knn.search(index, points, 16, torch.zeros(100, dtype=torch.int64), index.rows)
    triton_knn.search(index, points, 1)
assert {kernel.name for kernel in made} == kernels, kernels
assert len(made) > len(kernels)
for kernel in made:
    assert kernel.cubin[:4] == b"\\x7fELF" and kernel.shared <= SHARED_MEMORY, kernel.name
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    here = Path(__file__).resolve()
    paths = [str(here.parent), str(here.parents[1]), str(here.parents[2])]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
