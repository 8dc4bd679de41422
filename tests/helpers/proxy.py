"""A fleet proxy in a process of its own, and a stand-in for the SuperLink behind it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from fedstill.cloud_server.coordinator.fleet_proxy import ProxySettings
from fedstill.common.dataclass_codec import to_plain

START_SECONDS = 60.0


@dataclass
class Upstream:
    """The requests that the stand-in received, and how it is to answer."""

    port: int = 0
    asked: list[tuple[str, dict[str, str], int]] = field(default_factory=list)
    """Target, headers in lower case, bytes of the body."""
    begun: int = 0
    """Requests of which the head has come."""
    status: int = 200
    answer_bytes: int = 0
    promised_bytes: int | None = None
    """More than ``answer_bytes``: the answer is cut off."""
    silent: threading.Event = field(default_factory=threading.Event)
    """While set, requests are read and not answered."""
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def upstream() -> Iterator[Upstream]:
    """An HTTP server on loopback."""
    state = Upstream()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            state.begun += 1
            state.asked.append(
                (self.path, {key.lower(): value for key, value in self.headers.items()}, self._read())
            )
            while state.silent.is_set():
                time.sleep(0.05)
            promised = state.answer_bytes if state.promised_bytes is None else state.promised_bytes
            self.send_response(state.status)
            for key, value in {"Content-Length": str(promised), **state.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            for begin in range(0, state.answer_bytes, 2**16):
                self.wfile.write(b"d" * min(2**16, state.answer_bytes - begin))
            self.close_connection = promised != state.answer_bytes

        def _read(self) -> int:
            if self.headers.get("transfer-encoding") == "chunked":
                size = 0
                while (piece := int(self.rfile.readline(), 16)) > 0:
                    size += len(self.rfile.read(piece))
                    self.rfile.readline()
                self.rfile.readline()
                return size
            left = size = int(self.headers.get("content-length", 0))
            while left and (piece := self.rfile.read(min(left, 2**16))):
                left -= len(piece)
            return size - left

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.silent.clear()
        server.shutdown()
        server.server_close()


@dataclass
class Proxy:
    """A running proxy."""

    process: subprocess.Popen[bytes]
    port: int
    log_file: Path


@contextmanager
def proxy(folder: Path, settings: ProxySettings) -> Iterator[Proxy]:
    """``python -m fedstill.cloud_server.coordinator.fleet_proxy`` until the block ends; then SIGTERM by its pid."""
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    (folder / "proxy.json").write_text(json.dumps({**to_plain(settings), "ready_file": str(ready)}))
    log_file = folder / "proxy.log"
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedstill.cloud_server.coordinator.fleet_proxy", str(folder / "proxy.json")],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        end = time.monotonic() + START_SECONDS
        while not ready.exists():
            assert process.poll() is None, log_file.read_text()
            assert time.monotonic() < end, log_file.read_text()
            time.sleep(0.05)
        yield Proxy(process, json.loads(ready.read_text())["port"], log_file)
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_families(heads: Iterable[psutil.Process]) -> None:
    """End these processes and all below them, each by its pid."""
    everyone = []
    for head in heads:
        with suppress(psutil.NoSuchProcess):
            everyone += [*head.children(recursive=True), head]
    for process in everyone:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(everyone, timeout=15)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
