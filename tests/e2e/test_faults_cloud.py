"""Parts of the cloud die, are stopped, or are started twice; the run goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.faults import finishes, goes_on, is_whole, one_line
from helpers.fleet import Fleet, Service

from fedstill.common.flower_cli import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_cloud_that_is_killed_and_stopped_again_and_again(fleet: Fleet, undisturbed: Path) -> None:
    """One run survives all of it; between two faults it accepts an upload, so it has recovered from the first."""
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    one_state_folder_has_one_coordinator(fleet)
    goes_on(fleet)
    the_coordinator_is_killed_in_the_middle_of_distillation(fleet, coordinator)
    for name in ("flower-superlink", "flwr-serverapp", "fleet_proxy"):
        goes_on(fleet)
        a_part_of_the_coordinator_is_killed(coordinator, name)
    goes_on(fleet)
    an_operator_stops_and_starts_the_coordinator(coordinator)
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)


def one_state_folder_has_one_coordinator(fleet: Fleet) -> None:
    fleet.wait_for(lambda: fleet.events("seed"), "the run's start")
    second = fleet.coordinator("--listen", f"127.0.0.1:{free_port()}", tag="-second")
    assert second.ended(240) == 2
    assert "another fedstill process uses it" in one_line(second)


def the_coordinator_is_killed_in_the_middle_of_distillation(fleet: Fleet, coordinator: Service) -> None:
    coordinator.kill()
    accepted = fleet.uploads()
    coordinator.start()
    goes_on(fleet)
    assert set(accepted) < set(fleet.uploads())


def a_part_of_the_coordinator_is_killed(coordinator: Service, name: str) -> None:
    parts = coordinator.children(name)
    assert parts, f"{name} does not run"
    for process in parts:
        process.kill()


def an_operator_stops_and_starts_the_coordinator(coordinator: Service) -> None:
    assert coordinator.terminate() == 0
    coordinator.start()
