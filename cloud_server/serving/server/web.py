"""The server's HTTP side, without authentication: metrics for Prometheus, health for an orchestrator, a page."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from fedstill.cloud_server.serving.server.dashboard import Dashboard
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics


def make_app(
    metrics: ServingMetrics, ready: Callable[[], bool], starting: Callable[[], str] = lambda: ""
) -> FastAPI:
    """The app. Before it ends, ``app.state.closing`` must be set: the page's streams have no end of their own.

    ready: whether new requests are welcome. starting: what a server does that is not ready yet; else nothing.
    """
    app = FastAPI(title="fedstill serve", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.closing = False
    Dashboard(metrics.snapshot, ready, lambda: bool(app.state.closing), starting).add_to(app)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def live() -> Response:
        return Response("live\n")

    async def started() -> Response:
        doing = starting()
        return Response(f"starting: {doing}\n", 503) if doing else Response("started\n")

    async def is_ready() -> Response:
        doing = starting()
        if doing:
            return Response(f"starting: {doing}\n", 503)
        return Response("ready\n") if ready() else Response("draining\n", 503)

    for path, answer in {"livez": live, "startupz": started, "readyz": is_ready, "healthz": is_ready}.items():
        app.add_api_route(f"/{path}", answer, methods=["GET", "HEAD"])
    return app
