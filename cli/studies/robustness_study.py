"""``fedstill robustness-study``: devices that record otherwise, over all folds and seeds, for docs/results."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from fedstill.cli.shared.console import console, errors, one_line_errors, typed_command

INTERRUPTED = 130


def robustness_study(
    experiments: Annotated[
        list[str] | None, typer.Argument(help="Shipped robustness experiments or TOML files.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the study; a killed study continues in it.")] = Path(
        "runs"
    )
    / "robustness-study",
    folds: Annotated[str, typer.Option(help="all, or numbers from 0, such as 0,2.")] = "all",
    seeds: Annotated[int, typer.Option(help="Of the full cells; all others get one.", min=1)] = 3,
    cells: Annotated[
        str | None,
        typer.Option(help="Full cells: scenarios, or one severity as A.2 (default: A at the middle one, B)."),
    ] = None,
    arms: Annotated[
        str | None, typer.Option(help="Further arms for the full cells (default: controls and the thesis').")
    ] = None,
    published: Annotated[
        bool, typer.Option(help="Also evaluate AdaBN, TENT, SHOT, EM and the teacher, on the full cells.")
    ] = True,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key; repeatable.")
    ] = None,
    render: Annotated[bool, typer.Option("--render", help="Show what --out holds; run nothing.")] = False,
    join: Annotated[
        list[Path] | None, typer.Option(help="Folder with another study's counts of other seeds; repeatable.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the results as a page, and counts and pictures beside it.")
    ] = None,
) -> None:
    """Test personal students on devices with other microphones, rooms, cameras and classes."""

    with one_line_errors():
        from fedstill.common.errors import ConfigError
        from fedstill.evaluation.elastic.tables import sheet_grid
        from fedstill.evaluation.robustness.joining import joined
        from fedstill.evaluation.robustness.page import headline, write_page
        from fedstill.evaluation.robustness.records import STUDY_FILE, read_study

        others = [read_study(folder) for folder in join or []]
        if render:
            study = read_study(out)
        else:
            from fedstill.common.option_values import whole_numbers
            from fedstill.simulation.robustness_study import StudyOptions, run_study

            if not experiments:
                raise ConfigError("name an experiment, such as robustness, or several")
            options = StudyOptions(
                None if folds == "all" else whole_numbers("--folds", folds),
                seeds,
                _names(cells),
                _names(arms),
                published,
                tuple(set_ or ()),
            )
            # Also for a shell that started us with interrupts ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                study = run_study(experiments, options, out.resolve(), typed_command(), console)
            except KeyboardInterrupt:
                errors.print("interrupted; the same command continues", highlight=False)
                raise typer.Exit(INTERRUPTED) from None
        for other in others:
            study = joined(study, other)
        for sheet in headline(study):
            console.print(sheet_grid(sheet))
        if not others:
            console.print(f"counts: {out / STUDY_FILE}", highlight=False, soft_wrap=True)
        if markdown is not None:
            write_page(study, markdown)
            console.print(f"page: {markdown}", highlight=False, soft_wrap=True)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
