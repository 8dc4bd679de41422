"""The metrics of a running server, in Prometheus' text format.

A live server does not know whether an answer is right. "Earned" is therefore an expected value: the utility of queries
answered in time, times the accuracy that the profile gives their schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client import Counter as PrometheusCounter

from fedstill.cloud_server.serving.engine.memory_limit import limit_bytes
from fedstill.cloud_server.serving.scheduling.queries import RejectionReason
from fedstill.cloud_server.serving.server.events import RanBatch

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class ServingMetrics:
    """An observer of the dispatcher.

    queued, tasks: called when the metrics are read. build: what the process is, as labels of one metric.
    """

    def __init__(
        self,
        policy: str,
        queued: Callable[[], int] = lambda: 0,
        tasks: Callable[[], tuple[str, ...]] = tuple,
        build: Mapping[str, str] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.queued, self.tasks = queued, tasks
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
        limit = Gauge(
            "fedstill_serving_memory_limit_bytes", "What the process may have.", registry=self.registry
        )
        limit.set(limit_bytes())
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

    def dropped(self, task: str, reason: RejectionReason, queries: int) -> None:
        """A request ended without answers."""
        self._dropped.labels(self._label(task), reason).inc(queries)

    def answered(self, task: str, utility: float, accuracies: tuple[float, ...], late: bool) -> None:
        """A request was answered."""
        label = self._label(task)
        earned = 0.0 if late else utility * sum(accuracies)
        self._answers.labels(label, str(late).lower()).inc(len(accuracies))
        self._earned.labels(label).inc(earned)

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

    def text(self) -> bytes:
        """For Prometheus. What has not happened to a task is there as 0, else its first time would be no increase."""
        for task in self.tasks():
            for reason in get_args(RejectionReason):
                self._dropped.labels(task, reason)
            for late in ("false", "true"):
                self._answers.labels(task, late)
        return generate_latest(self.registry)

    def _label(self, task: str) -> str:
        return task if task in self.tasks() else "unknown"
