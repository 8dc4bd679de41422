"""Metrics of trunks that share a memory budget: which are loaded, what they take, and what loading costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fedstill.cloud_server.serving.server.residency import Footprint
from fedstill.cloud_server.serving.server.served_tasks import TrunkState

SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class TrunkMetrics:
    """A ``LoadObserver``.

    Args:
        trunks: names; one alone has none.
        state: of a trunk, when the metrics are read.
        budget: bytes.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        trunks: Sequence[str],
        state: Callable[[str], TrunkState],
        budget: int,
    ) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"fedstill_serving_trunk_{name}", text, ("trunk",), registry=registry)

        self._loads = counter("loads", "Loadings into memory since the start was over.")
        self._failures = counter("load_failures", "Loadings that failed.")
        self._unloads = counter("unloads", "Unloadings, to make room for others.")
        self._seconds = Histogram(
            "fedstill_serving_trunk_load_seconds", "Of a loading.", ("trunk",), buckets=SECONDS, registry=registry
        )  # fmt: skip
        limit = Gauge(
            "fedstill_serving_memory_budget_bytes", "That loaded trunks may take.", registry=registry
        )
        limit.set(budget)
        loaded = Gauge(
            "fedstill_serving_trunk_loaded", "1 if it is in memory, else 0.", ("trunk",), registry=registry
        )
        size = Gauge(
            "fedstill_serving_trunk_bytes", "That it takes while it is loaded.", ("trunk",), registry=registry
        )

        def is_loaded(trunk: str) -> float:
            return float(state(trunk).loaded)

        def bytes_of(trunk: str) -> float:
            return float(state(trunk).bytes or 0)

        for trunk in trunks:
            for counted in (self._loads, self._failures, self._unloads, self._seconds):
                counted.labels(trunk)  # what has not happened is there as 0
            loaded.labels(trunk).set_function(partial(is_loaded, trunk))
            size.labels(trunk).set_function(partial(bytes_of, trunk))

    def loaded(self, trunk: str, footprint: Footprint) -> None:
        """A trunk is in memory."""
        self._loads.labels(trunk).inc()
        self._seconds.labels(trunk).observe(footprint.seconds)

    def load_failed(self, trunk: str) -> None:
        """A trunk could not be loaded."""
        self._failures.labels(trunk).inc()

    def unloaded(self, trunk: str) -> None:
        """A trunk is out of memory."""
        self._unloads.labels(trunk).inc()
