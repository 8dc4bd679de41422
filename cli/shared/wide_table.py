"""A table that stays readable: one row per line if the console is wide enough, else one block per row.

A console that is too narrow for a table breaks its cells in the middle of numbers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = Sequence[str]


def print_rows(console: Console, heads: Row, rows: Sequence[Row]) -> None:
    """Print ``rows`` below ``heads``; into a pipe or a file, always as a table, as wide as it is.

    A table that fits is plain text: rich's takes as long as all else that ``fedstill status`` does.

    Args:
        console: where to print.
        heads: names of the columns; the first names the row.
        rows: as many cells each; in a block, empty ones are left out.
    """
    widths = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [_line(row, widths) for row in (heads, *rows)]
    if max(map(cell_len, lines)) > console.width and (console.is_terminal or "COLUMNS" in os.environ):
        for row in rows:
            console.print(row[0], style="bold", markup=False, highlight=False)
            console.print(_block(heads[1:], row[1:]))
        return
    for number, line in enumerate(lines):
        style = None if number else "bold"
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _line(row: Row, widths: Sequence[int]) -> str:
    padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
    return f" {'  '.join(padded)}".rstrip()


def _block(heads: Row, cells: Row) -> Table:
    from rich.table import Table

    block = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    block.add_column(no_wrap=True)
    block.add_column(overflow="fold")
    for head, cell in zip(heads, cells, strict=True):
        if cell:
            block.add_row(f"  {head}", cell)
    return block
