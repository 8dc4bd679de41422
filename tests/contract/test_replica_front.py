"""A front and its replicas: every client sees one server, whatever becomes of a replica. Ray is missing here; with it:
``tests/e2e/test_serve_ray.py``."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from helpers.infer_requests import logits, request
from helpers.local_replicas import LocalReplicas
from helpers.serve_process import SIZE, Place, make_place
from helpers.serving import png, running

from fedstill.cloud_server.auth.tokens import issue, verify
from fedstill.cloud_server.serving.callers.rate_limits import Rate, RateLimits
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.serving_server import (
    REFRESH_SECONDS,
    ListenAddress,
    Parts,
    ServingServer,
)
from fedstill.cloud_server.serving.endpoints.starting import StartProgress
from fedstill.cloud_server.serving.replicas import front as front_module
from fedstill.cloud_server.serving.replicas.admission import WELL
from fedstill.cloud_server.serving.replicas.answering import REPLICAS_FOLDER, Answering
from fedstill.cloud_server.serving.replicas.front import FrontService
from fedstill.cloud_server.serving.replicas.front_metrics import FrontMetrics
from fedstill.cloud_server.serving.replicas.replica_plan import (
    ReplicaPlan,
    WeightsPlan,
    plain_replica_plan,
    read_replica_plan,
)
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.common.errors import ConfigError
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos import serving_pb2 as own
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fedstill.protos.serving_pb2_grpc import ServingStub

SECRET = bytes(range(32))
PIXELS = np.full((1, SIZE, SIZE, 3), 99, np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = make_place(tmp_path_factory.mktemp("replicas"))
    file = made.folder / "profile.json"
    plain = json.loads(file.read_text()) | {"engine": "torch fp32"}  # nothing to choose by time
    file.write_text(json.dumps(plain))
    return made


def plan_of(place: Place) -> ReplicaPlan:
    weights = WeightsPlan(
        str(place.folder / "test_vit.safetensors"), profile=str(place.folder / "profile.json")
    )
    return ReplicaPlan(
        str(place.state), (weights,), backend="torch", batches="1,4", waiting=64, least=2, most=2
    )


@pytest.fixture(scope="module")
def answering(place: Place) -> Iterator[dict[str, Answering]]:
    plan = read_replica_plan(json.loads(json.dumps(plain_replica_plan(plan_of(place)))))
    made = {name: Answering(plan, name) for name in ("a", "b")}
    yield made
    for one in made.values():
        one.close()


@dataclass(frozen=True)
class Front:
    """What a test asks."""

    replicas: LocalReplicas
    service: FrontService
    target: str
    rest: str

    @property
    def stub(self) -> GRPCInferenceServiceStub:
        return GRPCInferenceServiceStub(grpc.insecure_channel(self.target))


@contextmanager
def front_of(answering: dict[str, Answering], access: AccessPolicy | None = None) -> Iterator[Front]:
    replicas = LocalReplicas(dict(answering))
    service = FrontService(replicas, access or AccessPolicy(None))
    metrics = FrontMetrics(lambda: replicas.running, service.queued, lambda: service.admission.limit, "1")
    service.told = metrics.answered
    loopback = ("127.0.0.1", 0)
    server = ServingServer(
        StartProgress(), metrics.app(lambda: service.ready, str), ListenAddress(loopback, loopback, loopback)
    )
    with running(server, Parts(service, service, replicas)) as ports:
        made = Front(replicas, service, f"127.0.0.1:{ports.grpc}", f"http://127.0.0.1:{ports.rest}")
        yield made
        text = httpx.get(f"http://127.0.0.1:{ports.web}/metrics").text
        assert "fedstill_front_calls_total" in text
        assert f"fedstill_front_limit {service.admission.limit}" in text
        for one in answering.values():  # their next server has another event loop
            if one._watching is not None:
                one._watching.get_loop().call_soon_threadsafe(one._watching.cancel)
                one._watching = None


@pytest.fixture
def front(answering: dict[str, Answering]) -> Iterator[Front]:
    with front_of(answering) as made:
        yield made


def refusal(call: object, *arguments: object, **named: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    return caught.value.code(), caught.value.details()


def test_all_calls_are_answered_over_both_protocols(front: Front) -> None:
    stub = front.stub
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="cats")).ready
    assert stub.ModelMetadata(pb.ModelMetadataRequest(name="cats")).inputs[0].shape[1] == SIZE
    assert {one.name for one in stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models} == {
        "cats", "dogs",
    }  # fmt: skip
    answer = stub.ModelInfer(request(PIXELS, "pixels", model="cats"))
    rest = httpx.post(
        f"{front.rest}/v2/models/cats/infer",
        json={
            "inputs": [
                {
                    "name": "pixels",
                    "datatype": "UINT8",
                    "shape": PIXELS.shape,
                    "data": PIXELS.ravel().tolist(),
                }
            ],
            "parameters": {"latency_ms": 20_000},
        },
    )
    values = next(one["data"] for one in rest.json()["outputs"] if one["name"] == "logits")
    np.testing.assert_allclose(logits(answer)[0], values, rtol=1e-5, atol=1e-5)
    ours = ServingStub(grpc.insecure_channel(front.target))
    told = ours.MakeQuery(own.MakeQueryRequest(task="cats", image=png(), latency_ms=20_000))
    assert len(told.logits) == 3
    assert {one.name for one in ours.ListTasks(own.ListTasksRequest()).tasks} == {"cats", "dogs"}


def test_replicas_answer_alike_and_share_the_work(front: Front) -> None:
    answers = [logits(front.stub.ModelInfer(request(PIXELS, "pixels", model="dogs"))) for _ in range(12)]
    for one in answers[1:]:
        np.testing.assert_allclose(one, answers[0], rtol=1e-5, atol=1e-5)
    assert min(front.replicas.asked[name] for name in ("a", "b")) > 0


def test_a_refusal_of_a_replica_is_the_one_that_clients_know(front: Front) -> None:
    code, text = refusal(front.stub.ModelInfer, request(PIXELS, "pixels", model="birds"))
    assert (code, text) == (
        grpc.StatusCode.NOT_FOUND, "model_name: 'birds' is not served (served: cats, dogs)",
    )  # fmt: skip
    code, text = refusal(front.stub.ModelInfer, request(PIXELS, "nothing", model="cats"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("inputs: 'nothing'")
    late = httpx.post(f"{front.rest}/v2/models/cats/infer", json={"inputs": [], "parameters": {}})
    assert (late.status_code, late.json()["error"][:7]) == (400, "inputs:")


@pytest.mark.parametrize("utility", [math.nan, math.inf, -math.inf, -1.0, 1e30])
def test_a_utility_that_cannot_be_is_refused_by_a_replica(front: Front, utility: float) -> None:
    ours = ServingStub(grpc.insecure_channel(front.target))
    asked = own.MakeQueryRequest(task="cats", image=png(), utility=utility, latency_ms=20_000)
    code, text = refusal(ours.MakeQuery, asked, timeout=20)
    assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "utility: must lie between 0 and 1e+09")
    query = front.replicas.calls[-1].query
    assert query is not None
    assert query.utility is None  # a router needs no more of it than of a query that names none


@pytest.mark.parametrize("latency", [math.nan, math.inf, -math.inf, -100_000.0, 1e30])
def test_a_latency_that_cannot_be_is_refused_by_a_replica(front: Front, latency: float) -> None:
    original = front.replicas.send

    async def slow(call, content):
        await asyncio.sleep(0.1)  # as over a network
        return await original(call, content)

    front.replicas.send = slow  # type: ignore[method-assign]
    ours = ServingStub(grpc.insecure_channel(front.target))
    asked = own.MakeQueryRequest(task="cats", image=png(), latency_ms=latency)
    code, text = refusal(ours.MakeQuery, asked, timeout=20)
    assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "latency_ms: must lie between 0 and 3.6e+06")
    query = front.replicas.calls[-1].query
    assert query is not None
    assert (query.seconds, query.most) == (None, pytest.approx(20, abs=5))  # what is left of the call


def test_an_answer_that_was_lost_is_asked_for_again_and_its_time_counts(front: Front) -> None:
    front.replicas.dying = {"a", "b"} - {"b"}
    for _ in range(10):
        assert logits(front.stub.ModelInfer(request(PIXELS, "pixels", model="cats"))).shape == (1, 3)
    assert list(front.replicas.replicas) == ["b"]
    assert front.replicas.asked.total() == 11
    again = max(front.replicas.calls, key=lambda call: call.elapsed)
    assert again.elapsed > 0


def test_if_all_are_lost_the_refusal_says_so(front: Front) -> None:
    front.replicas.dying = {"a", "b"}
    code, text = refusal(front.stub.ModelInfer, request(PIXELS, "pixels", model="cats"))
    assert (code, text) == (
        grpc.StatusCode.UNAVAILABLE, "the replica ended before it answered: ask again",
    )  # fmt: skip
    front.replicas.refresh()
    code, text = refusal(front.stub.ModelInfer, request(PIXELS, "pixels", model="cats"))
    assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "no replica runs: try again later")
    assert not front.stub.ServerReady(pb.ServerReadyRequest()).ready
    assert httpx.get(f"{front.rest}/v2/health/ready").status_code == 503


def test_a_change_is_not_asked_for_twice(front: Front) -> None:
    front.replicas.dying = {"a"}
    unload = front.stub.RepositoryModelUnload
    code, text = refusal(unload, pb.RepositoryModelUnloadRequest(model_name="dogs"))
    assert (code, "ask again" in text) == (grpc.StatusCode.UNAVAILABLE, True)
    assert front.replicas.asked.total() == 1


def test_time_on_the_way_counts_against_the_deadline(front: Front) -> None:
    service = front.service
    original = front.replicas.send

    async def slow(call, content):
        return await original(replace(call, elapsed=call.elapsed + 30.0), content)

    front.replicas.send = slow  # type: ignore[method-assign]
    code, text = refusal(front.stub.ModelInfer, request(PIXELS, "pixels", model="cats", latency_ms=20_000))
    assert (code, text.partition(":")[0]) == (grpc.StatusCode.DEADLINE_EXCEEDED, "latency_ms")
    assert service.queued() == 0


def test_the_way_to_a_replica_and_back_counts_once_it_is_known(front: Front) -> None:
    original = front.replicas.send

    async def far(call, content):
        await asyncio.sleep(0.2)
        return await original(call, content)

    front.replicas.send = far  # type: ignore[method-assign]
    for _ in range(3):
        front.stub.ModelInfer(request(PIXELS, "pixels", model="cats", latency_ms=20_000))
    first, *_, last = front.replicas.calls
    assert first.elapsed == pytest.approx((1 - WELL) * 20, abs=0.1)
    assert 0.2 <= last.elapsed - first.elapsed < 2.0


def test_replicas_are_asked_no_more_than_they_answer_in_time_and_the_rest_is_told_early(front: Front) -> None:
    front.replicas.hanging = True
    asked = request(PIXELS, "pixels", model="cats", latency_ms=4_000)
    places = int(front.service.admission.limit)
    waiting = [front.stub.ModelInfer.future(asked) for _ in range(places)]
    end = time.monotonic() + 20
    while len(front.replicas.calls) < places:
        assert time.monotonic() < end
        time.sleep(0.01)
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        front.stub.ModelInfer(asked)
    assert time.monotonic() - began < 2.0
    text = "overload: more is asked than the replicas answer in time"
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, text)
    assert "4000" in {one.value for one in caught.value.trailing_metadata()}  # when to ask again
    assert len(front.replicas.calls) == places
    front.replicas.hanging = False
    assert front.stub.ModelReady(pb.ModelReadyRequest(name="cats")).ready  # is no query
    # Whoever is overdue holds no place: a replica that hangs does not lock the others out.
    end = time.monotonic() + 20
    while True:
        try:
            assert logits(front.stub.ModelInfer(asked)).shape == (1, 3)
            break
        except grpc.RpcError:
            assert time.monotonic() < end
    assert not any(one.done() for one in waiting)
    assert front.service.admission.limit < places
    for one in waiting:
        one.cancel()


def test_a_replica_that_hangs_ends_in_a_refusal(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "GRACE_SECONDS", 0.2)
    front.replicas.hanging = True
    code, text = refusal(front.stub.ModelInfer, request(PIXELS, "pixels", model="cats", latency_ms=100))
    assert (code, text) == (grpc.StatusCode.DEADLINE_EXCEEDED, "no replica answered within 1 s")


def test_whoever_waits_for_a_replica_that_does_not_come_is_refused(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "NOBODY_SECONDS", 0.3)
    monkeypatch.setattr(front_module, "LOOK_SECONDS", 0.1)
    front.replicas.hanging = True
    asking = front.stub.ModelInfer.future(request(PIXELS, "pixels", model="cats"))
    end = time.monotonic() + 20
    while not front.service.queued() and time.monotonic() < end:
        time.sleep(0.01)
    front.replicas.replicas.clear()
    front.replicas.refresh()
    error = asking.exception(20)
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNAVAILABLE, "no replica runs: try again later",
    )  # fmt: skip


def test_whoever_waits_at_the_end_is_refused(answering: dict[str, Answering]) -> None:
    found: list[tuple[grpc.StatusCode, str]] = []
    with front_of(answering) as front:
        front.replicas.hanging = True
        asking = threading.Thread(
            target=lambda: found.append(
                refusal(front.stub.ModelInfer, request(PIXELS, "pixels", model="cats"))
            )
        )
        asking.start()
        end = time.monotonic() + 20
        while not front.service.queued() and time.monotonic() < end:
            time.sleep(0.01)
        front.service.drain()
        code, text = refusal(front.stub.ModelInfer, request(PIXELS, "pixels", model="cats"))
        assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "the server is going down")
        assert not front.service.wait_until_idle(0.05)
        front.service.stop()
        asking.join(20)
    assert found == [(grpc.StatusCode.UNAVAILABLE, "the server is going down")]


def test_tokens_and_rate_limits_are_the_fronts_and_callers_are_known_to_the_replica(
    answering: dict[str, Answering], place: Place
) -> None:
    limits = RateLimits({"shop": Rate(0.001, 2)})
    access = AccessPolicy(lambda token: verify(SECRET, token, time.time()), limits=limits)
    token = (
        ("authorization", f"Bearer {issue(SECRET, 'shop', int(time.time()) + 600)}"),
        ("x-request-id", "order-66"),
    )
    with front_of(answering, access) as front:
        asked = request(PIXELS, "pixels", model="cats")
        assert refusal(front.stub.ModelInfer, asked)[0] is grpc.StatusCode.UNAUTHENTICATED
        for _ in range(2):
            front.stub.ModelInfer(asked, metadata=token)
        code, text = refusal(front.stub.ModelInfer, asked, metadata=token)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert text.startswith("rate limit: shop")
        unload = pb.RepositoryModelUnloadRequest(model_name="cats")
        assert refusal(front.stub.RepositoryModelUnload, unload, metadata=token)[0] is (
            grpc.StatusCode.PERMISSION_DENIED
        )
    logs = (place.state / "serve" / REPLICAS_FOLDER).glob("*.jsonl")
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    mine = [line for line in lines if "order-66" in line.get("requests", ())]
    assert sum(line["nodes"]["shop"] for line in mine) == 2


def test_a_change_of_the_registry_reaches_every_replica(front: Front, place: Place) -> None:
    registry = TaskRegistry(place.state)
    before = registry.get("dogs").version
    place.register("dogs", 4, seed=9)
    try:
        for name in ("a", "b"):
            only = LocalReplicas({name: front.replicas.replicas[name]})
            front.service._replicas = only
            end = time.monotonic() + 20 * REFRESH_SECONDS
            while (
                found := front.stub.ModelInfer(request(PIXELS, "pixels", model="dogs"))
            ).model_version != "2":
                assert time.monotonic() < end
                time.sleep(0.1)
            assert logits(found).shape == (1, 4)
    finally:
        registry.activate("dogs", before)
        registry.close()


@pytest.mark.parametrize(("change", "key"), [
    ({"least": 3, "most": 2}, "least"), ({"least": 0}, "least"), ({"cpus": 0.0}, "cpus"),
    ({"cost": -1.0}, "cost"), ({"backend": "magic"}, "backend"), ({"weights": []}, "weights"), ({"port": 1}, "port"),
])  # fmt: skip
def test_a_plan_that_cannot_be_names_the_key(place: Place, change: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        read_replica_plan({**plain_replica_plan(plan_of(place)), **change})


def test_a_replica_without_its_weights_says_so(place: Place, tmp_path: Path) -> None:
    plan = replace(plan_of(place), weights=(WeightsPlan(str(tmp_path / "missing.safetensors")),))
    with pytest.raises((ConfigError, ValueError, OSError), match="missing"):
        Answering(plan, "c")
