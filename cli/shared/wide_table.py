"""A table that stays readable: one row per line if the console is wide enough, else one block per row.

A console that is too narrow for a table breaks its cells in the middle of numbers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

Row = Sequence[str]


def print_rows(console: Console, heads: Row, rows: Sequence[Row]) -> None:
    """Print ``rows`` below ``heads``; into a pipe or a file, always as a table, as wide as it is.

    Args:
        console: where to print.
        heads: names of the columns; the first names the row.
        rows: as many cells each; in a block, empty ones are left out.
    """
    table = Table(*heads, box=None)
    for row in rows:
        table.add_row(*row)
    width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    if width > console.width and (console.is_terminal or "COLUMNS" in os.environ):
        for row in rows:
            console.print(row[0], style="bold", markup=False, highlight=False)
            console.print(_block(heads[1:], row[1:]))
        return
    whole = Console(file=console.file, width=max(width, console.width), force_terminal=console.is_terminal)
    whole.print(table)


def _block(heads: Row, cells: Row) -> Table:
    block = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    block.add_column(no_wrap=True)
    block.add_column(overflow="fold")
    for head, cell in zip(heads, cells, strict=True):
        if cell:
            block.add_row(f"  {head}", cell)
    return block
