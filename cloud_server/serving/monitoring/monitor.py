"""All that the page shows, as plain values for JSON: docs/reference/serving-page.md has every key.

It knows the server only by what may be looked at from any thread: counts of events, the profile in use (which never
changes, it is replaced), the tasks. It takes no lock of the dispatcher's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fedstill.cloud_server.serving.engine.memory_limit import limit_bytes, resident_bytes
from fedstill.cloud_server.serving.monitoring.alarms import Alarm, Alarms
from fedstill.cloud_server.serving.monitoring.capacity import capacity, pace
from fedstill.cloud_server.serving.monitoring.history import Rows
from fedstill.cloud_server.serving.monitoring.recorder import MOST_TASKS, Recorder, Refusing
from fedstill.cloud_server.serving.monitoring.tally import PERCENTILES, Key, Kind, Tally
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.server.requests import QueryQueue
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks, trunk_of
from fedstill.cloud_server.serving.tasks.registry import TaskVersion

SCHEMA = 1
RATE_SECONDS = 10.0
"""Of rates."""
TASK_FIGURES = ("queries", "answered", "late", "dropped", "offered", "earned")
SERVER_FIGURES = (*TASK_FIGURES, "busy", "queued", "memory", *PERCENTILES)
FORGET_TICKS = 60

Plain = dict[str, Any]


class Monitor:
    """Call `serve` once there is a server to look at, `tick` once a second from one thread, the rest from any.

    Args:
        policy: its name.
        ready, starting: whether requests are welcome; what a start is doing, and how far it is, else empty.
        recorder: observes the dispatcher.
        version: of the program.
    """

    def __init__(
        self,
        policy: str,
        ready: Callable[[], bool] = lambda: True,
        starting: Callable[[], Plain] = dict,
        recorder: Recorder | None = None,
        version: str = "",
    ) -> None:
        self.recorder = recorder or Recorder()
        self._policy, self._ready, self._starting, self._version = policy, ready, starting, version
        self._started = time.time()
        self._dispatcher: QueryQueue | None = None
        self._served: ServedTasks | None = None
        self._paces: dict[str, float] = {}
        self._alarms, self._found = Alarms(), list[Alarm]()
        self._memory, self._limit = 0, limit_bytes()
        self._ticks = 0

    def serve(self, dispatcher: QueryQueue, tasks: ServedTasks) -> None:
        """From now on there is something to look at."""
        self._dispatcher, self._served = dispatcher, tasks
        self.recorder.tasks = lambda: tuple(tasks.served)

    def tick(self) -> None:
        """A second has passed."""
        self._memory = resident_bytes()
        self.recorder.tick(self._queued(), self._memory)
        self._found = self._alarms.look(self, self.recorder.uptime)
        self._ticks += 1
        if self._ticks % FORGET_TICKS == 0:
            self.recorder.forget()

    @property
    def tasks(self) -> Sequence[str]:
        """Names, those with figures of their own."""
        return self.recorder.tasks()[:MOST_TASKS]

    @property
    def memory(self) -> tuple[float, float]:
        """Bytes, used and allowed."""
        return self._memory, self._limit

    def total(self, key: Key, seconds: float) -> float:
        """Sum of the last so many seconds."""
        return self.recorder.total(key, seconds)

    def refusing(self) -> Refusing | None:
        """Refusals since the last batch."""
        return self.recorder.refusing()

    def limited_nodes(self) -> Mapping[str, float]:
        """Nodes beyond their rate limit."""
        return self.recorder.limited_nodes()

    def snapshot(self) -> Plain:
        """The server as it is now."""
        rates, minute = self.recorder.recent(RATE_SECONDS), self.recorder.recent()
        starting = self._starting()
        return {
            "schema": SCHEMA,
            "time": time.time(),
            "started": self._started,
            "uptime": round(self.recorder.uptime, 1),
            "version": self._version,
            "policy": self._policy,
            "ready": not starting and self._ready(),
            "state": self._state(starting),
            "starting": starting or None,
            "queued": self._queued(),
            "memory": {"used": self._memory, "limit": self._limit},
            "now": self._now(rates, minute),
            "capacity": self._capacity(minute, rates.rate(("server", "", "queries"))),
            "totals": self._totals(),
            "tasks": [self._task(name, rates, minute) for name in self.tasks],
            "tasks_left_out": len(self.recorder.tasks()) - len(self.tasks),
            "trunks": self._trunks(rates),
            "batches": [[_short(1e3 * one) for one in pair] for pair in self.recorder.batches()],
            "alarms": [asdict(one) | {"seconds": round(one.seconds)} for one in self._found],
        }

    def history(self, span: str, task: str = "", after: int = 0) -> Plain:
        """Rows of the server, or of a task, from a row number on, column by column. Raises KeyError for an unknown
        span."""
        if task:
            rows = self.recorder.rows(span, after, lambda key: key[:2] == ("task", task))
        else:
            rows = self.recorder.rows(span, after, lambda key: key[0] in ("server", "reason", "schedule"))
        kind: Kind = "task" if task else "server"
        figures = (*TASK_FIGURES, *PERCENTILES) if task else SERVER_FIGURES
        made: Plain = {
            "schema": SCHEMA,
            "started": self._started,
            "span": span,
            "task": task,
            "next": rows.next,
            "ends": [round(end, 1) for end in rows.ends.tolist()],
            "seconds": [round(one, 1) for one in rows.seconds.tolist()],
            "columns": {figure: _column(rows, (kind, task, figure)) for figure in figures},
        }
        if not task:
            busy = made["columns"]["busy"]
            made["columns"]["busy"] = [None if one is None else round(one / self._engines, 3) for one in busy]
            made["columns"]["error"] = _ratio(rows, "error", "batches")
            made["columns"]["bias"] = _ratio(rows, "predicted", "busy")
            made["reasons"] = _named(rows, "reason", "dropped")
            made["schedules"] = _named(rows, "schedule", "queries")
        return made

    def _queued(self) -> int:
        return 0 if self._dispatcher is None else self._dispatcher.queued()

    @property
    def _engines(self) -> int:
        return 1 if self._dispatcher is None else self._dispatcher.engines

    def _profile(self) -> Profile | None:
        return None if self._dispatcher is None else self._dispatcher.profile

    def _state(self, starting: Plain) -> str:
        if starting:
            return "starting"
        if self._ready():
            return "ready"
        draining = self._dispatcher is not None and self._dispatcher.draining
        return "draining" if draining else "retiring"

    def _now(self, rates: Tally, minute: Tally) -> Plain:
        batches = minute.sums.get(("server", "", "batches"), 0.0)
        queries = minute.sums.get(("server", "", "batch_queries"), 0.0)
        busy = minute.sums.get(("server", "", "busy"), 0.0)
        return {
            **{figure: _short(rates.rate(("server", "", figure))) for figure in TASK_FIGURES},
            "busy": _short(min(1.0, rates.rate(("server", "", "busy")) / self._engines)),
            "latency_ms": _rounded(minute.percentiles()),
            "waiting_ms": _mean(1e3 * minute.sums.get(("server", "", "waiting"), 0.0), queries),
            "batch_ms": _mean(1e3 * busy, batches),
            "batch_size": _mean(queries, batches),
            "error": _mean(minute.sums.get(("server", "", "error"), 0.0), batches),
            "bias": _mean(minute.sums.get(("server", "", "predicted"), 0.0), busy),
        }

    def _totals(self) -> Plain:
        totals = self.recorder.totals()
        return {
            **{figure: _short(totals.get(("server", "", figure), 0.0)) for figure in TASK_FIGURES},
            "reasons": {name: value for (kind, name, _), value in totals.items() if kind == "reason"},
        }

    def _task(self, name: str, rates: Tally, minute: Tally) -> Plain:
        known = None if self._served is None else self._served.served.get(name)
        return {
            "name": name,
            **_described(self._served, known),
            **{figure: _short(rates.rate(("task", name, figure))) for figure in TASK_FIGURES},
            "latency_ms": _rounded(minute.percentiles(name)),
        }

    def _trunks(self, rates: Tally) -> list[Plain]:
        if self._served is None:
            return []
        served = self._served
        counts = [trunk_of(served, task).fingerprint for task in list(served.served.values())]
        states = served.states
        return [
            {
                "name": trunk.name or trunk.fingerprint[:12],
                "fingerprint": trunk.fingerprint[:12],
                "image_size": trunk.image_size,
                "tasks": counts.count(trunk.fingerprint),
                "queries": _short(rates.rate(("trunk", trunk.name, "queries"))),
                "busy": _short(min(1.0, rates.rate(("trunk", trunk.name, "busy")) / self._engines)),
                "pace": _short(self._paces.get(trunk.name, 1.0)),
                "loaded": states[trunk.fingerprint].loaded,
                "bytes": states[trunk.fingerprint].bytes,
            }
            for trunk in served.trunks.values()
        ]

    def _capacity(self, minute: Tally, rate: float) -> Plain | None:
        profile = self._profile()
        if profile is None:
            return None
        ran = {
            name: tuple(
                minute.sums.get(("schedule", name, figure), 0.0) for figure in ("batches", "queries", "busy")
            )
            for kind, name, _ in minute.sums
            if kind == "schedule"
        }
        for trunk in profile.useful_by_trunk:
            found = pace(profile, trunk, ran)  # type: ignore[arg-type]  # three numbers each
            if found is not None:
                self._paces[trunk] = found
        mix = {task: minute.sums.get(("task", task, "queries"), 0.0) for task in profile.tasks}
        made = capacity(profile, mix, self._paces, rate / self._engines)
        return {
            name: value if isinstance(value, str) else _short(value * self._engines)
            for name, value in asdict(made).items()
        }


def _described(served: ServedTasks | None, task: TaskVersion | None) -> Plain:
    if served is None or task is None:
        return {"version": None, "created": None, "trunk": "", "objective_ms": None, "utility": None}
    trunk = trunk_of(served, task)
    return {
        "version": task.version,
        "created": task.created,
        "trunk": trunk.name or trunk.fingerprint[:12],
        "objective_ms": _short(task.latency_ms),
        "utility": _short(task.utility),
    }


def _column(rows: Rows, key: Key) -> list[float | None]:
    column = rows.values.get(key)
    if column is None:
        return [None] * len(rows.ends)
    return [None if math.isnan(one) else one for one in np.round(column.astype(np.float64), 3).tolist()]


def _ratio(rows: Rows, above: str, below: str) -> list[float | None]:
    pairs = zip(*(_raw(rows, figure) for figure in (above, below)), strict=True)
    return [round(a / b, 3) if a >= 0 and b > 0 else None for a, b in pairs]


def _raw(rows: Rows, figure: str) -> list[float]:
    column = rows.values.get(("server", "", figure))
    return [math.nan] * len(rows.ends) if column is None else column.tolist()


def _named(rows: Rows, kind: str, figure: str) -> dict[str, list[float | None]]:
    """By name; what did not occur in these rows is left out."""
    keys = [key for key in rows.values if key[0] == kind and key[2] == figure]
    found = {key[1]: _column(rows, key) for key in keys}
    return {name: column for name, column in found.items() if any(column)}


def _short(value: float) -> float:
    """Four digits, so that the page's load stays small."""
    return float(f"{value:.4g}") if abs(value) < 10_000 else round(value)


def _rounded(values: dict[str, float] | None) -> dict[str, float] | None:
    return None if values is None else {name: _short(value) for name, value in values.items()}


def _mean(whole: float, count: float) -> float | None:
    return _short(whole / count) if count > 0 else None
