"""What must hold in the month: what ``fedstill status`` says at any moment, and what every device has at the end.

A status may be late by one heartbeat: Flower takes a node that says nothing for online for so long. So what it says of
a device is right if it was so at some moment of that time before.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from memory import proportional
from month_events import DRIFT, JOIN, NEW_CARD, NEW_CLIPS
from month_fleet import Device, Fleet

from fedstill.common.run_layout import JOURNAL_FILE
from fedstill.edge_client.folder import SHELF_FOLDER
from fedstill.edge_client.node.change_note import announced
from fedstill.edge_client.node.known_clips import read_known_clips
from fedstill.edge_client.privacy.upload_log import read_log
from fedstill.edge_client.students.pointer import version_in_use

HEARTBEAT = 60.0
"""Seconds: two of Flower's intervals of 30 s."""
LOOKS = 6.0
"""Seconds until the cloud has looked and noted what it saw; status itself takes one."""
SAMPLE_SECONDS, MEMORY_SECONDS = 1.0, 30.0
SUMMARY = "mean class probabilities and a histogram"
"""How a device's log tells of the one upload of a visit."""
REPLACED = "replaced"
CAUSES = {
    "new device": (JOIN,), "lost its student": (NEW_CARD,), "device replaced": (REPLACED,),
    "clips": (NEW_CLIPS, DRIFT), "drift": (NEW_CLIPS, DRIFT),
}  # fmt: skip
"""What in the month may be the reason for a visit with this cause."""


@dataclass
class Seen:
    """When a device was last in a state, in seconds of a clock that only grows."""

    connected: float = 0.0
    apart: float = 0.0


class Watch:
    """Looks at the processes once a second; a context manager.

    Attributes:
        most_memory: bytes, proportional shares of all processes below this one.
        last: when a device was last connected, so that its SuperNode, its link, and all of the cloud were there; and
            when not.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.last = [Seen() for _ in fleet.devices]
        self.coordinator_changed = self.cloud_apart = time.monotonic()
        self.most_memory, self.most_processes = 0, 0
        self.disagreements: list[str] = []
        self.statuses, self.rows = 0, 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        runs, memory_at = None, 0.0
        while not self._done.wait(SAMPLE_SECONDS):
            cloud, now = self._fleet.cloud(), time.monotonic()
            if runs != (runs := cloud["coordinator"] and cloud["coordinator"].pid):
                self.coordinator_changed = now
            whole = all(cloud.values())
            if not whole:
                self.cloud_apart = now
            for device, seen in zip(self._fleet.devices, self.last, strict=True):
                up = device.here and device.agent is not None and device.agent.pid is not None
                node = up and not device.cut and not device.wrong_clock and device.node() is not None
                if node and whole:
                    seen.connected = now
                else:
                    seen.apart = now
                if device.node() is not None:  # whatever else is wrong, the cloud may not know it yet
                    seen.connected = max(seen.connected, now if not device.cut else 0.0)
            if now - memory_at > MEMORY_SECONDS:
                memory_at = now
                self._measure()

    def _measure(self) -> None:
        with suppress(psutil.Error):
            below = psutil.Process().children(recursive=True)
            self.most_processes = max(self.most_processes, len(below))
            self.most_memory = max(self.most_memory, sum(proportional(one.pid) for one in below))

    def compare(self) -> list[str]:
        """What status says now and the processes do not; also kept."""
        asked, runs = time.monotonic(), self._fleet.coordinator.pid is not None
        self.statuses += 1
        said = status(self._fleet)
        if isinstance(said, str):
            self.disagreements.append(said)
            return [said]
        found, now = [], time.monotonic()
        steady = asked - self.coordinator_changed > LOOKS and now - self.coordinator_changed > LOOKS
        runs = runs and self._fleet.coordinator.pid is not None
        claims = said["run"] in ("running", "starting")
        if steady and claims != runs:
            found.append(f"the coordinator {'runs' if runs else 'does not run'}, status: {said['run']}")
        for row in said["devices"]:
            device, seen = self._fleet.devices[row["client"]], self.last[row["client"]]
            self.rows += 1
            since = asked - HEARTBEAT - LOOKS
            link = row["link"]
            if link == "unknown":
                right = not steady or not runs or self.cloud_apart >= since
            elif link in ("online", "late"):
                right = seen.connected >= since
            else:
                right = seen.apart >= since or not device.here
            if not right:
                ago = now - (seen.connected if link in ("online", "late") else seen.apart)
                found.append(f"{device.name} is {link} for status, and was not for {ago:.0f} s")
        self.disagreements += found
        return found


def status(fleet: Fleet) -> dict[str, Any] | str:
    """What an operator reads; or the line with which it failed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fedstill", "status", "--state", str(fleet.state), "--json"],
        env=fleet.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return f"fedstill status failed: {done.stderr.strip()[-300:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows(fleet: Fleet, query: str) -> list[dict[str, Any]]:
    """Of the journal, read only."""
    with closing(
        sqlite3.connect(f"file:{fleet.state / JOURNAL_FILE}?mode=ro", uri=True, timeout=30)
    ) as journal:
        journal.row_factory = sqlite3.Row
        return [dict(row) for row in journal.execute(query)]


def visits(fleet: Fleet) -> list[dict[str, Any]]:
    """All of them, in their order."""
    return rows(fleet, "SELECT * FROM visits ORDER BY client, visit")


def behind(fleet: Fleet) -> list[str]:
    """What is wrong with devices that are there: each should use the newest student that is meant for it."""
    newest = {one["client"]: one for one in visits(fleet)}
    found = []
    for device in fleet.devices:
        if device.here and (wrong := _wrong(device, newest.get(device.client))):
            found.append(f"{device.name}: {wrong}")
    return found


def _wrong(device: Device, visit: dict[str, Any] | None) -> str:
    if visit is None:
        return "was never served"
    if visit["device"] != device.name:
        return f"the newest student is {visit['device']}'s"
    if visit["outcome"] not in ("served", "kept"):
        return (
            f"its visit for {visit['cause']!r} is {visit['outcome'] or 'under way'} {visit['reason']}".strip()
        )
    used = version_in_use(device.state / SHELF_FOLDER)
    if used != visit["student"]:
        return f"uses {used or 'no student'}, not {visit['student']}"
    if change := announced(device.state):
        return f"its clips have changed ({change}), and it has no student for them"
    known = read_known_clips(device.state)
    if known is None:
        return "knows no clips"
    with (device.clips / "manifest.csv").open(encoding="utf-8") as file:
        names = {row["clip_id"] for row in csv.DictReader(file)}
    newer = names - {name for name, _ in known.clips + known.left}
    if len(newer) >= 0.25 * known.count:
        return f"{len(newer)} of its {len(names)} clips are new, and it has not said so"
    return ""


def served_twice(fleet: Fleet) -> list[str]:
    """Devices that were visited more often for a cause than the month gave reasons for it."""
    counted = Counter((one["client"], one["cause"]) for one in visits(fleet))
    found = []
    for device in fleet.devices:
        for cause, kinds in CAUSES.items():
            reasons = sum(kind in kinds for _, kind in device.causes)
            same = [other for other, its in CAUSES.items() if its == kinds]
            number = sum(counted[device.client, other] for other in same)
            if number > reasons and cause == same[0]:
                found.append(
                    f"client {device.client}: {number} visits for {' or '.join(same)}, {reasons} reasons"
                )
    unknown = sorted({cause for _, cause in counted} - CAUSES.keys())
    return found + [f"a visit for {cause!r}, which nothing asked for" for cause in unknown]


def uploads_wrong(fleet: Fleet) -> list[str]:
    """Lost: a device sent the summary for a finished visit, and the cloud has none. Double: one visit has two."""
    accepted = Counter(
        (row["client"], row["job"], row["round"]) for row in rows(fleet, "SELECT * FROM uploads")
    )
    found = [
        f"{job}: {number} uploads of round {round}"
        for (_, job, round), number in accepted.items()
        if number > 1
    ]
    jobs = {(client, job) for client, job, _ in accepted}
    for one in visits(fleet):
        variant = f"fedstill.visit.{one['visit']}" if one["visit"] else "fedstill"
        name = f"latency_insensitive/{variant}/client{one['client']}/seed0"
        if one["outcome"] in ("served", "kept") and (one["client"], name) not in jobs:
            found.append(f"{name}: served without an upload")
    for device in fleet.devices:
        sent = sum(SUMMARY in one.what for one in read_log(device.state)) if device.name else 0
        kept = sum(client == device.client for client, _ in jobs)
        whole = not any(
            kind in (NEW_CARD, REPLACED) for _, kind in device.causes
        )  # else its log has gone with its card
        if whole and sent < kept:
            found.append(f"{device.name}: the cloud has {kept} summaries, the device knows of {sent}")
    return found


def ended_by_themselves(fleet: Fleet) -> list[str]:
    """Services that ended although nobody had told them to."""
    found = []
    for service in services(fleet):
        found += [f"{_name(service.log)}: code {code}: {line}" for _, code, line in service.ends]
    return found


def tracebacks(fleet: Fleet) -> list[str]:
    """The last line of each traceback in the logs of coordinator and agents."""
    found = []
    for log in sorted({service.log for service in services(fleet)}):
        lines = log.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if line.startswith("Traceback"):
                end = next((one for one in lines[number + 1 :] if one and not one.startswith(" ")), "")
                found.append(f"{_name(log)}: {end}")
    return found


def _name(log: Path) -> str:
    """Of the coordinator, or the folder of a device."""
    return log.stem if log.stem == "coordinator" else log.parent.name


def services(fleet: Fleet) -> Iterable[Any]:
    """All that were ever started."""
    yield fleet.coordinator
    for device in fleet.devices:
        yield from [*device.past_agents, *([device.agent] if device.agent else [])]
