"""A server that listens before it is ready: what it answers meanwhile, how it gets ready, how a start fails."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedstill.cloud_server.grpc.until_signalled import run_until_signalled
from fedstill.cloud_server.serving.endpoints.serving_server import ListenAddress, Parts, ServingServer
from fedstill.cloud_server.serving.endpoints.starting import StartProgress
from fedstill.cloud_server.serving.monitoring.web import make_app
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics
from fedstill.common.errors import ConfigError
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos import serving_pb2 as own
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fedstill.protos.serving_pb2_grpc import ServingStub


class Service:
    """Stands for a service that is measured and warm: every call of ServerMetadata is answered."""

    ready = True

    def handlers(self) -> tuple[Any, ...]:
        async def metadata(request: Any, context: Any) -> pb.ServerMetadataResponse:
            return pb.ServerMetadataResponse(name="ready")

        handler = grpc.unary_unary_rpc_method_handler(
            metadata, pb.ServerMetadataRequest.FromString, pb.ServerMetadataResponse.SerializeToString
        )
        name = "inference.GRPCInferenceService"
        return (grpc.method_handlers_generic_handler(name, {"ServerMetadata": handler}),)


class Nothing:
    """Stands for the dispatcher and the tasks."""

    def start(self) -> None: ...
    def drain(self) -> None: ...
    def stop(self) -> None: ...
    def queued(self) -> int:
        return 0

    def wait_until_idle(self, seconds: float) -> bool:
        return True

    def refresh(self) -> bool:
        return False


def made_server(progress: StartProgress) -> ServingServer:
    app = make_app(
        ServingMetrics("fedstill"),
        lambda: server.parts is not None,
        lambda: progress.text if server.parts is None else "",
    )
    server = ServingServer(progress, app, ListenAddress(*3 * (("127.0.0.1", 0),)))
    return server


def made_parts() -> Parts:
    return Parts(Service(), Nothing(), Nothing())  # type: ignore[arg-type]


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or "", dict(caught.value.trailing_metadata() or ())


async def health(channel: Any) -> int:
    asked = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
    return int((await health_pb2_grpc.HealthStub(channel).Check(asked)).status)


async def probes(web: httpx.AsyncClient) -> dict[str, int]:
    """The status of every probe, which HEAD says, too."""
    found = {}
    for name in ("livez", "startupz", "readyz", "healthz"):
        found[name] = (await web.get(f"/{name}")).status_code
        head = await web.head(f"/{name}")
        assert (head.status_code, head.content) == (found[name], b"")
    return found


async def first_event(web: httpx.AsyncClient) -> dict[str, Any]:
    async with web.stream("GET", "/events") as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                return dict(json.loads(line.removeprefix("data: ")))
    raise AssertionError("no event")


def test_steps_of_one_kind_are_one_step_and_say_how_far_it_is() -> None:
    progress = StartProgress()
    progress.tell("reading the weights")
    for place in range(1, 31):
        progress.tell(f"warming up schedule -{place}, {place} of 30")
    progress.tell("timing 9 schedules, round 3 of 8")
    found = progress.plain
    assert (found["doing"], found["done"], found["of"]) == ("timing 9 schedules, round 3 of 8", 2, 8)
    said = [step["doing"] for step in found["steps"]]
    assert said == ["opening", "reading the weights", "warming up schedule -30, 30 of 30"]
    assert sum(step["seconds"] for step in found["steps"]) <= found["seconds"] + 0.2
    for place in range(100):
        progress.tell(f"{place} is another step")
    assert len(progress.plain["steps"]) < 20
    assert progress.plain["of"] is None


def test_it_is_live_then_ready_on_the_same_port(caplog: pytest.LogCaptureFixture) -> None:
    go, progress = threading.Event(), StartProgress()

    def make() -> Parts:
        progress.tell("timing 2 schedules, round 3 of 8")
        assert go.wait(60)
        return made_parts()

    async def session() -> None:
        server = made_server(progress)
        ports = await server.start()
        preparing = asyncio.ensure_future(server.prepare(make))
        target = f"127.0.0.1:{ports.grpc}"
        async with (
            grpc.aio.insecure_channel(target) as channel,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.web}", timeout=30) as web,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.rest}", timeout=30) as rest,
        ):
            inference = GRPCInferenceServiceStub(channel)
            while "timing" not in progress.text:
                await asyncio.sleep(0.01)
            assert (await inference.ServerLive(pb.ServerLiveRequest())).live
            assert not (await inference.ServerReady(pb.ServerReadyRequest())).ready
            assert await health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
            for call in (
                inference.ModelInfer(pb.ModelInferRequest()),
                inference.ServerMetadata(pb.ServerMetadataRequest()),
                ServingStub(channel).ListTasks(own.ListTasksRequest()),
            ):
                code, said, trailing = await refusal(call)
                assert code is grpc.StatusCode.UNAVAILABLE
                assert said.startswith("the server is starting: timing 2 schedules, round 3 of 8 (")
                assert int(trailing["retry-after-ms"]) > 0
            unknown = channel.unary_unary("/inference.GRPCInferenceService/Nothing")
            assert (await refusal(unknown(b"")))[0] is grpc.StatusCode.UNAVAILABLE
            other = channel.unary_unary("/other.Service/Nothing")
            assert (await refusal(other(b"")))[0] is grpc.StatusCode.UNIMPLEMENTED
            shown = await first_event(web)
            assert shown["starting"]["doing"].startswith("timing")
            assert shown["state"] == "starting"
            assert not shown["ready"]
            answer = await web.get("/healthz")
            assert (answer.status_code, answer.text.split(" ")[0]) == (503, "starting:")
            assert (await web.get("/metrics")).status_code == 200
            assert await probes(web) == {"livez": 200, "startupz": 503, "readyz": 503, "healthz": 503}
            assert (await rest.get("/v2/health/startup")).json() == {"started": False}
            assert (await rest.head("/v2/health/startup")).status_code == 503

            go.set()
            await preparing
            assert (await inference.ServerMetadata(pb.ServerMetadataRequest())).name == "ready"
            assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
            assert (await web.get("/healthz")).text == "ready\n"
            assert await probes(web) == {"livez": 200, "startupz": 200, "readyz": 200, "healthz": 200}
            assert (await rest.get("/v2/health/startup")).json() == {"started": True}
            assert (await rest.head("/v2/health/startup")).status_code == 200
            while (await first_event(web))["starting"]:  # viewers share an event for half a second
                await asyncio.sleep(0.1)
        await server.stop()

    with caplog.at_level(logging.INFO):
        asyncio.run(session())
    assert "event=starting doing='timing 2 schedules, round 3 of 8'" in caplog.text


@pytest.mark.parametrize(
    "error", [ConfigError("--images: cats is not served"), KeyError("a mistake of ours")]
)
def test_what_goes_wrong_in_the_start_ends_the_server(error: Exception) -> None:
    server = made_server(StartProgress())

    def make() -> Parts:
        raise error

    async def get_ready() -> None:
        await server.prepare(make)

    opened: list[Any] = []
    with pytest.raises(type(error)) as caught:
        run_until_signalled(server, opened.append, get_ready)
    assert caught.value is error
    assert opened[0].grpc > 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{opened[0].web}/")


def test_a_start_that_is_stopped_is_not_waited_for() -> None:
    go = threading.Event()

    def make() -> Parts:
        go.wait(60)
        return made_parts()

    async def session(act: Callable[[ServingServer], Any]) -> None:
        server = made_server(StartProgress())
        await server.start()
        preparing = asyncio.ensure_future(server.prepare(make))
        await asyncio.sleep(0)
        preparing.cancel()
        await act(server)
        assert server.parts is None

    asyncio.run(session(lambda server: server.stop()))  # returns although `make` does not
    go.set()
