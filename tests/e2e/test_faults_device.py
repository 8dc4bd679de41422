"""Devices die, come late, go away, run out of disk, or find their files tampered with; other devices are not
affected."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.faults import at_work, busy, finishes, is_whole, jobs_of, one_line, uploads_of
from helpers.fleet import Fleet, Service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A folder on a disk of one megabyte; None without the right to mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_devices_that_die_come_late_and_go_away(
    fleet: Fleet, undisturbed: Path, small_disk: Path | None
) -> None:
    """Device 0 suffers while device 1 has no room and comes late, and goes away while device 1 works."""
    coordinator, first = fleet.coordinator(), fleet.agent(0)
    second = None if small_disk is None else the_disk_of_a_device_is_full(fleet, small_disk)
    an_agent_is_killed_in_the_middle_of_an_upload(fleet, first)
    the_clientapp_is_killed_as_by_the_kernel_for_its_memory(fleet, first)
    second = a_device_comes_late_and_the_other_does_not_wait(fleet, second)
    a_device_is_away_for_a_whole_round_and_comes_back(fleet, first, second)
    finishes(fleet, coordinator)
    is_whole(fleet, undisturbed, 0, 1)
    assert second.terminate() == 0
    if small_disk is None:
        pytest.skip("all but the full disk: that needs the right to mount a small tmpfs")


def the_disk_of_a_device_is_full(fleet: Fleet, small_disk: Path) -> Service:
    """It cannot take part and says so in a line; with room again, it is served (as the device that comes late)."""
    fleet.equip(small_disk / "state")
    with (small_disk / "ballast").open("wb", buffering=0) as file:
        fill(file.write)
    agent = fleet.agent(1, state=small_disk / "state")
    assert agent.ended(240) == 1
    assert "No space left on device" in one_line(agent)
    (small_disk / "ballast").unlink()
    return agent


def fill(write: Callable[[bytes], Any]) -> None:
    while True:
        try:
            write(bytes(4096))
        except OSError:
            return


def an_agent_is_killed_in_the_middle_of_an_upload(fleet: Fleet, victim: Service) -> None:
    fleet.wait_for(lambda: fleet.events("all_distill_epoch") and busy(victim), "a message in hand")
    assert jobs_of(fleet, 0) == 0
    victim.kill()
    victim.start()


def the_clientapp_is_killed_as_by_the_kernel_for_its_memory(fleet: Fleet, victim: Service) -> None:
    before = uploads_of(fleet, 0)
    fleet.wait_for(lambda: uploads_of(fleet, 0) > before and at_work(victim), "a message in hand")
    assert jobs_of(fleet, 0) == 0
    commands, work = busy(victim), at_work(victim)
    for process in commands:
        process.kill()
    fleet.wait_for(lambda: not any(process.is_running() for process in work), "the end of the work")


def a_device_comes_late_and_the_other_does_not_wait(fleet: Fleet, late: Service | None) -> Service:
    fleet.wait_for(lambda: jobs_of(fleet, 0) == 1, "the early device's job")
    assert not fleet.events("failure")
    if late is None:
        return fleet.agent(1)
    late.start()
    return late


def a_device_is_away_for_a_whole_round_and_comes_back(fleet: Fleet, away: Service, other: Service) -> None:
    before = uploads_of(fleet, 0)
    fleet.wait_for(lambda: uploads_of(fleet, 0) > before, "the device's upload")
    known = len(fleet.events("device"))
    assert away.terminate() == 0
    a_tampered_student_on_a_device_is_sent_again(fleet, other)
    fleet.wait_for(lambda: jobs_of(fleet, 1) == 1, "the other device's job")
    assert jobs_of(fleet, 0) == 1
    away.start()
    fleet.wait_for(lambda: jobs_of(fleet, 0) == 2, "the device's job after it came back")
    states = [event["state"] for event in fleet.events("device")[known:] if event["client"] == 0]
    assert {"dead", "revived"} <= set(states), states


def a_tampered_student_on_a_device_is_sent_again(fleet: Fleet, agent: Service) -> None:
    fleet.wait_for(lambda: uploads_of(fleet, 1), "the device's first upload")
    state = Path(agent.command[agent.command.index("--state") + 1])
    students = list((state / "students").glob("*.safetensors"))
    assert students
    for student in students:
        content = bytearray(student.read_bytes())
        content[-100:] = bytes(100)
        student.write_bytes(content)


def test_nothing_is_left_running(fleet: Fleet) -> None:
    """SIGTERM ends the agent, its SuperNode and its ClientApp; killed, the next start ends what is left."""
    with somebody_at(fleet.port):
        ends_all_that_it_started(fleet)


@contextmanager
def somebody_at(port: int) -> Iterator[None]:
    """Who answers there, though no coordinator: an agent that finds nobody starts no SuperNode."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.recv(4096)
                self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", port), Answer) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def ends_all_that_it_started(fleet: Fleet) -> None:
    agent, noted = fleet.agent(0), fleet.agent_state(0) / "supernode.pid"
    fleet.wait_for(lambda: noted.exists() and agent.children("flower-supernode"), "a SuperNode")
    agent.kill()
    left = json.loads(noted.read_text())["pid"]
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
