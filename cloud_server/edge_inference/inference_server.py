"""The process side of edge inference: a port with TLS, the health service, and a drain before the end."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedstill.cloud_server.edge_inference.inference_service import SERVICE, InferenceService

LOG = logging.getLogger(__name__)

LARGEST_REQUEST = 64 * 1024
"""Bytes; room for fp32 features 4 times wider than a ResNet-101's."""
OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_REQUEST),
    ("grpc.so_reuseport", 0),  # a second server on this port must fail, not share it
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # devices find a dead link by pings
)


class ServerError(RuntimeError):
    """The server cannot start; one line."""


@dataclass(frozen=True)
class ServerTls:
    """PEM: the server's private key and its certificate (chain)."""

    key: bytes = field(repr=False)
    certificate: bytes


class InferenceServer:
    """The service behind a port.

    Args:
        service: answers the calls.
        listen: ``HOST:PORT``; port 0 takes a free one.
        tls: None serves plain text (``--insecure``).
    """

    def __init__(self, service: InferenceService, listen: str, tls: ServerTls | None) -> None:
        self.service = service
        self._listen = listen
        self._tls = tls
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Serve; the port. Raises ServerError if it is taken or the TLS material is unusable."""
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((self.service.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            if self._tls is None:
                port = server.add_insecure_port(self._listen)
            else:
                pair = (self._tls.key, self._tls.certificate)
                port = server.add_secure_port(self._listen, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise ServerError(f"{self._listen}: cannot listen here (port taken, or bad TLS files)") from error
        self._server = server
        self.service.batcher.start()
        await server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        LOG.info(
            "event=inference_serving listen=%s port=%d tls=%s", self._listen, port, self._tls is not None
        )
        return port

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Report that the server is leaving, answer accepted requests, end the streams, close the port."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        self.service.drain()
        await self._server.stop(grace_seconds)
        await self.service.batcher.stop()
        self._server = None
        LOG.info("event=inference_stopped answered=%d", self.service.counters.answered)
