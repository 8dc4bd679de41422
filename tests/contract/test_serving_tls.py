"""Own certificates and client certificates: gRPC and REST agree on who comes in."""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.pki import Identity, made

from fedstill.cloud_server.auth.authority import create_authority
from fedstill.cloud_server.grpc.server_tls import TlsFiles
from fedstill.cloud_server.serving.app.serve_process import run_serving
from fedstill.cloud_server.serving.endpoints.serving_server import ListenAddress, ServingServer
from fedstill.cloud_server.serving.endpoints.starting import StartProgress
from fedstill.cloud_server.serving.monitoring.web import make_app
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics
from fedstill.common.credentials import CredentialError


async def comes_in_by_grpc(port: int, root: bytes, own: tuple[Path, Path] | None) -> bool:
    certificate, key = (file.read_bytes() for file in own) if own else (None, None)
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError:
            return False
    return True


async def comes_in_by_rest(port: int, root: bytes, own: tuple[Path, Path] | None) -> bool:
    trust = ssl.create_default_context(cadata=root.decode())
    if own:
        trust.load_cert_chain(*own)
    async with httpx.AsyncClient(verify=trust, timeout=10) as client:
        try:
            return (await client.get(f"https://127.0.0.1:{port}/v2/health/live")).status_code == 200
        except httpx.TransportError:
            return False


async def come_in(
    tls: TlsFiles, root: bytes, clients: dict[str, tuple[Path, Path] | None]
) -> dict[str, bool]:
    """Who of these comes in, by both ways alike. root: that the clients trust."""
    nothing: Callable[[], Any] = lambda: False  # noqa: E731
    address = ListenAddress(("127.0.0.1", 0), None, ("127.0.0.1", 0), tls)
    server = ServingServer(StartProgress(), make_app(ServingMetrics("fedstill"), nothing), address)
    ports = await server.start()
    found = {}
    for name, own in clients.items():
        found[name] = await comes_in_by_grpc(ports.grpc, root, own)
        assert await comes_in_by_rest(ports.rest or 0, root, own) is found[name], name
    await server.stop()
    return found


@pytest.fixture
def clients(tmp_path: Path) -> tuple[Identity, Identity, dict[str, tuple[Path, Path] | None]]:
    """The clients' authority, its intermediate, and who comes."""
    root, stranger = made("clients", authority=True), made("strangers", authority=True)
    middle = made("middle", root, authority=True)
    return root, middle, {
        "nobody": None,
        "direct": made("direct", root).write(tmp_path, "direct"),
        "behind": made("behind", middle).write(tmp_path, "behind", middle),
        "expired": made("expired", root, days=(-9, -1)).write(tmp_path, "expired"),
        "stranger": made("stranger", stranger).write(tmp_path, "stranger"),
        "itself": made("direct").write(tmp_path, "itself"),
    }  # fmt: skip


def test_who_has_a_certificate_of_the_authority_comes_in(tmp_path: Path, clients: Any) -> None:
    root, middle, known = clients
    own = made("own", authority=True)
    between = made("between", own, authority=True)
    files = TlsFiles(*made("server", between).write(tmp_path, "server", between))
    everybody = asyncio.run(come_in(files, own.pem, known))
    assert everybody == dict.fromkeys(known, True)
    assert not any(asyncio.run(come_in(files, root.pem, {"who trusts others": None})).values())
    (tmp_path / "ca.crt").write_bytes(root.pem)
    found = asyncio.run(
        come_in(TlsFiles(files.certificate_file, files.key_file, tmp_path / "ca.crt"), own.pem, known)
    )
    assert {name for name, inside in found.items() if inside} == {"direct", "behind"}
    (tmp_path / "ca.crt").write_bytes(middle.pem)  # an intermediate alone
    found = asyncio.run(
        come_in(TlsFiles(files.certificate_file, files.key_file, tmp_path / "ca.crt"), own.pem, known)
    )
    assert {name for name, inside in found.items() if inside} == {"behind"}


def test_a_mistake_in_the_files_ends_the_start_before_a_port_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    authority = create_authority(tmp_path / "authority")
    certificate, _ = made("server").write(tmp_path, "server")
    _, other = made("other").write(tmp_path, "other")
    right: dict[str, Any] = {
        "authority": authority.directory, "rates": {}, "tls_certificate": None, "tls_key": None, "client_ca": None
    }  # fmt: skip
    for wrong, said in (
        ({"tls_certificate": certificate, "tls_key": other}, "not the key of the first certificate"),
        ({"client_ca": certificate}, "is no authority"),
    ):
        with pytest.raises(CredentialError, match=said):
            run_serving(SimpleNamespace(**right | wrong))  # type: ignore[arg-type]
