"""The metrics of a running server, in Prometheus' text format and as a dict for the dashboard.

A live server does not know whether an answer is right. "Earned" is therefore an expected value: the utility of queries
answered in time, times the accuracy that the profile gives their schedule.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client import Counter as PrometheusCounter

from fedstill.cloud_server.serving.scheduling.queries import RejectionReason
from fedstill.cloud_server.serving.server.events import RanBatch

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
WINDOW_SECONDS = 10.0
"""Seconds that the dashboard's rates and percentiles cover."""


class ServingMetrics:
    """An observer of the dispatcher.

    queued, tasks, trunks (names to the tasks of each; empty with one alone): called when the metrics are read. build:
    what the process is, as labels of one metric.
    """

    def __init__(
        self,
        policy: str,
        queued: Callable[[], int] = lambda: 0,
        tasks: Callable[[], tuple[str, ...]] = tuple,
        build: Mapping[str, str] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._policy, self._started = policy, time.time()
        self.queued, self.tasks = queued, tasks
        self.trunks: Callable[[], Mapping[str, Sequence[str]]] = dict
        self._lock = Lock()
        self._totals: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()
        self._schedules: Counter[str] = Counter()
        self._recent: deque[tuple[float, dict[str, float]]] = deque()
        self._batches: deque[tuple[float, RanBatch]] = deque()
        self._queries = self._counter("queries", "Queries that arrived.", "task")
        self._offered = self._counter("utility_offered", "Utility of the queries that arrived.", "task")
        self._earned = self._counter(
            "utility_earned", "Expected utility of the queries answered in time.", "task"
        )
        self._answers = self._counter("answers", "Queries answered.", "task", "late")
        self._dropped = self._counter("drops", "Queries not answered.", "task", "reason")
        self._limited = self._counter(
            "limited_queries",
            "Queries of nodes that have a rate limit, taken or refused by it.",
            "node",
            "taken",
        )
        self._chosen = self._counter("schedule_queries", "Queries run at a token schedule.", "schedule")
        self._chosen_batches = self._counter(
            "schedule_batches", "Batches run at a token schedule.", "schedule"
        )
        self._trunk_queries = self._counter(
            "trunk_queries", "Queries run, of a server with several trunks.", "trunk"
        )
        self._trunk_seconds = self._counter(
            "trunk_batch_seconds", "Time on the engine, of a server with several trunks.", "trunk"
        )
        self._latency = self._histogram(
            "latency_seconds", "From the arrival of an answered request to its answer.", SECONDS, "task"
        )
        self._waiting = self._histogram("waiting_seconds", "From arrival to the start of the batch.", SECONDS)
        self._compute = self._histogram("batch_seconds", "Of a batch on the engine.", SECONDS)
        self._size = self._histogram("batch_size", "Queries of a batch.", SIZES)
        self._decision = self._histogram("decision_seconds", "Of a dispatch decision.", SECONDS)
        self._error = self._histogram(
            "latency_model_error", "|predicted / actual - 1| of a batch's time.", ERRORS
        )
        ProcessCollector(registry=self.registry)
        info = Info("fedstill_serving_build", "The process: versions and machine.", registry=self.registry)
        info.info({"policy": policy, **(build or {})})
        gauge = Gauge("fedstill_serving_queued", "Queries that wait.", registry=self.registry)
        gauge.set_function(lambda: self.queued())

    def _counter(self, name: str, text: str, *labels: str) -> PrometheusCounter:
        return PrometheusCounter(f"fedstill_serving_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"fedstill_serving_{name}", text, labels, buckets=buckets, registry=self.registry)

    def offered(self, task: str, utility: float, queries: int) -> None:
        """A request arrived. Names that are not served share one label: clients must not grow the metrics."""
        label = self._label(task)
        self._queries.labels(label).inc(queries)
        self._offered.labels(label).inc(utility * queries)
        self._add(queries=queries, utility_offered=utility * queries)

    def dropped(self, task: str, reason: RejectionReason, queries: int) -> None:
        """A request ended without answers."""
        self._dropped.labels(self._label(task), reason).inc(queries)
        with self._lock:
            self._drops[reason] += queries
        self._add(dropped=queries)

    def answered(self, task: str, utility: float, accuracies: tuple[float, ...], late: bool) -> None:
        """A request was answered."""
        label = self._label(task)
        earned = 0.0 if late else utility * sum(accuracies)
        self._answers.labels(label, str(late).lower()).inc(len(accuracies))
        self._earned.labels(label).inc(earned)
        self._add(
            answered=len(accuracies), utility_earned=earned, answered_late=len(accuracies) if late else 0
        )

    def took(self, task: str, seconds: float) -> None:
        """A request was answered, so long after it came."""
        self._latency.labels(self._label(task)).observe(seconds)

    def limited(self, node: str, queries: int, taken: bool) -> None:
        """A node asked that has a limit; only such nodes are labels."""
        self._limited.labels(node, str(taken).lower()).inc(queries)

    def ran(self, batch: RanBatch) -> None:
        """A batch ended."""
        self._chosen.labels(batch.schedule).inc(batch.size)
        self._chosen_batches.labels(batch.schedule).inc()
        if batch.trunk:
            self._trunk_queries.labels(batch.trunk).inc(batch.size)
            self._trunk_seconds.labels(batch.trunk).inc(batch.seconds)
        for seconds in batch.waiting_seconds:
            self._waiting.observe(seconds)
        self._compute.observe(batch.seconds)
        self._size.observe(batch.size)
        self._decision.observe(batch.decision_seconds)
        self._error.observe(abs(batch.predicted_seconds / batch.seconds - 1))
        with self._lock:
            self._schedules[batch.schedule] += batch.size
            self._batches.append((time.time(), batch))
            self._forget()

    def text(self) -> bytes:
        """For Prometheus. What has not happened to a task is there as 0, else its first time would be no increase."""
        for task in self.tasks():
            for reason in get_args(RejectionReason):
                self._dropped.labels(task, reason)
            for late in ("false", "true"):
                self._answers.labels(task, late)
        return generate_latest(self.registry)

    def snapshot(self) -> dict[str, Any]:
        """For a dashboard: totals since the start, and the figures of the last ``WINDOW_SECONDS``.

        Keys: time, started (seconds since 1970), policy, tasks, trunks (tasks by trunk; empty with one alone), queued,
        totals, drops (by reason), schedules (queries by schedule), recent. ``totals``: queries, utility_offered,
        utility_earned, answered, answered_late, dropped. ``recent``: the same as rates per second, and of the batches
        ``schedules`` (queries by schedule), ``trunks`` (seconds on the engine by trunk, likewise),
        batch_size, waiting_ms and batch_ms (p50, p95; null without batches), model_error (mean, null likewise).
        """
        with self._lock:
            self._forget()
            window = max(1.0, min(WINDOW_SECONDS, time.time() - self._started))
            sums: Counter[str] = Counter()
            for _, values in self._recent:
                sums.update(values)
            batches = [batch for _, batch in self._batches]
            totals, drops, schedules = dict(self._totals), dict(self._drops), dict(self._schedules)
        recent: Counter[str] = Counter()
        trunks: Counter[str] = Counter()
        for batch in batches:
            recent[batch.schedule] += batch.size
            if batch.trunk:
                trunks[batch.trunk] += batch.seconds  # type: ignore[assignment]  # a Counter of floats
        waiting = sorted(seconds for batch in batches for seconds in batch.waiting_seconds)
        compute = sorted(batch.seconds for batch in batches)
        errors = [abs(batch.predicted_seconds / batch.seconds - 1) for batch in batches]
        return {
            "time": time.time(),
            "started": self._started,
            "policy": self._policy,
            "tasks": list(self.tasks()),
            "trunks": {name: list(tasks) for name, tasks in self.trunks().items()},
            "queued": self.queued(),
            "totals": {name: totals.get(name, 0) for name in TOTALS},
            "drops": drops,
            "schedules": schedules,
            "recent": {
                **{name: sums.get(name, 0) / window for name in TOTALS},
                "schedules": dict(recent),
                "trunks": dict(trunks),
                "batch_size": _mean([batch.size for batch in batches]),
                "waiting_ms": _percentiles(waiting),
                "batch_ms": _percentiles(compute),
                "model_error": _mean(errors),
            },
        }

    def _label(self, task: str) -> str:
        return task if task in self.tasks() else "unknown"

    def _add(self, **values: float) -> None:
        with self._lock:
            self._totals.update(values)
            self._recent.append((time.time(), values))
            self._forget()

    def _forget(self) -> None:
        oldest = time.time() - WINDOW_SECONDS
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()
        while self._batches and self._batches[0][0] < oldest:
            self._batches.popleft()


TOTALS = ("queries", "utility_offered", "utility_earned", "answered", "answered_late", "dropped")


def _mean(values: list[float] | list[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _percentiles(ordered: list[float]) -> dict[str, float] | None:
    """p50 and p95 in milliseconds."""
    if not ordered:
        return None
    return {f"p{share}": 1e3 * ordered[(len(ordered) - 1) * share // 100] for share in (50, 95)}
