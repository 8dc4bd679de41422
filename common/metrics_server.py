"""Metrics for Prometheus over HTTP, for a process that serves nothing else that way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.registry import Collector

from fedstill.common.errors import UserError
from fedstill.common.option_values import address


class MetricsError(UserError):
    """The address cannot be used; one line."""


@contextmanager
def metrics_serving(listen: str, collector: Collector) -> Iterator[None]:
    """Serve what ``collector`` says at every scrape, and the process's own figures, at ``/metrics``; without TLS.

    Raises:
        MetricsError: ``listen`` is taken.
    """
    host, port = address(listen, "--metrics")
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(namespace="fedstill", registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise MetricsError(
            f"{listen}: cannot serve metrics here ({error.strerror}); is the port taken?"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
