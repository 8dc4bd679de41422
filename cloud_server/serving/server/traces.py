"""A trace of each request for OpenTelemetry, sent by OTLP over gRPC; off unless an address is given.

Below the caller's span, if the call names one (W3C Trace Context), lies the request's; below that its wait for a batch,
and the batch. OpenTelemetry is imported only if traces are on.
"""

from __future__ import annotations

import re
import threading
import time
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from fedstill.cloud_server.serving.callers.call import Call
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.requests import Outcome
from fedstill.common.errors import ConfigError

CLOSE_SECONDS = 5.0
"""For what has not been sent at the end."""
HOST = re.compile(r"[A-Za-z0-9._:-]+")


class Traces:
    """Sends spans from a thread of its own; a collector that is away costs spans and nothing else.

    Names, sampling, headers and certificates are set by OpenTelemetry's own environment: ``OTEL_SERVICE_NAME``,
    ``OTEL_TRACES_SAMPLER``, ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_EXPORTER_OTLP_CERTIFICATE``.

    Args:
        endpoint: ``https://HOST:PORT``, or ``http://`` for a collector without TLS.

    Raises:
        ConfigError: the packages are missing, one of OpenTelemetry's variables cannot be used, or it is another kind of
            address.
    """

    def __init__(self, endpoint: str) -> None:
        secure = _check(endpoint)
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"--otlp: needs {error.name}; in the repository pip install '.[otlp]', "
                "from a wheel pip install 'FILE.whl[otlp]'"
            ) from None
        about = {"service.name": "fedstill-serve", "service.version": version("fedstill")}
        try:
            self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
            exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not secure)
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        except Exception as error:  # whatever a variable's value makes of it
            raise ConfigError(f"--otlp, with OpenTelemetry's variables (OTEL_...): {error}") from None
        self._tracer = self._provider.get_tracer("fedstill.serving")
        self._api, self._propagator = trace, TraceContextTextMapPropagator()

    def request(self, call: Call, task: str, queries: int, began: int, outcome: Outcome | None) -> None:
        """One that has ended.

        Args:
            began: nanoseconds since 1970, when it came to the queue.
            outcome: None if the caller left.
        """
        api, ended = self._api, time.time_ns()
        attributes: dict[str, Any] = {
            "fedstill.task": task,
            "fedstill.queries": queries,
            "fedstill.request_id": call.request_id,
        }
        if call.node:
            attributes["fedstill.node"] = call.node
        span = self._tracer.start_span(
            f"query {task}",
            self._propagator.extract(call.trace),
            kind=api.SpanKind.SERVER,
            attributes=attributes,
            start_time=began,
        )
        if outcome is None or isinstance(outcome, Rejection):
            reason = outcome.reason if outcome else "cancelled"
            span.set_attribute("fedstill.rejected", reason)
            span.set_status(api.StatusCode.ERROR, reason)
        else:
            span.set_attribute("fedstill.late", outcome.late)
            inside = api.set_span_in_context(span)
            taken = began + int(1e9 * outcome.waiting_seconds)
            self._tracer.start_span("wait", inside, start_time=began).end(taken)
            batch: dict[str, Any] = {
                "fedstill.schedules": sorted(set(outcome.schedules)),
                "fedstill.versions": sorted(set(outcome.versions)),
                "fedstill.batch_size": outcome.batch_size,
            }
            done = taken + int(1e9 * outcome.inference_seconds)
            self._tracer.start_span("batch", inside, attributes=batch, start_time=taken).end(done)
        span.end(ended)

    def close(self) -> None:
        """Send what is left, as far as that takes no longer than ``CLOSE_SECONDS``: OpenTelemetry itself would wait for
        every batch that a collector does not take."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


def _check(endpoint: str) -> bool:
    """Whether it is with TLS. Raises ConfigError."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        port = None
    if not port or parts.scheme not in ("http", "https") or not HOST.fullmatch(parts.hostname or ""):
        raise ConfigError(f"--otlp: {endpoint!r} is no http://HOST:PORT or https://HOST:PORT")
    if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError("--otlp: needs http://HOST:PORT or https://HOST:PORT, and nothing else in it")
    return parts.scheme == "https"
