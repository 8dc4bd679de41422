"""CSV tables as spreadsheets of all countries write them: separators, byte order marks, UTF-16, empty rows."""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TextIO

from fedstill.common.errors import DataError

SEPARATORS = (",", ";", "\t", "|")
LONGEST_LINE = 2**20
"""A file without line ends is no table, and is not read into memory to find out."""


def read_table(csv_path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of each row of a CSV with a header; empty rows are left out.

    Raises:
        DataError: no file, not UTF-8 (or UTF-16 with its mark), one of ``columns`` is absent, a column is there
            twice, or a row does not fit the header.
    """
    rows = csv_rows(csv_path)
    header = next(rows, (1, []))[1]
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{csv_path}: lacks column {', '.join(missing)}: use {','.join(columns)}")
    check_header(csv_path, header)
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{csv_path}, line {line}: has {len(cells)} values, the header "
                f"{len(header)}: quote values that contain a comma"
            )
        yield line, dict(zip(header, cells, strict=True))


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, stripped cells) of each row that holds anything, the header first.

    The separator is what splits the header into most columns: comma, semicolon, tab or bar. Raises DataError.
    """
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            lines = _lines(path, file)
            before, header = next(((n, line) for n, line in enumerate(lines) if _is_header(line)), (0, ""))
            separator = max(SEPARATORS, key=header.count)  # the comma if there is none
            reader = csv.reader(chain([header], lines), delimiter=separator, strict=True)
            for cells in reader:
                if any(map(str.strip, cells)):
                    yield before + reader.line_num, [cell.strip() for cell in cells]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: check the path") from error
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: is not a readable UTF-8 CSV ({error}): export it again") from error


def check_header(path: Path, header: Sequence[str]) -> None:
    """Raises DataError if two columns have one name, in whatever case; columns without a name are notes."""
    for name, count in Counter(name.casefold() for name in header if name).items():
        if count > 1:
            raise DataError(f"{path}: has {count} columns {name!r}: keep one, or rename the others")


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _is_header(line: str) -> bool:
    """Whether a line holds anything but what Excel adds to say which separator it uses."""
    return bool(line.strip()) and not line.lower().startswith("sep=")


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise DataError(
                f"{path}, line {number}: is longer than {LONGEST_LINE} characters: is this a table?"
            )
        yield line
