"""Launches past Triton, with a stand-in for its compiler; on a GPU the tests of the kernels go through them."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mink_decouple.sparse import triton_launch
from mink_decouple.sparse.triton_launch import Kernel


class Compiler:
    """Stands for what ``triton.jit`` makes: notes what it compiled and what the compiled code was called with."""

    def __init__(self) -> None:
        self.compiled: list[tuple[object, ...]] = []
        self.called: list[tuple[object, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: object, **constants: object) -> SimpleNamespace:
            self.compiled.append((grid, *constants.values()))
            return SimpleNamespace(run=lambda *all: self.called.append(all), function="code", packed_metadata="meta")

        return launch


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    monkeypatch.setattr(Kernel, "direct", True)
    monkeypatch.setattr(triton_launch, "_stream", lambda: lambda index: ("stream", index))
    yield Compiler()


def kernel(compiler: Compiler) -> Kernel:
    return Kernel(compiler, ("x", "n", "size", "eps", "WIDE", "TILE"), ("n",))


def test_the_second_launch_calls_the_compiled_code_with_addresses_and_constants(compiler: Compiler) -> None:
    add, x = kernel(compiler), torch.zeros(8)
    add[(4,)](x, 7, 32, 0.5, WIDE=True, TILE=64, num_warps=4)
    add[(2, 3)](x, 9, 48, 0.25, WIDE=True, TILE=64, num_warps=4)
    assert compiler.compiled == [((4,), True, 64, 4)]
    assert compiler.called == [
        (2, 3, 1, ("stream", -1), "code", "meta", None, None, None, x.data_ptr(), 9, 48, 0.25, True, 64)
    ]


def test_a_parameter_of_a_network_counts_as_a_tensor(compiler: Compiler) -> None:
    add = kernel(compiler)
    for x in (torch.zeros(8), nn.Parameter(torch.zeros(8))):
        add[(1,)](x, 7, 32, 0.5, WIDE=True, TILE=64)
    assert len(compiler.compiled) == len(compiler.called) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(8, dtype=torch.bfloat16)}, {"size": 33}, {"size": 1}, {"WIDE": False}, {"TILE": 32},
        {"num_warps": 8}, {"x": torch.zeros(9)[1:]}, {"n": 2**31}, {"size": 2**31},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_another_kind_go_through_triton(other: dict[str, Any], compiler: Compiler) -> None:
    def launch(x: Tensor, n: int, size: int, WIDE: bool, TILE: int, num_warps: int) -> None:
        add[(1,)](x, n, size, 0.5, WIDE=WIDE, TILE=TILE, num_warps=num_warps)

    add = kernel(compiler)
    usual: dict[str, Any] = {
        "x": torch.zeros(8), "n": 7, "size": 32, "WIDE": True, "TILE": 64, "num_warps": 4
    }  # fmt: skip
    launch(**usual)
    launch(**{**usual, **other})
    assert len(compiler.compiled) == 2 and not compiler.called


def test_without_the_shortcut_every_launch_is_triton_s_own(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernel, "direct", False)
    add = kernel(compiler)
    for _ in range(2):
        add[(1,)](torch.zeros(8), 7, 32, 0.5, WIDE=True, TILE=64)
    assert len(compiler.compiled) == 2 and not compiler.called
