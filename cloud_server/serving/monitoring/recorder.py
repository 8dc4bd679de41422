"""What happens in a server, second by second: an observer of the dispatcher that hands each second to the history.

Observers are called under the dispatcher's lock, so they only add to the open tally. Whatever costs more (rows,
percentiles, JSON) happens in `tick` and for readers, under another lock, which the dispatcher never waits for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock

from fedstill.cloud_server.serving.monitoring.history import History, Rows
from fedstill.cloud_server.serving.monitoring.tally import Key, Tally
from fedstill.cloud_server.serving.scheduling.joint_profile import joint_name
from fedstill.cloud_server.serving.scheduling.queries import RejectionReason
from fedstill.cloud_server.serving.server.events import RanBatch

RECENT_SECONDS = 60.0
"""Of percentiles, capacity and the tasks' mix."""
MOST_TASKS = 64
"""With figures of their own."""
MOST_BATCHES = 96
"""Of the newest ones, predicted and measured times are kept."""
BUSY_REASONS = frozenset({"overload", "full", "evicted", "too_late"})
"""Refusals that say: more load than can be served."""


@dataclass(frozen=True, slots=True)
class Refusing:
    """Refusals since the last batch. first, last: seconds ago. queries: how many."""

    first: float
    last: float
    queries: int


class Recorder:
    """An observer of the dispatcher.

    tasks: names of the served ones; others are clients' words and count for the server alone.
    clock: seconds, never falling.
    """

    def __init__(
        self, tasks: Callable[[], tuple[str, ...]] = tuple, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tasks, self._clock = tasks, clock
        self._open_lock, self._open = Lock(), Tally()
        self._batches: deque[tuple[float, float]] = deque(maxlen=MOST_BATCHES)
        self._limited: dict[str, tuple[float, float]] = {}
        self._refused: tuple[float, float, int] | None = None
        self._read_lock, self._history = Lock(), History()
        self._recent: deque[tuple[float, Tally]] = deque()
        self._totals: dict[Key, float] = {}
        self._began = self._last = clock()

    @property
    def uptime(self) -> float:
        """Seconds on the history's clock."""
        return self._clock() - self._began

    def offered(self, task: str, utility: float, queries: int) -> None:
        """A request arrived."""
        self._add(task, {"queries": queries, "offered": utility * queries})

    def dropped(self, task: str, reason: RejectionReason, queries: int) -> None:
        """A request ended without answers."""
        figures = {"dropped": queries}
        if reason in BUSY_REASONS:
            figures["refused"] = queries
        if reason == "failed":
            figures["failed"] = queries
        self._add(task, figures)
        now = self._clock()
        with self._open_lock:
            self._open.sums["reason", reason, "dropped"] += queries
            if reason in BUSY_REASONS:
                first, _, before = self._refused or (now, now, 0)
                self._refused = (first, now, before + queries)

    def answered(self, task: str, utility: float, accuracies: tuple[float, ...], late: bool) -> None:
        """A request was answered."""
        answers = len(accuracies)
        earned = 0.0 if late else utility * sum(accuracies)
        self._add(task, {"answered": answers, "late": answers if late else 0, "earned": earned})

    def took(self, task: str, seconds: float) -> None:
        """A request was answered, so long after it came."""
        known = task in self.tasks()
        with self._open_lock:
            self._open.latencies[""].add(seconds)
            if known:
                self._open.latencies[task].add(seconds)

    def ran(self, batch: RanBatch) -> None:
        """A batch ended."""
        schedule = joint_name(batch.trunk, batch.schedule)
        error = abs(batch.predicted_seconds / batch.seconds - 1)
        server = {
            "batches": 1,
            "batch_queries": batch.size,
            "busy": batch.seconds,
            "predicted": batch.predicted_seconds,
            "error": error,
            "waiting": sum(batch.waiting_seconds),
        }
        part = {"batches": 1, "queries": batch.size, "busy": batch.seconds}
        with self._open_lock:
            for figure, value in server.items():
                self._open.sums["server", "", figure] += value
            for figure, value in part.items():
                self._open.sums["schedule", schedule, figure] += value
                self._open.sums["trunk", batch.trunk, figure] += value
            self._batches.append((batch.predicted_seconds, batch.seconds))
            self._refused = None

    def limited(self, node: str, queries: int, taken: bool) -> None:
        """A node asked that has a rate limit; only such nodes are kept."""
        if taken:
            return
        now = self._clock()
        with self._open_lock:
            first, last = self._limited.get(node, (now, now))
            self._limited[node] = (first if now - last < 900 else now, now)

    def tick(self, queued: int, memory: float) -> None:
        """A second or so has passed. queued: queries that wait. memory: bytes of the process."""
        with self._open_lock:
            now = self._clock()
            if now <= self._last:
                return
            done, self._open = self._open, Tally()
            done.seconds, self._last = now - self._last, now
        done.peak(("server", "", "queued"), queued)
        done.peak(("server", "", "memory"), memory)
        for figure in ("queries", "answered", "late", "dropped", "offered", "earned", "busy"):
            done.sums["server", "", figure] += 0.0  # nothing happened, which is not: nothing is known
            for task in self.tasks()[:MOST_TASKS]:
                if figure != "busy":
                    done.sums["task", task, figure] += 0.0
        with self._read_lock:
            self._history.add(done, now)
            for key, value in done.sums.items():
                self._totals[key] = self._totals.get(key, 0.0) + value
            self._recent.append((now, done))
            while self._recent[0][0] <= now - RECENT_SECONDS:
                self._recent.popleft()

    def forget(self) -> None:
        """What is kept of tasks that are no longer served."""
        served = set(self.tasks())
        with self._read_lock:
            self._history.forget(lambda key: key[0] == "task" and key[1] not in served)

    def recent(self, seconds: float = RECENT_SECONDS) -> Tally:
        """The last so many seconds, at most a minute, up to the last tick."""
        with self._read_lock:
            oldest = self._last - seconds
            tallies = [tally for end, tally in self._recent if end > oldest]
        merged = Tally()
        for tally in tallies:
            merged.merge(tally)
        return merged

    def totals(self) -> Mapping[Key, float]:
        """Sums since the start."""
        with self._read_lock:
            found = dict(self._totals)
        with self._open_lock:
            for key, value in self._open.sums.items():
                found[key] = found.get(key, 0.0) + value
        return found

    def total(self, key: Key, seconds: float) -> float:
        """The sum of the last so many seconds, at most an hour."""
        with self._read_lock:
            return self._history.total(key, seconds, self._last)

    def rows(self, span: str, after: int, wanted: Callable[[Key], bool]) -> Rows:
        """Of the history; ends are seconds since the start. Raises KeyError for an unknown span."""
        with self._read_lock:
            found = self._history.read(span, after, wanted)
        return Rows(found.next, found.ends - self._began, found.seconds, found.values)

    def batches(self) -> list[tuple[float, float]]:
        """Predicted and measured seconds of the newest batches, oldest first."""
        with self._open_lock:
            return list(self._batches)

    def refusing(self) -> Refusing | None:
        """None if a batch ended since the last refusal."""
        now = self._clock()
        with self._open_lock:
            if self._refused is None:
                return None
            first, last, queries = self._refused
        return Refusing(now - first, now - last, queries)

    def limited_nodes(self) -> dict[str, float]:
        """Nodes that were beyond their limit in the last quarter of an hour, and since how many seconds."""
        now = self._clock()
        with self._open_lock:
            return {node: now - first for node, (first, last) in self._limited.items() if now - last < 900}

    def _add(self, task: str, figures: Mapping[str, float]) -> None:
        known = task in self.tasks()
        with self._open_lock:
            for figure, value in figures.items():
                self._open.sums["server", "", figure] += value
                if known:
                    self._open.sums["task", task, figure] += value
