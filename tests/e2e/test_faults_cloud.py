"""Parts of the cloud die, are stopped, or are started twice; the run continues where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.faults import finishes, goes_on, is_whole, one_line
from helpers.fleet import Fleet, Service

from fedstill.common.flower_cli import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_cloud_that_is_killed_and_stopped_again_and_again(fleet: Fleet, undisturbed: Path) -> None:
    """One run survives all of it; between two faults it accepts an upload, so it has recovered from the first."""
    fleet.inference = True  # its port must be free again after each fault
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    fleet.wait_for(lambda: fleet.events("seed"), "the run's start")
    one_state_folder_has_one_coordinator(fleet)
    goes_on(fleet)
    for name in ("flower-superlink", "flwr-serverapp"):
        with begins_again(fleet):
            a_part_of_the_coordinator_is_killed(coordinator, name)
    a_part_of_the_coordinator_is_killed(coordinator, "fleet_proxy")
    goes_on(fleet)
    with begins_again(fleet):
        an_operator_stops_and_starts_the_coordinator(coordinator)
    the_coordinator_is_killed_in_the_middle_of_distillation(fleet, coordinator)
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)


@contextmanager
def begins_again(fleet: Fleet) -> Iterator[None]:
    """What is done inside makes the ServerApp start again; and then the work goes on."""
    before = len(fleet.events("seed"))
    yield
    fleet.wait_for(lambda: len(fleet.events("seed")) > before, "another start of the run")
    goes_on(fleet)


def one_state_folder_has_one_coordinator(fleet: Fleet) -> None:
    second = fleet.coordinator("--listen", f"127.0.0.1:{free_port()}", tag="-second")
    assert second.ended(240) == 2
    assert "another fedstill process uses it" in one_line(second)


def a_part_of_the_coordinator_is_killed(coordinator: Service, name: str) -> None:
    parts = coordinator.children(name)
    assert parts, f"{name} does not run"
    for process in parts:
        process.kill()


def an_operator_stops_and_starts_the_coordinator(coordinator: Service) -> None:
    assert coordinator.terminate() == 0
    coordinator.start()


def the_coordinator_is_killed_in_the_middle_of_distillation(fleet: Fleet, coordinator: Service) -> None:
    """The last fault, because its orphans work on until the next coordinator ends them."""
    coordinator.kill()
    accepted = fleet.uploads()
    coordinator.start()
    finishes(fleet, coordinator)
    assert set(accepted) <= set(fleet.uploads())
