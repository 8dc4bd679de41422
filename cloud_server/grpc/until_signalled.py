"""Run a server in a process: start, report its address, wait for SIGTERM or SIGINT, drain."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Protocol, TypeVar

Place = TypeVar("Place", covariant=True)


class Server(Protocol[Place]):
    """A server in an event loop. Implemented by ``InferenceServer`` and ``ServingServer``."""

    async def start(self) -> Place:
        """Serve; the port or ports."""

    async def stop(self) -> None:
        """Answer accepted requests, then close."""


def run_until_signalled(server: Server[Place], announce: Callable[[Place], None]) -> None:
    """Serve in this process until SIGTERM or SIGINT, then drain. ``announce`` gets what ``start`` returned."""
    asyncio.run(_run(server, announce))


async def _run(server: Server[Place], announce: Callable[[Place], None]) -> None:
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    announce(await server.start())
    await leave.wait()
    await server.stop()
