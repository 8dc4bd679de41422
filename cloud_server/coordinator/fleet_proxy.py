"""The only way for devices to reach Flower: a TLS proxy that lets through the twelve fleet routes and nothing else.

Flower serves devices, operators and its own processes on one port, and authenticates only devices: anyone who reaches
that port may start a run, that is, execute code. So the SuperLink listens on loopback alone, and devices connect to
this proxy. A request passes only if its target is, byte for byte, one of the routes below. The path that is requested
upstream comes from that table and never from the request, so there is nothing to normalise and nothing to smuggle.
Bodies stream both ways in pieces; nothing is held in memory.

    python -m fedstill.cloud_server.coordinator.fleet_proxy SETTINGS.json
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fedstill.cloud_server.journal.traffic import TrafficCounters, TrafficError
from fedstill.common.atomic_files import replace_text
from fedstill.common.credentials import fingerprint
from fedstill.common.dataclass_codec import PlainError, from_plain

FLEET = "/v1/fleet/"
ROUTES = (
    "register-node",
    "activate-node",
    "deactivate-node",
    "unregister-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
"""Of Flower 1.41; a test compares them with the installed one."""
TARGETS = {f"{FLEET}{route}".encode("ascii"): route for route in ROUTES}
NOT_FORWARDED = frozenset(
    {b"host", b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection",
     b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"cookie", b"set-cookie", b"server", b"date"}
)  # fmt: skip
"""Hop-by-hop headers (RFC 9110, 7.6.1) and those that each side writes itself."""
PUBLIC_KEY_HEADER = b"flwr-public-key"
KEPT_OPEN_SECONDS = 2.0
"""Less than the 5 s after which the SuperLink closes an idle connection: none is reused while it closes."""
SAVE_SECONDS = 2.0
FAILED = 1
MISTAKE = 2

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProxySettings:
    """One proxy; the content of ``SETTINGS.json``."""

    host: str
    port: int
    """0 takes a free one; ``ready_file`` names it."""
    upstream: str
    """URL of the SuperLink: ``https://127.0.0.1:9091``, or ``http://`` without TLS."""
    ca_file: str = ""
    """The authority that must have signed the SuperLink's certificate; empty only with ``http://``."""
    certificate_file: str = ""
    """Empty: devices are served without TLS (``--insecure``)."""
    key_file: str = ""
    ready_file: str = ""
    """Is written once the proxy listens: ``{"pid": ..., "port": ...}``."""
    traffic_file: str = ""
    body_limit: int = 128 * 2**20
    """Bytes of one request's body."""
    idle_seconds: float = 60.0
    """Seconds that either side may take for its next piece."""
    connections: int = 1024
    """At the same time; further ones get 503."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if bool(self.certificate_file) != bool(self.key_file):
            raise ValueError("key_file: a certificate and its key go together")
        if self.upstream.startswith("https://") != bool(self.ca_file):
            raise ValueError("ca_file: is needed with https:// and has no use with http://")
        if not self.upstream.startswith(("https://", "http://")):
            raise ValueError("upstream: starts with https:// or http://")


class _Refused(Exception):
    """Ends a request with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Gone(Exception):
    """The device has closed the connection; there is nobody to answer."""


class FleetProxy:
    """The ASGI application."""

    def __init__(self, settings: ProxySettings, traffic: TrafficCounters) -> None:
        self._settings = settings
        self._traffic = traffic
        # The bare transport: no cookies shared between devices, no redirects followed, no proxies of the environment.
        self._upstream = httpx.AsyncHTTPTransport(
            verify=ssl.create_default_context(cafile=settings.ca_file) if settings.ca_file else False,
            limits=httpx.Limits(max_connections=settings.connections, keepalive_expiry=KEPT_OPEN_SECONDS),
            trust_env=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of a device."""
        if scope["type"] != "http":
            return
        route = TARGETS.get(scope["raw_path"])
        if route is None or scope["method"] != "POST" or scope["query_string"]:
            log.info("event=refused status=404 peer=%s target=%r", _address(scope), scope["raw_path"][:100])
            await _answer(send, 404)
            return
        try:
            await self._forward(route, scope, receive, send)
        except _Refused as refused:
            log.info("event=refused status=%d peer=%s route=%s", refused.status, _address(scope), route)
            await _answer(send, refused.status)
        except (_Gone, TimeoutError):
            log.info("event=gone peer=%s route=%s", _address(scope), route)

    async def close(self) -> None:
        """Close the connections to the SuperLink."""
        await self._upstream.aclose()

    async def _forward(self, route: str, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive, self._settings, scope["headers"])
        response = await self._ask(route, scope, body)
        down, headers = 0, _kept(response.headers.raw)
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        try:
            async for piece in response.aiter_raw():
                down += len(piece)
                async with asyncio.timeout(self._settings.idle_seconds):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except httpx.TransportError as error:
            # A half-sent answer cannot be taken back: without its end, the server closes the connection.
            log.warning("event=cut route=%s reason=%s", route, type(error).__name__)
            return
        finally:
            await response.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if response.status_code < 400:
            heads = _head_bytes(scope["headers"], scope["raw_path"]), _head_bytes(headers)
            self._traffic.add(self._peer(scope), route, body.read, down, *heads)

    async def _ask(self, route: str, scope: Scope, body: _Body) -> httpx.Response:
        idle = self._settings.idle_seconds
        request = httpx.Request(
            "POST",
            f"{self._settings.upstream}{FLEET}{route}",
            headers=_kept(scope["headers"]),
            content=body,
            extensions={"timeout": {"connect": 5.0, "read": idle, "write": idle, "pool": 10.0}},
        )
        try:
            response = await self._upstream.handle_async_request(request)
        except httpx.ReadTimeout:
            raise _Refused(504) from None
        except httpx.TransportError as error:  # not up, or ended meanwhile; Flower's nodes try again on 503
            log.warning("event=upstream-unreachable route=%s reason=%s", route, type(error).__name__)
            raise _Refused(503) from error
        response.request = request
        return response

    def _peer(self, scope: Scope) -> str:
        """The node's fingerprint; its address if no SuperLink has checked the key that it claims."""
        if self._settings.certificate_file:
            claimed = next((value for name, value in scope["headers"] if name == PUBLIC_KEY_HEADER), b"")
            return _fingerprint(claimed)
        return _address(scope)


class _Body:
    """A request's body in pieces, bounded in size and in time."""

    def __init__(self, receive: Receive, settings: ProxySettings, headers: list[tuple[bytes, bytes]]) -> None:
        self.read = 0
        self._receive = receive
        self._settings = settings
        announced = next((value for name, value in headers if name == b"content-length"), b"0")
        if int(announced) > settings.body_limit:
            raise _Refused(413)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            try:
                async with asyncio.timeout(self._settings.idle_seconds):
                    event = await self._receive()
            except TimeoutError:
                raise _Refused(408) from None
            if event["type"] != "http.request":
                raise _Gone
            more = event.get("more_body", False)
            piece = event.get("body", b"")
            self.read += len(piece)
            if self.read > self._settings.body_limit:
                raise _Refused(413)
            if piece:
                yield piece


def run_proxy(settings: ProxySettings) -> None:
    """Serve until SIGTERM or SIGINT, then finish open requests (10 s at most).

    Raises:
        OSError: the address is taken, or a certificate file cannot be read.
        TrafficError: the traffic file is damaged.
    """
    _allow_files(4 * settings.connections)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family) as listener:
        asyncio.run(_serve(settings, listener))


def _allow_files(count: int) -> None:
    """A connection takes two sockets; the usual soft limit of 1024 open files is too low for that, the hard limit is
    not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(settings: ProxySettings, listener: socket.socket) -> None:
    traffic = TrafficCounters(Path(settings.traffic_file) if settings.traffic_file else None)
    proxy = FleetProxy(settings, traffic)
    server = _Server(
        uvicorn.Config(
            proxy,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.connections,
            timeout_graceful_shutdown=10,
            ssl_certfile=settings.certificate_file or None,
            ssl_keyfile=settings.key_file or None,
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    if server.started:
        log.info("event=listening address=%s:%d upstream=%s", *listener.getsockname()[:2], settings.upstream)
        if settings.ready_file:
            ready = {"pid": os.getpid(), "port": listener.getsockname()[1]}
            replace_text(Path(settings.ready_file), json.dumps(ready))
    try:
        while not serving.done():
            await asyncio.wait([serving], timeout=SAVE_SECONDS)
            traffic.save()
    finally:
        await proxy.close()
    await serving


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would end the process before the last counts are written."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _kept(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    named = {
        name.strip().lower()
        for key, value in headers
        if key.lower() == b"connection"
        for name in value.split(b",")
    }
    return [(name, value) for name, value in headers if name.lower() not in NOT_FORWARDED | named]


def _head_bytes(headers: list[tuple[bytes, bytes]], target: bytes = b"") -> int:
    """Of a request, or of an answer if there is no target: the first line, the headers and the empty line."""
    first = len(b"POST  HTTP/1.1\r\n") + len(target) if target else len(b"HTTP/1.1 200 OK\r\n")
    return first + sum(len(name) + len(value) + len(b": \r\n") for name, value in headers) + len(b"\r\n")


async def _answer(send: Send, status: int) -> None:
    headers = [(b"content-length", b"0"), *([(b"retry-after", b"2")] if status == 503 else [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _address(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else "unknown"


@lru_cache(maxsize=4096)
def _fingerprint(header: bytes) -> str:
    try:
        key = load_pem_public_key(base64.b64decode(header, validate=True))
    except (binascii.Error, ValueError, UnsupportedAlgorithm):
        return "unknown"
    return fingerprint(key) if isinstance(key, ec.EllipticCurvePublicKey) else "unknown"


def main(arguments: list[str]) -> int:
    """The process; returns its exit status."""
    logging.basicConfig(
        format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s", level=logging.INFO
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if len(arguments) != 1:
        log.error(
            "event=mistake reason='usage: python -m fedstill.cloud_server.coordinator.fleet_proxy SETTINGS.json'"
        )
        return MISTAKE
    try:
        settings = from_plain(ProxySettings, json.loads(Path(arguments[0]).read_bytes()))
    except (OSError, PlainError, UnicodeDecodeError, json.JSONDecodeError) as error:
        log.error("event=mistake file=%s reason=%r", arguments[0], str(error))
        return MISTAKE
    try:
        run_proxy(settings)
    except (OSError, TrafficError) as error:
        log.error("event=failed listen=%s:%d reason=%r", settings.host, settings.port, str(error))
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
