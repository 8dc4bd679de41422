"""An authority is replaced while devices come and go: real TLS on loopback, from the first step to the last."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from helpers.inference import MadeRuntime, made_heads, wait_until

from fedstill.cli.agent.parts import identity_of
from fedstill.cloud_server.auth import roots_update, token_renewal
from fedstill.cloud_server.auth.authority import create_authority, issue_node, read_authority
from fedstill.cloud_server.auth.register import list_nodes
from fedstill.cloud_server.auth.roll_over import begin, drop_old, finish, read_roll_over
from fedstill.cloud_server.auth.roots_notes import NOTES_AT_ONCE
from fedstill.cloud_server.auth.token_renewal import TokenRenewal
from fedstill.cloud_server.coordinator.inference_thread import inference_serving
from fedstill.cloud_server.edge_inference import inference_service
from fedstill.common.credentials import CredentialError, read_node_bundle
from fedstill.common.trusted_roots import UNKNOWN_AUTHORITY, fingerprints
from fedstill.edge_client.inference import cloud_stream
from fedstill.edge_client.inference.cloud_connection import CloudConnection
from fedstill.edge_client.inference.cloud_stream import Address
from fedstill.protos import edge_inference_pb2 as pb
from fedstill.protos.edge_inference_pb2_grpc import EdgeInferenceStub


@dataclass
class Fleet:
    """An authority, heads, and devices with copies of their credentials."""

    folder: Path

    @property
    def certs(self) -> Path:
        return self.folder / "certs"

    @contextmanager
    def serving(self) -> Iterator[int]:
        """A coordinator's inference service, with the certificate of now."""
        with inference_serving(self.folder / "heads", "127.0.0.1:0", read_authority(self.certs)) as port:
            yield port

    def address(self, name: str, port: int) -> Address:
        """As ``fedstill agent`` makes it."""
        credentials, state = self.folder / name, self.folder / f"{name}-state"
        state.mkdir(exist_ok=True)
        who = identity_of("127.0.0.1:1", f"127.0.0.1:{port}", credentials, False, -1, state)
        assert who.inference is not None
        assert who.link.roots == who.inference.roots, "the SuperNode's, too"
        return who.inference

    def trusts(self, name: str) -> int:
        """How many roots a device trusts."""
        roots = self.address(name, 1).roots
        assert roots is not None
        return len(fingerprints(roots))

    @property
    def lacking(self) -> set[str]:
        return {node.name for node in read_roll_over(self.certs).without}

    def issue(self, name: str) -> None:
        issue_node(self.certs, name)
        self.copy(name)

    def copy(self, name: str) -> None:
        """By hand, from the coordinator's machine to the device."""
        shutil.copytree(self.certs / "nodes" / name, self.folder / name, dirs_exist_ok=True)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(roots_update, "FRESH_SECONDS", 0.0)
    made_heads(tmp_path / "heads")
    create_authority(tmp_path / "certs", [], [])
    made = Fleet(tmp_path)
    for name in ("hall", "attic"):
        made.issue(name)
    return made


@contextmanager
def connecting(address: Address) -> Iterator[CloudConnection]:
    runtime = MadeRuntime()
    connection = CloudConnection(address, runtime.version, runtime.class_names)
    connection.start()
    try:
        yield connection
    finally:
        connection.close()


def connect(address: Address) -> None:
    """And leave again."""
    with connecting(address) as connection:
        assert connection.wait(10), connection.hindrance()


def test_devices_follow_from_the_first_step_to_the_last(fleet: Fleet) -> None:
    token = read_node_bundle(fleet.folder / "hall").token
    given = (fleet.folder / "hall" / "ca.crt").read_bytes()
    with fleet.serving() as port:
        begin(fleet.certs)  # while it runs
        assert fleet.lacking == {"hall", "attic"}
        connect(fleet.address("hall", port))
        assert fleet.trusts("hall") == 2
        wait_until(lambda: fleet.lacking == {"attic"})
    with pytest.raises(CredentialError, match=r"1 of 2 nodes .* yet: attic; wait for them"):
        finish(fleet.certs)
    with fleet.serving() as port:
        connect(fleet.address("attic", port))
        wait_until(lambda: not fleet.lacking)
    fleet.issue("new")
    finish(fleet.certs)
    with fleet.serving() as port:
        for name in ("hall", "attic", "new"):
            connect(fleet.address(name, port))
        drop_old(fleet.certs)
        connect(fleet.address("hall", port))
        assert fleet.trusts("hall") == 1
        wait_until(lambda: [len(node.roots) for node in list_nodes(fleet.certs)] == [1, 2, 2])
    assert read_node_bundle(fleet.folder / "hall").token == token
    assert (fleet.folder / "hall" / "ca.crt").read_bytes() == given, "nothing is written there"


def test_a_device_that_was_away_is_told_what_to_do(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    begin(fleet.certs)
    finish(fleet.certs, without_them=True)
    with fleet.serving() as port, caplog.at_level(logging.WARNING):
        with connecting(fleet.address("attic", port)) as connection:
            assert not connection.wait(10)
        told = [one for one in caplog.messages if "cloud_lost" in one]
        assert [one.partition("reason=")[2] for one in told] == [UNKNOWN_AUTHORITY]
        fleet.copy("attic")  # the step has put the new roots there
        connect(fleet.address("attic", port))
        assert fleet.trusts("attic") == 2


def test_roots_that_the_server_does_not_show_yet_are_not_taken(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator who drops the old one before the coordinator was started again cuts nobody off."""
    with fleet.serving() as port:
        begin(fleet.certs)
        connect(fleet.address("hall", port))
        finish(fleet.certs, without_them=True)
        drop_old(fleet.certs)
        with caplog.at_level(logging.WARNING):
            connect(fleet.address("hall", port))
    assert fleet.trusts("hall") == 2
    assert 'event=roots_refused reason="the cloud shows no certificate of theirs"' in caplog.messages


def test_roots_of_a_stranger_cost_nothing(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """Who has the server's key, and not the authority's, can put nothing in its place."""
    create_authority(fleet.folder / "other", [], [])
    with fleet.serving() as port:
        real = (fleet.certs / "ca.crt").read_bytes()
        (fleet.certs / "ca.crt").write_bytes(real + (fleet.folder / "other" / "ca.crt").read_bytes())
        with caplog.at_level(logging.WARNING):
            connect(fleet.address("hall", port))
    assert fleet.trusts("hall") == 1
    assert not (fleet.folder / "hall-state" / "authorities.pem").exists()
    told = [one for one in caplog.messages if "roots" in one]
    assert told == ['event=roots_refused reason="has a root for which none that is trusted here vouches"']


def test_nothing_that_a_cloud_sends_ends_a_device_s_connection_for_good(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is: the device backs off, and comes back once the cloud is another."""

    def surprise(*_: object) -> bytes:
        raise AssertionError("nobody has thought of this")

    with monkeypatch.context() as patch, fleet.serving() as port, caplog.at_level(logging.WARNING):
        patch.setattr(cloud_stream, "accepted_roots", surprise)
        begin(fleet.certs)
        with connecting(fleet.address("hall", port)) as connection:
            wait_until(lambda: any("cloud_lost" in one for one in caplog.messages))
            patch.undo()
            assert connection.wait(10), connection.hindrance()
    (told,) = [one for one in caplog.messages if "cloud_lost" in one]
    assert "failed unexpectedly: AssertionError('nobody has thought of this')" in told
    assert fleet.trusts("hall") == 2


def test_an_intermediate_beside_the_root_changes_nothing(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Of whichever side's ca.crt: there is no new connection without end."""
    shutil.copytree(fleet.certs, fleet.folder / "other")
    begin(fleet.folder / "other")
    beside = (fleet.folder / "other" / "new-with-old.crt").read_bytes()
    given = (fleet.certs / "ca.crt").read_bytes()
    for where in (fleet.certs, fleet.folder / "attic"):
        (where / "ca.crt").write_bytes(given + beside)
    with fleet.serving() as port, caplog.at_level(logging.INFO):
        for name in ("hall", "attic"):
            connect(fleet.address(name, port))
    assert not [one for one in caplog.messages if "event=roots" in one]


def test_a_standing_stream_ends_after_a_day_and_learns_then(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_service, "STREAM_SECONDS", 1.0)
    with fleet.serving() as port, connecting(fleet.address("hall", port)) as connection:
        assert connection.wait(10)
        begin(fleet.certs)
        wait_until(lambda: fleet.lacking == {"attic"})
    assert fleet.trusts("hall") == 2


def test_a_cloud_that_cannot_write_says_so_once_and_refuses_nobody(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    begin(fleet.certs)
    monkeypatch.setattr(roots_update, "write_register", full)
    with fleet.serving() as port, caplog.at_level(logging.WARNING):
        for name in ("hall", "hall", "attic"):
            connect(fleet.address(name, port))
    assert fleet.trusts("hall") == fleet.trusts("attic") == 2
    assert fleet.lacking == {"hall", "attic"}
    told = [one for one in caplog.messages if "roots_not_noted" in one]
    assert len(told) == 1
    assert "No space left" in told[0]


def test_a_device_that_says_ever_other_things_keeps_nobody_waiting(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither other devices' notes, nor tokens that are renewed, nor the end."""
    written: list[int] = []
    real = roots_update.write_register

    def counting(*arguments: Any) -> None:
        written.append(1)
        time.sleep(0.1)
        real(*arguments)

    monkeypatch.setattr(roots_update, "write_register", counting)
    monkeypatch.setattr(TokenRenewal, "due", lambda renewal, name, token: name == "attic")
    monkeypatch.setattr(token_renewal, "prolonged_token", lambda *_: "another")
    with fleet.serving() as port:
        address = fleet.address("hall", port)
        with grpc.secure_channel(address.target, grpc.ssl_channel_credentials(address.authority)) as channel:
            ask = EdgeInferenceStub(channel).Describe  # type: ignore[no-untyped-call]
            request = pb.DescribeRequest(device="hall", student_version=MadeRuntime().version)
            for number in range(100):
                request.trusted[:] = [f"{number:064x}"]
                ask(request, metadata=[("authorization", f"Bearer {address.token}")], timeout=10)
            attic = fleet.address("attic", port)
            request.device, request.trusted[:] = "attic", ["a" * 64]
            found = ask(request, metadata=[("authorization", f"Bearer {attic.token}")], timeout=10)
            assert found.token == "another"
        wait_until(lambda: list_nodes(fleet.certs)[1].roots == ("a" * 64,))
        began = time.monotonic()
    assert time.monotonic() - began < 8, "its end"
    assert len(written) <= NOTES_AT_ONCE + 1


@pytest.mark.parametrize(
    ("trusted", "code"),
    [
        ([], None),  # of an older release
        (["0" * 64], None),
        (["no digest"], grpc.StatusCode.INVALID_ARGUMENT),
        (["0" * 64] * 17, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_what_a_device_says_that_it_trusts_is_checked(
    fleet: Fleet, trusted: list[str], code: grpc.StatusCode | None
) -> None:
    begin(fleet.certs)
    with fleet.serving() as port:
        address = fleet.address("hall", port)
        credentials = grpc.ssl_channel_credentials(address.authority)
        with grpc.secure_channel(address.target, credentials) as channel:
            ask = EdgeInferenceStub(channel).Describe  # type: ignore[no-untyped-call]
            request = pb.DescribeRequest(
                device="hall", student_version=MadeRuntime().version, trusted=trusted
            )
            metadata = [("authorization", f"Bearer {address.token}")]
            if code is None:
                assert bool(ask(request, metadata=metadata, timeout=10).roots) == bool(trusted)
            else:
                with pytest.raises(grpc.RpcError) as refused:
                    ask(request, metadata=metadata, timeout=10)
                assert (refused.value.code(), refused.value.details()[:8]) == (code, "trusted:")
        assert fleet.lacking == {"hall", "attic"}
