"""A coordinator that is told to end while it waits for its SuperLink begins nothing more, and says so in its status."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedstill.cloud_server.coordinator import coordinator
from fedstill.cloud_server.coordinator.coordinator import CoordinatorSettings, run_coordinator
from fedstill.common.flower_cli import FlowerError
from fedstill.common.run_layout import STATUS_FILE


class Link:
    """Answers nothing; dies at the given look, and the end is asked for while it comes back."""

    url = "127.0.0.1:1"

    def __init__(self, dies_at: int, stop: threading.Event, calls: list[str]) -> None:
        self._left, self._stop, self._calls = dies_at, stop, calls

    def poll(self) -> int | None:
        self._left -= 1
        return -9 if self._left == 0 else None

    def restart(self) -> None:
        self._calls.append("restart")

    def wait_until_healthy(self, stop: threading.Event) -> bool:
        assert stop is self._stop
        stop.set()
        return False

    def stop_unfinished(self) -> Any:
        self._calls.append("asked")
        raise FlowerError("SuperLink does not answer list-runs")


class Proxy:
    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def reconcile(self) -> None:
        self._calls.append("proxy")


@pytest.mark.parametrize("dies_at", [0, 1, 5])
def test_nothing_begins_after_the_end_was_asked_for(
    dies_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start (0); at once; and after as many unanswered questions as are just allowed."""
    stop, calls = threading.Event(), list[str]()

    @contextmanager
    def superlink(*_: Any) -> Iterator[Link]:
        if dies_at == 0:
            stop.set()
        yield Link(dies_at, stop, calls)

    @contextmanager
    def proxy(*_: Any) -> Iterator[Proxy]:
        calls.append("open")
        yield Proxy(calls)

    def plan(_: Path) -> Any:
        class Plan:
            clients = 1

        return Plan

    monkeypatch.setattr(coordinator, "_superlink", superlink)
    monkeypatch.setattr(coordinator, "_proxy", proxy)
    monkeypatch.setattr(coordinator, "read_plan", plan)
    monkeypatch.setattr(coordinator, "TEND_SECONDS", 0.001)
    run_coordinator(CoordinatorSettings(tmp_path, tmp_path, "127.0.0.1", 0, None), stop)
    assert calls == ([] if dies_at == 0 else ["open", *["proxy", "asked"] * (dies_at - 1), "restart"])
    assert json.loads((tmp_path / STATUS_FILE).read_text())["run"] == "stopped"
