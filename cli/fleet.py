"""``fedstill fleet``: what an operator asks of a running fleet, beside ``fedstill status``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from fedstill.common.run_layout import PLAN_FILE

app = typer.Typer(no_args_is_help=True, help="Ask for new students, and read what happens in a fleet.")

FOLLOW_SECONDS = 0.5


@app.command()
def personalise(
    state: Annotated[Path, typer.Option(help="The coordinator's folder.")],
    devices: Annotated[list[str] | None, typer.Argument(help="Names of devices.")] = None,
    tag: Annotated[str, typer.Option(help="All devices with this tag; see fedstill certs tag.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All devices.")] = False,
) -> None:
    """Give devices a new student: each one as soon as it is online, while the coordinator runs."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.journal.fleet_state import clients_named, plan_of
    from fedstill.cloud_server.journal.journal import open_journal
    from fedstill.common.errors import ConfigError

    with one_line_errors():
        if [bool(devices), bool(tag), everything].count(True) != 1:
            raise ConfigError("give one of these: names of devices, --tag, --all")
        plan = plan_of(state)
        clients = clients_named(plan, devices or (), tag)
        journal = open_journal(state, plan["journal"])
        journal.visits.ask(clients)
        journal.close()
    noun = "device" if len(clients) == 1 else "devices"
    console.print(f"asked for a new student for {len(clients)} {noun}", highlight=False)


@app.command()
def retrain(
    state: Annotated[Path, typer.Option(help="The coordinator's folder; it must not run.")],
    experiment: Annotated[
        str,
        typer.Option(help="Shipped experiment or TOML file with other settings; empty: the folder's own."),
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key of --experiment; repeatable."),
    ] = None,
) -> None:
    """Have a new teacher made, of the public clips as they are now, when the coordinator starts again.

    Then every device gets a student of it, once; until then it keeps the one that it has.
    """
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.common.errors import ConfigError
    from fedstill.simulation.config import load_experiment
    from fedstill.simulation.retrain import retrain as have_made

    with one_line_errors():
        if set_ and not experiment:
            raise ConfigError("--set: overrides keys of --experiment; give that, too")
        number = have_made(
            state.resolve(), load_experiment(experiment, set_ or []) if experiment else None, console
        )
    said = "nothing that the teacher is made of has changed"
    if number is not None:
        said = f"teacher {number} is made when the coordinator starts, then every device gets a student of it"
    console.print(said, highlight=False, soft_wrap=True)


@app.command()
def backup(
    state: Annotated[Path, typer.Option(help="The coordinator's folder.")],
    file: Annotated[Path, typer.Argument(help="The tar file to write; an older one is replaced at the end.")],
) -> None:
    """Keep a coordinator's folder as one file; the coordinator may run meanwhile."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.coordinator.state_backup import back_up
    from fedstill.cloud_server.journal.fleet_state import plan_of

    with one_line_errors():
        size = back_up(state, file)
        elsewhere = plan_of(state)["journal"]
    console.print(f"{file}: {size / 1e6:.1f} MB", highlight=False, markup=False, soft_wrap=True)
    if elsewhere:
        console.print("the journal is not in this folder (--journal): keep it, too", highlight=False)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="From fedstill fleet backup.")],
    state: Annotated[Path, typer.Option(help="The folder to make; it must be new or empty.")],
) -> None:
    """Make a coordinator's folder from a backup. Start its coordinator with the same --certs."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.coordinator.state_backup import restore as make
    from fedstill.cloud_server.journal.fleet_state import plan_of

    with one_line_errors():
        make(file, state)
        elsewhere = plan_of(state)["journal"]
    console.print(f"{state}: restored", highlight=False, markup=False, soft_wrap=True)
    if elsewhere:
        console.print(
            "it uses the journal of --journal, as the folder before: start only one of them", highlight=False
        )


@app.command()
def events(
    state: Annotated[Path, typer.Option(help="The coordinator's folder.")],
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what happens, and how far trainings are.")
    ] = False,
) -> None:
    """Show what happened in a fleet, one line each: devices that came and went, students made, installed, refused."""
    from fedstill.cli.shared.console import one_line_errors
    from fedstill.cli.shared.event_words import EventWords
    from fedstill.cloud_server.journal.event_log import METRICS_FILE, EventTail
    from fedstill.common.errors import ConfigError
    from fedstill.common.folder_lock import in_use

    with one_line_errors():
        if not state.is_dir():
            raise ConfigError(f"{state}: no such folder; give the coordinator's folder")
        if not (state / METRICS_FILE).exists() and not (
            follow and ((state / PLAN_FILE).exists() or in_use(state))
        ):
            raise ConfigError(f"{state}: nothing has happened here yet; is it a coordinator's folder?")
    tail, words, progress = EventTail(state), EventWords(), False
    while True:
        names = _names(state)
        for event in tail.new():
            for line in words.lines(event, names, progress):
                typer.echo(line)
        if not follow:
            return
        progress = True  # of what goes on now; what is over has its own lines
        time.sleep(FOLLOW_SECONDS)


def _names(state: Path) -> list[str]:
    """Of the devices, by client; empty if nothing is known of them."""
    try:
        return list(json.loads((state / PLAN_FILE).read_text())["devices"])
    except (OSError, ValueError, TypeError, KeyError):
        return []
