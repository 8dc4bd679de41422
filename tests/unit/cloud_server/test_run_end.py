"""A run that ends while Flower is asked about it has finished; only one that ended without its last event failed.

And there is one at a time: those that an earlier coordinator has left are stopped before the next is submitted.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedstill.cloud_server.coordinator import coordinator
from fedstill.cloud_server.coordinator.coordinator import CoordinatorSettings, _Run
from fedstill.cloud_server.coordinator.superlink_control import RunState, SuperLinkControl
from fedstill.cloud_server.journal.event_log import Metrics


class _Link:
    """Says that the run is over; the ServerApp writes its last event, if any, just before."""

    def __init__(self, state: Path, event: str) -> None:
        self.state, self.event = state, event

    def status(self, _run_id: int) -> RunState:
        if self.event:
            metrics = Metrics(self.state)
            metrics.emit(self.event)
            metrics.close()
        return RunState("finished:completed", "")


class _Left:
    """A SuperLink with runs that an earlier coordinator submitted and Flower has not begun."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def stop_unfinished(self) -> tuple[int, ...]:
        self.asked.append("stop")
        return (3, 4)

    def submit(self, _app: Path, _config: object) -> int:
        self.asked.append("submit")
        return 5


def _after_a_look(state: Path, event: str) -> _Run:
    settings = CoordinatorSettings(state=state, app=state, host="127.0.0.1", port=1, authority=None)
    run = _Run(settings, cast("SuperLinkControl", _Link(state, event)), run_id=7)
    run.reconcile()
    return run


def test_a_run_that_ends_during_the_look_has_finished(tmp_path: Path) -> None:
    run = _after_a_look(tmp_path, "finished")
    assert run.finished
    assert run.failures == 0


def test_a_run_without_a_last_event_has_failed(tmp_path: Path) -> None:
    run = _after_a_look(tmp_path, "")
    assert not run.finished
    assert run.failures == 1


def test_what_an_earlier_coordinator_left_is_stopped_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six of them once woke up together, and all asked the same devices."""
    monkeypatch.setattr(coordinator, "read_plan", lambda state: SimpleNamespace(clients=1))
    settings = CoordinatorSettings(state=tmp_path, app=tmp_path, host="127.0.0.1", port=1, authority=None)
    link = _Left()
    run = _Run(settings, cast("SuperLinkControl", link))
    with caplog.at_level("INFO"):
        run.reconcile()
    assert (link.asked, run.run_id) == (["stop", "submit"], 5)
    assert [line.split()[1] for line in caplog.messages if "run_stopped" in line] == ["run=3", "run=4"]


def test_all_that_is_unfinished_is_found_however_many_runs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower lists the newest first, and no more than it is asked for."""
    states = {run: "finished" if run % 2 else "pending" for run in range(450)}

    def answer(_self: object, _route: str, request: Any, _kind: object) -> SimpleNamespace:
        newest = sorted(states, reverse=True)[request.skip : request.skip + request.limit]
        return SimpleNamespace(
            run_dict={run: SimpleNamespace(status=SimpleNamespace(status=states[run])) for run in newest}
        )

    monkeypatch.setattr(SuperLinkControl, "_ask", answer)
    control = SuperLinkControl("http://127.0.0.1:1", None)
    assert set(control.unfinished()) == set(range(0, 450, 2))
    control.close()
