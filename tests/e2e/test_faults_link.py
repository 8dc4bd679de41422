"""Links slow down and break, and unregistered nodes try to connect: refused in one line, and the fleet goes on."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from helpers.faults import finishes, is_whole, one_line
from helpers.fleet import Fleet
from helpers.link import ThrottledProxy

from fedstill.simulation.gather import gather_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_link_of_20_kilobytes_per_second_that_breaks(fleet: Fleet, undisturbed: Path) -> None:
    coordinator = fleet.coordinator()
    fleet.agent(0)
    with ThrottledProxy(("127.0.0.1", fleet.port), bytes_per_second=20_000, delay=0.1) as link:
        fleet.agent(1, port=link.port)
        fleet.wait_for(
            lambda: [one for one in fleet.uploads() if one[2] == 1], "the slow device's first upload"
        )
        link.cut()
        time.sleep(5)
        link.restore()
        finishes(fleet, coordinator)
        assert link.carried > 20_000
    is_whole(fleet, undisturbed, 0, 1)


def test_two_agents_with_one_identity(fleet: Fleet, undisturbed: Path) -> None:
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    fleet.wait_for(lambda: len(fleet.events("device")) >= 2, "both devices")
    double = fleet.agent(1, "--patience", "5", state=fleet.folder / "double", tag="-double")
    assert double.ended(240) == 1
    assert one_line(double).startswith("stopped: the coordinator at")
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)


def test_a_forged_authority_and_a_stranger_are_refused(fleet: Fleet, undisturbed: Path) -> None:
    """A node of another authority does not trust our server; one that only learnt our CA has no registered key."""
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    theirs = fleet.folder / "theirs"
    with Fleet(theirs, fleet.experiment, fleet.devices) as others:
        others.port = fleet.port
        forger = others.agent(0, "--patience", "5")
        shutil.copy(fleet.certs / "ca.crt", others.certs / "nodes" / "device-1" / "ca.crt")
        stranger = others.agent(1, "--patience", "5")
        for impostor in (forger, stranger):
            assert impostor.ended(240) == 1, impostor.said()
            assert one_line(impostor).startswith("stopped: the coordinator at")
    finishes(fleet, coordinator)
    assert {event["node"] for event in fleet.events("device")} == {
        event["node"] for event in fleet.events("device") if event["state"] in ("connected", "dead")
    }
    is_whole(fleet, undisturbed, 0, 1)


def test_a_revoked_device_is_left_out_and_the_other_is_served(fleet: Fleet, undisturbed: Path) -> None:
    from fedstill.cloud_server.auth.authority import revoke_node

    revoke_node(fleet.certs, fleet.name(1))
    coordinator = fleet.coordinator("--join-timeout", "90")
    revoked = fleet.agent(1, "--patience", "5")
    fleet.agent(0)
    assert revoked.ended(240) == 1
    assert one_line(revoked).startswith("stopped: the coordinator at")
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0)
    assert {row.client for row in gather_rows(fleet.state)["failures"]} == {1}
