"""A collector sees one trace from client to engine, by both ways, and a server without one works as before."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from helpers.infer_requests import normalised
from helpers.serving import MadeServer, png, serving
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.sdk.trace import TracerProvider

from fedstill.client.serving_client import ServingAddress, ServingClient, ServingError
from fedstill.cloud_server.serving.callers.call import Call
from fedstill.cloud_server.serving.server.traces import CLOSE_SECONDS, Traces
from fedstill.common.errors import ConfigError
from fedstill.common.flower_cli import free_port


class Collector(otlp_grpc.TraceServiceServicer):
    """Keeps the spans that come over the wire."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self._server = grpc.server(ThreadPoolExecutor(1))
        otlp_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for one in request.resource_spans:
            self.services |= {
                a.value.string_value for a in one.resource.attributes if a.key == "service.name"
            }
            self.spans += [span for scope in one.scope_spans for span in scope.spans]
        return otlp.ExportTraceServiceResponse()

    def close(self) -> None:
        self._server.stop(0)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def traces(collector: Collector) -> Iterator[Traces]:
    made = Traces(f"http://127.0.0.1:{collector.port}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(traces: Traces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MadeServer]:
    with serving(tmp_path_factory.mktemp("serving"), traces=traces) as server:
        yield server


@pytest.fixture
def spans(collector: Collector, traces: Traces) -> list[Any]:
    """Of this test; ask for them after ``sent``."""
    collector.spans.clear()
    return collector.spans


def sent(traces: Traces, spans: list[Any], count: int) -> dict[str, Any]:
    """By name, once so many have come."""
    end = time.monotonic() + 20
    while len(spans) < count and time.monotonic() < end:
        traces._provider.force_flush()
        time.sleep(0.05)
    assert len(spans) == count
    return {span.name: span for span in spans}


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_one_trace_from_client_to_engine(
    served: MadeServer, traces: Traces, spans: list[Any], collector: Collector
) -> None:
    tracer = TracerProvider().get_tracer("a client")
    with (
        tracer.start_as_current_span("a user's work") as work,
        ServingClient(ServingAddress(served.target)) as client,
    ):
        answer = client.make_query("cats", png(), latency_ms=20_000)
    found = sent(traces, spans, 3)
    query, wait, batch = (found[name] for name in ("query cats", "wait", "batch"))
    assert {span.trace_id for span in spans} == {work.get_span_context().trace_id.to_bytes(16)}
    assert query.parent_span_id == work.get_span_context().span_id.to_bytes(8)
    assert {wait.parent_span_id, batch.parent_span_id} == {query.span_id}
    assert query.start_time_unix_nano == wait.start_time_unix_nano < query.end_time_unix_nano
    assert wait.end_time_unix_nano == batch.start_time_unix_nano < batch.end_time_unix_nano
    seconds = (batch.end_time_unix_nano - batch.start_time_unix_nano) / 1e9
    assert seconds == pytest.approx(answer.inference_ms / 1e3, rel=1e-3)
    about = attributes(query)
    assert (about["fedstill.task"], about["fedstill.queries"], about["fedstill.late"]) == ("cats", 1, False)
    assert attributes(batch)["fedstill.schedules"].values[0].string_value == answer.schedule
    assert collector.services == {"fedstill-serve"}


def test_a_call_over_http_joins_its_trace_too(served: MadeServer, traces: Traces, spans: list[Any]) -> None:
    values, parent = normalised(2), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    tensor = {
        "name": "image",
        "shape": list(values.shape),
        "datatype": "FP32",
        "data": values.ravel().tolist(),
    }
    body = {"parameters": {"latency_ms": 20_000}, "inputs": [tensor]}
    for header in (parent, "nonsense"):
        headers = {"traceparent": header, "x-request-id": "mine"}
        httpx.post(f"{served.rest}/v2/models/cats/infer", json=body, headers=headers).raise_for_status()
    sent(traces, spans, 6)
    joined, alone = (span for span in spans if span.name == "query cats")
    assert joined.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert joined.parent_span_id.hex() == "b7ad6b7169203331"
    assert alone.parent_span_id == b""
    assert attributes(joined)["fedstill.request_id"] == "mine"
    assert attributes(joined)["fedstill.queries"] == 2


def test_a_refusal_is_an_error(served: MadeServer, traces: Traces, spans: list[Any]) -> None:
    with ServingClient(ServingAddress(served.target)) as client, pytest.raises(ServingError):
        client.make_query("cats", png(), latency_ms=0)
    (span,) = sent(traces, spans, 1).values()
    assert span.status.code == trace.StatusCode.ERROR.value
    assert attributes(span)["fedstill.rejected"] == "too_late"


def test_a_collector_that_is_away_costs_spans_and_nothing_else(tmp_path: Path) -> None:
    traces = Traces(f"http://127.0.0.1:{free_port()}")
    with serving(tmp_path, traces=traces) as made, ServingClient(ServingAddress(made.target)) as client:
        assert client.make_query("cats", png(), latency_ms=20_000).label
    began = time.monotonic()
    traces.close()
    assert time.monotonic() - began < 15


def test_a_collector_that_hangs_does_not_hold_up_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        traces = Traces(f"http://127.0.0.1:{silent.getsockname()[1]}")
        for number in range(1500):
            traces.request(Call(str(number)), "cats", 1, time.time_ns(), None)
        began = time.monotonic()
        traces.close()
        assert time.monotonic() - began < CLOSE_SECONDS + 5


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:4317",
        "localhost",
        "ftp://x:1",
        "http://",
        "http://127.0.0.1",
        "http://127.0.0.1:abc",
        "http://127.0.0.1:99999",
        "http://[::1",
        "http:// :4317",
        "http://127.0.0.1:4317/v1/traces",
        "http://user:word@127.0.0.1:4317",
    ],
)
def test_another_kind_of_address_is_one_line(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"--otlp: .*http://HOST:PORT") as refused:
        Traces(endpoint)
    assert "word" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "foo")]
)
def test_a_variable_that_cannot_be_used_is_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"OpenTelemetry's variables"):
        Traces("http://127.0.0.1:4317")
