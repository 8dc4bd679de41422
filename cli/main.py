"""The ``fedstill`` command. A user's mistake ends with exit code 2 and one line that says what to type instead."""

from __future__ import annotations

import os

from fedstill.common.cores import usable_cores

os.environ.setdefault("KMP_BLOCKTIME", "0")  # idle OpenMP threads must not spin beside simulated devices
os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))

from typing import Annotated

import typer

from fedstill.cli import data, elastic, fleet, tasks
from fedstill.cli.agent.app import agent
from fedstill.cli.certs import certs
from fedstill.cli.coordinator import coordinator
from fedstill.cli.export import export
from fedstill.cli.import_weights import import_weights
from fedstill.cli.loadtest import app as loadtest
from fedstill.cli.privacy import privacy
from fedstill.cli.redteam import redteam
from fedstill.cli.report import report, reproduce
from fedstill.cli.serve import serve_
from fedstill.cli.shared.missing_package import missing_package_in_one_line
from fedstill.cli.simulate import experiments, simulate
from fedstill.cli.status import status
from fedstill.cli.studies.robustness_study import robustness_study
from fedstill.cli.studies.warmup_study import warmup_study
from fedstill.cli.warmup import warmup

app = typer.Typer(
    name="fedstill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("fedstill"))
        raise typer.Exit


@app.callback()
def about(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version, and end."),
    ] = False,
) -> None:
    """Personal audio-visual models for edge devices by selective feature distillation."""


app.command()(simulate)
app.command()(report)
app.command()(reproduce)
app.command()(experiments)
app.add_typer(data.app, name="data")
app.command()(coordinator)
app.command()(status)
app.add_typer(fleet.app, name="fleet")
app.add_typer(agent, name="agent")
app.add_typer(certs, name="certs")
app.command()(export)
app.command(name="robustness-study")(robustness_study)
app.command()(privacy)
app.command()(redteam)
app.command(name="serve")(serve_)
app.add_typer(tasks.app, name="tasks")
app.command(name="import")(import_weights)
app.add_typer(loadtest.app, name="loadtest")
app.command()(elastic.elastic)
app.command()(warmup)
app.command(name="warmup-study")(warmup_study)


def main() -> None:
    """Run the command of ``sys.argv``. A command that lacks a package says which install brings it."""
    with missing_package_in_one_line():
        app()
