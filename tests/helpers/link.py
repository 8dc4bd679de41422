"""A link that can be slow, far and cut: a real TCP proxy between two real programs.

``ThrottledProxy`` forwards each direction through a token bucket that holds hardly more than one slice, so that a large
message takes as long as on a line of that rate, and then through a delay line. Rate and delay may be changed, and
the link may be stalled, reset and restored, at any time and from any thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

SLICE = 256  # bytes that pass at once
BURST_SECONDS = 0.002
TICK = 0.01


class ThrottledProxy:
    """Forwards ``127.0.0.1:port`` to ``upstream``.

    Args:
        upstream: (host, port).
        bytes_per_second: of each direction.
        delay: seconds that each byte is under way, per direction.
    """

    def __init__(self, upstream: tuple[str, int], bytes_per_second: float, delay: float = 0.0) -> None:
        self.port = 0
        self.bytes_per_second = bytes_per_second
        self.delay = delay
        self.carried = 0
        """Bytes forwarded so far, both directions."""
        self._upstream = upstream
        self._up = True
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="throttled-proxy", daemon=True)
        self._server: asyncio.Server | None = None

    def __enter__(self) -> ThrottledProxy:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def shape(self, bytes_per_second: float, delay: float) -> None:
        """Another rate and delay from the next slice on."""
        self.bytes_per_second, self.delay = bytes_per_second, delay

    def stall(self) -> None:
        """Nothing passes any more, and neither side is informed: a radio link out of range."""
        self._up = False

    def cut(self) -> None:
        """All connections are reset and new ones refused, as when a cable is pulled at the access point."""
        self._refusing = True
        self._call(self._reset())

    def restore(self) -> None:
        """After :meth:`stall` or :meth:`cut`; what was stalled goes on."""
        self._up, self._refusing = True, False

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=2 * SLICE)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._reset()
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _reset(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._upstream, limit=2 * SLICE)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._forward(reader, far_writer), self._forward(far_reader, writer))
        except asyncio.CancelledError:
            return  # the proxy ends; asyncio would report a cancelled connection as a failed one
        finally:
            for one in (writer, far_writer):
                one.transport.abort()
                self._writers.discard(one)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: paced here, delivered after the delay by :meth:`_deliver`."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.create_task(self._deliver(line, writer))
        free_at = 0.0  # when the line has carried all that it was given
        try:
            while True:
                piece = await reader.read(SLICE)
                now = time.monotonic()
                free_at = max(free_at, now) + len(piece) / self.bytes_per_second
                if free_at - now > BURST_SECONDS:
                    await asyncio.sleep(free_at - now)
                await self._passable()
                line.put_nowait((time.monotonic() + self.delay, piece))
                if not piece:
                    await delivery
                    return
        except ConnectionError:
            return  # reset by either side, or by us
        finally:
            delivery.cancel()

    async def _deliver(self, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, piece = await line.get()
            await asyncio.sleep(due - time.monotonic())
            await self._passable()
            if writer.transport.is_closing():
                return  # reset: what was under way is lost
            if not piece:
                writer.write_eof()
                return
            writer.write(piece)
            self.carried += len(piece)

    async def _passable(self) -> None:
        while not self._up:
            await asyncio.sleep(TICK)
