"""Parts of the cloud die, are stopped, or are started twice; the run continues where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.faults import finishes, is_whole, one_line, training
from helpers.fleet import Fleet

from fedstill.common.flower_cli import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_the_coordinator_is_killed_in_the_middle_of_distillation(fleet: Fleet, undisturbed: Path) -> None:
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    fleet.wait_for(lambda: training(fleet), "an accepted upload")
    coordinator.kill()
    accepted = fleet.uploads()
    coordinator.start()
    finishes(fleet, coordinator)
    assert set(accepted) <= set(fleet.uploads())
    is_whole(fleet, undisturbed, 0, 1)


@pytest.mark.parametrize("name", ["flower-superlink", "flwr-serverapp", "fleet_proxy"])
def test_a_part_of_the_coordinator_is_killed(name: str, fleet: Fleet, undisturbed: Path) -> None:
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    fleet.wait_for(lambda: training(fleet), "an accepted upload")
    for process in coordinator.children(name):
        process.kill()
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)


def test_an_operator_stops_and_starts_the_coordinator(fleet: Fleet, undisturbed: Path) -> None:
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    fleet.wait_for(lambda: training(fleet), "an accepted upload")
    assert coordinator.terminate() == 0
    coordinator.start()
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)


def test_one_state_folder_has_one_coordinator(fleet: Fleet, undisturbed: Path) -> None:
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    fleet.wait_for(lambda: fleet.events("seed"), "the run's start")
    second = fleet.coordinator("--listen", f"127.0.0.1:{free_port()}")
    assert second.ended(240) == 2
    assert "another fedstill process uses it" in one_line(second)
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)
