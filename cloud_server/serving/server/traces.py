"""A trace of each request for OpenTelemetry, sent by OTLP over gRPC; off unless an address is given.

Below the caller's span, if the call names one (W3C Trace Context), lies the request's; below that its wait for a batch,
and the batch. OpenTelemetry is imported only if traces are on.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from fedstill.cloud_server.serving.callers.call import Call
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.requests import Outcome
from fedstill.common.errors import ConfigError

CLOSE_MS = 5000
"""For what has not been sent at the end."""


class Traces:
    """Sends spans from a thread of its own; a collector that is away costs spans and nothing else.

    Names, sampling, headers and certificates are set by OpenTelemetry's own environment: ``OTEL_SERVICE_NAME``,
    ``OTEL_TRACES_SAMPLER``, ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_EXPORTER_OTLP_CERTIFICATE``.

    Args:
        endpoint: ``https://HOST:PORT``, or ``http://`` for a collector without TLS.

    Raises:
        ConfigError: the packages are missing, or it is another kind of address.
    """

    def __init__(self, endpoint: str) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"--otlp: {endpoint!r} is no http://HOST:PORT or https://HOST:PORT")
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
        resource = Resource.create({"service.name": "fedstill-serve", "service.version": version("fedstill")})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
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
        """Send what is left."""
        self._provider.force_flush(CLOSE_MS)
        self._provider.shutdown()
