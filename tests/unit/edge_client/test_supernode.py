"""A node is given up after lasting trouble only, and what counts is the time since it was last well."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.auth.authority_files import certificates_pem
from fedstill.cloud_server.auth.certificates import make_root
from fedstill.common.trusted_roots import keep_roots
from fedstill.edge_client.node import supernode
from fedstill.edge_client.node.supernode import (
    LONGEST_AWAY_PAUSE,
    LONGEST_PAUSE,
    LONGEST_REFUSED_PAUSE,
    LOST,
    SETTLED_SECONDS,
    SILENT_SECONDS,
    STARTING_SECONDS,
    SURE_SECONDS,
    WARM_SECONDS,
    Link,
    NodeRefused,
    SuperNode,
    exit_reason,
)

PATIENCE = 180.0


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


LET_IN = "INFO :      SuperNode ID: 7\n"


class FakeChild:
    """Runs until somebody sets ``code``, and is let in if ``welcome``."""

    welcome = True

    def __init__(self, name: str, folder: Path) -> None:
        self.log_file, self.pid, self.code = folder / f"{name}.log", None, None
        self.starts = 0

    def start(self, *arguments: object) -> None:
        self.pid, self.code, self.starts = 1, None, self.starts + 1  # type: ignore[assignment]
        if self.welcome and self.log_file.stem == "supernode":
            with self.log_file.open("a") as log:
                log.write(LET_IN)

    def poll(self) -> int | None:
        return self.code

    def log_tail(self) -> str:
        return "no output"

    def stop(self) -> None:
        self.pid = None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supernode, "time", clock)
    monkeypatch.setattr(supernode, "Child", FakeChild)
    monkeypatch.setattr(supernode, "install_command", lambda folder: None)
    monkeypatch.setattr(supernode, "tool", lambda name: name)
    monkeypatch.setattr(supernode, "environment", lambda home: {"PATH": ""})
    monkeypatch.setattr(supernode, "why_unreachable", lambda *_: "")
    return clock


def node(folder: Path) -> SuperNode:
    return SuperNode(folder, Link("127.0.0.1:1", None, None), 0, "hall", PATIENCE)


def run(tended: SuperNode, clock: Clock, seconds: float, code: int | None = None) -> None:
    """Let time pass, a second at a time; with ``code`` every process ends at once."""
    for _ in range(int(seconds)):
        if code is not None and tended._child.pid is not None:
            tended._child.code = code  # type: ignore[attr-defined]
        tended.reconcile()
        clock.now += 1


@pytest.mark.parametrize("hours", [0.01, 0.1, 1.0, 100.0])
def test_a_loss_after_a_long_time_is_no_refusal(hours: float, clock: Clock, tmp_path: Path) -> None:
    tended = node(tmp_path)
    tended.reconcile()
    clock.now += SETTLED_SECONDS + 1
    tended.reconcile()
    clock.now += 3600 * hours
    tended.reconcile()
    run(tended, clock, PATIENCE / 2, code=1)
    before = tended._child.starts  # type: ignore[attr-defined]
    assert tended.trouble
    run(tended, clock, 60)
    assert tended._child.starts >= before > 1  # type: ignore[attr-defined]
    assert tended.trouble == "", "all is well again"


def test_a_lasting_refusal_is_final_and_says_how_long_it_was_tried(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeChild, "welcome", False)
    tended = node(tmp_path)
    with pytest.raises(NodeRefused, match=r"1[89][0-9] s: it said nothing"):
        run(tended, clock, 10 * PATIENCE, code=1)


def test_an_agent_that_answers_clips_outlasts_a_refusal_and_tries_less_often(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeChild, "welcome", False)
    tended = SuperNode(tmp_path, Link("127.0.0.1:1", None, None), 0, "hall", PATIENCE, stays=True)
    run(tended, clock, 86_400, code=1)
    assert 86_400 / LONGEST_REFUSED_PAUSE < starts_of(tended) < 3 * 86_400 / LONGEST_REFUSED_PAUSE
    monkeypatch.setattr(FakeChild, "welcome", True)
    run(tended, clock, LONGEST_REFUSED_PAUSE + SETTLED_SECONDS + 5)
    assert (tended.settled, tended.trouble) == (True, "")


def test_who_answers_without_a_coordinator_behind_it_refuses_nobody(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a TLS front does whose backend is down: Flower tries, and is never let in."""
    monkeypatch.setattr(FakeChild, "welcome", False)
    tended = node(tmp_path)
    for _ in range(100):
        run(tended, clock, 20)
        says(tended, TRYING)
    monkeypatch.setattr(FakeChild, "welcome", True)
    run(tended, clock, 2 * STARTING_SECONDS)
    assert tended.settled


def test_roots_that_cannot_be_read_for_a_while_end_no_node(clock: Clock, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_text("roots")
    tended = SuperNode(tmp_path, Link("127.0.0.1:1", ca, None), 0, "hall", PATIENCE)
    run(tended, clock, 60)
    ca.unlink()
    run(tended, clock, 10 * PATIENCE)
    assert (starts_of(tended), tended.settled) == (1, True)
    ca.write_text("other roots")
    run(tended, clock, 2 * WARM_SECONDS)
    assert starts_of(tended) == 2


class Line:
    """Whether the coordinator can be reached; counts who asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away, self.looks = False, 0
        monkeypatch.setattr(supernode, "why_unreachable", self.look)

    def look(self, *_: object) -> str:
        self.looks += 1
        return "Connection refused" if self.away else ""


def test_a_coordinator_that_is_away_for_days_costs_a_look_a_minute_and_ends_nothing(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    line, tended = Line(monkeypatch), node(tmp_path)
    run(tended, clock, 60)
    assert tended.settled
    line.away = True
    tended._child.code = 1  # type: ignore[attr-defined]
    run(tended, clock, 86_400)
    assert starts_of(tended) == 1
    assert not tended.settled
    assert tended.trouble == "Connection refused"
    assert 86_400 / LONGEST_AWAY_PAUSE <= line.looks <= 2.5 * 86_400 / LONGEST_AWAY_PAUSE
    assert caplog.text.count("event=coordinator_unreachable") == 1
    line.away = False
    run(tended, clock, LONGEST_AWAY_PAUSE + SETTLED_SECONDS + 5)
    assert starts_of(tended) == 2
    assert (tended.settled, tended.trouble) == (True, "")


def test_a_wrong_address_is_told_before_anything_is_started(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    line, tended = Line(monkeypatch), node(tmp_path)
    line.away = True
    run(tended, clock, 1)
    assert starts_of(tended) == 0
    assert 'event=coordinator_unreachable address=127.0.0.1:1 reason="Connection refused"' in caplog.text


def test_a_connection_that_is_lost_is_not_in_the_fleet_until_it_is_back(clock: Clock, tmp_path: Path) -> None:
    tended = node(tmp_path)
    run(tended, clock, 60)
    says(tended, TRYING)
    run(tended, clock, 2)
    assert tended.settled, "a single attempt says nothing"
    for _ in range(30):
        run(tended, clock, 20)
        assert (tended.settled, tended.trouble) == (False, LOST)
        says(tended, TRYING)
    says(tended, "INFO :      Connection successful after 601.20 seconds and 31 tries.\n")
    run(tended, clock, 2)
    assert (tended.settled, tended.trouble, starts_of(tended)) == (True, "", 1)


def test_time_away_is_no_refusal(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes back and refuses has the whole patience of a device, from then on."""
    monkeypatch.setattr(FakeChild, "welcome", False)
    line, tended = Line(monkeypatch), node(tmp_path)
    line.away = True
    run(tended, clock, 10 * PATIENCE, code=1)
    line.away = False
    run(tended, clock, PATIENCE - 20, code=1)
    with pytest.raises(NodeRefused):
        run(tended, clock, 2 * PATIENCE, code=1)


def test_a_process_that_was_not_let_in_is_not_settled_however_long_it_lives(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow device it may take a minute to import Flower."""
    monkeypatch.setattr(FakeChild, "welcome", False)
    tended = node(tmp_path)
    run(tended, clock, STARTING_SECONDS - 5)
    assert starts_of(tended) == 1
    assert not tended.settled
    says(tended, LET_IN)
    run(tended, clock, 2)
    assert tended.settled
    run(tended, clock, 20 * STARTING_SECONDS)
    assert starts_of(tended) == 1


def test_a_process_that_is_never_let_in_is_started_again(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeChild, "welcome", False)
    tended = node(tmp_path)
    run(tended, clock, STARTING_SECONDS - 5)
    with pytest.raises(NodeRefused):
        run(tended, clock, 10 * STARTING_SECONDS)


def test_the_warm_process_begins_and_ends_with_the_node_and_is_started_again(
    clock: Clock, tmp_path: Path
) -> None:
    tended = node(tmp_path)
    run(tended, clock, 10)
    warm = tended._warm
    assert (warm.pid, warm.starts) == (1, 1)  # type: ignore[attr-defined]
    warm.code = -9  # type: ignore[attr-defined]
    run(tended, clock, WARM_SECONDS)
    assert (warm.code, warm.starts) == (None, 2)  # type: ignore[attr-defined]
    tended._child.code = 1  # type: ignore[attr-defined]
    run(tended, clock, 1)
    assert warm.pid is None
    run(tended, clock, LONGEST_PAUSE)
    assert (warm.pid, warm.starts) == (1, 3)  # type: ignore[attr-defined]
    tended.stop()
    assert warm.pid is None


def test_no_warm_process_is_started_for_a_node_that_is_not_let_in(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeChild, "welcome", False)
    tended = node(tmp_path)
    run(tended, clock, WARM_SECONDS + 5)
    assert (starts_of(tended), tended._warm.pid) == (1, None)
    with tended._child.log_file.open("a") as log:
        log.write(LET_IN)
    run(tended, clock, 2)
    assert (starts_of(tended), tended._warm.pid) == (1, 1)


BEGUN = "INFO :      Receiving: query.hello message (ID: 1)\nINFO :      Received successfully\n"
TRYING = "WARNING :   Connection attempt failed, retrying in 9.71 seconds\n"


def says(tended: SuperNode, words: str) -> None:
    with tended._child.log_file.open("a") as log:
        log.write(words)


def starts_of(tended: SuperNode) -> int:
    return int(tended._child.starts)  # type: ignore[attr-defined]


@pytest.fixture
def clientapp(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a ClientApp runs, as its last element says."""
    runs = [False]
    monkeypatch.setattr(SuperNode, "_has_clientapp", lambda self: runs[-1])
    return runs


def test_a_node_that_waits_for_a_dead_clientapp_is_started_again(
    clock: Clock, tmp_path: Path, clientapp: list[bool]
) -> None:
    """And not at once, since Flower itself notices most deaths; the new one starts with empty hands."""
    tended = node(tmp_path)
    run(tended, clock, 30)
    says(tended, BEGUN)
    run(tended, clock, SILENT_SECONDS - 5)
    assert starts_of(tended) == 1
    run(tended, clock, 5 + SURE_SECONDS + LONGEST_PAUSE)
    assert starts_of(tended) == 2
    run(tended, clock, 10 * SILENT_SECONDS)
    assert starts_of(tended) == 2


@pytest.mark.parametrize(
    "said", ["", BEGUN + "INFO :      Sent successfully\n", "INFO :      SuperNode ID: 7\n"]
)
def test_a_node_without_a_message_is_left_alone(
    said: str, clock: Clock, tmp_path: Path, clientapp: list[bool]
) -> None:
    tended = node(tmp_path)
    run(tended, clock, 5)
    says(tended, said)
    run(tended, clock, 20 * SILENT_SECONDS)
    assert starts_of(tended) == 1


def test_long_work_and_a_long_outage_are_waited_for(
    clock: Clock, tmp_path: Path, clientapp: list[bool]
) -> None:
    tended = node(tmp_path)
    run(tended, clock, 5)
    says(tended, BEGUN)
    clientapp.append(True)
    run(tended, clock, 20 * SILENT_SECONDS)
    clientapp.append(False)
    run(tended, clock, 2)
    says(tended, "INFO :      Sending: query.hello message (ID: 2)\n")
    for _ in range(100):
        run(tended, clock, 20)
        says(tended, TRYING)
    says(tended, "INFO :      Sent succ")
    run(tended, clock, 5)
    says(tended, "essfully\n")
    run(tended, clock, 10 * SILENT_SECONDS)
    assert starts_of(tended) == 1


def test_a_log_that_was_put_aside_leaves_no_message_in_hand(
    clock: Clock, tmp_path: Path, clientapp: list[bool]
) -> None:
    """The word that it was handed in may stand in the part that was put aside, unread."""
    tended = node(tmp_path)
    run(tended, clock, 5)
    says(tended, BEGUN)
    run(tended, clock, 5)
    tended._child.log_file.write_text("")
    run(tended, clock, 20 * SILENT_SECONDS)
    assert starts_of(tended) == 1


def test_the_log_says_why_a_waiting_node_was_started_again(
    clock: Clock, tmp_path: Path, clientapp: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    tended = node(tmp_path)
    run(tended, clock, 5)
    says(tended, BEGUN)
    run(tended, clock, SILENT_SECONDS + SURE_SECONDS + 5)
    assert "waits for the reply of a ClientApp that is gone" in caplog.text


def test_a_full_disk_takes_the_warm_process_and_not_the_node(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    tended = node(tmp_path)
    monkeypatch.setattr(supernode, "install_command", full)
    run(tended, clock, 5)
    assert (starts_of(tended), tended._warm.pid) == (1, None)
    assert "event=no_warm_start" in caplog.text
    monkeypatch.setattr(supernode, "install_command", lambda folder: None)
    run(tended, clock, WARM_SECONDS)
    assert (starts_of(tended), tended._warm.pid) == (1, 1)


def test_the_clientapp_of_a_node_is_found(tmp_path: Path) -> None:
    tended = node(tmp_path)
    assert not tended._has_clientapp()
    program = tmp_path / "flwr-clientapp"
    program.write_text("import time; time.sleep(60)")
    tended._child.start(["sh", "-c", f"{sys.executable} {program}; true"], dict(os.environ), tmp_path)
    try:
        limit = time.monotonic() + 30
        while not tended._has_clientapp() and time.monotonic() < limit:
            time.sleep(0.02)
        assert tended._has_clientapp()
    finally:
        tended.stop()
    assert not tended._has_clientapp()


REFUSED = """\x1b[91mERROR \x1b[0m:     Exit Code: 305
Failed to initialize the connection to the SuperLink.
{why}
The SuperNode could not establish a connection to the SuperLink.

For more information, visit: <https://flower.ai/docs/framework/1.41/en/ref-exit-codes/305.html>
INFO:     Finished server process [23584]
"""


def test_a_revoked_device_is_told_so_in_words(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is that of Flower 1.41 for a key that the SuperLink does not know any more."""
    monkeypatch.setattr(FakeChild, "welcome", False)
    log = tmp_path / "supernode.log"
    log.write_text(REFUSED.format(why="[code: 2004] Failed to activate SuperNode."))
    with pytest.raises(NodeRefused) as refused:
        run(node(tmp_path), clock, 10 * PATIENCE, code=1)
    assert "this device was revoked, or its credentials are not this coordinator's: ask" in str(refused.value)
    assert "fedstill certs issue" in str(refused.value)
    assert "\n" not in str(refused.value)
    log.write_text(REFUSED.format(why="[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"))
    assert "CERTIFICATE_VERIFY_FAILED" in exit_reason(log), "that has another cause"


def test_roots_that_the_cloud_has_sent_are_used_within_a_minute_or_two(clock: Clock, tmp_path: Path) -> None:
    """So that it goes on without a word when the server shows a certificate of theirs; never while a message is
    being answered."""
    given_file, kept = tmp_path / "ca.crt", tmp_path / "kept.pem"
    root = certificates_pem(make_root()[1])
    given_file.write_bytes(root)
    tended = SuperNode(tmp_path, Link("127.0.0.1:1", given_file, None, kept_ca=kept), 0, "hall", PATIENCE)
    run(tended, clock, 300)
    assert tended._child.starts == 1
    keep_roots(kept, root, root + certificates_pem(make_root()[1]))
    tended._in_hand, tended._spoke = True, clock.now
    run(tended, clock, 90)
    assert tended._child.starts == 1
    tended._in_hand = False
    run(tended, clock, 90)
    assert tended._child.starts == 2
    assert tended._trust()[1] == str(kept)
    kept.unlink()
    run(tended, clock, 90)
    assert (tended._child.starts, tended._trust()[1]) == (3, str(given_file))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 120)), max_size=6))
def test_it_recovers_from_any_past(past: list[tuple[int, int]]) -> None:
    """Whatever runs and troubles came before: once it ran well, it gets its whole patience again."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        clock = Clock()
        for name, fake in {
            "time": clock, "Child": FakeChild, "install_command": lambda folder: None, "tool": str,
            "environment": lambda home: {"PATH": ""}, "why_unreachable": lambda *_: "",
        }.items():  # fmt: skip
            patch.setattr(supernode, name, fake)
        tended = node(Path(folder))
        for well, trouble in past:
            run(tended, clock, LONGEST_PAUSE + SETTLED_SECONDS + 5 + well)
            run(tended, clock, trouble, code=1)
        run(tended, clock, LONGEST_PAUSE + SETTLED_SECONDS + 5)
        run(tended, clock, PATIENCE - 20, code=1)
