"""Rows of numbers out of text: the bits of float(), whatever the sizes of blocks and tables, and no row lost."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mink_decouple.data import text_rows
from mink_decouple.data.text_rows import read_rows

FORMS = ("{:.3f}", "{:.6f}", "{:+.2f}", "{:.17g}", "{:.3e}", "{:.0f}", "{:.0f}.")


def rows_of(path: Path, columns: int = 3, rows: int = 1000, **kwargs: object) -> np.ndarray:
    tables = [table.copy() for table in read_rows(path, columns, rows, **kwargs)]  # type: ignore[arg-type]  # mend, mended
    assert all(0 < len(table) <= rows for table in tables)
    return np.concatenate(tables)


@given(
    numbers=st.lists(
        st.tuples(st.floats(-1e9, 1e9, allow_nan=False), st.sampled_from(FORMS)), min_size=3, max_size=60
    ).filter(lambda numbers: len(numbers) % 3 == 0),
    end=st.sampled_from(["\n", "\r\n", " \n", "\t\n"]),
    rows=st.integers(1, 8),
    block=st.integers(1, 60),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_number_has_the_bits_of_float_whatever_the_sizes(
    numbers: list[tuple[float, str]], end: str, rows: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [form.format(number) for number, form in numbers]
    lines = [" ".join(words[at : at + 3]) + end for at in range(0, len(words), 3)]
    path = tmp_path / "rows.txt"
    path.write_bytes("".join(lines).encode())
    monkeypatch.setattr(text_rows, "BLOCK", block)
    table = rows_of(path, rows=rows)
    expected = np.array([float(word) for word in words]).reshape(-1, 3)
    assert table.tobytes() == expected.tobytes()


def test_a_last_line_without_an_end_and_empty_lines_at_the_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    for tail in ("", "\n", "\n\n \n\r\n"):
        path.write_bytes(b"1 2 3\n4 5 -0.0" + tail.encode())
        assert rows_of(path, rows=1).tolist() == [[1, 2, 3], [4, 5, 0]]
    assert struct.pack("d", rows_of(path)[1, 2]) == struct.pack("d", -0.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no points"),
        (b"\n\n", "no points"),
        (b"1 2 3\n4 5\n", r"line 2 is not 3 numbers: '4 5'"),
        (b"1 2 3\n4 5 6 7\n", r"line 2 is not 3 numbers: '4 5 6 7'"),
        (b"1 2 nan\n", r"line 1 is not 3 numbers"),
        (b"1 2 inf\n", r"line 1 is not 3 numbers"),
        (b"1 2 1e999\n", r"line 1 is not 3 numbers"),
        (b"1 2 1_0\n", r"line 1 is not 3 numbers"),
        (b"1 2 0x1\n", r"line 1 is not 3 numbers"),
        (b"1 2 .\n", r"line 1 is not 3 numbers"),
        (b"1 2 3-4\n", r"line 1 is not 3 numbers"),
        (b"1,2,3\n", r"line 1 is not 3 numbers"),
        (b"1 2 3\r4 5 6\n", r"line 1 is not 3 numbers: '1 2 3\\r4 5 6'"),
        (b"1 2 3\n\n4 5 6\n", "line 2 is empty, but lines follow"),
        (b"1 2 3\n4 5 \xff\x00\n", r"line 2 is not 3 numbers: '4 5 \\xff\\x00'"),
        (b"1 2 " + b"3" * 600, r"line 1 is longer than 512 bytes: '1 2 3+'\.\.\.$"),
        (b"1 2 " + b"\x00" * 5000 + b"\n", r"line 1 is not 3 numbers"),
    ],
)
def test_anything_else_is_refused_with_file_line_and_content(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"rows\.txt: {message}") as caught:
        rows_of(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 400


def test_lines_are_counted_over_tables_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rows, "BLOCK", 17)
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"{i} 0 0\n" for i in range(50)) + "x\n")
    with pytest.raises(ValueError, match="line 51 is not"):
        rows_of(path, rows=7)


def test_a_mended_line_is_told_once_and_one_that_stays_wrong_is_quoted_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(b"1 2 3\n4;5;6\n7 8 9\n")
    told: list[tuple[int, bytes, bytes]] = []
    table = rows_of(path, mend=lambda line: line.replace(b";", b" "), mended=lambda *what: told.append(what))
    assert table.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert told == [(2, b"4;5;6", b"4 5 6")]
    path.write_bytes(b"4;5;\n")
    with pytest.raises(ValueError, match="line 1 is not 3 numbers: '4;5;'"):
        rows_of(path, mend=lambda line: line.replace(b";", b" "))
