"""The dashboard: what it serves, how streams end, and that a browser shows numbers that move."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from helpers.headless import Browser
from helpers.snapshots import MadeSnapshots

from fedstill.cloud_server.serving.server import dashboard
from fedstill.cloud_server.serving.server.dashboard import Dashboard


@contextmanager
def served(snapshot, port: int = 0, ready=lambda: True, starting=lambda: "") -> Iterator[int]:
    """The page in a thread; gives the port."""
    app, closing = FastAPI(), threading.Event()
    Dashboard(snapshot, ready, closing.is_set, starting).add_to(app)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="error", ws="none", timeout_graceful_shutdown=3
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        closing.set()
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "EVERY_SECONDS", 0.1)
    monkeypatch.setattr(dashboard, "RETRY_MS", 100)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    with served(MadeSnapshots()) as port:
        for path in dashboard.ASSETS:
            answer = httpx.get(f"http://127.0.0.1:{port}{path}")
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            links = [word for word in answer.text.replace('"', " ").split() if "://" in word]
            assert links == ([] if path != "/dashboard.js" else ["http://www.w3.org/2000/svg"])


def test_a_stream_is_snapshots_that_a_browser_can_read(quick: None) -> None:
    with (
        served(MadeSnapshots(), ready=lambda: False) as port,
        httpx.stream("GET", f"http://127.0.0.1:{port}/events") as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        found: list[dict[str, Any]] = []
        for line in stream.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
            if len(found) == 3:
                break
    assert found[0]["ready"] is False
    assert found[0]["time"] < found[1]["time"] < found[2]["time"]


def test_a_server_that_closes_does_not_wait_for_its_viewers(quick: None) -> None:
    with served(MadeSnapshots()) as port:
        stream = httpx.stream("GET", f"http://127.0.0.1:{port}/events", timeout=10)
        watching = stream.__enter__()
        lines = watching.iter_lines()
        assert next(lines) == "retry: 100"
    list(lines)  # ends by itself, without an error
    stream.__exit__(None, None, None)


def test_viewers_share_snapshots_and_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    monkeypatch.setattr(dashboard, "MOST_VIEWERS", 2)

    def snapshot() -> dict[str, Any]:
        taken.append(time.monotonic())
        return {}

    async def watch() -> list[int]:
        page = Dashboard(snapshot, lambda: True)
        answers = [await page.events() for _ in range(2)]
        streams = [answer.body_iterator for answer in answers]
        for stream in streams:
            await anext(stream), await anext(stream)
        refused = await page.events()
        for stream in streams:
            await stream.aclose()
        return [refused.status_code, (await page.events()).status_code]

    assert asyncio.run(watch()) == [503, 200]
    assert len(taken) == 1


@pytest.mark.slow
def test_a_browser_shows_numbers_that_move_and_lives_through_a_restart(quick: None, tmp_path: Path) -> None:
    first = MadeSnapshots(tasks=["cats", "<img src=x onerror=alert(1)>"])
    with Browser(tmp_path) as browser:
        browser.show(390, 844)
        doing = ["timing, round 3 of 8"]
        with served(first, starting=lambda: doing[0]) as port:
            browser.open(f"http://127.0.0.1:{port}/")
            browser.until(lambda: browser.text("state") == "starting: timing, round 3 of 8")
            doing[0] = ""
            browser.until(lambda: browser.text("state") == "live")
            seen = {browser.text("load")}
            browser.until(lambda: bool(seen.add(browser.text("load"))) or len(seen) >= 3)
            browser.until(
                lambda: browser.evaluate("document.querySelectorAll('[data-schedule]').length") >= 2
            )
            assert browser.text("share").endswith("%")
            assert "too late while waiting" in browser.text("reasons")
            assert "<img" in browser.text("about")
            assert browser.evaluate("document.images.length") == 0
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        browser.until(lambda: browser.text("state").startswith("no connection"))
        assert not [error for error in browser.errors if "ERR_" not in error]
        with served(MadeSnapshots(policy="faithful"), port):
            browser.until(lambda: browser.text("state") == "live")
            browser.until(lambda: browser.evaluate("document.body.dataset.restarts") == "1")
            assert "policy faithful" in browser.text("about")


@pytest.mark.slow
def test_the_page_names_trunks_and_their_share_of_the_engine(quick: None, tmp_path: Path) -> None:
    made = MadeSnapshots(tasks=["cats", "cars"])
    tiny, small = "vit_tiny_patch16_224_augreg_in21k_ft_in1k.fp16", "vit_small"

    def snapshot() -> dict[str, Any]:
        shown = made()
        recent = {**shown["recent"], "trunks": {tiny: 3.0, small: 1.0}}
        return {**shown, "trunks": {tiny: ["cats"], small: ["cars"]}, "recent": recent}

    with Browser(tmp_path) as browser, served(snapshot) as port:
        browser.show(390, 844)
        browser.open(f"http://127.0.0.1:{port}/")
        browser.until(lambda: browser.text("state") == "live")
        assert f"{tiny}: cats, 75.0 % of engine time · {small}: cars, 25.0 %" in browser.text("about")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert not browser.errors
