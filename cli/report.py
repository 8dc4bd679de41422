"""``fedstill report`` and ``fedstill reproduce``: a finished run's results, again or beside the thesis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedstill.cli.shared.console import console, one_line_errors
from fedstill.evaluation.runs import run_kinds

RunDirectory = Annotated[Path, typer.Argument(help="A finished run.")]


def report(
    run_dir: RunDirectory,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Also write a Markdown page, with its plots in a folder beside it."),
    ] = None,
) -> None:
    """Write report.html (for a load test: its tables) and the plots of a run again."""
    with one_line_errors():
        _show(run_kinds.report(run_dir, markdown))


def reproduce(
    target: Annotated[str, typer.Argument(help=f"What to render, {run_kinds.targets_by_command()}.")],
    run_dir: RunDirectory,
) -> None:
    """Render a table or figure of the thesis from a run: the thesis' numbers beside the run's."""
    with one_line_errors():
        _show(run_kinds.reproduce(target, run_dir))


def _show(parts: run_kinds.Parts) -> None:
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), highlight=False)
