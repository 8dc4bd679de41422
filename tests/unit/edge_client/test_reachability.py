"""Nobody at an address, somebody who closes at once, and somebody who answers, with TLS and without."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedstill.cloud_server.auth.authority import create_authority
from fedstill.common.flower_cli import free_port
from fedstill.edge_client.link.reachability import why_unreachable

CLOSED = "the connection is closed at once"


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of somebody who takes one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            try:
                with server.accept()[0] as connection:
                    answer(connection)
            except OSError:
                return

        thread = threading.Thread(target=take)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("tls", [True, False])
def test_nobody_is_there(tls: bool) -> None:
    assert why_unreachable(f"127.0.0.1:{free_port()}", tls, 2.0) == "Connection refused"
    assert why_unreachable("no-such-host.invalid:9092", tls, 2.0)
    for mistyped in ("cloud..example.org", ".example.org", f"{'a' * 64}.org"):
        assert why_unreachable(f"{mistyped}:9092", tls, 2.0) == "no name of a host"


@pytest.mark.parametrize(("name", "tls"), [("https_proxy", True), ("http_proxy", False), ("ALL_PROXY", True)])
def test_the_way_through_a_proxy_is_not_judged(name: str, tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:3128")
    assert why_unreachable("no-such-host.invalid:9092", tls, 2.0) == ""
    assert why_unreachable(f"127.0.0.1:{free_port()}", tls, 2.0) == "Connection refused"
    monkeypatch.setenv("no_proxy", "example.org,no-such-host.invalid")
    assert why_unreachable("no-such-host.invalid:9092", tls, 2.0)


@pytest.mark.parametrize("tls", [True, False])
def test_a_relay_without_a_server_behind_it(tls: bool) -> None:
    def close(connection: socket.socket) -> None:
        connection.settimeout(2.0)
        if tls:
            connection.recv(4096)

    with listening(close) as address:
        assert why_unreachable(address, tls, 2.0) == CLOSED


def test_somebody_who_says_nothing_speaks_no_tls() -> None:
    with listening(lambda connection: connection.recv(1) and threading.Event().wait(1.0)) as address:
        assert why_unreachable(address, True, 0.3) == "no answer"
    with listening(lambda connection: connection.recv(1)) as address:
        assert why_unreachable(address, False, 0.3) == "", "as HTTP servers do"


def test_a_server_with_an_unknown_certificate_is_there(tmp_path: Path) -> None:
    create_authority(tmp_path / "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca" / "server.crt", tmp_path / "ca" / "server.key")

    def greet(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True):
            return

    with listening(greet) as address:
        assert why_unreachable(address, True, 5.0) == ""
    with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address:
        assert why_unreachable(address, True, 2.0) == "", "who answers is not judged here"
