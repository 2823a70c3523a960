"""Text tables: .txt, .csv and .xyz with or without a line of column names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io_columns import cloud_from_columns, columns_from_cloud, unnamed_columns

_COMMENT = re.compile(r"^\s*(#|//)+\s*")
ENCODING = "utf-8-sig"
"""With or without the mark that spreadsheets and Windows write in front."""


def read_text(path: Path, columns: Sequence[str] | None = None) -> PointCloud:
    """Read numbers separated by comma, semicolon or blanks.

    Names come from `columns`, else from a first line of names (bare, or after `#` or `//`), else from the defaults for
    3, 4 and 6 columns.

    Raises:
        ValueError: a line with another number of columns or with other text; the message gives its number and content.
    """
    names, delimiter, skip, _ = head(path)
    try:
        with path.open(encoding=ENCODING, errors="replace") as stream:
            table = np.loadtxt(stream, dtype=np.float64, delimiter=delimiter, skiprows=skip, ndmin=2)
    except ValueError as error:
        raise ValueError(_first_bad_line(path, delimiter, skip) or f"{path}: {error}") from error
    if table.size == 0:
        raise ValueError(f"{path}: no points")
    if columns is not None or names is None:
        names = unnamed_columns(path, table.shape[1], columns)
    elif len(names) != table.shape[1]:
        raise ValueError(f"{path}: {len(names)} names ({', '.join(names)}) for {table.shape[1]} columns")
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: columns repeat one name: {', '.join(names)}")
    return cloud_from_columns(path, {name: table[:, index] for index, name in enumerate(names)})


def write_text(path: Path, cloud: PointCloud) -> None:
    """Write a line of names and one line per point.

    Coordinates have six decimals, other numbers enough digits to be read back unchanged. `.csv` is separated by
    commas; elsewhere by blanks, with the names after `#`, so that plain readers skip them.
    """
    columns = columns_from_cloud(cloud)
    if "rgb" in cloud.features and max(columns[channel].max() for channel in ("red", "green", "blue")) <= 1:
        # Read back, whole numbers up to 1 would count as bright: such a dark cloud is written in 0..1.
        columns.update(dict(zip(("red", "green", "blue"), cloud.features["rgb"].T, strict=True)))
    comma = path.suffix.lower() == ".csv"
    table = np.empty(len(cloud), dtype=[(name, column.dtype) for name, column in columns.items()])
    formats = []
    for name, column in columns.items():
        table[name] = column
        formats.append("%.6f" if name in ("x", "y", "z") else _number_format(column.dtype))
    separator = "," if comma else " "
    names = separator.join("_".join(name.split()) for name in columns)
    np.savetxt(path, table, fmt=formats, delimiter=separator, header=names, comments="" if comma else "# ")


def _number_format(dtype: np.dtype) -> str:
    if dtype.kind == "f":
        return "%.17g" if dtype.itemsize == 8 else "%.9g"
    return "%d"


class Head(NamedTuple):
    """What stands before the numbers.

    Attributes:
        names: of the columns; None where the file has none.
        delimiter: between them; None for blanks.
        skip: lines before the numbers.
        at: which of them has the names.
    """

    names: tuple[str, ...] | None
    delimiter: str | None
    skip: int
    at: int | None


def head(path: Path) -> Head:
    """The head of a text table. Raises ValueError for one without numbers, or with a line of both names and numbers."""
    comment: tuple[str, ...] | None = None
    skip, at = 0, None
    with path.open(encoding=ENCODING, errors="replace") as stream:
        for line in stream:
            text = _COMMENT.sub("", line).strip()
            if text:
                delimiter = next((mark for mark in (",", ";") if mark in text), None)
                words = [word.strip().strip('"') for word in text.split(delimiter)]
                if _COMMENT.match(line):
                    if {"x", "y", "z"} <= {word.lower() for word in words}:
                        comment, at = tuple(words), skip
                elif _numeric(words):
                    return Head(comment, delimiter, skip, at)
                elif any(_numeric([word]) for word in words):
                    raise ValueError(f"{path}: line {skip + 1} is neither names nor numbers: {line.strip()[:80]!r}")
                else:
                    return Head(tuple(words), delimiter, skip + 1, skip)
            skip += 1
    raise ValueError(f"{path}: no points")


def _first_bad_line(path: Path, delimiter: str | None, skip: int) -> str | None:
    expected = None
    with path.open(encoding=ENCODING, errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            text = line.split("#", 1)[0].strip()
            if number <= skip or not text:
                continue
            words = text.split(delimiter)
            expected = expected or len(words)
            content = repr(text[:80])
            if len(words) != expected:
                return f"{path}: line {number} has {len(words)} columns instead of {expected}: {content}"
            if not _numeric(words):
                return f"{path}: line {number} is not all numbers: {content}"
    return None


def _numeric(words: Sequence[str]) -> bool:
    try:
        [float(word) for word in words]
    except ValueError:
        return False
    return True
