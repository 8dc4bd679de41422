"""A month of a fleet in fast motion: real processes on loopback, devices that come and go, and everything that breaks.

A coordinator and agents with TLS and certificates, Flower's processes below them with Flower's own timers, SQLite. The
timers of our own all run by one factor faster (``month_hook``): a day takes ``--day`` seconds. Devices have no torch:
the cloud sends them graphs of a small student. Events are drawn by a seeded generator (``month_events.py``).

    python benchmarks/fleet/month.py --markdown docs/results/fleet_month.md
    python benchmarks/fleet/month.py --agents 6 --events 40 --minutes 10

Ends with 1 if something of ``month_checks.py`` does not hold.
"""

from __future__ import annotations

import argparse
import heapq
import random
import resource
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
import month_events as events_of
from month_checks import (
    REPLACED,
    Watch,
    behind,
    ended_by_themselves,
    served_twice,
    tracebacks,
    uploads_wrong,
    visits,
)
from month_events import Event, draw
from month_fleet import Device, Fleet
from month_page import Check, Figures, page

DAY = 86_400.0
STATUSES = 20
AGENT_PAUSE = 8.0
"""Seconds between two agents that start at the beginning: on their own devices they would not share two cores."""
OPENING_SECONDS, SETTLING_SECONDS = 780.0, 720.0
"""Until the first devices are served, and until all is well after the last event, at most."""
CONTACT_DAYS = 1.5
"""Between two contacts of most devices."""


@dataclass
class Month:
    """The events, one after the other, and what follows from them."""

    fleet: Fleet
    watch: Watch
    done: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0

    def wait(self, until: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Look after the processes until then (on a clock that only grows), or until ``done()``; whether it was."""
        looked = 0.0
        while (now := time.monotonic()) < until:
            while self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
            self.fleet.keep()
            if now - looked > 3:
                looked = now
                if done():
                    return True
            time.sleep(min(0.5, max(0.0, until - now)))
        return False

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Do it then, in ``wait``."""
        self._number += 1
        heapq.heappush(self._later, (time.monotonic() + seconds, self._number, what))

    def join(self, client: int) -> None:
        """With the reason for its first visit."""
        device = self.fleet.devices[client]
        if not device.name:
            self._cause(device, events_of.JOIN)
        self.fleet.join(device)

    def happen(self, event: Event) -> None:
        """One event."""
        fleet = self.fleet
        device = fleet.devices[max(event.client, 0)]
        name = f"{event.kind}: {event.what}" if event.what else event.kind
        if event.kind == events_of.JOIN:
            self.join(event.client)
        elif event.kind == events_of.LEAVE:
            fleet.leave(device)
        elif event.kind == events_of.NEW_CARD:
            self._cause(device, event.kind)
            fleet.new_card(device)
        elif event.kind == events_of.NEW_CLIPS:
            self._cause(device, event.kind)
            device.record_new()
        elif event.kind == events_of.DRIFT:
            self._cause(device, event.kind)
            device.drift()
        elif event.kind == events_of.CUT:
            device.cut = True
            device.cable.cut()
            self.later(event.seconds, lambda: self._mend(device))
        elif event.kind == events_of.CLOCK:
            if not fleet.has_clocks:
                self.skipped[f"{name}: no faketime here"] += 1
                return
            fleet.set_clock(device, event.jump)
            self.later(event.seconds, lambda: fleet.set_clock(device, 0.0))
        elif event.kind == events_of.UPGRADE:
            fleet.upgrade()
        elif event.what == "server":
            fleet.new_server_certificate()
        elif event.what == "token":
            fleet.renew_token(device)
        elif event.what == "device":
            self._cause(device, REPLACED)
            fleet.replace(device, sum(self.done.values()))
        elif not self._kill(event.what, device):
            self.skipped[f"{name}: it did not run at that moment"] += 1
            return
        self.done[name] += 1

    def _mend(self, device: Device) -> None:
        device.cable.restore()
        device.cut = False

    def _cause(self, device: Device, kind: str) -> None:
        device.causes.append((time.time(), kind))

    def _kill(self, what: str, device: Device) -> bool:
        fleet = self.fleet
        if what == events_of.AGENT:
            if device.agent is None or device.agent.pid is None:
                return False
            device.agent.kill()
            return True
        if what == events_of.NODE:  # a device in a pause has none: then the next one that has
            order = [*fleet.devices[device.client :], *fleet.devices[: device.client]]
            process = next(filter(None, (one.node() for one in order if one.here)), None)
        else:
            process = fleet.cloud()[what]
            if process is not None and what == "coordinator":
                fleet.coordinator.kill()
                return True
        if process is None:
            return False
        process.kill()
        return True


def main(arguments: Sequence[str]) -> int:
    """Print the report; the exit code."""
    options = _options(arguments)
    seconds = 60 * options.minutes
    first, events = draw(options.seed, options.events, options.agents, seconds)
    scale = options.day / DAY
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        with Fleet(folder, options.agents, scale, CONTACT_DAYS * options.day) as fleet, Watch(fleet) as watch:
            month = Month(fleet, watch)
            say = _Teller(begun)
            month.wait(begun + OPENING_SECONDS, lambda: (fleet.state / "plan.json").exists())
            for client in range(first):
                month.join(client)
                month.wait(time.monotonic() + AGENT_PAUSE)
            opened = month.wait(begun + OPENING_SECONDS, lambda: _first_served(fleet, first))
            opening = time.monotonic() - begun
            say(
                f"{first} devices are {'served' if opened else 'not all served: ' + '; '.join(behind(fleet))}"
            )
            rng = random.Random(f"{options.seed} moments")
            moments = sorted(rng.uniform(0, seconds) for _ in range(STATUSES))
            start = time.monotonic()
            for at, event in sorted(
                [*((one.at, one) for one in events), *((at, None) for at in moments)],
                key=lambda pair: pair[0],
            ):
                month.wait(start + at)
                if event is None:
                    for line in watch.compare():
                        say(f"STATUS {line}")
                    continue
                say(
                    f"{event.kind} {event.what} client {event.client} {event.seconds:.0f} s {event.jump:+.0f}"
                )
                try:
                    month.happen(event)
                except Exception as error:  # of this benchmark; the month goes on, and the page tells
                    month.skipped[f"{event.kind} {event.what}: {error!r}"] += 1
            settled = month.wait(time.monotonic() + SETTLING_SECONDS, lambda: _quiet(fleet))
            settling = time.monotonic() - start - seconds
            say("settled" if settled else "not settled")
            month.wait(time.monotonic() + 66)
            for line in watch.compare():
                say(f"STATUS {line}")
            here = sum(device.here for device in fleet.devices)
            wrong = behind(fleet)
            all_visits = visits(fleet)
        # every process has ended
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        checks = [
            Check(f"each of the {here} reachable devices has the newest student meant for it", wrong),
            Check("no device was served twice for one cause", served_twice(fleet)),
            Check("no upload was lost or double", uploads_wrong(fleet)),
            Check(
                f"`fedstill status` agreed with the processes at {watch.statuses} moments, "
                f"{watch.rows} lines of devices", watch.disagreements,
            ),
            Check("no service ended by itself", ended_by_themselves(fleet)),
            Check("no service showed a traceback", tracebacks(fleet)),
        ]  # fmt: skip
        figures = Figures(
            options.agents, first, len(events), options.seed, options.day, opening, seconds, settling,
            time.monotonic() - begun, used.ru_utime + used.ru_stime, watch.most_memory, watch.most_processes,
            month.done, month.skipped, all_visits, fleet,
        )  # fmt: skip
        text = page(figures, checks)
        if options.keep:
            folder.rename(options.keep)
            folder.mkdir()
    Console(soft_wrap=True, highlight=False, markup=False).print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    return 0 if all(check.holds for check in checks) else 1


def _first_served(fleet: Fleet, first: int) -> bool:
    with suppress(sqlite3.Error):
        return len([one for one in visits(fleet) if one["outcome"] == "served"]) >= first
    return False


def _quiet(fleet: Fleet) -> bool:
    with suppress(sqlite3.Error):
        return not behind(fleet)
    return False


class _Teller:
    def __init__(self, begun: float) -> None:
        self._begun = begun
        self._console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

    def __call__(self, line: str) -> None:
        self._console.print(f"{time.monotonic() - self._begun:6.0f} s  {line}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", type=int, default=30)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=36.0, help="in which the events happen")
    parser.add_argument("--day", type=float, default=240.0, help="seconds that a day of our own timers takes")
    parser.add_argument("--markdown", type=Path, help="write the report there")
    parser.add_argument("--keep", type=Path, help="keep all folders and logs there")
    parser.add_argument("--scratch", type=Path, help="where the folders are made")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
