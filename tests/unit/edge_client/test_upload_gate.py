"""Nothing is sent outside the hours of its owner or while a device is paused, whatever the clock does meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from helpers.command import CliRunner

from fedstill.cli.main import app
from fedstill.edge_client.folder import PAUSE_FILE
from fedstill.edge_client.node import agent, supernode
from fedstill.edge_client.node.agent import AgentSettings, run_agent
from fedstill.edge_client.node.supernode import Link, SuperNode
from fedstill.edge_client.node.upload_gate import UploadGate, read_hours

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> float:
    """Seconds since 1970 of a local time."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("22-6", ("22:00", "23:59", "00:00", "05:59"), ("06:00", "12:00", "21:59")),
        ("9-17", ("09:00", "16:59"), ("08:59", "17:00", "00:00")),
        ("12:30-13, 22-6", ("12:30", "12:59", "23:00"), ("12:29", "13:00", "21:59")),
        ("0-24", ("00:00", "12:00", "23:59"), ()),
        ("22-24", ("22:00", "23:59"), ("00:00", "21:59")),
    ],
)
def test_windows(hours: str, inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    found = read_hours(hours)
    assert all(found.hold(at(f"2026-01-15 {moment}")) for moment in inside)
    assert not any(found.hold(at(f"2026-01-15 {moment}")) for moment in outside)


@pytest.mark.parametrize(
    "text", ["", "22", "6-6", "25-3", "1-24:30", "22:60-6", "a-b", "22-6,", "-1-3", "1-2-3"]
)
def test_what_is_no_part_of_a_day_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="write hours such as 22-6") as caught:
        read_hours(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--upload-hours", "6-6", "--upload-hours: '6-6' is no part of a day"),
        ("--new-clips", "7", "--new-clips 7: a share of the clips is at most 1"),
        ("--contact-every", "1441", "--contact-every 1441: at most 1440 minutes, a day"),
        ("--contact-every", "nan", "--contact-every nan: at most 1440 minutes, a day"),
        ("--new-clips", "nan", "--new-clips nan: a share of the clips is at most 1"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_written(
    option: str, value: str, said: str, tmp_path: Path
) -> None:
    found = CliRunner().invoke(
        app,
        ["agent", "--coordinator", "localhost:1", "--data", str(tmp_path), "--state", str(tmp_path / "state"),
         "--insecure", "--client", "0", option, value],
    )  # fmt: skip
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_the_change_of_summer_time_follows_the_clock_on_the_wall(day: str) -> None:
    """In March the hour from 2 is left out; in October it comes twice, and counts both times."""
    hours, began = read_hours("2:30-5"), at(f"{day} 00:00")
    for minute in range(24 * 60):
        now = began + 60 * minute
        wall = datetime.fromtimestamp(now, BERLIN)
        assert hours.hold(now) == (
            timedelta(hours=2, minutes=30) <= since_midnight(wall) < timedelta(hours=5)
        )


def since_midnight(wall: datetime) -> timedelta:
    return timedelta(hours=wall.hour, minutes=wall.minute)


def test_a_gate_says_once_that_it_closes_and_opens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = [at("2026-01-15 23:00")]
    gate = UploadGate(tmp_path, read_hours("22-6"), lambda: now[0])
    seen = []
    for moment in ("23:00", "23:30", "06:00", "06:01", "12:00"):
        now[0] = at(f"2026-01-15 {moment}")
        seen.append(gate.look())
    now[0] = at("1970-01-02 03:00")  # a clock without a battery
    seen.append(gate.look())
    (tmp_path / PAUSE_FILE).touch()
    seen.append(gate.look())
    (tmp_path / PAUSE_FILE).unlink()
    seen.append(gate.look())
    assert seen == [True, True, False, False, False, True, False, True]
    assert caplog.messages == [
        'event=sending_stopped reason="outside the upload hours 22-6"',
        "event=sending_resumed",
        'event=sending_stopped reason="paused by the file pause"',
        "event=sending_resumed",
    ]


class FakeChild:
    """A process that only counts."""

    def __init__(self, name: str, folder: Path) -> None:
        self.log_file, self.pid, self.code, self.starts = folder / f"{name}.log", None, None, 0

    def start(self, *_: object) -> None:
        self.pid, self.starts = 1, self.starts + 1  # type: ignore[assignment]

    def poll(self) -> int | None:
        return self.code

    def stop(self) -> None:
        self.pid = None


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernode, "Child", FakeChild)
    monkeypatch.setattr(supernode, "install_command", lambda folder: None)
    monkeypatch.setattr(supernode, "tool", lambda name: name)
    monkeypatch.setattr(supernode, "environment", lambda home: {"PATH": ""})
    monkeypatch.setattr(supernode, "why_unreachable", lambda *_: "")


@pytest.mark.usefixtures("no_processes")
def test_a_night_of_rest_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(supernode.time, "monotonic", lambda: now[0])
    node = SuperNode(tmp_path, Link("127.0.0.1:1", None, None), 0, "hall", patience=60.0)
    node.reconcile()
    now[0] += 30
    node.rest()
    assert (node._child.pid, node.settled) == (None, False)
    now[0] += 8 * 3600
    node.rest()
    node.reconcile()
    assert node._child.pid is not None
    node._child.code = 1  # type: ignore[attr-defined]
    now[0] += 50
    node.reconcile()  # refused for a moment: the night does not count as trouble
    assert node._child.pid is None


@pytest.mark.usefixtures("no_processes")
def test_the_agent_ends_its_node_while_it_is_closed_and_goes_on_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "TEND_SECONDS", 0.01)
    nodes: list[SuperNode] = []
    monkeypatch.setattr(agent, "SuperNode", lambda *given: nodes.append(SuperNode(*given)) or nodes[-1])
    stop, worked = threading.Event(), []

    def local(stop: threading.Event) -> None:
        while not stop.wait(0.01):
            worked.append(running())

    def running() -> bool:
        return bool(nodes) and nodes[0]._child.pid is not None

    settings = AgentSettings(tmp_path, Link("127.0.0.1:1", None, None), 0, "hall")
    thread = threading.Thread(target=run_agent, args=(settings, [local], stop))
    thread.start()
    try:
        until(running)
        (tmp_path / PAUSE_FILE).touch()
        until(lambda: not running())
        before = len(worked)
        until(lambda: len(worked) > before + 5)
        assert not running()
        (tmp_path / PAUSE_FILE).unlink()
        until(running)
        assert nodes[0]._child.starts == 2  # type: ignore[attr-defined]
    finally:
        stop.set()
        thread.join(30)


def until(condition: object) -> None:
    limit = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < limit
        time.sleep(0.01)
