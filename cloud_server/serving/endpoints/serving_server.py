"""The process side of the serving tier: ports, a watch on the registry, a lame-duck time and a drain before the end.

The ports open first. What is served is made meanwhile, in a thread, because measuring a machine takes minutes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import uvicorn
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette

from fedstill.cloud_server.grpc.daemon_thread import in_daemon_thread
from fedstill.cloud_server.grpc.listen import ServerError, listen
from fedstill.cloud_server.grpc.server_tls import TlsFiles
from fedstill.cloud_server.serving.endpoints.grpc_face import INFERENCE_SERVICE
from fedstill.cloud_server.serving.endpoints.rest_face import RestFace
from fedstill.cloud_server.serving.endpoints.serving_calls import OWN_SERVICE
from fedstill.cloud_server.serving.endpoints.serving_service import Service
from fedstill.cloud_server.serving.endpoints.starting import StartingHandlers, StartProgress
from fedstill.cloud_server.serving.server.free_memory import FreeMemory
from fedstill.common.errors import first_line

LOG = logging.getLogger(__name__)

SERVICES = (INFERENCE_SERVICE, OWN_SERVICE)
LARGEST_REQUEST = 64 * 2**20
"""Bytes."""
REFRESH_SECONDS = 1.0
"""Between two looks at the registry."""
KEEP_ALIVE_SECONDS = 75
"""For an idle HTTP connection: longer than clients keep one for their next request."""
GOODBYE_SECONDS = 1.0
"""Seconds for the last answers to leave."""


@dataclass(frozen=True)
class ListenAddress:
    """Where to serve. listen, rest, web: ``HOST, PORT`` with 0 for a free port; what is None is not served.

    tls: of gRPC and REST. lame_duck_seconds: that requests are answered after readiness has ended.
    """

    listen: tuple[str, int]
    web: tuple[str, int] | None = None
    rest: tuple[str, int] | None = None
    tls: TlsFiles | None = None
    lame_duck_seconds: float = 0.0
    drain_seconds: float = 10.0
    concurrent: int = 4096


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports in use."""

    grpc: int
    web: int | None
    rest: int | None


class Queue(Protocol):
    """Where accepted requests wait for their answers. Implemented by ``Dispatcher``, and where replicas answer."""

    def start(self) -> None:
        """Answer from now on."""

    def queued(self) -> int:
        """Queries that wait."""

    def drain(self) -> None:
        """Refuse new requests from now on; accepted ones are still answered."""

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until every request has its answer, for at most so long; returns whether all have."""

    def stop(self) -> None:
        """Refuse whatever still waits."""


class Watched(Protocol):
    """What is looked at every ``REFRESH_SECONDS``. Implemented by every ``ServedTasks``."""

    def refresh(self) -> bool:
        """Take over what has changed elsewhere; returns whether anything did."""


@dataclass(frozen=True)
class Parts:
    """What answers requests: measured, warm, not started."""

    service: Service
    dispatcher: Queue
    tasks: Watched


class ServingServer:
    """A server as it needs an event loop.

    Args:
        progress: what the start is doing.
        app: of the web server for people and metrics.
    """

    def __init__(self, progress: StartProgress, app: Starlette, address: ListenAddress) -> None:
        self._handlers = StartingHandlers(progress)
        self._app, self._address = app, address
        self._rest = RestFace(
            lambda: self._parts.service if self._parts else None, progress, LARGEST_REQUEST
        ).app()
        self._webs: list[_Web] = []
        self._parts: Parts | None = None

    @property
    def parts(self) -> Parts | None:
        """None until the server is ready."""
        return self._parts

    async def start(self) -> Ports:
        """Listen: live, but not ready. Raises ServerError if an address is taken or the TLS files are unusable."""
        host, wanted = self._address.listen
        self._listener = listen(
            f"[{host}]:{wanted}" if ":" in host else f"{host}:{wanted}",
            self._address.tls,
            (self._handlers,),
            largest_request=LARGEST_REQUEST,
            concurrent=self._address.concurrent,
        )
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._listener.server)
        address = self._address
        web_port = self._start_web(self._app, address.web)
        rest_port = self._start_web(self._rest, address.rest, address.tls, address.concurrent)
        await self._listener.serve(SERVICES, healthy=False)
        return Ports(self._listener.port, web_port, rest_port)

    async def prepare(self, make: Callable[[], Parts]) -> None:
        """Make what is served, in a thread, then answer requests. Raises whatever ``make`` raises."""
        # A start that is interrupted may be in the middle of a long batch.
        parts = await in_daemon_thread(make, "start")
        self._parts = parts
        parts.dispatcher.start()
        self._watching = asyncio.create_task(watch(parts.tasks))
        self._handlers.ready(parts.service.handlers())
        await self._listener.report(SERVICES, healthy=True)

    async def retire(self) -> None:
        """Report not ready from now on, and go on answering for the address's lame-duck time: balancers need a while
        until they send nobody here. A server that is not ready yet has nothing to wait for."""
        if self._parts is None:
            return
        self._parts.service.retire()
        await self._listener.announce_shutdown()
        seconds = self._address.lame_duck_seconds
        if seconds > 0:
            LOG.info(
                "event=lame_duck seconds=%g hint='not ready any more; another signal ends this'", seconds
            )
            await asyncio.sleep(seconds)

    async def stop(self) -> None:
        """Take no new requests, answer the accepted ones (within the address's drain time), then close."""
        if self._parts is None:
            await self._close()
            LOG.info("event=stopped before=ready")
            return
        dispatcher = self._parts.dispatcher
        LOG.info("event=draining queued=%d", dispatcher.queued())
        dispatcher.drain()
        await self._listener.announce_shutdown()
        self._watching.cancel()
        try:
            with suppress(asyncio.CancelledError):
                await self._watching
            idle = await in_daemon_thread(
                partial(dispatcher.wait_until_idle, self._address.drain_seconds), "drain"
            )
        finally:
            await in_daemon_thread(dispatcher.stop, "drain")
            await self._close()
        LOG.info("event=stopped everyone_answered=%s", idle)

    async def _close(self) -> None:
        await self._listener.server.stop(GOODBYE_SECONDS)
        await asyncio.gather(*(web.end() for web in self._webs))

    def _start_web(
        self,
        app: Starlette,
        address: tuple[str, int] | None,
        tls: TlsFiles | None = None,
        concurrent: int | None = None,
    ) -> int | None:
        """The port; None if there is no address."""
        if address is None:
            return None
        host, port = address
        try:
            listener = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except OSError as error:
            raise ServerError(f"{host}:{port}: cannot listen here ({error.strerror})") from error
        try:
            self._webs.append(_Web(app, listener, tls, concurrent))
        except OSError as error:  # of TLS files
            listener.close()
            raise ServerError(f"{host}:{port}: cannot serve TLS here ({error.strerror or error})") from error
        return int(listener.getsockname()[1])


async def watch(tasks: Watched) -> None:
    """Look at the tasks again and again, and give free memory back."""
    memory = FreeMemory()
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        try:
            await asyncio.to_thread(memory.give_back)
            await in_daemon_thread(tasks.refresh, "refresh")
        except SQLAlchemyError as error:  # the database may be back the next time
            LOG.error("event=registry_unreadable reason=%r", first_line(error))
        except Exception:  # whatever it is, the next look may succeed
            LOG.exception("event=refresh_failed")


class _Web:
    """uvicorn inside our event loop."""

    def __init__(
        self, app: Starlette, listener: socket.socket, tls: TlsFiles | None, concurrent: int | None
    ) -> None:
        config = uvicorn.Config(
            app,
            ssl_certfile=tls.certificate_file if tls else None,
            ssl_keyfile=tls.key_file if tls else None,
            limit_concurrency=concurrent,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            ws="none",
        )
        config.load()  # the TLS files: a mistake in them ends the start
        if config.ssl is not None and tls is not None and tls.client_ca_file is not None:
            config.ssl.load_verify_locations(tls.client_ca_file)
            config.ssl.verify_mode = ssl.CERT_REQUIRED
            # As gRPC: an intermediate authority will do.
            config.ssl.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
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
