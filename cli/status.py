"""``fedstill status``: the state of the fleet, from the coordinator's journal; the coordinator need not run."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer


def status(
    state: Annotated[Path, typer.Option(help="The coordinator's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Show every device: connected, late, dead or revived; its outer round, bytes and last accuracy."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.coordinator.coordinator import STATUS_FILE
    from fedstill.cloud_server.distillation.run_plan import PLAN_FILE, read_plan
    from fedstill.cloud_server.federation.journal import open_journal
    from fedstill.common.errors import ConfigError

    with one_line_errors():
        if not (state / PLAN_FILE).exists():
            raise ConfigError(
                f"{state}: not a coordinator's folder; start one with: fedstill coordinator --state {state}"
            )
        plan = read_plan(state)
        journal = open_journal(state, plan.journal)
        devices = journal.overview()
        journal.close()
        path = state / STATUS_FILE
        run = json.loads(path.read_text())["run"] if path.exists() else "never started"
    if as_json:
        typer.echo(json.dumps({"run": run, "clients": plan.clients, "devices": devices}, indent=1))
        return
    console.print(_table(devices))
    waiting = plan.clients - len(devices)
    missing = f"; {waiting} of {plan.clients} devices have never been online" if waiting else ""
    console.print(f"run: {run}{missing}", highlight=False, markup=False)


def _table(devices: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    members = Counter(
        choice["cohort"] for row in devices if (choice := row["choice"]) and choice.get("cohort")
    )
    table = Table(
        "client",
        "device",
        "state",
        "for",
        "round",
        "jobs",
        "up",
        "down",
        "right",
        "student",
        "expected",
        box=None,
    )
    now = time.time()
    for row in devices:
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        outer_epoch = "" if row["round"] is None else str(row["round"])
        since = str(timedelta(seconds=int(now - row["since"])))
        student = _student(row, members)
        table.add_row(
            str(row["client"]), row["name"], row["state"], since, outer_epoch, str(row["jobs_done"]),
            _bytes(row["up_bytes"]), _bytes(row["down_bytes"]), accuracy, student, _expected(row["choice"]),
        )  # fmt: skip
    return table


def _expected(choice: dict[str, Any] | None) -> str:
    """The accuracy that public clips as the device would record them let expect, with its 90 % interval."""
    if choice is None or choice["estimate"] is None:
        return ""
    return f"{choice['estimate']:.0%} ({choice['low']:.0%} to {choice['high']:.0%})"


def _student(row: dict[str, Any], members: Mapping[str, int]) -> str:
    """Of the newest job: what is known of the device, and how many share the student; ``--json`` says why."""
    class_mix, choice = row["class_mix"], row["choice"]
    if choice is not None:
        sharing = members.get(choice.get("cohort", ""), 0)
        return f"{choice['chosen']} (shared by {sharing})" if sharing > 1 else str(choice["chosen"])
    if class_mix is None:
        return ""
    if not class_mix["supported"]:
        return "generic"
    return f"for {sum(class_mix['present'])} of {len(class_mix['present'])} classes"


def _bytes(count: int | None) -> str:
    size = float(count or 0)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
