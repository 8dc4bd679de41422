"""A service lives: real processes over TLS, devices that come late, lose their files, are replaced and asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_files import add_bad_clips, write_good_clips
from helpers.fleet import Fleet, Service
from helpers.runs import TINY

from fedstill.cloud_server.auth.authority import issue_node, revoke_node, tag_node
from fedstill.cloud_server.journal.fleet_state import read_fleet
from fedstill.common.flower_cli import free_port, tool
from fedstill.edge_client.folder import EXPORT_FOLDER
from fedstill.edge_client.link.monthly_bytes import read_months

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SET = ("--set", "downlink.minimum_agreement=0", "--set", "run.reply_timeout=400")
"""A student of one epoch agrees with nobody."""


def test_a_service_gives_every_device_its_student_whenever_it_needs_one(
    undisturbed: Path, tmp_path: Path
) -> None:
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY)
    devices = [undisturbed / "devices" / str(client) / "data" for client in (0, 1)]
    own_files = write_good_clips(tmp_path / "clips", 20)
    bad = add_bad_clips(own_files)
    devices[1] = own_files
    with Fleet(tmp_path, experiment, devices, SET, devices[0].parent / EXPORT_FOLDER) as fleet:
        tag_node(fleet.certs, fleet.name(0), ["hall"])
        port = free_port()
        coordinator = fleet.coordinator("--metrics", f"127.0.0.1:{port}", once=False)
        first = fleet.agent(0)
        is_served(fleet, 0, 0, "new device")
        assert row(fleet, 1)["link"] == "never online"

        # nobody has waited for it, and it is served all the same, also through the relay of a metered link
        second = fleet.agent(1, "--monthly-bytes", "1GB")
        is_served(fleet, 1, 0, "new device")
        tells_its_bad_clips(fleet, second, bad)

        assert first.terminate() == 0
        shutil.rmtree(fleet.agent_state(0))  # a new SD card
        first = fleet.agent(0, tag="-new-card")
        is_served(fleet, 0, 1, "lost its student")

        assert second.terminate() == 0
        moved = sum(read_months(fleet.agent_state(1)).values())
        told = row(fleet, 1)
        assert (
            moved
            > told["wire_up_bytes"] + told["wire_down_bytes"]
            > told["up_bytes"] + told["down_bytes"]
            > 0
        )
        revoke_node(fleet.certs, fleet.name(1))
        issue_node(fleet.certs, "device-1b", client=1)
        second = replacement(fleet)
        is_served(fleet, 1, 1, "device replaced")

        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
        assert 'fedstill_device_served{device="device-0"} 1.0' in page
        command("fleet", "backup", "--state", str(fleet.state), str(tmp_path / "fleet.tar"))

        coordinator.kill()
        coordinator.start()
        asked = command("fleet", "personalise", "--tag", "hall", "--state", str(fleet.state))
        assert asked == "asked for a new student for 1 device\n"
        is_served(fleet, 0, 2, "asked for")
        fleet.wait_for(lambda: row(fleet, 1)["link"] == "online", "the other device is there again")
        assert row(fleet, 1)["visit"]["visit"] == 1, "a restart serves nobody twice"

        assert coordinator.terminate() == 0
        assert read_fleet(fleet.state)["run"] == "stopped"
        assert row(fleet, 0)["link"] == "unknown"
        for agent in (first, second):
            assert agent.terminate() == 0, agent.said()
        assert "Traceback" not in "".join(service.said() for service in fleet.services)
        command("fleet", "restore", str(tmp_path / "fleet.tar"), "--state", str(tmp_path / "again"))
        kept = read_fleet(tmp_path / "again")["devices"]
        assert [one["visit"]["cause"] for one in kept] == ["lost its student", "device replaced"]
        told = command("fleet", "events", "--state", str(fleet.state))
    for line in ("device-0 is being personalised (new device)", "device-1b uses its new student"):
        assert line in told


def row(fleet: Fleet, client: int) -> dict[str, Any]:
    return dict(read_fleet(fleet.state)["devices"][client])


def is_served(fleet: Fleet, client: int, visit: int, cause: str) -> None:
    def done() -> bool:
        if not (fleet.state / "plan.json").exists() or client >= read_fleet(fleet.state)["clients"]:
            return False
        found = row(fleet, client)["visit"]
        return bool(found) and (found["visit"], found["outcome"]) == (visit, "served")

    fleet.wait_for(done, f"client {client} is served for the {visit + 1}. time")
    assert row(fleet, client)["visit"]["cause"] == cause


def tells_its_bad_clips(fleet: Fleet, agent: Service, faults: Mapping[str, str]) -> None:
    """The operator reads how many of which kind, the owner which, once each."""
    assert row(fleet, 1)["bad_clips"] == dict(Counter(faults.values()))
    told = command("status", "--state", str(fleet.state))
    assert "device-1: 10 clips left out: file not found (1), a folder" in told
    fleet.wait_for(lambda: agent.said().count("event=bad_clip") == len(faults), "the agent names them")
    for clip_id in faults:
        assert agent.said().count(f'clip="{clip_id}" ') == 1
    assert not fleet.events("failure")


def replacement(fleet: Fleet) -> Service:
    """Another device in the place of device-1."""
    state = fleet.folder / "agent1b"
    fleet.equip(state)
    return fleet.start(
        "agent1b", "agent", "--coordinator", f"127.0.0.1:{fleet.port}",
        "--credentials", str(fleet.certs / "nodes" / "device-1b"), "--data", str(fleet.devices[0]),
        "--state", str(state),
    )  # fmt: skip


def command(*arguments: str) -> str:
    return subprocess.run([tool("fedstill"), *arguments], capture_output=True, text=True, check=True).stdout


def test_status_loads_nothing_heavy(undisturbed: Path) -> None:
    code = (
        "import sys\nfrom fedstill.cli.main import app\n"
        f"sys.argv = ['fedstill', 'status', '--state', {str(undisturbed)!r}]\n"
        "try: app()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'sqlalchemy', 'scipy', 'flwr', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
