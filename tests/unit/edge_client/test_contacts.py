"""A device that pauses between contacts misses nothing that is meant for it, and is not taken for a lost one."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from fedstill.edge_client.folder import BEGUN_FILE, KNOWN_CLIPS_FILE, SHELF_FOLDER
from fedstill.edge_client.node import agent
from fedstill.edge_client.node.agent import AgentSettings, run_agent
from fedstill.edge_client.node.supernode import Link
from fedstill.edge_client.node.upload_gate import LONGEST_VISIT, QUIET_SECONDS, SPREAD, Contacts
from fedstill.edge_client.students.pointer import POINTER, student_file

VERSION = "a" * 64
PAUSE = 1800.0
YEAR = 365 * 86_400.0


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """With a student that is an hour younger than the summary for it."""
    shelf = tmp_path / SHELF_FOLDER
    shelf.mkdir()
    (shelf / POINTER).write_text(f'{{"current": "{VERSION}", "previous": ""}}')
    student_file(shelf, VERSION).touch()
    told(tmp_path, 3600)
    return tmp_path


def told(folder: Path, ago: float) -> None:
    """It told about its clips so many seconds ago."""
    (folder / KNOWN_CLIPS_FILE).touch()
    os.utime(folder / KNOWN_CLIPS_FILE, (time.time() - ago,) * 2)


def test_it_pauses_when_all_is_quiet_and_comes_back(device: Path) -> None:
    now = [500.0]
    contacts = Contacts(device, PAUSE, lambda: now[0])
    assert contacts.look(QUIET_SECONDS - 1)
    assert not contacts.look(QUIET_SECONDS)
    for moment in (501.0, 500 + PAUSE * (1 - SPREAD) - 1):
        now[0] = moment
        assert (contacts.look(0.0), contacts.resting) == (False, True)
    now[0] = 500 + PAUSE * (1 + SPREAD)
    assert (contacts.look(0.0), contacts.resting) == (True, False)
    assert contacts.look(0.0), "it stays until the coordinator has spoken to it"
    assert not contacts.look(QUIET_SECONDS)


def test_devices_that_began_together_do_not_come_back_together(device: Path) -> None:
    """After a power cut, say, thirty devices would meet one coordinator in the same second for ever."""
    now = [0.0]
    fleet = [Contacts(device, PAUSE, lambda: now[0]) for _ in range(30)]
    assert not any(one.look(QUIET_SECONDS) for one in fleet)
    back: dict[int, float] = {}
    while len(back) < len(fleet) and now[0] < 2 * PAUSE:
        now[0] += PAUSE / 100
        for number, one in enumerate(fleet):
            if number not in back and one.look(0.0):
                back[number] = now[0]
    assert max(back.values()) - min(back.values()) > SPREAD * PAUSE
    assert abs(sum(back.values()) / len(back) - PAUSE) < SPREAD * PAUSE / 2, "the owner's pause, on average"


def test_without_a_pause_it_stays(device: Path) -> None:
    assert Contacts(device, 0.0).look(1e6)


def test_it_waits_for_its_first_student(device: Path) -> None:
    (device / SHELF_FOLDER / POINTER).unlink()
    assert Contacts(device, PAUSE).look(1e6)


@pytest.mark.parametrize(
    ("student_ago", "summary_ago", "stays"),
    [
        (600, 60, True),
        (60, 600, False),
        (2 * LONGEST_VISIT, LONGEST_VISIT + 60, False),
        (600, -YEAR, False),  # it told while its clock was ahead, and would be connected for a year
        (-YEAR, 60, True),  # it got a student then, and would leave while one is made
        (-YEAR, -YEAR - 60, False),
    ],
)
def test_it_waits_for_the_student_that_is_being_made(
    student_ago: float, summary_ago: float, stays: bool, device: Path
) -> None:
    os.utime(device / SHELF_FOLDER / POINTER, (time.time() - student_ago,) * 2)
    told(device, summary_ago)
    assert Contacts(device, PAUSE).look(1e6) is stays


@pytest.mark.parametrize(
    ("student_ago", "begun_ago", "stays"),
    [(600, 60, True), (60, 600, False), (2 * LONGEST_VISIT, LONGEST_VISIT + 60, False), (600, -YEAR, False)],
)
def test_it_waits_once_it_was_told_that_a_student_is_being_made(
    student_ago: float, begun_ago: float, stays: bool, device: Path
) -> None:
    """What it has told once is not asked again, and the student may take longer than it is quiet."""
    told(device, 3 * LONGEST_VISIT)
    os.utime(device / SHELF_FOLDER / POINTER, (time.time() - student_ago,) * 2)
    assert not Contacts(device, PAUSE).look(1e6)
    (device / BEGUN_FILE).touch()
    os.utime(device / BEGUN_FILE, (time.time() - begun_ago,) * 2)
    assert Contacts(device, PAUSE).look(1e6) is stays


def test_a_link_to_itself_is_no_note_and_ends_nothing(device: Path) -> None:
    (device / KNOWN_CLIPS_FILE).unlink()
    (device / KNOWN_CLIPS_FILE).symlink_to(KNOWN_CLIPS_FILE)
    assert not Contacts(device, PAUSE).look(1e6)


class FakeNode:
    """In the fleet while it runs, and idle at once."""

    def __init__(self, *_: object) -> None:
        self.starts, self.runs, self.started = 0, False, 0.0

    def reconcile(self) -> None:
        self.starts += not self.runs
        self.runs = True

    def rest(self) -> None:
        self.runs = False

    stop = rest

    trouble = ""

    @property
    def settled(self) -> bool:
        return self.runs

    @property
    def idle(self) -> float:
        return QUIET_SECONDS if self.runs else 0.0


def test_the_agent_ends_its_node_between_contacts_and_calls_itself_well(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes: list[FakeNode] = []
    monkeypatch.setattr(agent, "TEND_SECONDS", 0.01)
    monkeypatch.setattr(agent, "SuperNode", lambda *_: nodes.append(FakeNode()) or nodes[-1])
    stop, seen = threading.Event(), []

    def listen(well: bool) -> None:
        seen.append((nodes[0].runs, well))
        if nodes[0].starts == 3:
            stop.set()

    settings = AgentSettings(device, Link("127.0.0.1:1", None, None), 0, "hall", pause=0.05)
    run_agent(settings, [], stop, [listen])
    assert set(seen) == {(True, True), (False, True)}
