"""The server's HTTP side, without authentication: metrics for Prometheus, health for an orchestrator, a page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from fedstill.cloud_server.serving.monitoring.dashboard import Dashboard
from fedstill.cloud_server.serving.monitoring.monitor import Monitor
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics

LOG = logging.getLogger(__name__)

TICK_SECONDS = 1.0


def make_app(
    metrics: ServingMetrics,
    ready: Callable[[], bool],
    starting: Callable[[], str] = lambda: "",
    monitor: Monitor | None = None,
) -> FastAPI:
    """The app. Before it ends, ``app.state.closing`` must be set: the page's streams have no end of their own.

    ready: whether new requests are welcome. starting: what a server does that is not ready yet; else nothing. monitor:
    what the page shows; it gets its seconds from here.
    """
    shown = monitor or Monitor("", ready, lambda: {"doing": starting()} if starting() else {})

    @asynccontextmanager
    async def ticking(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_tick(shown))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app = FastAPI(title="fedstill serve", docs_url=None, redoc_url=None, openapi_url=None, lifespan=ticking)
    app.state.closing = False
    Dashboard(shown, lambda: bool(app.state.closing)).add_to(app)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    add_health(app, ready, starting)
    return app


def add_health(app: FastAPI, ready: Callable[[], bool], starting: Callable[[], str]) -> None:
    """The paths that an orchestrator asks."""

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


async def _tick(monitor: Monitor) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        try:
            monitor.tick()
        except Exception:  # the server serves on; the page has a gap
            LOG.exception("event=monitor_failed")
