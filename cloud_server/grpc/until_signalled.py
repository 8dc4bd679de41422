"""Run a server in a process: start, report its address, wait for SIGTERM or SIGINT, drain.

A server that has work to do after it listens does it meanwhile; what goes wrong there ends the server.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

Place = TypeVar("Place", covariant=True)


class Server(Protocol[Place]):
    """A server in an event loop. Implemented by ``InferenceServer`` and ``ServingServer``."""

    async def start(self) -> Place:
        """Serve; the port or ports."""

    async def stop(self) -> None:
        """Answer accepted requests, then close."""


async def _nothing() -> None:
    pass


def run_until_signalled(
    server: Server[Place],
    announce: Callable[[Place], None],
    meanwhile: Callable[[], Awaitable[None]] = _nothing,
) -> None:
    """Serve in this process until SIGTERM or SIGINT, then drain.

    Args:
        announce: gets what ``start`` returned.
        meanwhile: runs once the server has started; cancelled by a signal.

    Raises:
        Exception: whatever ``meanwhile`` raised; the server has stopped then.
    """
    asyncio.run(_run(server, announce, meanwhile))


async def _run(
    server: Server[Place], announce: Callable[[Place], None], meanwhile: Callable[[], Awaitable[None]]
) -> None:
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    announce(await server.start())
    signalled = asyncio.ensure_future(leave.wait())
    working = asyncio.ensure_future(meanwhile())
    try:
        await asyncio.wait((signalled, working), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        await signalled
    finally:
        working.cancel()
        await server.stop()
