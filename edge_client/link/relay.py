"""A place on loopback that leads to the coordinator and counts what passes, for a device on a metered link.

The SuperNode and its ClientApps are processes of their own, so their bytes cannot be counted from outside without
rights that an agent does not have. TLS goes through unopened: the coordinator's certificate always names loopback,
too. TCP and IP headers are not seen.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fedstill.common.option_values import address
from fedstill.edge_client.link.monthly_bytes import MonthlyBytes

LOG = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 10.0
PIECE = 64 * 1024
STOP_SECONDS = 0.5


@contextmanager
def metered(target: str, budget: MonthlyBytes) -> Iterator[str]:
    """Inside, ``HOST:PORT`` on loopback that leads to ``target``; once the month is spent, nothing passes any more.

    Args:
        target: ``HOST:PORT``.
    """
    with _Relay(target, budget) as relay:
        thread = threading.Thread(
            target=relay.serve_forever, args=(STOP_SECONDS,), name="metered", daemon=True
        )
        thread.start()
        try:
            yield f"{LOOPBACK}:{relay.server_address[1]}"
        finally:
            relay.shutdown()
            relay.cut()
            thread.join()
            budget.save()


def reset(end: socket.socket) -> None:
    """End a connection as a network does that is gone.

    An orderly end within a TLS handshake is to Flower a wrong certificate, after which it tries no more.
    """
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RD)  # wakes who reads, and tells the other side nothing yet
    end.close()


class _Relay(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, target: str, budget: MonthlyBytes) -> None:
        self.target, self.budget = address(target, "the coordinator's address"), budget
        super().__init__((LOOPBACK, 0), _Connection)
        self._name = target
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._trouble = ""

    def connected(self, *ends: socket.socket) -> None:
        """Remember them, to be cut at the end."""
        with self._lock:
            self._open |= set(ends)

    def closed(self, *ends: socket.socket) -> None:
        """Forget and close them."""
        with self._lock:
            self._open -= set(ends)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut(self) -> None:
        """End every connection."""
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            reset(end)

    def says(self, trouble: str) -> None:
        """A reason why the coordinator cannot be reached, once; or that it can."""
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                LOG.warning("event=unreachable target=%s reason=%s", self._name, json.dumps(trouble))


class _Connection(socketserver.BaseRequestHandler):
    server: _Relay

    def handle(self) -> None:
        """Both directions, until either side ends."""
        if self.server.budget.spent:
            reset(self.request)
            return
        try:
            upstream = socket.create_connection(self.server.target, CONNECT_SECONDS)
        except OSError as error:
            self.server.says(error.strerror or str(error))
            reset(self.request)
            return
        self.server.says("")
        upstream.settimeout(None)
        for end in (self.request, upstream):
            with suppress(OSError):  # gone already, which the first piece shows
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connected(self.request, upstream)
        back = threading.Thread(target=self._pass_on, args=(upstream, self.request), daemon=True)
        back.start()
        self._pass_on(self.request, upstream)
        back.join()
        self.server.closed(self.request, upstream)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        budget = self.server.budget
        try:
            while piece := source.recv(PIECE):
                budget.count(len(piece))
                sink.sendall(piece)
                if budget.spent:
                    self.server.cut()
                    return
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # either side is gone, and so is the other direction
            self.server.closed(source, sink)
