"""The process side of edge inference: a port, and a drain before the end."""

from __future__ import annotations

import logging

from fedstill.cloud_server.edge_inference.inference_service import SERVICE, InferenceService
from fedstill.cloud_server.grpc.listen import Listener, listen
from fedstill.cloud_server.grpc.server_tls import TlsFiles

LOG = logging.getLogger(__name__)

LARGEST_REQUEST = 64 * 1024
"""Bytes; room for fp32 features 4 times wider than a ResNet-101's."""
KEEPALIVE = (
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # devices find a dead link by pings
)


class InferenceServer:
    """The service behind a port.

    Args:
        service: answers the calls.
        address: ``HOST:PORT``; port 0 takes a free one.
        tls: None serves plain text (``--insecure``).
    """

    def __init__(self, service: InferenceService, address: str, tls: TlsFiles | None) -> None:
        self.service = service
        self._address = address
        self._tls = tls
        self._listener: Listener | None = None

    async def start(self) -> int:
        """Serve; the port. Raises ServerError if it is taken or the TLS files are unusable."""
        listener = listen(
            self._address,
            self._tls,
            (self.service.handlers(),),
            largest_request=LARGEST_REQUEST,
            options=KEEPALIVE,
        )
        self._listener = listener
        self.service.batcher.start()
        await listener.serve((SERVICE,))
        secure = self._tls is not None
        LOG.info("event=inference_serving listen=%s port=%d tls=%s", self._address, listener.port, secure)
        return listener.port

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Report that the server is leaving, answer accepted requests, end the streams, close the port."""
        if self._listener is None:
            return
        await self._listener.announce_shutdown()
        self.service.drain()
        await self._listener.server.stop(grace_seconds)
        await self.service.batcher.stop()
        self._listener = None
        self.service.close()
        LOG.info("event=inference_stopped answered=%d", self.service.counters.answered)
