"""The gRPC health service (grpc.health.v1) by itself, for a process that serves nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedstill.common.errors import UserError


class HealthError(UserError):
    """The address cannot be used; one line."""


@contextmanager
def health_serving(listen: str, name: str) -> Iterator[Callable[[bool], None]]:
    """Report NOT_SERVING for "" and for ``name`` until the yielded function is told otherwise.

    Raises:
        HealthError: ``listen`` is taken.
    """
    service = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    try:
        server.add_insecure_port(listen)
    except RuntimeError as error:
        raise HealthError(f"{listen}: cannot serve health here; is the port taken?") from error

    def tell(serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for one in ("", name):
            service.set(one, status.SERVING if serving else status.NOT_SERVING)

    tell(False)
    server.start()
    try:
        yield tell
    finally:
        service.enter_graceful_shutdown()
        server.stop(1.0).wait()
