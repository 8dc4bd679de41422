"""What a front says to Prometheus: its calls and their codes, how many wait, and how many replicas there are."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    ProcessCollector,
    generate_latest,
)

from fedstill.cloud_server.serving.monitoring.web import add_health


class FrontMetrics:
    """replicas, waiting, limit: called when the metrics are read. version: of fedstill."""

    def __init__(
        self,
        replicas: Callable[[], int],
        waiting: Callable[[], int],
        limit: Callable[[], float],
        version: str,
    ) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        Info("fedstill_front_build", "The process.", registry=self._registry).info({"version": version})
        self._calls = Counter(
            "fedstill_front_calls",
            "Calls, by the code of their answer.",
            ("method", "code"),
            registry=self._registry,
        )
        Gauge("fedstill_front_replicas", "Replicas that run.", registry=self._registry).set_function(replicas)
        Gauge("fedstill_front_waiting", "Calls without an answer.", registry=self._registry).set_function(
            waiting
        )
        Gauge(
            "fedstill_front_limit", "Images that may be at the replicas at once.", registry=self._registry
        ).set_function(limit)

    def answered(self, method: str, code: str) -> None:
        """A call has its answer, or its refusal."""
        self._calls.labels(method, code).inc()

    def app(self, ready: Callable[[], bool], starting: Callable[[], str]) -> FastAPI:
        """For a web server: metrics, and what an orchestrator asks."""
        app = FastAPI(title="fedstill serve --ray", docs_url=None, redoc_url=None, openapi_url=None)
        app.state.closing = False

        @app.get("/metrics")
        async def show_metrics() -> Response:
            return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

        add_health(app, ready, starting)
        return app
