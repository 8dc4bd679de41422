"""A TCP relay on loopback that counts what passes: bytes, and packets as the kernel counts them."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from dataclasses import dataclass

PIECE = 2**16
HEADERS = 52
"""Bytes of a packet that are not payload: IPv4 20, TCP 20 and its time stamps 12."""
SEGMENTS = slice(136, 144)
"""Of Linux' ``struct tcp_info``: segments out, segments in."""


@dataclass(frozen=True)
class Traffic:
    """Both directions together, since the start."""

    payload: int = 0
    packets: int = 0
    connections: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.payload + other.payload,
            self.packets + other.packets,
            self.connections + other.connections,
        )

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.payload - other.payload,
            self.packets - other.packets,
            self.connections - other.connections,
        )

    @property
    def bytes(self) -> int:
        """As a metered link counts them."""
        return self.payload + HEADERS * self.packets


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a router does when nobody is there: an orderly end in the middle of a TLS handshake would say
    that somebody is, and Flower's SuperNode, which tries a refused connection again, ends itself after that."""
    if not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.transport.abort()


class Relay:
    """Forwards ``127.0.0.1:port`` to ``upstream`` (host, port); a context manager."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.port = 0
        self._upstream = upstream
        self._payload = self._connections = 0
        self._ended = 0
        self._open: set[socket.socket] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", 0), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def traffic(self) -> Traffic:
        """Between whoever connects and this relay, so far."""

        async def look() -> Traffic:
            packets = self._ended + sum(map(_packets, self._open))
            return Traffic(self._payload, packets, self._connections)

        return asyncio.run_coroutine_threadsafe(look(), self._loop).result()

    def cut(self) -> None:
        """Reset all connections, and every new one until ``restore``."""
        self._is_cut = True

        async def reset_all() -> None:
            for writer in self._writers:
                reset(writer)

        asyncio.run_coroutine_threadsafe(reset_all(), self._loop).result()

    def restore(self) -> None:
        """After ``cut``."""
        self._is_cut = False

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            reset(writer)
            return
        near = writer.get_extra_info("socket")
        self._connections += 1
        self._open.add(near)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._upstream)
            both = {writer, far_writer}
            self._writers |= both
            try:
                await asyncio.gather(self._forward(reader, far_writer), self._forward(far_reader, writer))
            finally:
                self._writers -= both
                far_writer.transport.abort()
        except OSError:  # nobody listens there, or one side has reset it
            reset(writer)
        finally:
            self._open.remove(near)
            self._ended += _packets(near)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE):
            self._payload += len(piece)
            writer.write(piece)
            await writer.drain()
        writer.write_eof()


def _packets(connection: socket.socket) -> int:
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SEGMENTS.stop)
    except OSError:  # closed already
        return 0
    return sum(struct.unpack("=II", info[SEGMENTS]))
