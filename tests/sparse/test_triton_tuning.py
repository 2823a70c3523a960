"""The choice of tile sizes, with a stand-in for the clock."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton_support  # noqa: F401 # skips where Triton is missing

from mink_decouple.sparse import triton_tuning
from mink_decouple.sparse.triton_tuning import Tile, choose

SMALL, WIDE, GREEDY = Tile(64, 32, 32, 4, 2), Tile(64, 128, 32, 8, 3), Tile(256, 256, 64, 8, 5)
TILES = [SMALL, WIDE, GREEDY]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Tile]:
    """Tiles in the order in which they ran; the wide one is the fastest, the greedy one fits no GPU."""
    seen: list[Tile] = []

    def seconds(run: object) -> float:
        run()  # type: ignore[operator]
        return 1.0 if seen[-1] == WIDE else 2.0

    monkeypatch.setattr(triton_tuning, "_may_time", lambda: True)
    monkeypatch.setattr(triton_tuning, "_seconds", seconds)
    monkeypatch.setattr(triton_tuning, "_path", lambda: tmp_path / "deep" / "tiles.json")
    monkeypatch.setattr(triton_tuning, "_known", {})
    return seen


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tuning, "_known", {})


def recording(seen: list[Tile]) -> object:
    def run(tile: Tile) -> None:
        if tile == GREEDY:
            raise RuntimeError("out of shared memory")
        seen.append(tile)

    return run


def test_the_fastest_tile_is_chosen_once_and_remembered_on_disk(
    runs: list[Tile], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recording(runs)
    assert choose(("matmul", 17, 64), lambda: TILES, run) == WIDE  # type: ignore[arg-type]
    assert runs == [SMALL, WIDE]
    assert choose(("matmul", 17, 64), lambda: TILES, run) == WIDE  # type: ignore[arg-type]
    forget(monkeypatch)
    assert choose(("matmul", 17, 64), lambda: TILES, run) == WIDE  # type: ignore[arg-type]
    assert runs == [SMALL, WIDE]
    choose(("matmul", 18, 64), lambda: TILES, run)  # type: ignore[arg-type]
    assert len(runs) == 4


def test_a_file_that_is_damaged_or_names_an_old_tile_is_written_anew(
    runs: list[Tile], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = triton_tuning._path()
    path.parent.mkdir()
    old = '{"outer 5": {"rows": 8, "columns": 8, "depth": 8, "warps": 1, "stages": 1}}'
    for text in ("{", "[1]", '{"outer 5": {"rows": 1}}', old):
        path.write_text(text, encoding="utf-8")
        forget(monkeypatch)
        assert choose(("outer", 5), lambda: TILES, recording(runs)) == WIDE  # type: ignore[arg-type]
        assert triton_tuning._read(path)["outer 5"] == WIDE


def refuse(tile: Tile) -> None:
    raise RuntimeError("out of shared memory")


def test_a_gpu_that_runs_no_tile_says_so(runs: list[Tile]) -> None:
    with pytest.raises(RuntimeError, match="no tile size"):
        choose(("outer", 6), lambda: [GREEDY, replace(GREEDY, warps=4)], refuse)


def test_a_batch_that_does_not_fit_is_not_the_tile_s_fault(runs: list[Tile]) -> None:
    def full(tile: Tile) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        choose(("outer", 8), lambda: TILES, full)
    assert "outer 8" not in triton_tuning._read(triton_tuning._path())


def test_a_tile_that_did_not_fit_leaves_the_choice_open(runs: list[Tile], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(tile: Tile) -> None:
        if tile == WIDE:
            raise torch.OutOfMemoryError("CUDA out of memory")
        runs.append(tile)

    assert choose(("outer", 9), lambda: [SMALL, WIDE], run) == SMALL
    assert "outer 9" not in triton_tuning._read(triton_tuning._path())
    forget(monkeypatch)
    assert choose(("outer", 9), lambda: [SMALL, WIDE], recording(runs)) == WIDE  # type: ignore[arg-type]


def test_without_a_clock_the_first_tile_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tuning, "_may_time", lambda: False)
    assert choose(("outer", 7), lambda: [WIDE, SMALL], lambda tile: pytest.fail("ran")) == WIDE
