"""The page on which a person watches a server: its files, its history, and one stream of snapshots.

Server-sent events need no library on either side, and a browser reopens a broken stream by itself, so the page survives
a restart of the server. The history is the server's, so the page survives a reload. Everything comes from this process
(the page works offline), and nothing can be changed through it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import Any, Protocol

from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

EVERY_SECONDS = 1.0
MOST_VIEWERS = 64
RETRY_MS = 1000
"""Pause before a browser reopens a broken stream."""
LONGEST_NAME = 200
"""Characters of a task's name that is asked for."""
ASSETS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("dashboard", "charts", "format", "history", "panels")
    },
}
HEADERS = {
    # Only what this server sends may run or be shown; task names come from users.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a new version of the server brings its own page
}


class Shown(Protocol):
    """What the page shows, ready for JSON. Implemented by ``Monitor``."""

    def snapshot(self) -> dict[str, Any]:
        """The server as it is now."""

    def history(self, span: str, task: str = "", after: int = 0) -> dict[str, Any]:
        """Rows from a number on. Raises KeyError for an unknown span."""


class Dashboard:
    """The page's routes.

    closing: whether the process is about to end; streams end then, so that the server does not wait for a browser.
    """

    def __init__(self, shown: Shown, closing: Callable[[], bool] = lambda: False) -> None:
        self._shown, self._closing = shown, closing
        self._viewers = 0
        self._event, self._made = "", float("-inf")

    def add_to(self, app: FastAPI) -> None:
        """Serve the page at ``/``, the snapshots at ``/events``, and what was before at ``/history``."""
        folder = files("fedstill.cloud_server.serving.monitoring") / "dashboard_page"
        for path, (name, kind) in ASSETS.items():
            app.add_api_route(path, _asset((folder / name).read_bytes(), kind), methods=["GET"])
        app.add_api_route("/events", self.events, methods=["GET"], response_model=None)
        app.add_api_route("/history", self.history, methods=["GET"], response_model=None)

    async def events(self) -> Response:
        """A snapshot per second, without end; 503 if too many viewers are connected."""
        if self._viewers >= MOST_VIEWERS:
            return Response("too many viewers\n", 503)
        return StreamingResponse(self._stream(), media_type="text/event-stream", headers=HEADERS)

    def history(self, span: str = "5m", task: str = "", after: str = "0") -> Response:
        """Called in a thread: a day is some thousand numbers."""
        if not (after.isascii() and after.isdigit() and len(after) < 16):
            return Response("after: needs the number of a row, as `next` of the last answer\n", 400)
        try:
            made = self._shown.history(span, task[:LONGEST_NAME], int(after))
        except KeyError:
            return Response("span: needs 5m, 1h or 1d\n", 400)
        return Response(_json(made), media_type="application/json", headers=HEADERS)

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
            self._event = f"data: {_json(self._shown.snapshot())}\n\n"
        return self._event


def _json(plain: dict[str, Any]) -> str:
    return json.dumps(plain, separators=(",", ":"), allow_nan=False)


def _asset(content: bytes, kind: str) -> Callable[[], Response]:
    def show() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return show
