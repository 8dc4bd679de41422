"""The dashboard: what it serves, how streams end, and that a browser shows numbers that move."""

from __future__ import annotations

import asyncio
import json
import re
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
from helpers.watched import Watched

from fedstill.cloud_server.serving.monitoring import dashboard
from fedstill.cloud_server.serving.monitoring.dashboard import Dashboard
from fedstill.cloud_server.serving.monitoring.monitor import Monitor

EVIL = "<img src=x onerror=alert(1)>"
UNNAMED = """[...document.querySelectorAll('input, select, svg[tabindex], section')].filter((one) => {
    const label = one.getAttribute('aria-label') || one.getAttribute('aria-labelledby');
    return !label && !(one.labels && one.labels.length);
}).map((one) => one.outerHTML.slice(0, 80))"""
"""What a screen reader could not name."""


@contextmanager
def served(monitor: Monitor, port: int = 0) -> Iterator[int]:
    """The page in a thread; gives the port."""
    app, closing = FastAPI(), threading.Event()
    Dashboard(monitor, closing.is_set).add_to(app)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_config=None, ws="none", timeout_graceful_shutdown=3
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
    with served(Watched().monitor) as port:
        for path in dashboard.ASSETS:
            answer = httpx.get(f"http://127.0.0.1:{port}{path}")
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            links = [word for word in answer.text.replace('"', " ").split() if "://" in word]
            assert links == ([] if path != "/charts.js" else ["http://www.w3.org/2000/svg"])
            for name in re.findall(r'from "./(.*)"', answer.text):
                assert f"/{name}" in dashboard.ASSETS


WRONG = ("span=2h", "span=", "after=-1", "after=x", "after=1e9", f"after={'9' * 20}", "after=²")


def test_a_history_that_is_asked_for_wrongly_is_refused_with_one_line() -> None:
    watched = Watched()
    watched.live(3)
    with served(watched.monitor) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as web:
        for asked in WRONG:
            wrong = web.get(f"/history?{asked}")
            assert (wrong.status_code, wrong.text.count("\n")) == (400, 1), asked
            assert wrong.text.split(":")[0] == asked.split("=")[0]
        right = web.get("/history?after=1&task=dogs").json()
        assert (right["next"], len(right["columns"]["queries"])) == (3, 2)
        strange = web.get(f"/history?task=strange&after={'9' * 15}").json()
        assert strange["columns"]["queries"] == []


def test_a_stream_is_snapshots_that_a_browser_can_read(quick: None) -> None:
    watched = Watched()
    watched.is_ready = False
    with (
        served(watched.monitor) as port,
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
    with served(Watched().monitor) as port:
        stream = httpx.stream("GET", f"http://127.0.0.1:{port}/events", timeout=10)
        watching = stream.__enter__()
        lines = watching.iter_lines()
        assert next(lines) == "retry: 100"
    list(lines)  # ends by itself, without an error
    stream.__exit__(None, None, None)


def test_viewers_share_snapshots_and_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    monkeypatch.setattr(dashboard, "MOST_VIEWERS", 2)

    class Counted:
        def snapshot(self) -> dict[str, Any]:
            taken.append(time.monotonic())
            return {}

        def history(self, span: str, task: str = "", after: int = 0) -> dict[str, Any]:
            raise AssertionError

    async def watch() -> list[int]:
        page = Dashboard(Counted())
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


@contextmanager
def living(watched: Watched, mean: float) -> Iterator[None]:
    """Its seconds pass, ten times as fast."""
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.1):
            watched.live(1, mean)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_a_browser_shows_a_start_what_was_before_and_lives_through_a_restart(
    quick: None, tmp_path: Path
) -> None:
    watched = Watched({"vit_tiny_patch16_224_augreg": ["cats", EVIL], "vit_small": ["cars"]})
    watched.starting = {"doing": "timing 9 schedules, round 3 of 8", "seconds": 41.0, "done": 2, "of": 8,
                        "steps": [{"doing": f"{EVIL}: reading the weights", "seconds": 1.2}]}  # fmt: skip
    for _ in range(2):
        watched.live(50, 260)
        watched.live(50, 60)
    watched.recorder.dropped("cats", "failed", 1)
    with Browser(tmp_path) as browser:

        def curve(name: str) -> int:
            path = f"document.querySelector('#chart-{name} .series')"
            return int(browser.evaluate(f"({path} ? {path}.getAttribute('d') : '').split('L').length"))

        browser.show(390, 844)
        with served(watched.monitor) as port, living(watched, 80):
            browser.open(f"http://127.0.0.1:{port}/")
            browser.until(lambda: browser.text("state") == "starting")
            assert browser.text("start-doing") == "timing 9 schedules, round 3 of 8"
            assert browser.evaluate("document.getElementById('start-part').value") == 2
            assert f"{EVIL}: reading the weights (1 s)" in browser.text("start-steps")
            assert browser.evaluate("document.images.length") == 0
            watched.starting = {}
            browser.until(
                lambda: browser.text("state") == "ready" and curve("load") > 150
            )  # before it was opened
            seen = {browser.text("load")}
            browser.until(lambda: bool(seen.add(browser.text("load"))) or len(seen) >= 3)
            browser.until(
                lambda: browser.evaluate("document.querySelectorAll('[data-schedule]').length") >= 2
            )
            assert browser.text("share").endswith("%")
            assert "too late while waiting" in browser.text("reasons")
            assert "1 query of cats ended in a failure" in browser.text("alarms")
            assert EVIL in browser.text("tasks")
            assert "vit_tiny_patch16_224_augreg" in browser.text("trunks")
            assert browser.evaluate("document.images.length") == 0
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390
            browser.evaluate(
                "document.getElementById('task').value = 'cars';"
                "document.getElementById('controls').dispatchEvent(new Event('change'))"
            )
            browser.until(lambda: "objective 400 ms" in browser.text("chart-latency"))
            left = "new KeyboardEvent('keydown', {key: 'ArrowLeft'})"
            browser.evaluate(f"document.querySelector('#chart-load svg').dispatchEvent({left})")
            assert "arriving" in browser.evaluate("document.querySelector('#chart-load .tip').textContent")
            assert browser.evaluate(UNNAMED) == []
        browser.until(lambda: browser.text("state").startswith("no connection"))
        assert not [error for error in browser.errors if "ERR_" not in error]
        other = Watched(policy="faithful")
        with served(other.monitor, port):
            browser.until(lambda: browser.text("state") == "ready")
            browser.until(lambda: browser.evaluate("document.body.dataset.restarts") == "1")
            assert "policy faithful" in browser.text("about")
            assert "No queries in this time." in browser.text("chart-load")
