"""``fedstill fleet``: what an operator asks of a running fleet, beside ``fedstill status``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

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
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what happens from now on.")] = False,
) -> None:
    """Show what happened in a fleet, one line each: devices that came and went, students made, installed, refused."""
    from fedstill.cli.shared.console import one_line_errors
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
    tail = EventTail(state)
    while True:
        for event in tail.new():
            if line := in_words(event, _names(state)):
                typer.echo(f"{datetime.fromtimestamp(event['time']):%Y-%m-%d %H:%M:%S} {line}")
        if not follow:
            return
        time.sleep(FOLLOW_SECONDS)


def _names(state: Path) -> list[str]:
    """Of the devices, by client; empty if nothing is known of them."""
    try:
        return list(json.loads((state / PLAN_FILE).read_text())["devices"])
    except (OSError, ValueError, TypeError, KeyError):
        return []


def in_words(event: dict[str, Any], names: Sequence[str] = ()) -> str:
    """One line; empty for what an operator need not know.

    Args:
        names: of the devices, by client.
    """
    kind, client = event["event"], event.get("client")
    who = names[client] if isinstance(client, int) and client < len(names) else ""
    who = who or f"client {client}"
    match kind:
        case "device":
            return f"{who} {event['state']}"
        case "refused":
            return f"node {event['node']} refused: {event['reason']}"
        case "visit":
            times = f", for the {event['visit'] + 1}. time" if event["visit"] else ""
            return f"{who} is being personalised ({event['cause']}{times})"
        case "visited" if event["outcome"] == "served":
            return f"{who} uses its new student {event['student'][:12]}{_number_in_words(event)}"
        case "visited" if event["outcome"] == "kept":
            return f"{who} keeps its student: {event['reason']}"
        case "visited":
            again = datetime.fromtimestamp(event["next_attempt"])
            return f"{who} {event['outcome']}: {event['reason']}; again after {again:%Y-%m-%d %H:%M:%S}"
        case "no_prototypes":
            return f"{who} gives no prototypes, so it gets another student: {event['reason']}"
        case "all_served":
            return f"all {event['devices']} devices have their student"
        case "teacher_ready":
            return f"teacher {event['number']} is made ({event['digest'][:12]})"
        case "aborted":
            return f"the run failed: {event['reason']}"
        case "finished":
            return "the run is finished"
    return ""


def _number_in_words(event: dict[str, Any]) -> str:
    """Which of the device's students it is, and of which teacher; empty for an event of an older fedstill."""
    return f" (student {event['visit'] + 1}, teacher {event['teacher']})" if "teacher" in event else ""
