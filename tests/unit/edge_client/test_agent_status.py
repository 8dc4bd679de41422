"""What ``fedstill agent status`` says is what the device's folder holds, and whether an agent uses it."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.command import CliRunner
from helpers.inference import wait_until

from fedstill.cli.main import app
from fedstill.common.errors import ConfigError
from fedstill.common.folder_lock import sole_user
from fedstill.edge_client.folder import CLIPS_FILE, KEEP_FILE, LINK_FILE, PAUSE_FILE, SHELF_FOLDER
from fedstill.edge_client.link import link_note
from fedstill.edge_client.link.link_note import CLOSED, CONNECTED, CONNECTING, RESTING, LinkNotes, read_link
from fedstill.edge_client.link.monthly_bytes import MonthlyBytes, month_of
from fedstill.edge_client.node import agent
from fedstill.edge_client.node.agent import AgentSettings, run_agent
from fedstill.edge_client.node.supernode import Link
from fedstill.edge_client.owner.agent_status import in_words, read_status
from fedstill.edge_client.privacy.privacy_policy import POLICY_FILE, PrivacyPolicy
from fedstill.edge_client.privacy.upload_log import LOG_FILE
from fedstill.edge_client.privacy.yearly_budget import spend_one
from fedstill.edge_client.students.expected import Expected, keep_expected
from fedstill.edge_client.students.pointer import POINTER, student_file

VERSION = "ab" * 32


@pytest.fixture
def device(tmp_path: Path) -> Path:
    (tmp_path / CLIPS_FILE).write_text("{}")
    return tmp_path


def words(device: Path) -> dict[str, str]:
    return dict(in_words(read_status(device)))


def test_a_device_that_has_just_begun(device: Path) -> None:
    assert words(device) == {
        "agent": "not running",
        "student": "none yet",
        "clips": "nothing was asked about them yet",
        "sent": "0 answers, 0 bytes",
        "privacy": "at most mean class probabilities of all clips, how sure the student is, and how they were "
        "recorded; 0 of 52 personalisations in 365 days",
    }
    assert {path.name for path in device.iterdir()} == {CLIPS_FILE}, "nothing is written"


def test_a_device_that_has_lived(device: Path) -> None:
    (device / SHELF_FOLDER).mkdir()
    (device / SHELF_FOLDER / POINTER).write_text(json.dumps({"current": VERSION, "previous": ""}))
    os.utime(device / SHELF_FOLDER / POINTER, (1e9, 1e9))
    student_file(device / SHELF_FOLDER, VERSION).touch()
    (device / KEEP_FILE).touch()
    lines = [{"time": 1e9 + number, "what": f"answer {number}", "bytes": 10} for number in range(3)]
    (device / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    spend_one(device, PrivacyPolicy(), "job")
    found, told = read_status(device), words(device)
    assert (found["student"]["version"], found["student"]["since"], found["student"]["kept"]) == (
        VERSION,
        1e9,
        True,
    )
    assert found["sent"] == {"answers": 3, "bytes": 30, "last": "answer 2", "at": 1e9 + 2}
    assert told["student"].startswith("abababababab, ")
    assert found["student"]["expected"] is None
    keep_expected(device, device / SHELF_FOLDER, VERSION, Expected(0.8, 0.75, 0.86))
    assert read_status(device)["student"]["expected"] == {"accuracy": 0.8, "low": 0.75, "high": 0.86}
    assert "; expected to be right in 80 % (75 % to 86 %); stays" in words(device)["student"]
    assert told["student"].endswith("stays, because the file keep-student is there")
    assert told["sent"].endswith(": answer 2")
    assert "1 of 52 personalisations" in told["privacy"]
    (device / POLICY_FILE).write_text("{")
    assert words(device)["privacy"].startswith("privacy.json: cannot be read")


def test_the_bytes_of_a_metered_link_are_told(device: Path) -> None:
    assert read_status(device)["metered"] is None
    budget = MonthlyBytes(device, 50_000_000)
    budget.count(12_340_000)
    budget.save()
    assert words(device)["link"] == f"12.3 MB moved in {month_of(time.time())}"


def test_the_link_is_told_while_an_agent_runs(device: Path) -> None:
    notes = LinkNotes(device)
    notes.look(False, False, "", "a reason")
    assert "coordinator" not in words(device), "what an agent that has ended wrote is old"
    with sole_user(device):
        assert read_status(device)["running"]
        for given, state, reason in (
            ((False, False, "", "it was refused"), CONNECTING, "it was refused"),
            ((True, False, "", "old"), CONNECTED, ""),
            ((False, True, "", "old"), RESTING, ""),
            ((True, False, "paused by the file pause", ""), CLOSED, "paused by the file pause"),
        ):
            notes.look(*given)
            link = read_status(device)["link"]
            assert (link["state"], link["reason"]) == (state, reason)
            assert words(device)["coordinator"].startswith(state)
            assert words(device)["coordinator"].endswith(reason)


def test_a_note_is_written_when_something_changes_and_a_full_disk_ends_nothing(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = LinkNotes(device)
    notes.look(True, False, "", "")
    before = (device / LINK_FILE).stat().st_mtime_ns
    notes.look(True, False, "", "")
    assert (device / LINK_FILE).stat().st_mtime_ns == before

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(link_note, "replace_file", full)
        notes.look(False, True, "", "")
    notes.look(False, True, "", "")
    found = read_link(device)
    assert found is not None
    assert found.state == RESTING, "it is written as soon as there is room"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"state": "x"}', '{"state": "x", "reason": "", "since": "y"}']
)
def test_a_damaged_note_is_none(content: str, device: Path) -> None:
    (device / LINK_FILE).write_text(content)
    with sole_user(device):
        assert read_status(device)["link"] is None


class FakeNode:
    """Refused for ever."""

    settled, idle, started, trouble = False, 0.0, 0.0, "this device was revoked"

    def __init__(self, *_: object) -> None: ...

    def reconcile(self) -> None: ...

    def rest(self) -> None: ...

    stop = rest


def test_the_agent_says_how_its_link_is(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "TEND_SECONDS", 0.01)
    monkeypatch.setattr(agent, "SuperNode", FakeNode)
    stop = threading.Event()
    settings = AgentSettings(device, Link("127.0.0.1:1", None, None), 0, "hall")
    thread = threading.Thread(target=run_agent, args=(settings, [], stop))
    thread.start()

    def link() -> Any:
        return read_status(device)["link"] or {}

    try:
        wait_until(lambda: link().get("reason") == "this device was revoked")
        (device / PAUSE_FILE).touch()
        wait_until(lambda: link().get("state") == CLOSED)
    finally:
        stop.set()
        thread.join()
    assert not read_status(device)["running"]


def test_the_command(device: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["agent", "status", "--state", str(device)])
    assert done.exit_code == 0
    assert done.output.splitlines()[:2] == ["agent       not running", "student     none yet"]
    document = json.loads(runner.invoke(app, ["agent", "status", "--state", str(device), "--json"]).output)
    assert document == read_status(device)
    wrong = runner.invoke(app, ["agent", "status", "--state", str(tmp_path / "absent")])
    assert (wrong.exit_code, "not an agent's folder" in wrong.output) == (2, True)
    with pytest.raises(ConfigError):
        read_status(tmp_path / "absent")


def test_times_and_numbers_that_cannot_be_are_no_traceback(device: Path) -> None:
    (device / LOG_FILE).write_text(
        '{"time": 1e300, "what": "x", "bytes": 1}\n{"time": 1, "what": "y", "bytes": Infinity}\n'
    )
    assert "at an unknown time" in words(device)["sent"]
    (device / LINK_FILE).write_text(json.dumps({"state": CONNECTED, "reason": "", "since": 10**400}))
    assert read_link(device) is None
