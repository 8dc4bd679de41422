"""``fedstill redteam``: how much an attacker who owns the cloud learns from each kind of upload."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer


def redteam(
    run_dir: Annotated[Path | None, typer.Argument(help="A finished run whose student is attacked.")] = None,
    experiment: Annotated[
        str | None,
        typer.Option(help="Instead: train a student for this experiment, without the victims' clips."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results (default: runs/redteam-TIME).")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the student, the speakers' split and the attacks.", min=0)
    ] = 0,
    draws: Annotated[int, typer.Option(help="Simulated devices per speaker.", min=1)] = 4,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write a Markdown page, its figure beside it.")
    ] = None,
) -> None:
    """Attack uploads and capture cards, on public clips: rebuild clips, detect members, identify speakers."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.common.errors import ConfigError
    from fedstill.simulation.config import load_experiment

    with one_line_errors():
        if (run_dir is None) == (experiment is None):
            raise ConfigError("name a run directory, or an experiment with --experiment, and not both")
        if set_ and run_dir is not None:
            raise ConfigError("--set is for --experiment; a run keeps its own settings")
        from rich.table import Table

        from fedstill.evaluation.redteam.attack import attack
        from fedstill.evaluation.redteam.card_report import short_card_table
        from fedstill.evaluation.redteam.report import RESULTS_FILE, short_table, write_all
        from fedstill.simulation.redteam_stage import stage_from_experiment, stage_from_run

        folder = (out or Path("runs") / f"redteam-{datetime.now():%Y%m%d-%H%M%S}").resolve()
        with console.status("starting") as status:
            if run_dir is not None:
                stage = stage_from_run(run_dir.resolve(), seed, status.update)
            else:
                assert experiment is not None
                stage = stage_from_experiment(
                    load_experiment(experiment, set_ or []), seed, folder / "stage", status.update
                )
            results = attack(stage, draws, status.update, tuple(set_ or ()))
        write_all(results, folder, markdown)
    for heads, rows in (short_table(results), short_card_table(results.card)):
        table = Table(*heads)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"results: {folder / RESULTS_FILE}", soft_wrap=True, highlight=False)
