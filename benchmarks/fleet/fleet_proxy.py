"""The cost of the proxy in front of Flower: the same requests with and without it, in turn.

A stand-in for the SuperLink answers at once, so that only the path to it is measured: TLS on both legs, headers,
bodies. Two loads: a fleet of devices that each send a heartbeat on a connection of their own, and one device that
uploads and downloads large messages in Flower's pieces of 5 MiB. The benchmark ends with an error if the proxied
answers differ, or if the proxy's counts are not the bytes sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
import uvicorn
from rich.console import Console

from fedstill.cloud_server.auth.authority import Authority, create_authority
from fedstill.cloud_server.coordinator.fleet_proxy import FLEET, ProxySettings
from fedstill.cloud_server.journal.traffic import read_traffic
from fedstill.common.dataclass_codec import to_plain

HEARTBEAT = b"h" * 60
PIECE = b"p" * (5 * 2**20)
START_SECONDS = 60.0

Event = MutableMapping[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Measure both loads; raises SystemExit if an answer or a count is wrong."""
    options = _options(arguments)
    fleets, rounds, pieces, repeats = ([5], 2, 2, 1) if options.quick else ([20, 200], 5, 18, options.repeats)
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        authority = create_authority(Path(folder) / "certs")
        with _superlink(authority) as direct, _proxy(Path(folder), authority, direct) as (proxied, process):
            for devices in fleets:
                ways = _in_turn(repeats, authority, (direct, proxied), _heartbeats(devices, rounds))
                once = [1000 * seconds / (devices * rounds) for seconds in ways]
                console.print(
                    f"heartbeats of {devices} devices: {once[0]:.2f} ms each without, {once[1]:.2f} ms with the proxy, "
                    f"ratio {once[1] / once[0]:.2f}"
                )
            ways = _in_turn(repeats, authority, (direct, proxied), _messages(pieces))
            size = 2 * pieces * len(PIECE) / 2**20
            rate = [size / seconds for seconds in ways]
            console.print(
                f"messages of {size:.0f} MiB up and down: {rate[0]:.0f} MiB/s without, {rate[1]:.0f} MiB/s with the "
                f"proxy, ratio {rate[0] / rate[1]:.2f}; its memory {process.memory_info().rss / 2**20:.0f} MiB"
            )
        _check_counts(Path(folder) / "traffic.json", sum(fleets) * rounds * repeats, 2 * pieces * repeats)


def _in_turn(
    repeats: int,
    authority: Authority,
    urls: Sequence[str],
    load: Callable[[httpx.AsyncClient], Awaitable[None]],
) -> list[float]:
    """Median seconds by each way, with connections that are not yet open."""
    trust = ssl.create_default_context(cafile=str(authority.ca_file))

    async def once(url: str) -> float:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(
            base_url=url, verify=trust, trust_env=False, limits=limits, timeout=120
        ) as client:
            begin = time.perf_counter()
            await load(client)
            return time.perf_counter() - begin

    seconds = [[asyncio.run(once(url)) for url in urls] for _ in range(repeats)]
    return [median(way) for way in zip(*seconds, strict=True)]


def _heartbeats(devices: int, rounds: int) -> Callable[[httpx.AsyncClient], Awaitable[None]]:
    async def device(client: httpx.AsyncClient) -> None:
        for _ in range(rounds):
            _expect(await client.post(f"{FLEET}send-node-heartbeat", content=HEARTBEAT), HEARTBEAT)

    async def load(client: httpx.AsyncClient) -> None:
        await asyncio.gather(*(device(client) for _ in range(devices)))

    return load


def _messages(pieces: int) -> Callable[[httpx.AsyncClient], Awaitable[None]]:
    async def load(client: httpx.AsyncClient) -> None:
        for _ in range(pieces):
            _expect(await client.post(f"{FLEET}push-object", content=PIECE), b"")
            _expect(await client.post(f"{FLEET}pull-object", content=HEARTBEAT), PIECE)

    return load


def _expect(answer: httpx.Response, content: bytes) -> None:
    if answer.status_code != httpx.codes.OK or answer.content != content:
        raise SystemExit(f"{answer.url}: HTTP {answer.status_code}, {len(answer.content)} bytes")


def _check_counts(path: Path, heartbeats: int, objects: int) -> None:
    counted = {entry.route: entry for entry in read_traffic(path)}
    sent = {"send-node-heartbeat": heartbeats, "push-object": objects // 2, "pull-object": objects // 2}
    if {route: entry.requests for route, entry in counted.items()} != sent:
        raise SystemExit(f"counted {counted}, sent {sent}")
    if {counted["push-object"].bytes_up, counted["pull-object"].bytes_down} != {len(PIECE) * (objects // 2)}:
        raise SystemExit(f"counted {counted}")


async def _answer(
    scope: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Any]
) -> None:
    """The stand-in: objects are swallowed or given, anything else comes back."""
    body = b""
    more = True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    route = scope["path"].rpartition("/")[2]
    content = {"push-object": b"", "pull-object": PIECE}.get(route, body)
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@contextmanager
def _superlink(authority: Authority) -> Iterator[str]:
    config = uvicorn.Config(
        _answer, lifespan="off", log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1,
        ssl_certfile=str(authority.certificate_file), ssl_keyfile=str(authority.key_file),
    )  # fmt: skip
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(START_SECONDS)


@contextmanager
def _proxy(folder: Path, authority: Authority, upstream: str) -> Iterator[tuple[str, psutil.Process]]:
    settings = ProxySettings(
        "127.0.0.1", 0, upstream, ca_file=str(authority.ca_file),
        certificate_file=str(authority.certificate_file), key_file=str(authority.key_file),
        ready_file=str(folder / "ready.json"), traffic_file=str(folder / "traffic.json"),
    )  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(to_plain(settings)), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "fedstill.cloud_server.coordinator.fleet_proxy", str(folder / "settings.json")]
    )
    try:
        end = time.monotonic() + START_SECONDS
        while not (folder / "ready.json").exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the proxy did not start")
            time.sleep(0.05)
        port = json.loads((folder / "ready.json").read_bytes())["port"]
        yield f"https://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each load and way")
    parser.add_argument("--quick", action="store_true", help="a small load, once: does it still work?")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
