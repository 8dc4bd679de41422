"""A gRPC server at an address: TLS, the standard health service, and an end that health reports first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedstill.cloud_server.grpc.server_tls import TlsFiles

Options = Sequence[tuple[str, int]]


class ServerError(RuntimeError):
    """The server cannot start; one line."""


@dataclass(frozen=True)
class Listener:
    """A server that has its port. It serves from ``serve`` on."""

    server: grpc.aio.Server
    port: int
    health: Any

    async def serve(self, services: Sequence[str], healthy: bool = True) -> None:
        """Start to answer, and report the server and each service as healthy, or not yet."""
        await self.server.start()
        await self.report(services, healthy)

    async def report(self, services: Sequence[str], healthy: bool) -> None:
        """Report the server and each service as healthy, or not, from now on."""
        status = health_pb2.HealthCheckResponse
        for name in ("", *services):
            await self.health.set(name, status.SERVING if healthy else status.NOT_SERVING)

    async def announce_shutdown(self) -> None:
        """From now on, report all services as not serving."""
        await self.health.enter_graceful_shutdown()


def listen(
    address: str,
    tls: TlsFiles | None,
    handlers: Sequence[grpc.GenericRpcHandler[Any, Any]],
    *,
    largest_request: int,
    options: Options = (),
    concurrent: int | None = None,
) -> Listener:
    """Take an address, inside a running event loop.

    Args:
        address: ``HOST:PORT``; port 0 takes a free one.
        tls: None serves plain text (``--insecure``).
        handlers: of the services; the health service is added.
        largest_request: in bytes.
        concurrent: most calls at a time.

    Raises:
        ServerError: the address is taken, or the TLS files are unusable.
    """
    every = (
        ("grpc.max_receive_message_length", largest_request),
        ("grpc.so_reuseport", 0),  # a second server on this port must fail, not share it
        *options,
    )
    server = grpc.aio.server(options=every, maximum_concurrent_rpcs=concurrent)
    server.add_generic_rpc_handlers(tuple(handlers))
    healthy = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            pair = (tls.key_file.read_bytes(), tls.certificate_file.read_bytes())
            clients = tls.client_ca_file.read_bytes() if tls.client_ca_file else None
            credentials = grpc.ssl_server_credentials(
                [pair], clients, require_client_auth=clients is not None
            )
            port = server.add_secure_port(address, credentials)
    except (RuntimeError, OSError) as error:
        raise ServerError(f"{address}: cannot listen here (port taken, or bad TLS files)") from error
    return Listener(server, port, healthy)
