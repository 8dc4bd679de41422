"""What happens to a fleet in the field: processes die, links choke, disks fill, strangers knock.

After each: the run finishes, what was accepted is neither lost nor counted twice, and whoever stopped said why.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from fleet import Fleet, Service
from made_link import ThrottledProxy
from made_runs import TINY, prepared_run

from fedstill.cloud_server.plan import read_plan, write_plan
from fedstill.protos.flower_cli import free_port
from fedstill.simulation.gather import gather_rows
from fedstill.simulation.inprocess import run_inprocess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ARM = "all_distill_select"
ROUNDS = 2
SETTINGS = (
    f"distillation.outer_epochs={ROUNDS}",
    'run.scenarios=["latency_sensitive"]',
    "run.reply_timeout=200",
)
JOBS = [f"latency_sensitive/{ARM}/client{client}/seed0" for client in (0, 1)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same work without a fleet and without a fault; its devices' clips serve all tests."""
    run_dir = prepared_run(tmp_path_factory.mktemp("undisturbed"), SETTINGS)
    write_plan(replace(read_plan(run_dir), arms=(ARM,), teacher_reference=False))
    run_inprocess(run_dir, 2)
    return run_dir


@pytest.fixture
def fleet(undisturbed: Path, tmp_path: Path) -> Iterator[Fleet]:
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY)
    devices = [undisturbed / "devices" / str(client) / "data" for client in (0, 1)]
    options = [
        "--arms",
        ARM,
        "--downlink",
        "exact",
        *(part for setting in SETTINGS for part in ("--set", setting)),
    ]
    with Fleet(tmp_path, experiment, devices, options) as made:
        yield made


def is_whole(fleet: Fleet, undisturbed: Path, *clients: int) -> None:
    """The table is that of an undisturbed run, and every upload was accepted exactly once."""
    expected, found = gather_rows(undisturbed), gather_rows(fleet.state)
    for name in ("rows", "losses", "selection"):
        assert [row for row in found[name] if row.client in clients] == [
            row for row in expected[name] if row.client in clients
        ], name
    wanted = {(JOBS[client], outer_epoch, client): 1 for client in clients for outer_epoch in range(ROUNDS)}
    assert Counter(one for one in fleet.uploads() if one[2] in clients) == wanted


def finishes(fleet: Fleet, coordinator: Service) -> None:
    assert coordinator.ended() == 0, coordinator.said()
    assert "Traceback" not in "".join(service.said() for service in fleet.services)


def busy(agent: Service) -> list[psutil.Process]:
    """The ClientApp that handles a message at this moment."""
    return agent.children("flwr-clientapp")


def training(fleet: Fleet) -> bool:
    """Somewhere in the middle of the jobs: one upload is accepted, not all work is done."""
    return len(fleet.uploads()) >= 1


def test_an_agent_is_killed_in_the_middle_of_an_upload(fleet: Fleet, undisturbed: Path) -> None:
    coordinator, victim = fleet.coordinator(), fleet.agent(0)
    fleet.agent(1)
    fleet.wait_for(lambda: fleet.events("all_distill_epoch") and busy(victim), "a message in hand")
    victim.kill()
    victim.start()
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)


def test_the_clientapp_is_killed_as_by_the_kernel_for_its_memory(fleet: Fleet, undisturbed: Path) -> None:
    coordinator, victim = fleet.coordinator(), fleet.agent(0)
    fleet.agent(1)
    fleet.wait_for(lambda: fleet.events("all_distill_epoch") and busy(victim), "a message in hand")
    for process in busy(victim):
        process.kill()
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)


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


def test_a_device_comes_late_and_the_other_does_not_wait(fleet: Fleet, undisturbed: Path) -> None:
    coordinator = fleet.coordinator()
    fleet.agent(0)
    fleet.wait_for(
        lambda: [job for job in fleet.events("job") if job["client"] == 0], "the early device's job"
    )
    assert not fleet.events("failure")
    fleet.agent(1)
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)


def test_a_device_is_away_for_a_whole_round_and_comes_back(fleet: Fleet, undisturbed: Path) -> None:
    coordinator, away = fleet.coordinator(), fleet.agent(1)
    fleet.agent(0)
    fleet.wait_for(lambda: [one for one in fleet.uploads() if one[2] == 1], "the device's first upload")
    assert away.terminate() == 0
    fleet.wait_for(
        lambda: [job for job in fleet.events("job") if job["client"] == 0], "the other device's job"
    )
    away.start()
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)
    states = {event["state"] for event in fleet.events("device") if event["client"] == 1}
    assert {"connected", "dead", "revived"} <= states


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


def test_a_tampered_student_on_a_device_is_sent_again(fleet: Fleet, undisturbed: Path) -> None:
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    fleet.wait_for(lambda: [one for one in fleet.uploads() if one[2] == 1], "the device's first upload")
    for student in (fleet.agent_state(1) / "students").glob("*.safetensors"):
        content = bytearray(student.read_bytes())
        content[-100:] = bytes(100)
        student.write_bytes(content)
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)


def test_two_agents_with_one_identity(fleet: Fleet, undisturbed: Path) -> None:
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    fleet.wait_for(lambda: len(fleet.events("device")) >= 2, "both devices")
    double = fleet.agent(1, "--patience", "5", state=fleet.folder / "double", tag="-double")
    assert double.ended(120) == 1
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
            assert impostor.ended(120) == 1, impostor.said()
            assert one_line(impostor).startswith("stopped: the coordinator at")
    finishes(fleet, coordinator)
    assert {event["node"] for event in fleet.events("device")} == {
        event["node"] for event in fleet.events("device") if event["state"] in ("connected", "dead")
    }
    is_whole(fleet, undisturbed, 0, 1)


def test_a_revoked_device_is_left_out_and_the_other_is_served(fleet: Fleet, undisturbed: Path) -> None:
    from fedstill.cloud_server.authority import revoke_node

    revoke_node(fleet.certs, fleet.name(1))
    coordinator = fleet.coordinator("--join-timeout", "20")
    revoked = fleet.agent(1, "--patience", "5")
    fleet.agent(0)
    assert revoked.ended(120) == 1
    assert one_line(revoked).startswith("stopped: the coordinator at")
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0)
    assert {row.client for row in gather_rows(fleet.state)["failures"]} == {1}


def test_one_state_folder_has_one_coordinator(fleet: Fleet, undisturbed: Path) -> None:
    coordinator = fleet.coordinator()
    fleet.agent(0), fleet.agent(1)
    fleet.wait_for(lambda: fleet.events("seed"), "the run's start")
    second = fleet.coordinator("--listen", f"127.0.0.1:{free_port()}")
    assert second.ended(60) == 2
    assert "another fedstill process uses it" in one_line(second)
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs, to fill a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_the_disk_of_a_device_is_full(fleet: Fleet, undisturbed: Path, small_disk: Path) -> None:
    """It cannot take part, says so in a line, and the other is served; with room again, it is served as well."""
    coordinator = fleet.coordinator("--join-timeout", "150")
    with (small_disk / "ballast").open("wb") as file:
        fill(file.write)
    agent = fleet.agent(1, state=small_disk / "state")
    fleet.agent(0)
    assert agent.ended(60) == 1
    assert "No space left on device" in one_line(agent)
    (small_disk / "ballast").unlink()
    agent.start()
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)
    assert agent.terminate() == 0


def fill(write: Callable[[bytes], Any]) -> None:
    while True:
        try:
            write(bytes(4096))
        except OSError:
            return


def one_line(service: Service) -> str:
    """What a service said last, which is why it stopped."""
    return service.said().strip().splitlines()[-1]


def test_nothing_is_left_running(fleet: Fleet) -> None:
    """SIGTERM ends the agent, its SuperNode and its ClientApp; killed, the next start ends what is left."""
    agent = fleet.agent(0)
    fleet.wait_for(lambda: agent.children("flower-supernode"), "a SuperNode")
    agent.kill()
    left = json.loads((fleet.agent_state(0) / "supernode.pid").read_text())["pid"]
    assert psutil.pid_exists(left)
    agent.start()
    fleet.wait_for(lambda: not psutil.pid_exists(left) or is_zombie(left), "the end of the orphan")
    fleet.wait_for(lambda: agent.children("flower-supernode"), "a new SuperNode")
    below = psutil.Process(agent.process.pid).children(recursive=True)
    assert agent.terminate() == 0
    time.sleep(0.5)
    assert not [
        process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
