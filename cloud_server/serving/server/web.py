"""The server's HTTP side, without authentication: metrics for Prometheus, health for an orchestrator, a page."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from fedstill.cloud_server.serving.server.dashboard import Dashboard
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics


def make_app(metrics: ServingMetrics, ready: Callable[[], bool]) -> FastAPI:
    """``ready`` says whether new requests are taken. Before the app ends, ``app.state.closing`` must be set: the page's
    streams have no end of their own."""
    app = FastAPI(title="fedstill serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.closing = False
    Dashboard(metrics.snapshot, ready, lambda: bool(app.state.closing)).add_to(app)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz")
    async def health() -> Response:
        return Response("ready\n", 200) if ready() else Response("draining\n", 503)

    return app
