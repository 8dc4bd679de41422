"""The process side of the serving tier: ports, a watch on the registry, and a drain before the end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from fedstill.cloud_server.grpc.listen import ServerError, listen
from fedstill.cloud_server.grpc.server_tls import ServerTls
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks
from fedstill.cloud_server.serving.server.serving_service import (
    INFERENCE_SERVICE,
    OWN_SERVICE,
    ServingService,
)

LOG = logging.getLogger(__name__)

LARGEST_REQUEST = 64 * 2**20
"""Bytes."""
REFRESH_SECONDS = 1.0
"""Between two looks at the registry."""
GOODBYE_SECONDS = 1.0
"""Seconds for the last answers to leave."""


@dataclass(frozen=True)
class ListenAddress:
    """Where to serve. listen, web: ``HOST, PORT`` with 0 for a free port; no web server if ``web`` is None."""

    listen: tuple[str, int]
    web: tuple[str, int] | None = None
    tls: ServerTls | None = None
    drain_seconds: float = 10.0
    concurrent: int = 4096


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports in use."""

    grpc: int
    web: int | None


class ServingServer:
    """The parts of a running server that need an event loop."""

    def __init__(
        self,
        service: ServingService,
        dispatcher: Dispatcher,
        tasks: ServedTasks,
        app: FastAPI,
        address: ListenAddress,
    ) -> None:
        self._service, self._dispatcher, self._tasks = service, dispatcher, tasks
        self._app, self._address = app, address
        self._web: _Web | None = None

    async def start(self) -> Ports:
        """Serve. Raises ServerError if an address is taken or the TLS files are unusable."""
        host, wanted = self._address.listen
        self._listener = listen(
            f"[{host}]:{wanted}" if ":" in host else f"{host}:{wanted}",
            self._address.tls,
            self._service.handlers(),
            largest_request=LARGEST_REQUEST,
            concurrent=self._address.concurrent,
        )
        web_port = await self._start_web()
        self._dispatcher.start()
        await self._listener.serve((INFERENCE_SERVICE, OWN_SERVICE))
        self._watching = asyncio.create_task(self._watch())
        return Ports(self._listener.port, web_port)

    async def stop(self) -> None:
        """Take no new requests, answer the accepted ones (within the address's drain time), then close."""
        LOG.info("event=draining queued=%d", self._dispatcher.queued())
        self._dispatcher.drain()
        await self._listener.announce_shutdown()
        self._watching.cancel()
        with suppress(asyncio.CancelledError):
            await self._watching
        idle = await asyncio.to_thread(self._dispatcher.wait_until_idle, self._address.drain_seconds)
        await asyncio.to_thread(self._dispatcher.stop)
        await self._listener.server.stop(GOODBYE_SECONDS)
        if self._web is not None:
            await self._web.end()
        LOG.info("event=stopped everyone_answered=%s", idle)

    async def _start_web(self) -> int | None:
        if self._address.web is None:
            return None
        host, port = self._address.web
        try:
            listener = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except OSError as error:
            raise ServerError(f"{host}:{port}: cannot listen here ({error.strerror})") from error
        self._web = _Web(self._app, listener)
        return int(listener.getsockname()[1])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await asyncio.to_thread(self._tasks.refresh)
            except SQLAlchemyError as error:  # the database may be back the next time
                LOG.error("event=registry_unreadable reason=%r", str(error).splitlines()[0])


class _Web:
    """uvicorn inside our event loop."""

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            ws="none",
        )
        self._app, self._server = app, _Uvicorn(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def end(self) -> None:
        self._app.state.closing = True  # the dashboard's streams
        self._server.should_exit = True
        await self._serving


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: uvicorn would end the process before it is drained."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
