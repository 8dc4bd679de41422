"""Devices die, come late, go away, run out of disk, or find their files tampered with; other devices are not
affected."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.faults import busy, finishes, is_whole, one_line
from helpers.fleet import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


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
    coordinator = fleet.coordinator("--join-timeout", "400")
    fleet.equip(small_disk / "state")
    with (small_disk / "ballast").open("wb", buffering=0) as file:
        fill(file.write)
    agent = fleet.agent(1, state=small_disk / "state")
    fleet.agent(0)
    assert agent.ended(240) == 1
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
