"""A device on a metered link moves no more than its month has, and goes on in the next, whatever its clock does."""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import pytest
from helpers.command import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.cli.main import app
from fedstill.common.flower_cli import free_port
from fedstill.common.option_values import read_size
from fedstill.edge_client.folder import METERED_FILE
from fedstill.edge_client.link import monthly_bytes
from fedstill.edge_client.link.monthly_bytes import MonthlyBytes, month_of, read_months
from fedstill.edge_client.link.relay import PIECE, metered
from fedstill.edge_client.node.upload_gate import UploadGate

MOST = 1_000_000


class Clock:
    """A wall clock that is set, and one that only grows."""

    def __init__(self, text: str = "2026-11-15 12:00") -> None:
        self.now, self.steady = 0.0, 0.0
        self.set(text)

    def set(self, text: str) -> None:
        self.now = datetime.fromisoformat(text).timestamp()

    def budget(self, folder: Path, most: int = MOST) -> MonthlyBytes:
        return MonthlyBytes(folder, most, "1MB", lambda: self.now, lambda: self.steady)


@pytest.mark.parametrize(
    ("text", "size"),
    [("50MB", 50_000_000), ("1.5 GB", 1_500_000_000), ("200 kB", 200_000), ("1B", 1), (" 3MB ", 3_000_000)],
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "50", "MB", "-1MB", "1 MiB", "50mb", "0MB", "0.2B", "1e9B", "nanMB", "1,5GB", f"{'9' * 400}B"],
)
def test_what_is_no_size_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write a size such as 50MB") as caught:
        read_size(text)
    assert "\n" not in str(caught.value)
    if text:
        found = CliRunner().invoke(
            app,
            ["agent", "--coordinator", "localhost:1", "--data", str(tmp_path), "--state", str(tmp_path / "state"),
             "--insecure", "--client", "0", f"--monthly-bytes={text}"],
        )  # fmt: skip
        assert found.exit_code == 2
        assert "--monthly-bytes: " in found.output
        assert not (tmp_path / "state").exists()


def test_a_month_is_spent_and_the_next_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock("2026-11-30 23:00")
    budget = clock.budget(tmp_path)
    gate = UploadGate(tmp_path, clock=lambda: clock.now, budget=budget)
    seen = [gate.look()]
    budget.count(MOST - 1)
    seen.append(gate.look())
    budget.count(1)
    seen += [gate.look(), gate.look()]
    clock.set("2026-12-01 00:00")
    seen.append(gate.look())
    assert seen == [True, True, False, False, True]
    assert caplog.messages == [
        'event=sending_stopped reason="the 1MB of 2026-11 are spent"',
        "event=sending_resumed",
    ]


moments = st.floats(-1e9, 2e11)  # from 1938 to the year 8307
steps = st.lists(
    st.tuples(st.sampled_from(["jump", "move", "restart"]), moments, st.integers(0, 2 * MOST)), max_size=40
)


@settings(deadline=None)
@given(steps=steps, end=moments)
def test_after_any_jumps_of_the_clock_it_may_send_if_the_month_that_it_shows_has_bytes_left(
    steps: list[tuple[str, float, int]], end: float
) -> None:
    """So it recovers as soon as its clock does; and no month gets its bytes twice, if the agent ends well."""
    clock, moved = Clock(), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        budget = clock.budget(folder)
        for what, moment, size in steps:
            if what == "jump":
                clock.now = moment
            elif what == "restart":
                budget.save()
                budget = clock.budget(folder)
            elif UploadGate(folder, clock=lambda: clock.now, budget=budget).look():
                budget.count(size)
                moved[month_of(clock.now)] += size
            month = month_of(clock.now)
            assert budget.moved == moved[month]
            assert budget.spent == (moved[month] >= MOST)
        clock.now = end
        assert budget.spent == (moved[month_of(end)] >= MOST)
        assert UploadGate(folder, clock=lambda: clock.now, budget=budget).look() == (not budget.spent)
    assert all(size < 3 * MOST for size in moved.values()), "at most what was on its way when it was spent"


def test_a_clock_beyond_all_calendars_is_a_month_like_others(tmp_path: Path) -> None:
    clock = Clock()
    budget = clock.budget(tmp_path)
    clock.now = 1e300
    budget.count(MOST)
    assert budget.spent
    clock.set("2026-11-15 12:00")
    assert not budget.spent


def test_a_kill_forgets_little(tmp_path: Path) -> None:
    clock = Clock()
    budget = clock.budget(tmp_path)
    budget.count(1000)
    assert read_months(tmp_path) == {}, "an SD card is not written to for every message"
    budget.count(70_000)
    assert read_months(tmp_path) == {"2026-11": 71_000}
    clock.steady += 61
    budget.count(1)
    assert read_months(tmp_path) == {"2026-11": 71_001}
    budget.count(5)
    budget.save()
    assert clock.budget(tmp_path).moved == 71_006


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"2026-11": "many"}', '{"2026-11": null}', "[" * 100_000, "7"]
)
def test_a_damaged_count_is_one_warning(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / METERED_FILE).write_text(content)
    budget = Clock().budget(tmp_path)
    assert (budget.moved, budget.spent) == (0, False)
    assert caplog.messages == ["event=metered_forgotten file=metered.json reason=damaged"]
    budget.count(70_000)
    assert read_months(tmp_path) == {"2026-11": 70_000}


def test_a_full_disk_keeps_the_count_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    budget = Clock().budget(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("fedstill.edge_client.link.monthly_bytes.replace_file", full)
        budget.count(MOST)
    assert budget.spent
    budget.save()
    assert read_months(tmp_path) == {"2026-11": MOST}


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets, until the other side is done."""

    def handle(self) -> None:
        while piece := self.request.recv(PIECE):
            self.request.sendall(piece)


@contextmanager
def echo() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def connected(target: str) -> socket.socket:
    host, _, port = target.rpartition(":")
    return socket.create_connection((host, int(port)), 10)


def received(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or what came before the end."""
    found = b""
    while len(found) < size and (piece := connection.recv(PIECE)):
        found += piece
    return found


def test_what_passes_the_relay_is_whole_and_counts_both_ways(tmp_path: Path) -> None:
    budget = Clock().budget(tmp_path, 100 * MOST)
    content = bytes(range(256)) * 1000
    with echo() as target, metered(target, budget) as relay:
        assert relay.startswith("127.0.0.1:")
        for _ in range(2):
            with connected(relay) as connection:
                threading.Thread(target=connection.sendall, args=(content,), daemon=True).start()
                assert received(connection, len(content)) == content
                connection.shutdown(socket.SHUT_WR)
                assert received(connection, 1) == b"", "the end of one side reaches the other"
        assert budget.moved == 4 * len(content)
    assert read_months(tmp_path) == {"2026-11": 4 * len(content)}, "written at the end"


def test_a_spent_month_cuts_what_is_open_and_lets_nothing_pass_until_the_next(tmp_path: Path) -> None:
    clock = Clock("2026-11-30 12:00")
    budget = clock.budget(tmp_path)
    with echo() as target, metered(target, budget) as relay:
        quiet = connected(relay)
        quiet.sendall(b"x")
        assert received(quiet, 1) == b"x"
        with connected(relay) as busy:
            spend(busy)
        assert MOST <= budget.moved <= MOST + 2 * PIECE
        assert ended(quiet), "connections that stand are ended, too"
        assert is_turned_away(relay)
        before = budget.moved
        clock.set("2026-12-01 00:00")
        with connected(relay) as again:
            again.sendall(b"z")
            assert received(again, 1) == b"z"
    assert read_months(tmp_path) == {"2026-11": before, "2026-12": 2}


def spend(connection: socket.socket) -> None:
    """Move bytes until the other side ends that."""
    with suppress(ConnectionError):
        connection.sendall(b"y" * PIECE)
        while connection.recv(PIECE):
            connection.sendall(b"y" * PIECE)


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def is_turned_away(target: str) -> bool:
    """The end may come while the connection is still being made."""
    try:
        with connected(target) as connection:
            return ended(connection)
    except ConnectionError:
        return True


def test_an_unreachable_coordinator_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port, budget = free_port(), Clock().budget(tmp_path)
    with metered(f"127.0.0.1:{port}", budget) as relay:
        for _ in range(3):
            assert is_turned_away(relay)
    assert caplog.messages == [
        f"event=unreachable target=127.0.0.1:{port} reason={json.dumps('Connection refused')}"
    ]
    assert budget.moved == 0


def test_an_ipv6_address_is_told_as_it_was_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = f"[::1]:{free_port()}"
    with metered(target, Clock().budget(tmp_path)) as relay:
        assert is_turned_away(relay)
    (told,) = caplog.messages
    assert f"target={target} " in told


def test_a_count_beyond_all_links_is_one_that_is_spent(tmp_path: Path) -> None:
    (tmp_path / METERED_FILE).write_text(json.dumps({"2026-11": 10**4000}))
    budget = Clock().budget(tmp_path)
    assert (budget.spent, len(str(budget.moved))) == (True, 19)
    budget.count(1)
    budget.save()


def test_a_handshake_that_leads_nowhere_is_reset(tmp_path: Path) -> None:
    """Flower takes an orderly end for a wrong certificate, and gives up; a reset is tried again."""
    budget = Clock().budget(tmp_path)
    context = ssl.create_default_context()
    with metered(f"127.0.0.1:{free_port()}", budget) as relay, pytest.raises(ConnectionResetError):
        context.wrap_socket(connected(relay), server_hostname="localhost")
    budget.count(2 * MOST)
    with (
        echo() as target,
        metered(target, budget) as relay,
        pytest.raises(ConnectionResetError),
    ):
        context.wrap_socket(connected(relay), server_hostname="localhost")


def test_a_full_disk_is_not_asked_for_every_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = Clock(), []

    def full(*_: object) -> None:
        asked.append(1)
        raise OSError(28, "No space left on device")

    budget = clock.budget(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(monthly_bytes, "replace_file", full)
        for _ in range(64):
            budget.count(PIECE // 8)
        assert len(asked) == 8
    budget.save()
    assert read_months(tmp_path) == {"2026-11": 8 * PIECE}


def test_an_end_waits_for_no_connection(tmp_path: Path) -> None:
    budget = Clock().budget(tmp_path)
    with echo() as target:
        started = time.monotonic()
        with metered(target, budget) as relay:
            open_one = connected(relay)
            open_one.sendall(b"x")
            assert received(open_one, 1) == b"x"
        assert time.monotonic() - started < 5
        assert ended(open_one)
