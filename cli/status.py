"""``fedstill status``: the state of the fleet, from the coordinator's folder; the coordinator need not run."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

MOST_NAMES = 5
"""Of devices with another version than the most, in one line."""


def status(
    state: Annotated[Path, typer.Option(help="The coordinator's folder.")],
    tag: Annotated[str, typer.Option(help="Only the devices with this tag.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Show every device: whether it is online, its student, the accuracy to expect of it, and what went wrong."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.journal.fleet_state import clients_named, plan_of, read_fleet

    with one_line_errors():
        plan = plan_of(state)
        fleet = read_fleet(state, plan)
        if tag:
            wanted = clients_named(plan, (), tag)
            fleet["devices"] = [row for row in fleet["devices"] if row["client"] in wanted]
    if as_json:
        typer.echo(json.dumps(fleet, indent=1))
        return
    devices = fleet["devices"]
    _print_table(devices)
    waiting = sum(row["link"] == "never online" for row in devices)
    missing = f"; {waiting} of {len(devices)} devices have never been online" if waiting else ""
    console.print(f"run: {fleet['run']}{missing}", highlight=False, markup=False)
    console.print(f"teacher: {_teacher(fleet['teacher'], devices)}", highlight=False)
    console.print(f"disk: {_bytes(fleet['free_bytes'])} free", highlight=False)
    if versions := _versions(devices):
        console.print(versions, highlight=False, markup=False, soft_wrap=True)
    for row in devices:
        visit = row["visit"]
        if visit and visit["reason"]:
            console.print(f"{_name(row)}: {visit['reason']}", highlight=False, markup=False, soft_wrap=True)
        if row["bad_clips"]:
            console.print(
                f"{_name(row)}: {_bad_clips(row['bad_clips'])}", highlight=False, markup=False, soft_wrap=True
            )


def _print_table(devices: list[dict[str, Any]]) -> None:
    from fedstill.cli.shared.console import console
    from fedstill.cli.shared.wide_table import print_rows

    members = Counter(
        choice["cohort"] for row in devices if (choice := row["choice"]) and choice.get("cohort")
    )
    heads = (
        "device",
        "link",
        "for",
        "student",
        "expected",
        "right",
        "in use",
        "service",
        "with overhead",
        "up",
        "down",
    )
    rows = []
    now = time.time()
    for row in devices:
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        since = "" if row["since"] is None else _span(now - row["since"])
        cells = (
            _name(row), row["link"], since, _student(row, members), _expected(row["choice"]), accuracy,
            _in_use(row["in_use"]), _service(row, now), _wire(row), _bytes(row["up_bytes"]), _bytes(row["down_bytes"]),
        )  # fmt: skip
        rows.append(cells)
    print_rows(console, heads, rows)


def _wire(row: dict[str, Any]) -> str:
    """All bytes up and down that the proxy has counted; empty if it does not know the device."""
    if row["wire_up_bytes"] is None:
        return ""
    return f"{_bytes(row['wire_up_bytes'])} / {_bytes(row['wire_down_bytes'])}"


def _teacher(teacher: dict[str, Any], devices: list[dict[str, Any]]) -> str:
    """Its number and digest, and how many devices still have a student of an earlier one."""
    if teacher["digest"] is None:
        made = any(row["in_use"] and row["in_use"]["teacher"] == teacher["number"] for row in devices)
        return f"{teacher['number']}" + (
            "" if made else ", not made yet"
        )  # an older fedstill noted no digest
    earlier = sum(
        row["in_use"] is not None and row["in_use"]["teacher"] != teacher["number"] for row in devices
    )
    noun = "device has a student" if earlier == 1 else "devices have students"
    return f"{teacher['number']} ({teacher['digest'][:12]})" + (
        f"; {earlier} {noun} of an earlier one" if earlier else ""
    )


def _in_use(student: dict[str, Any] | None) -> str:
    """Which of its students a device has, and of which teacher it is."""
    return f"student {student['number']}, teacher {student['teacher']}" if student else ""


def _versions(devices: list[dict[str, Any]]) -> str:
    """How many devices run which fedstill, the usual one first; the few others by name. Empty if none was online."""
    running: dict[str, list[str]] = {}
    for row in devices:
        if row["version"]:
            running.setdefault(row["version"], []).append(_name(row))
    usual, *others = sorted(running.items(), key=lambda one: -len(one[1])) or [("", [])]
    if not usual[0]:
        return ""
    told = [f"{usual[0]} on {len(usual[1])}", *(f"{version} on {_some(names)}" for version, names in others)]
    return f"fedstill of the devices: {'; '.join(told)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _bad_clips(faults: dict[str, int]) -> str:
    """How many clips a device leaves out, and why; which they are, only its own log says."""
    from fedstill.datasets.files.faults import in_words

    count = sum(faults.values())
    return (
        f"{count} clip{'' if count == 1 else 's'} left out: {in_words(faults)}; the device's log names them"
    )


def _name(row: dict[str, Any]) -> str:
    return str(row["name"] or f"client {row['client']}")


def _service(row: dict[str, Any], now: float) -> str:
    """What became of the newest visit; of a study, how many jobs are done."""
    visit = row["visit"]
    if visit is None:
        return f"{row['jobs_done']} jobs" if row["jobs_done"] else "no student yet"
    if row["next_attempt"] is not None:
        return f"{visit['outcome']}, again in {_span(max(0.0, row['next_attempt'] - now))}"
    times = f", {visit['visit'] + 1} times ({visit['cause']})" if visit["visit"] else ""
    return str(row["doing"]) + times


def _span(seconds: float) -> str:
    try:
        return str(timedelta(seconds=max(0, int(seconds))))  # a clock may have been ahead
    except (OverflowError, ValueError):
        return "?"


def _expected(choice: dict[str, Any] | None) -> str:
    """The accuracy that public clips as the device would record them let expect, with its 90 % interval."""
    if choice is None or choice.get("estimate") is None:
        return ""
    if choice.get("low") is None or choice.get("high") is None:
        return f"{choice['estimate']:.0%}"
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
