"""A run that ends while Flower is asked about it has finished; only one that ended without its last event failed."""

from __future__ import annotations

from pathlib import Path
from typing import cast

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
