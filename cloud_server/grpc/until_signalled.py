"""Run a server in a process: start, report its address, wait for SIGTERM or SIGINT, retire, drain.

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
    retire: Callable[[], Awaitable[None]] = _nothing,
) -> None:
    """Serve in this process until SIGTERM or SIGINT, then drain.

    Args:
        announce: gets what ``start`` returned.
        meanwhile: runs once the server has started; cancelled by a signal.
        retire: runs between the signal and the drain; cancelled by another signal.

    Raises:
        Exception: whatever ``meanwhile`` raised; the server has stopped then.
    """
    asyncio.run(_run(server, announce, meanwhile, retire))


async def _run(
    server: Server[Place],
    announce: Callable[[Place], None],
    meanwhile: Callable[[], Awaitable[None]],
    retire: Callable[[], Awaitable[None]],
) -> None:
    leave, hurry = asyncio.Event(), asyncio.Event()

    def signal_came() -> None:
        (hurry if leave.is_set() else leave).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signal_came)
    announce(await server.start())
    signalled = asyncio.ensure_future(leave.wait())
    working = asyncio.ensure_future(meanwhile())
    try:
        await asyncio.wait((signalled, working), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        await signalled
        working.cancel()
        await _unless(hurry, retire())
    finally:
        working.cancel()
        await server.stop()


async def _unless(hurry: asyncio.Event, work: Awaitable[None]) -> None:
    """The work, cancelled once the event is set."""
    working, hurrying = asyncio.ensure_future(work), asyncio.ensure_future(hurry.wait())
    try:
        await asyncio.wait((working, hurrying), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        hurrying.cancel()
