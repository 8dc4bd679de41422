"""The gRPC health service (grpc.health.v1) by itself, for a process that serves nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedstill.common.errors import UserError


class HealthError(UserError):
    """The address cannot be used; one line."""


@contextmanager
def health_serving(listen: str, name: str) -> Iterator[int]:
    """Report SERVING for "" and for ``name`` while inside; yields the port. Raises HealthError if ``listen`` is
    taken."""
    service = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise HealthError(f"{listen}: cannot serve health here; is the port taken?") from error
    for one in ("", name):
        service.set(one, health_pb2.HealthCheckResponse.SERVING)
    server.start()
    try:
        yield port
    finally:
        service.enter_graceful_shutdown()
        server.stop(1.0).wait()
