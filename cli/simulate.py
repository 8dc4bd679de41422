"""``fedstill simulate``: an experiment on this machine; and ``fedstill experiments``, those that are shipped."""

from __future__ import annotations

import signal
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedstill.cli.shared.console import console, errors, one_line_errors
from fedstill.cli.shared.options import AllowOutside

INTERRUPTED = 130


class Runtime(StrEnum):
    """The engine that carries messages between cloud and devices."""

    FLOWER = "flower"
    INPROCESS = "inprocess"


def simulate(
    experiment: Annotated[str, typer.Argument(help="Shipped experiment or TOML file.")] = "demo",
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.", min=1)] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key; repeatable.")
    ] = None,
    allow_outside: AllowOutside = False,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: runs/NAME-TIME).")] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Divide the speakers into so many parts, each in turn on the devices, and add up the results.",
            min=2,
        ),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue an interrupted run directory.")] = None,
    engine: Annotated[
        Runtime, typer.Option(help="flower: real runtime; inprocess: for debugging.")
    ] = Runtime.FLOWER,
) -> None:
    """Personalise students for simulated devices, and compare the results with the alternatives."""
    from fedstill.common.errors import ConfigError
    from fedstill.simulation.config import load_experiment
    from fedstill.simulation.folded_run import load_folds, simulate_folds, with_folds
    from fedstill.simulation.launcher import is_folded, load_run, require_new, simulate

    with one_line_errors():
        if resume is not None:
            if set_ or seeds or out or allow_outside or folds:
                raise ConfigError(
                    "--resume continues a run with its own settings: drop --seeds, --set, --folds, --out and "
                    "--allow-outside"
                )
            run_dir = resume.resolve()
            folded = is_folded(run_dir)
            plan = load_folds(run_dir) if folded else load_run(run_dir)
        else:
            overrides = [*(set_ or []), *([f"run.seeds={seeds}"] if seeds else [])]
            overrides += ["dataset.allow_outside=true"] if allow_outside else []
            plan = load_experiment(experiment, overrides)
            folded = folds is not None
            plan = with_folds(plan, folds) if folds is not None else plan
            run_dir = (out or Path("runs") / f"{plan.name}-{datetime.now():%Y%m%d-%H%M%S}").resolve()
            require_new(run_dir)
        # Also for a shell that started us with interrupts ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            run = simulate_folds if folded else simulate
            results = run(plan, run_dir, engine.value, console)
        except KeyboardInterrupt:
            begun = (run_dir / "plan.json").exists() or is_folded(run_dir)
            hint = (
                f"continue with: fedstill simulate --resume {run_dir}" if begun else "nothing was trained yet"
            )
            errors.print(f"interrupted; {escape(hint)}", soft_wrap=True, highlight=False)
            raise typer.Exit(INTERRUPTED) from None
    from fedstill.evaluation.federated.report import console_costs, console_table
    from fedstill.evaluation.results import read_clips

    clips = read_clips(run_dir)
    console.print(console_table(results, clips))
    if costs := console_costs(results, clips):
        console.print("", costs, sep="\n")
    console.print(f"report: {run_dir / 'report.html'}", soft_wrap=True, highlight=False)


def experiments() -> None:
    """List the shipped experiments."""
    from fedstill.simulation.config import load_experiment, shipped_experiments

    for name in shipped_experiments():
        console.print(f"{name:<16} {load_experiment(name).title}", highlight=False)
