"""Compiles every kernel launch for an NVIDIA H100 instead of running it; needs Triton, no GPU.

Run as a program in a process without TRITON_INTERPRET: prints one line per compiled kernel with its shared memory.
Results of the launches are garbage, so only code whose control flow does not depend on them may follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

H100 = GPUTarget("cuda", 90, 32)
SHARED_MEMORY = 227 * 1024
TYPES = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int64: "*i64", torch.int32: "*i32", torch.int16: "*i16", torch.int8: "*i8", torch.bool: "*i1",
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A kernel's name, signature, bytes of shared memory, assembler text and machine code."""

    name: str
    signature: dict[str, str]
    shared: int
    ptx: str
    cubin: bytes


@contextmanager
def compiling() -> Iterator[list[Compiled]]:
    """Within it, launches of kernels are compiled and listed."""
    made: list[Compiled] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        given = dict(zip(self.arg_names, args))
        options = {key: value for key, value in kwargs.items() if key not in self.arg_names}
        given.update({key: value for key, value in kwargs.items() if key in self.arg_names})
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.params):
            value = given[parameter.name]
            special = not parameter.do_not_specialize
            if parameter.is_constexpr or (special and isinstance(value, int) and value == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = TYPES[value.dtype]
                attributes[(index,)] = [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[parameter.name] = "fp32"
            else:
                signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if special and value % 16 == 0:
                    attributes[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(self, signature, constants, attributes)
        kernel = triton.compile(source, target=H100, options=options)
        asm = kernel.asm
        made.append(Compiled(self.__name__, signature, kernel.metadata.shared, asm["ptx"], asm["cubin"]))

    before, JITFunction.run = JITFunction.run, run
    try:
        yield made
    finally:
        JITFunction.run = before
