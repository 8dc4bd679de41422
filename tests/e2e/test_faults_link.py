"""Links slow down and break, and unregistered nodes try to connect: refused in one line, and the fleet goes on."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from helpers.faults import finishes, is_whole, one_line, uploads_of
from helpers.fleet import Fleet, Service
from helpers.link import ThrottledProxy

from fedstill.cloud_server.auth.authority import issue_node, revoke_node
from fedstill.simulation.gather import gather_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

REVOKED = 2
ONE = ["latency_sensitive"]
"""Enough work for what happens here; the other fault tests do both scenarios."""


def test_a_choked_link_and_guests_that_nobody_invited(fleet: Fleet, undisturbed: Path) -> None:
    """Device 1 hangs on the bad link, device 2 is revoked, and meanwhile everybody else is turned away."""
    fleet.devices = [*fleet.devices, fleet.devices[1]]
    issue_node(fleet.certs, fleet.name(REVOKED))
    revoke_node(fleet.certs, fleet.name(REVOKED))
    coordinator = fleet.coordinator("--join-timeout", "90", "--set", f"run.scenarios={json.dumps(ONE)}")
    fleet.agent(0)
    with ThrottledProxy(("127.0.0.1", fleet.port), bytes_per_second=20_000, delay=0.1) as link:
        fleet.agent(1, port=link.port)
        revoked = fleet.agent(REVOKED, "--patience", "5")
        fleet.wait_for(lambda: len(fleet.events("device")) >= 2, "both devices")
        refused(revoked)
        two_agents_with_one_identity(fleet)
        a_forged_authority_and_a_stranger_are_refused(fleet)
        a_link_of_20_kilobytes_per_second_that_breaks(fleet, link)
        finishes(fleet, coordinator)
        assert link.carried > 20_000
    assert {event["node"] for event in fleet.events("device")} == {
        event["node"] for event in fleet.events("device") if event["state"] in ("connected", "dead")
    }
    is_whole(fleet, undisturbed, 0, 1, scenarios=ONE)
    a_revoked_device_is_left_out_and_the_others_are_served(fleet)


def two_agents_with_one_identity(fleet: Fleet) -> None:
    refused(fleet.agent(1, "--patience", "5", state=fleet.folder / "double", tag="-double"))


def a_forged_authority_and_a_stranger_are_refused(fleet: Fleet) -> None:
    """A node of another authority does not trust our server; one that only learnt our CA has no registered key."""
    theirs = fleet.folder / "theirs"
    theirs.mkdir()
    with Fleet(theirs, fleet.experiment, fleet.devices, export=fleet.export) as others:
        others.port = fleet.port
        forger = others.agent(0, "--patience", "5")
        shutil.copy(fleet.certs / "ca.crt", others.certs / "nodes" / "device-1" / "ca.crt")
        stranger = others.agent(1, "--patience", "5")
        refused(forger)
        refused(stranger)


def refused(agent: Service) -> None:
    assert agent.ended(240) == 1, agent.said()
    assert one_line(agent).startswith("stopped: the coordinator at")


def a_link_of_20_kilobytes_per_second_that_breaks(fleet: Fleet, link: ThrottledProxy) -> None:
    fleet.wait_for(lambda: uploads_of(fleet, 1), "the slow device's first upload")
    link.cut()
    time.sleep(5)
    link.restore()


def a_revoked_device_is_left_out_and_the_others_are_served(fleet: Fleet) -> None:
    assert {row.client for row in gather_rows(fleet.state)["failures"]} == {REVOKED}
