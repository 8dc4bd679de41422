"""The page on which a person watches a server: three static files and one stream of snapshots.

Server-sent events need no library on either side, and a browser reopens a broken stream by itself, so the page survives
a restart of the server. Everything comes from this process (the page works offline), and nothing can be changed through
it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

EVERY_SECONDS = 1.0
MOST_VIEWERS = 64
RETRY_MS = 1000
"""Pause before a browser reopens a broken stream."""
ASSETS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    "/dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    # Only what this server sends may run or be shown; task names come from users.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a new version of the server brings its own page
}


class Dashboard:
    """The page's routes.

    snapshot: what to show, ready for JSON (``ServingMetrics.snapshot``). ready: whether requests are taken. closing:
    whether the process is about to end; streams end then, so that the server does not wait for a browser. starting:
    what a server does that is not ready yet; else nothing.
    """

    def __init__(
        self,
        snapshot: Callable[[], dict[str, Any]],
        ready: Callable[[], bool],
        closing: Callable[[], bool] = lambda: False,
        starting: Callable[[], str] = lambda: "",
    ) -> None:
        self._snapshot, self._ready, self._closing, self._starting = snapshot, ready, closing, starting
        self._viewers = 0
        self._event, self._made = "", float("-inf")

    def add_to(self, app: FastAPI) -> None:
        """Serve the page at ``/`` and the snapshots at ``/events``."""
        folder = files("fedstill.cloud_server.serving.server") / "dashboard_page"
        for path, (name, kind) in ASSETS.items():
            app.add_api_route(path, _asset((folder / name).read_bytes(), kind), methods=["GET"])
        app.add_api_route("/events", self.events, methods=["GET"], response_model=None)

    async def events(self) -> Response:
        """A snapshot per second, without end; 503 if too many viewers are connected."""
        if self._viewers >= MOST_VIEWERS:
            return Response("too many viewers\n", 503)
        return StreamingResponse(self._stream(), media_type="text/event-stream", headers=HEADERS)

    async def _stream(self) -> AsyncIterator[str]:
        self._viewers += 1
        try:
            yield f"retry: {RETRY_MS}\n\n"
            while not self._closing():
                yield self._current()
                await asyncio.sleep(EVERY_SECONDS)
        finally:
            self._viewers -= 1

    def _current(self) -> str:
        """The event of this moment, made once for all viewers."""
        now = time.monotonic()
        if now - self._made > EVERY_SECONDS / 2:
            self._made = now
            shown = {**self._snapshot(), "ready": self._ready(), "starting": self._starting()}
            self._event = f"data: {json.dumps(shown)}\n\n"
        return self._event


def _asset(content: bytes, kind: str) -> Callable[[], Response]:
    def show() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return show
