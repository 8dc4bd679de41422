"""A device whose token ends soon gets another from the cloud that it asks, over TLS, and uses it from then on."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.inference import MadeRuntime, made_heads, wait_until

from fedstill.cloud_server.auth import authority, token_renewal
from fedstill.cloud_server.auth.authority import (
    create_authority,
    issue_node,
    read_authority,
    renew_token,
)
from fedstill.cloud_server.auth.register import list_nodes
from fedstill.cloud_server.auth.token_renewal import TokenRenewal
from fedstill.cloud_server.coordinator.inference_thread import inference_serving
from fedstill.common.credentials import CredentialError, read_node_bundle
from fedstill.common.flower_cli import free_port
from fedstill.common.node_token import LAST_SECOND, keep_token, newest_token, token_expiry
from fedstill.edge_client.inference import credentials_visits
from fedstill.edge_client.inference.cloud_connection import CloudConnection
from fedstill.edge_client.inference.cloud_stream import Address

DAY = 86_400


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """Of ``hall``, whose token was issued for a year and ends in 30 days."""
    create_authority(tmp_path / "certs", [], [])
    issue_node(tmp_path / "certs", "hall")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authority, "_expiry", lambda days: int(time.time()) + 30 * DAY)
        renew_token(tmp_path / "certs", "hall")
    return tmp_path / "certs"


@pytest.fixture
def served(certs: Path, tmp_path: Path) -> Iterator[Address]:
    """The coordinator's inference service, as its device ``hall`` knows it, which has a copy of its credentials."""
    shutil.copytree(certs / "nodes" / "hall", tmp_path / "hall")
    bundle = read_node_bundle(tmp_path / "hall")
    with inference_serving(made_heads(tmp_path / "heads"), "127.0.0.1:0", read_authority(certs)) as port:
        yield Address(
            f"127.0.0.1:{port}",
            "hall",
            bundle.token,
            bundle.ca_file.read_bytes(),
            bundle.token_file,
            tmp_path / "agent-token.json",
        )


@contextmanager
def connected(address: Address) -> Iterator[CloudConnection]:
    runtime = MadeRuntime()
    connection = CloudConnection(address, runtime.version, runtime.class_names)
    connection.start()
    try:
        wait_until(lambda: connection.estimate.up)
        yield connection
    finally:
        connection.close()


def test_a_token_renews_itself(served: Address, certs: Path, tmp_path: Path) -> None:
    """Credentials may be where an agent cannot write: nothing is written there."""
    credentials = {path: path.read_bytes() for path in (tmp_path / "hall").iterdir()}
    before, kept = served.token, served.kept_token
    assert kept is not None
    with connected(served):
        pass
    renewed = served.newest_token
    assert token_expiry(renewed, "hall") > time.time() + 360 * DAY > token_expiry(before, "hall")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    (node,) = list_nodes(certs)
    assert node.token_expiry == token_expiry(renewed, "hall")
    bundle = read_node_bundle(tmp_path / "hall", kept=kept)
    assert (bundle.token, bundle.warnings) == (renewed, ())
    assert {path: path.read_bytes() for path in (tmp_path / "hall").iterdir()} == credentials
    register = (certs / "nodes.json").read_bytes()
    with connected(served):
        assert served.newest_token == renewed
    assert (certs / "nodes.json").read_bytes() == register, "a token that is good for long stays"


class Shelf:
    """Of a device that has been served, once it has."""

    student: MadeRuntime | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def current(self) -> MadeRuntime | None:
        return self.student


def test_a_device_without_clips_asks_for_it_by_itself(
    served: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while it may send nothing, nor before it has a student; and it ends when it is told to."""
    monkeypatch.setattr(credentials_visits, "ModelStore", Shelf)
    monkeypatch.setattr(credentials_visits, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Shelf, "student", None)
    closed, stop = ["paused"], threading.Event()
    task = credentials_visits.CredentialsVisits(tmp_path, served, lambda: closed[-1])
    thread = threading.Thread(target=task, args=(stop,))
    thread.start()
    time.sleep(0.1)
    closed.append("")
    time.sleep(0.1)
    assert served.newest_token == served.token
    monkeypatch.setattr(Shelf, "student", MadeRuntime())
    wait_until(lambda: served.newest_token != served.token)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_a_visit_to_a_cloud_that_is_away_ends_when_the_agent_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials_visits, "ModelStore", Shelf)
    monkeypatch.setattr(Shelf, "student", MadeRuntime())
    stop = threading.Event()
    task = credentials_visits.CredentialsVisits(tmp_path, Address(f"127.0.0.1:{free_port()}", "hall"), str)
    thread = threading.Thread(target=task, args=(stop,))
    thread.start()
    time.sleep(0.5)
    begun = time.monotonic()
    stop.set()
    thread.join(20)
    assert time.monotonic() - begun < 5


def test_credentials_that_are_renewed_by_hand_count(served: Address, certs: Path, tmp_path: Path) -> None:
    with connected(served):
        pass
    sent = served.newest_token
    renew_token(certs, "hall", days=100)  # ends earlier than what the cloud has sent
    assert served.newest_token == sent
    shutil.copy(certs / "nodes" / "hall" / "token", tmp_path / "hall" / "token")
    by_hand = (tmp_path / "hall" / "token").read_text()
    assert served.newest_token == by_hand != sent
    with connected(served):
        assert served.newest_token == by_hand


def test_a_register_that_cannot_be_written_is_told_once_and_costs_nothing(
    served: Address, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> str:
        raise CredentialError("certs: No space left on device")

    monkeypatch.setattr(token_renewal, "prolonged_token", full)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with connected(served):
                assert served.newest_token == served.token
    told = [one for one in caplog.messages if "token" in one]
    assert told == [f"event=token_not_renewed reason={json.dumps('certs: No space left on device')}"]
    assert not any(served.token in one for one in caplog.messages)


def test_only_one_that_ends_soon_is_renewed(certs: Path) -> None:
    (node,) = list_nodes(certs)
    token = (certs / "nodes" / "hall" / "token").read_text()
    for days_left, due in ((91, False), (89, True)):
        renewal = TokenRenewal(read_authority(certs), lambda left=days_left: node.token_expiry - left * DAY)
        assert renewal.due("hall", token) is due


def test_a_kept_token_that_the_cloud_refuses_gives_way_to_that_of_the_credentials(served: Address) -> None:
    """It may have come from another cloud, or a broken one; otherwise the device would be locked out for ever."""
    assert served.kept_token is not None
    end = int(time.time()) + 500 * DAY
    assert keep_token(served.kept_token, "hall", served.token, f"hall.{end}.nonsense")
    assert served.newest_token != served.token
    with connected(served):
        pass
    assert served.newest_token.partition(".")[2].partition(".")[0] != str(end)


def test_the_lock_of_the_register_holds_up_no_device(served: Address, certs: Path) -> None:
    with (certs / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with connected(served):
            assert served.newest_token == served.token


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "hall",
        "hall.1",
        "kitchen.9999999999.x",
        "hall.soon.x",
        "hall.²2.x",
        "hall.9.a\nb",
        "hall.9.\x7f",
        "hall.99999999999.x",
    ],
)
def test_what_is_no_token_of_this_device_is_not_kept(sent: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"damaged|another node|decades"):
        keep_token(tmp_path / "kept", "hall", "hall.5.x", sent)
    assert newest_token(tmp_path / "kept", "hall", "hall.5.x") == "hall.5.x"


@pytest.mark.parametrize("content", [b"", b"5", b"{}", b"\xff", b'{"instead_of": 1, "token": "hall.9.x"}'])
def test_a_damaged_file_is_as_if_there_were_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(content)
    assert newest_token(tmp_path / "kept", "hall", "hall.5.x") == "hall.5.x"
    assert keep_token(tmp_path / "kept", "hall", "hall.5.x", "hall.9.x")
    assert newest_token(tmp_path / "kept", "hall", "hall.5.x") == "hall.9.x"
    assert not keep_token(tmp_path / "kept", "hall", "hall.5.x", "hall.8.x"), "it ends earlier"


def test_no_date_is_too_far(tmp_path: Path) -> None:
    assert token_expiry(f"hall.{'9' * 200}.x", "hall") == LAST_SECOND
