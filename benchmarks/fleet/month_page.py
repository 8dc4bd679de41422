"""The report of the month, as a page of docs/results."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from month_checks import CAUSES, services
from month_fleet import Fleet

SHOWN = 12
"""Lines of one check that the page shows at most."""
DAY = 86_400.0


@dataclass(frozen=True)
class Check:
    """Something that must hold, and where it does not."""

    what: str
    misses: list[str]

    @property
    def holds(self) -> bool:
        return not self.misses


@dataclass(frozen=True)
class Figures:
    """Of one run. Times in seconds, memory in bytes."""

    agents: int
    first: int
    events: int
    seed: int
    day: float
    opening: float
    lasting: float
    settling: float
    wall: float
    processor: float
    memory: int
    processes: int
    done: Counter[str]
    skipped: Counter[str]
    visits: list[dict[str, Any]]
    fleet: Fleet


def page(figures: Figures, checks: list[Check]) -> str:
    """Markdown."""
    one = figures
    lines = [
        "# A month of a fleet in fast motion",
        "",
        f"`python benchmarks/fleet/month.py --agents {one.agents} --events {one.events} --seed {one.seed} "
        f"--minutes {one.lasting / 60:g} --day {one.day:g}`: real processes on loopback with TLS, {_machine()}. "
        f"Timers of our own run {DAY / one.day:g} times faster, so that a day takes {one.day:g} s, and the events "
        f"are spread over {one.lasting / one.day:.1f} of these days; Flower's timers are its own. What the events and "
        "checks are: the first lines of `month.py`, `month_events.py` and `month_checks.py`.",
        "",
        "| what must hold | result |",
        "|---|---|",
        *(
            f"| {check.what} | {'held' if check.holds else f'**missed**: {len(check.misses)}'} |"
            for check in checks
        ),
        "",
    ]
    for check in checks:
        if not check.holds:
            lines += [f"Missed: {check.what}.", ""]
            lines += [f"- {_plain(miss)}" for miss in check.misses[:SHOWN]]
            if len(check.misses) > SHOWN:
                lines.append(f"- and {len(check.misses) - SHOWN} more")
            lines.append("")
    lines += ["| event | times |", "|---|---|"]
    lines += [f"| {name} | {number} |" for name, number in sorted(one.done.items())]
    lines += [f"| skipped: {name} | {number} |" for name, number in sorted(one.skipped.items())]
    lines += ["", *_visits(one), *_costs(one, checks[0].holds)]
    return "\n".join(map(_wrapped, lines)).rstrip() + "\n"


def _visits(one: Figures) -> list[str]:
    lines = [
        "| visits for | number | served | median s from the event to the student | longest |",
        "|---|---|---|---|---|",
    ]
    waits = waits_of(one.fleet, one.visits)
    for cause in sorted({visit["cause"] for visit in one.visits}):
        of_cause = [visit for visit in one.visits if visit["cause"] == cause]
        served = sum(visit["outcome"] == "served" for visit in of_cause)
        waited = waits.get(cause, [])
        middle, most = (f"{median(waited):.0f}", f"{max(waited):.0f}") if waited else ("-", "-")
        lines.append(f"| {cause} | {len(of_cause)} | {served} | {middle} | {most} |")
    return [*lines, ""]


def waits_of(fleet: Fleet, visits: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds from the newest event that may be the reason for a visit to its end, by cause."""
    found: dict[str, list[float]] = {}
    for visit in visits:
        kinds = CAUSES.get(visit["cause"], ())
        reasons = (
            [
                at
                for at, kind in fleet.devices[visit["client"]].causes
                if kind in kinds and at <= visit["ended"]
            ]
            if visit["ended"]
            else []
        )
        if reasons and visit["outcome"] == "served":
            found.setdefault(visit["cause"], []).append(visit["ended"] - max(reasons))
    return found


def _costs(one: Figures, settled: bool) -> list[str]:
    every = list(services(one.fleet))
    agents = [service for service in every if service is not one.fleet.coordinator]
    said = "".join(log.read_text(errors="replace") for log in {service.log for service in agents})
    cloud = one.fleet.coordinator.said()
    runs = cloud.count("event=run_submitted")
    nodes, contacts = said.count("event=supernode_ended"), said.count("event=contact_over")
    return [
        f"- {one.first} of {one.agents} devices were there at first, and all served after {one.opening:.0f} s. "
        f"After the last event {'all was well within' if settled else 'not all was well within'} "
        f"{max(0.0, one.settling):.0f} s. {one.wall / 60:.0f} minutes in all.",
        f"- Agents started {sum(service.starts for service in agents)} times, the coordinator "
        f"{one.fleet.coordinator.starts} times; agents started a SuperNode again {nodes} times and ended {contacts} "
        f"contacts; the coordinator started the SuperLink again {cloud.count('event=superlink_ended')} times, the "
        f"proxy {cloud.count('event=proxy_ended')} times, and submitted its run {runs} times.",
        f"- {len(one.visits)} visits, of which {sum(visit['attempts'] > 0 for visit in one.visits)} had failed at the "
        "end.",
        f"- {one.processor / 60:.0f} minutes of processor time (of processes that somebody waited for), at most "
        f"{one.memory / 1e9:.1f} GB (PSS) in {one.processes} processes.",
    ]


def _machine() -> str:
    name = "an unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {os.cpu_count()} cores shared with other work"


def _wrapped(line: str) -> str:
    if line.startswith(("|", "#")):
        return line
    return fill(line, 116, subsequent_indent="  " if line.startswith("- ") else "", break_long_words=False)


def _plain(line: str) -> str:
    return line.replace("|", "/").replace("<", "&lt;")[:300]
