"""Rows of numbers out of long text files: a compiled pass, and line by line only where that stops.

One line is one row, so the number of a row is the number of its line and no point can be lost unseen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mink_decouple.jit import njit

BLOCK = 1 << 22
"""Bytes read at a time."""

LONGEST = 512
"""Bytes that a line may have."""

_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_TAB, _LF, _CR, _BLANK, _PLUS, _MINUS, _POINT, _ZERO, _NINE = (ord(c) for c in "\t\n\r +-.09")
# A mantissa below 10^15 and a power of ten up to 10^22 are exact float64 numbers, so their quotient is the nearest
# float64 to the text (Clinger 1990): the same bits as float().
_DIGITS = 15
_POWERS = 10.0 ** np.arange(_DIGITS + 1)


@njit(cache=True, nogil=True)
def _parse(text: np.ndarray, at: int, table: np.ndarray, row: int) -> tuple[int, int]:
    """Read whole lines from `at` until `table` is full or a line is not plain; returns the first byte and row left."""
    columns = table.shape[1]
    while at < len(text) and row < len(table):
        i = at
        for column in range(columns):
            while text[i] == _BLANK or text[i] == _TAB:
                i += 1
            minus = text[i] == _MINUS
            if minus or text[i] == _PLUS:
                i += 1
            mantissa, digits, decimals = np.int64(0), 0, 0
            while _ZERO <= text[i] <= _NINE:
                mantissa = mantissa * 10 + (np.int64(text[i]) - _ZERO)
                digits += 1
                i += 1
            if text[i] == _POINT:
                i += 1
                while _ZERO <= text[i] <= _NINE:
                    mantissa = mantissa * 10 + (np.int64(text[i]) - _ZERO)
                    decimals += 1
                    i += 1
            if digits + decimals == 0 or digits + decimals > _DIGITS:
                return at, row
            if column + 1 < columns and text[i] != _BLANK and text[i] != _TAB:
                return at, row
            number = mantissa / _POWERS[decimals]
            table[row, column] = -number if minus else number
        while text[i] == _BLANK or text[i] == _TAB:
            i += 1
        if text[i] == _CR:
            i += 1
        if text[i] != _LF:
            return at, row
        at = i + 1
        row += 1
    return at, row


def read_rows(
    path: Path,
    columns: int,
    rows: int,
    mend: Callable[[bytes], bytes] | None = None,
    mended: Callable[[int, bytes, bytes], None] | None = None,
) -> Iterator[np.ndarray]:
    """Read a file of `columns` numbers a line, separated by blanks or tabs.

    Numbers are decimal, with or without a fraction or an exponent, and finite; each is the nearest float64. Empty lines
    may only stand at the end of the file.

    Args:
        path: the file.
        columns: numbers in every line.
        rows: rows of a table that is handed on; the result does not depend on it.
        mend: line that does not read (without its end) -> what to read instead, the same where it knows no cure.
        mended: told the number, the old and the new content of every line that reads only after `mend`.

    Yields:
        (n, columns) float64 tables, n <= rows.

    Raises:
        ValueError: no rows, or a line that neither reads nor can be mended; names file, line and content.
    """
    # A number and what separates it take two bytes, so a small file needs no large table.
    capacity = max(1, min(rows, path.stat().st_size // (2 * columns) + 1))
    table, filled, done, empty = np.empty((capacity, columns)), 0, 0, 0
    for text in _whole_lines(path):
        at, view = 0, np.frombuffer(text, np.uint8)
        while at < len(text):
            if filled == capacity:
                yield table
                table, filled, done = np.empty((capacity, columns)), 0, done + filled
            if not empty:
                at, filled = _parse(view, at, table, filled)
            if at == len(text) or filled == capacity:
                continue
            line, number = text[at : text.index(b"\n", at)], done + filled + 1
            if not line.strip():
                empty = number
            elif empty:
                raise ValueError(f"{path}: line {empty} is empty, but lines follow")
            else:
                table[filled] = _read_line(path, number, line, columns, mend, mended)
                filled += 1
            at += len(line) + 1
    if filled:
        yield table[:filled]
    elif not done:
        raise ValueError(f"{path}: no points")


def printable(line: bytes) -> str:
    """A line as it may stand in a message: at most 80 bytes, other than printable ASCII escaped, in quotes."""
    return ascii(line[:80].decode("latin-1")) + ("..." if len(line) > 80 else "")


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The file in pieces that end with a line; the last line gets an end where it has none."""
    rest, lines = b"", 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            text = rest + block
            end = text.rfind(b"\n") + 1
            text, rest = text[:end], text[end:]
            if text:
                yield text
                lines += text.count(b"\n")
            if len(rest) > LONGEST:
                raise ValueError(f"{path}: line {lines + 1} is longer than {LONGEST} bytes: {printable(rest)}")
    if rest:
        yield rest + b"\n"


def _read_line(
    path: Path,
    number: int,
    line: bytes,
    columns: int,
    mend: Callable[[bytes], bytes] | None,
    mended: Callable[[int, bytes, bytes], None] | None,
) -> list[float]:
    """The numbers of a line that the compiled pass left, mended where that helps."""
    for content in (line, line if mend is None else mend(line)):
        words = re.split(rb"[ \t]+", content.removesuffix(b"\r").strip(b" \t"))
        if len(words) == columns and all(_NUMBER.fullmatch(word) for word in words):
            values = [float(word) for word in words]
            if np.isfinite(values).all():
                if content != line and mended is not None:
                    mended(number, line, content)
                return values
    raise ValueError(f"{path}: line {number} is not {columns} numbers: {printable(line)}")
