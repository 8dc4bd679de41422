"""The serving tier over gRPC: the answer to every request, valid or not."""

from __future__ import annotations

import gc
import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.infer_requests import logits, normalised, parameter, request
from helpers.page_keys import assert_documented
from helpers.serving import SIZE, TASKS, TRUNK, MadeServer, png, serving
from helpers.vit import LAYERS, WIDTH, task
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save
from sqlalchemy.exc import OperationalError

from fedstill.client.serving_client import ServingAddress, ServingClient, ServingError
from fedstill.cloud_server.auth.tokens import issue, verify
from fedstill.cloud_server.serving.endpoints import serving_server
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.tasks import registry_thread
from fedstill.models.vit.schedules import constant_schedule
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos import serving_pb2 as own
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fedstill.protos.serving_pb2_grpc import ServingStub

SECRET = bytes(range(32))
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MadeServer]:
    with serving(tmp_path_factory.mktemp("serving")) as server:
        yield server


@pytest.fixture(scope="module")
def stub(made: MadeServer) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(made.target) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture
def client(made: MadeServer) -> Iterator[ServingClient]:
    with ServingClient(ServingAddress(made.target)) as opened:
        yield opened


def test_what_is_answered_is_what_the_engine_says(made: MadeServer, stub: GRPCInferenceServiceStub) -> None:
    import torch

    images = normalised(3)
    answer = stub.ModelInfer(request(images))
    assert (answer.model_name, answer.model_version, answer.id) == ("elastic_vit", "1", "7")
    schedule = next(
        one
        for one in (constant_schedule(delta, LAYERS) for delta in (0, -2, -4))
        if one.name == answer.parameters["schedule"].string_param
    )
    expected = made.engine.infer(torch.from_numpy(images), ["cats"] * 3, schedule)
    np.testing.assert_allclose(logits(answer), [one.logits for one in expected], atol=1e-5)
    labels = answer.raw_output_contents[1]
    assert [one.decode() for one in re.findall(rb"class\d", labels)] == [one.label for one in expected]
    assert answer.parameters["batch_size"].int64_param >= 1
    assert answer.parameters["inference_ms"].double_param > 0
    assert answer.parameters["waiting_ms"].double_param >= 0


def test_one_image_in_every_form_is_answered_alike(stub: GRPCInferenceServiceStub) -> None:
    from fedstill.models.vit.preprocess import image_tensor
    from fedstill.models.vit.preprocess_settings import PLAIN

    pixels = np.asarray(Image.open(BytesIO(png())))
    forms = [
        request([png()]),
        request(pixels[None]),
        request(image_tensor(pixels, SIZE, PLAIN).numpy()[None]),
    ]
    typed = request([png()])
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.bytes_contents.append(png())
    flat = request(pixels[None])
    del flat.raw_input_contents[:]
    flat.inputs[0].contents.uint_contents.extend(pixels.ravel().tolist())
    found = [logits(stub.ModelInfer(form)) for form in (*forms, typed, flat)]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4)


def test_outputs_are_those_asked_for(stub: GRPCInferenceServiceStub) -> None:
    asked = request(normalised())
    asked.outputs.add(name="label")
    answer = stub.ModelInfer(asked)
    assert [output.name for output in answer.outputs] == ["label"]
    assert len(answer.raw_output_contents) == 1


def bomb() -> bytes:
    """A few kilobytes that are 16 million pixels when they are decoded."""
    content = BytesIO()
    Image.new("1", (4096, 4096)).save(content, "PNG", optimize=True)
    return content.getvalue()


def broken(change) -> pb.ModelInferRequest:
    asked = request(normalised())
    change(asked)
    return asked


def shortened(asked: pb.ModelInferRequest) -> None:
    asked.raw_input_contents[0] = asked.raw_input_contents[0][:-3]


def not_finite() -> np.ndarray:
    images = normalised()
    images[1, 0, 0, 0] = np.nan
    return images


INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
LATE = grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (request(normalised(), task="birds"), MISSING, "task: 'birds' is not served"),
        (broken(lambda asked: setattr(asked, "model_name", "resnet")), MISSING, "model_name"),
        (broken(lambda asked: setattr(asked, "model_version", "2")), MISSING, "model_version: '2'"),
        (request(normalised(), task=None), INVALID, "parameters['task']"),
        (request(normalised(), task=5), INVALID, "parameters['task']"),
        (request(normalised(), latency_ms=-1), INVALID, "parameters['latency_ms']"),
        (request(normalised(), latency_ms=float("nan")), INVALID, "parameters['latency_ms']"),
        (request(normalised(), latency_ms="soon"), INVALID, "parameters['latency_ms']"),
        (request(normalised(), utility=float("inf")), INVALID, "parameters['utility']"),
        (request(normalised(), utility=True), INVALID, "parameters['utility']"),
        (request(normalised(), latency_ms=0), LATE, "latency_ms"),
        (request(normalised(), latency_ms=0.001), LATE, "latency_ms"),
        (request(normalised(), name="picture"), INVALID, "'picture'"),
        (request(normalised(), datatype="FP64"), INVALID, "'FP64'"),
        (request(normalised()[:, :, :8]), INVALID, "[n, 3, 32, 32]"),
        (request(normalised()[:0]), INVALID, "1 to 64 images"),
        (request(np.zeros((65, 3, SIZE, SIZE), np.float32)), INVALID, "1 to 64 images"),
        (request(np.zeros((1, 8, 8, 4), np.uint8)), INVALID, "[n, height, width, 3]"),
        (request(not_finite()), INVALID, "image 1 holds NaN"),
        (broken(shortened), INVALID, "inputs['image']"),
        (broken(lambda asked: asked.inputs.add()), INVALID, "inputs"),
        (broken(lambda asked: asked.ClearField("inputs")), INVALID, "inputs"),
        (broken(lambda asked: asked.outputs.add(name="top5")), INVALID, "outputs"),
        (request([b"GIF89a not an image"]), INVALID, "image 0: neither JPEG nor PNG"),
        (request([png(), png()[:60]]), INVALID, "image"),
        (request([bomb()] * 5), INVALID, "send smaller images, or fewer at a time"),
        (request([]), INVALID, "1 to 64 images"),
    ],
)
def test_each_mistake_has_its_code_and_names_its_field(
    stub: GRPCInferenceServiceStub, asked: pb.ModelInferRequest, code: grpc.StatusCode, said: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(asked)
    assert caught.value.code() is code
    assert said in caught.value.details()


def test_bytes_that_are_no_request_are_refused_by_name(made: MadeServer) -> None:
    with grpc.insecure_channel(made.target) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff\xff")
    assert caught.value.code() is INVALID
    assert "ModelInferRequest" in caught.value.details()


def test_alive_ready_and_described(made: MadeServer, stub: GRPCInferenceServiceStub) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="elastic_vit")).ready
    assert not stub.ModelReady(pb.ModelReadyRequest(name="resnet")).ready
    assert "policy:fedstill" in stub.ServerMetadata(pb.ServerMetadataRequest()).extensions
    described = stub.ModelMetadata(pb.ModelMetadataRequest(name="elastic_vit"))
    assert [(one.name, one.datatype) for one in described.inputs] == [("pixels", "UINT8")]
    with grpc.insecure_channel(made.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService", "fedstill.serving.v1.Serving"):
            status = health.Check(health_pb2.HealthCheckRequest(service=name)).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def test_register_query_and_delete(made: MadeServer, client: ServingClient) -> None:
    described = client.describe()
    assert (described.policy, described.image_size, described.trunk) == ("fedstill", SIZE, TRUNK)
    assert {one.name for one in described.tasks} == set(TASKS)
    made_up = task(4, seed=9)

    def register(**changes: object):
        values = {
            "name": "birds",
            "class_names": made_up.class_names,
            "head_weight": made_up.head_weight.numpy(),
            "head_bias": made_up.head_bias.numpy(),
            "trunk": TRUNK,
            "accuracy": 0.8,
        }
        return client.register_task(**{**values, **changes})

    for changes, said in (
        ({"trunk": "another"}, "trunk"),
        ({"name": "Not A Name"}, "name"),
        ({"head_bias": np.zeros(3, np.float32)}, "parameters"),
        ({"head_weight": np.zeros((4, WIDTH + 1), np.float32)}, "parameters"),
        ({"accuracy": 1.5}, "accuracy"),
        ({"latency_ms": 0.0}, "latency_ms"),
        ({"utility": -1.0}, "utility"),
    ):
        with pytest.raises(ServingError, match=said) as caught:
            register(**changes)
        assert caught.value.code is INVALID, changes
    assert set(made.tasks.served) == set(TASKS)

    assert register().version == 1
    assert register().version == 2  # a hot swap of one task
    answer = client.make_query("birds", png(), latency_ms=20_000, utility=1.0)
    assert answer.label in made_up.class_names
    assert answer.logits.shape == (4,)
    client.delete_task("birds")
    for call in (lambda: client.make_query("birds", png()), lambda: client.delete_task("birds")):
        with pytest.raises(ServingError, match="'birds' is not served") as caught:
            call()
        assert caught.value.code is MISSING
    with pytest.raises(ServingError, match="image") as caught:
        client.make_query("cats", b"no image")
    assert caught.value.code is INVALID


def test_the_last_task_stays(tmp_path: Path) -> None:
    with serving(tmp_path) as made, ServingClient(ServingAddress(made.target)) as client:
        client.delete_task("cats")
        with pytest.raises(ServingError, match="no task is left") as caught:
            client.delete_task("dogs")
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert client.make_query("dogs", png(), latency_ms=20_000).label in ("class0", "class1")


def test_a_task_added_beside_the_server_is_served(made: MadeServer, client: ServingClient) -> None:
    made.registry.register("fish", task(2, seed=4), TRUNK, accuracy=0.5)
    end = time.monotonic() + 30
    while "fish" not in made.tasks.served and time.monotonic() < end:
        time.sleep(0.05)
    assert client.make_query("fish", png(), latency_ms=20_000).label in ("class0", "class1")
    made.registry.remove("fish")
    wait_for(lambda: set(made.tasks.served) == set(TASKS))


def test_a_task_of_another_trunk_is_left_out_and_the_others_go_on_swapping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as made, ServingClient(ServingAddress(made.target)) as client:
        served = dict(made.tasks.served)
        made.registry.register("alien", task(2, seed=4), "f" * 64)
        wait_for(lambda: "event=task_left_out task=alien version=1 trunk=ffffffffffff" in caplog.text)
        assert dict(made.tasks.served) == served
        made.registry.register("fish", task(2, seed=4), TRUNK, accuracy=0.5)
        wait_for(lambda: "fish" in made.tasks.served)
        assert client.make_query("fish", png(), latency_ms=20_000).label in ("class0", "class1")
        with pytest.raises(ServingError, match="is not served") as caught:
            client.delete_task("alien")
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
        made.registry.register("cats", task(2, seed=4), "f" * 64)  # a new version of a served one: it goes
        wait_for(lambda: set(made.tasks.served) == {"dogs", "fish"})
        made.registry.activate("cats", 1)
        wait_for(lambda: made.tasks.served.get("cats") == served["cats"])


def test_a_look_at_the_registry_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def fail() -> bool:
        looks.append(time.monotonic())
        raise OSError("no space left on device")

    monkeypatch.setattr(serving_server, "REFRESH_SECONDS", 0.05)
    with serving(tmp_path) as made:
        with monkeypatch.context() as patch:
            patch.setattr(made.tasks, "refresh", fail)
            wait_for(lambda: len(looks) > 1)
        made.registry.register("fish", task(2, seed=4), TRUNK, accuracy=0.5)
        wait_for(lambda: "fish" in made.tasks.served)


def test_a_registry_that_does_not_answer_holds_up_neither_queries_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More changes wait than an event loop has threads of its own; one of them runs."""
    running, goes_on = threading.Semaphore(0), threading.Event()

    def stuck(name: str) -> None:
        running.release()
        assert goes_on.wait(60)

    try:
        with ExitStack() as clients:
            with serving(tmp_path) as made:
                monkeypatch.setattr(made.tasks, "delete", stuck)
                channel = clients.enter_context(grpc.insecure_channel(made.target))
                stub, asked = GRPCInferenceServiceStub(channel), request(normalised(1))
                changes = [
                    stub.RepositoryModelUnload.future(pb.RepositoryModelUnloadRequest(model_name="cats"))
                    for _ in range(40)
                ]
                assert running.acquire(timeout=20)
                pixels = {"name": "image", "shape": [1, 3, SIZE, SIZE], "datatype": "FP32"}
                pixels["data"] = normalised(1).ravel().tolist()
                for _ in range(3):
                    assert logits(stub.ModelInfer(asked)).shape == (1, TASKS["cats"])
                    answer = httpx.post(f"{made.rest}/v2/models/cats/infer", json={"inputs": [pixels]})
                    assert answer.status_code == 200
                    assert httpx.post(f"{made.rest}/v2/repository/index", json={}).status_code == 200
                assert not running.acquire(blocking=False)
                assert not any(one.done() for one in changes)
                monkeypatch.setattr(registry_thread, "MOST_WAITING", 1)
                with pytest.raises(grpc.RpcError) as refused:
                    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="cats"))
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                assert refused.value.details() == "39 calls wait for the task registry: ask again"
                assert ("retry-after-ms", "1000") in refused.value.trailing_metadata()
                begun = time.monotonic()
            assert time.monotonic() - begun < 15
            assert all(isinstance(one.exception(timeout=20), grpc.RpcError) for one in changes)
    finally:
        goes_on.set()


def test_a_lost_database_and_a_mistake_of_ours_are_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By both faces; queries are answered all the while."""

    def lost(*_: object) -> None:
        raise OperationalError("SELECT secret FROM tasks", {}, Exception("database is locked"))

    def broken(*_: object) -> None:
        raise KeyError("a mistake of ours")

    index = "/v2/repository/index"
    with serving(tmp_path) as made, grpc.insecure_channel(made.target) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for failing, code, status, says in (
            (
                lost,
                grpc.StatusCode.UNAVAILABLE,
                503,
                "the task registry's database does not answer: ask again",
            ),
            (broken, grpc.StatusCode.INTERNAL, 500, "the server failed; see its log"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(made.tasks, "versions", failing)
                with pytest.raises(grpc.RpcError) as caught:
                    stub.RepositoryIndex(pb.RepositoryIndexRequest())
                assert (caught.value.code(), caught.value.details()) == (code, says)
                answer = httpx.post(f"{made.rest}{index}", json={})
                assert (answer.status_code, answer.json()) == (status, {"error": says})
                assert logits(stub.ModelInfer(request(normalised(1)))).shape == (1, TASKS["cats"])
        assert httpx.post(f"{made.rest}{index}", json={}).status_code == 200
    assert "event=registry_unreadable call=RepositoryIndex" in caplog.text
    assert "event=call_failed call=RepositoryIndex" in caplog.text
    assert "a mistake of ours" in caplog.text


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_more_than_may_wait_is_refused_with_a_hint(tmp_path: Path) -> None:
    with serving(tmp_path, waiting=8) as made, grpc.insecure_channel(made.target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            GRPCInferenceServiceStub(channel).ModelInfer(request(normalised(9)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        hints = {one.key: one.value for one in caught.value.trailing_metadata()}
        assert int(hints["retry-after-ms"]) >= 1


def test_the_client_says_when_to_try_again(tmp_path: Path) -> None:
    with serving(tmp_path, waiting=0) as made, ServingClient(ServingAddress(made.target)) as client:
        with pytest.raises(ServingError, match="wait already") as caught:
            client.make_query("cats", png())
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.retry_after_ms >= 1


def test_tokens_open_doors(tmp_path: Path) -> None:
    def authorise(token: str) -> str:
        return verify(SECRET, token, time.time())

    def token(name: str, secret: bytes = SECRET, expiry: float = 3600) -> str:
        return issue(secret, name, int(time.time() + expiry))

    access = AccessPolicy(authorise, frozenset({"boss"}))
    node = token("node")  # once: a second later it is another text
    with serving(tmp_path, access=access) as made:
        for wrong in ("", node, token("node", bytes(32)), token("boss", expiry=-9)):
            with ServingClient(ServingAddress(made.target, None, wrong)) as client:
                with pytest.raises(ServingError) as caught:
                    client.delete_task("cats")
                denied = wrong == node
                code = grpc.StatusCode.PERMISSION_DENIED if denied else grpc.StatusCode.UNAUTHENTICATED
                assert caught.value.code is code
                if not denied:
                    with pytest.raises(ServingError) as caught:
                        client.make_query("cats", png())
                    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
        with ServingClient(ServingAddress(made.target, None, token("node"))) as client:
            assert client.make_query("cats", png(), latency_ms=20_000).label
        with ServingClient(ServingAddress(made.target, None, token("boss"))) as client:
            client.delete_task("cats")
        with grpc.insecure_channel(made.target) as channel:  # an orchestrator has no token
            assert GRPCInferenceServiceStub(channel).ServerReady(pb.ServerReadyRequest()).ready


def images_alive() -> int:
    """Prepared images in this process, of the server and of nobody else."""
    return sum(type(one) is torch.Tensor and one.shape == (3, SIZE, SIZE) for one in gc.get_objects())


def test_a_refused_request_leaves_no_image_to_the_garbage_collector(stub: GRPCInferenceServiceStub) -> None:
    """Under a burst the collector comes by too seldom: hundreds of megabytes would wait for it."""
    second_is_damaged = request([png(), png()[:60]])
    gc.collect()
    gc.disable()
    try:
        before = images_alive()
        for _ in range(10):
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(second_is_damaged)
            assert refused.value.code() is INVALID
        assert images_alive() - before <= 1  # the engine's thread may still hold the last
    finally:
        gc.enable()


def test_a_client_that_hangs_up_leaves_nothing_behind(made: MadeServer) -> None:
    with grpc.insecure_channel(made.target) as channel:
        stub = GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(request(normalised(16, seed))) for seed in range(8)]
        for call in calls:
            call.cancel()
    assert made.dispatcher.wait_until_idle(30)
    assert made.dispatcher.policy.queued() == 0


def test_metrics_health_and_decisions(tmp_path: Path) -> None:
    with serving(tmp_path) as made, grpc.insecure_channel(made.target) as channel:
        check_metrics(made, GRPCInferenceServiceStub(channel))


def check_metrics(made: MadeServer, stub: GRPCInferenceServiceStub) -> None:
    def fetched(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{made.ports.web}{path}") as answer:
            return answer.read().decode()

    def value(text: str, line: str) -> float:
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    before = fetched("/metrics")
    stub.ModelInfer(request(normalised(5), utility=0.5, task="dogs"))
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(request(normalised(2), utility=0.5, task="dogs", latency_ms=0))
    after = fetched("/metrics")

    def grown(line: str) -> float:
        return value(after, line) - value(before, line)

    assert grown('fedstill_serving_queries_total{task="dogs"}') == 7
    assert grown('fedstill_serving_utility_offered_total{task="dogs"}') == pytest.approx(3.5)
    assert grown('fedstill_serving_answers_total{late="false",task="dogs"}') == 5
    assert grown('fedstill_serving_drops_total{reason="too_late",task="dogs"}') == 2
    assert (
        5 * 0.5 * 0.86 <= grown('fedstill_serving_utility_earned_total{task="dogs"}') <= 5 * 0.5 * 0.9 + 1e-9
    )
    assert grown("fedstill_serving_waiting_seconds_count") == 5
    assert fetched("/healthz") == "ready\n"

    check_page(made)

    lines = [json.loads(line) for line in made.decisions.read_text().splitlines()]
    assert lines[-1]["tasks"] == {"dogs": lines[-1]["batch"]}
    assert lines[-1]["actual_ms"] > 0
    assert {"schedule", "predicted_ms", "queue", "evicted", "waiting_ms"} <= set(lines[-1])


def check_page(made: MadeServer) -> None:
    """What the page gets over the wire has the answers of a moment ago, and the documented keys."""
    web = f"http://127.0.0.1:{made.ports.web}"
    end = time.monotonic() + 20
    while not (shown := event(f"{web}/events"))["tasks"][1]["latency_ms"] and time.monotonic() < end:
        pass
    assert_documented(shown)
    assert (shown["policy"], shown["state"], shown["starting"]) == ("fedstill", "ready", None)
    dogs = shown["tasks"][1]
    assert (dogs["name"], dogs["version"]) == ("dogs", 1)
    assert 0 < dogs["latency_ms"]["p50"] <= dogs["latency_ms"]["p99"]
    totals = shown["totals"]
    assert totals["queries"] == totals["answered"] + totals["dropped"]
    assert totals["reasons"] == {"too_late": 2}
    assert shown["batches"]
    assert shown["capacity"]["most"] >= shown["capacity"]["accurate"] > 0
    with made.dispatcher._changed:  # whoever looks takes no lock of the dispatcher's
        while event(f"{web}/events")["time"] == shown["time"]:  # one event for half a second
            pass
    with urllib.request.urlopen(f"{web}/history?span=5m&task=dogs") as answer:
        assert max(json.load(answer)["columns"]["answered"]) > 0


def event(address: str) -> dict[str, Any]:
    """The first one of a stream."""
    with urllib.request.urlopen(address, timeout=10) as stream:
        return next(json.loads(line[6:]) for line in stream if line.startswith(b"data: "))


numbers = st.one_of(st.integers(-(2**31), 2**31), st.floats(), st.text(max_size=8), st.booleans())


@st.composite
def odd_requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Right requests with up to three things wrong, or odd."""
    kind = draw(st.sampled_from(("image", "pixels", "encoded")))
    count = draw(st.integers(1, 3))
    asked = {
        "image": lambda: request(normalised(count)),
        "pixels": lambda: request(np.zeros((count, 9, 7, 3), np.uint8)),
        "encoded": lambda: request([png(seed, 12) for seed in range(count)]),
    }[kind]()
    for _ in range(draw(st.integers(0, 3))):
        match draw(st.integers(0, 8)):
            case 0:
                del asked.inputs[0].shape[:]
                asked.inputs[0].shape.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)))
            case 1:
                asked.inputs[0].shape[0:1] = [draw(st.integers(0, 80))]
            case 2:
                asked.inputs[0].datatype = draw(st.sampled_from(("FP32", "UINT8", "BYTES", "FP16", "", "é")))
            case 3:
                asked.inputs[0].name = draw(st.sampled_from(("image", "encoded", "", "x" * 99)))
            case 4:
                raw = bytearray(asked.raw_input_contents[0])
                for _ in range(draw(st.integers(1, 8))):
                    raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
                asked.raw_input_contents[0] = bytes(raw)
            case 5:
                raw = asked.raw_input_contents[0]
                asked.raw_input_contents[0] = raw[: draw(st.integers(0, len(raw)))] or b"\0"
            case 6:
                name = draw(st.sampled_from(("task", "latency_ms", "utility", "timeout", "odd")))
                asked.parameters[name].CopyFrom(parameter(draw(numbers)))
            case 7:
                asked.inputs[0].contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=4)))
            case 8:
                asked.raw_input_contents.append(draw(st.binary(max_size=16)))
    return asked


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(asked=odd_requests())
def test_odd_requests_get_an_answer_that_says_so(
    made: MadeServer, stub: GRPCInferenceServiceStub, asked: pb.ModelInferRequest
) -> None:
    call = stub.ModelInfer.future(asked, timeout=60)
    assert call.code() in EXPECTED, (call.code(), call.details())
    if call.code() is grpc.StatusCode.OK:
        assert np.isfinite(logits(call.result())).all()
    else:
        assert call.details()
        assert "\n" not in call.details()
    assert stub.ServerReady(pb.ServerReadyRequest()).ready


tensors = st.dictionaries(
    st.sampled_from(("head.weight", "head.bias", "prompts.2", "prompts.0", "prompts.x", "odd")),
    st.tuples(
        st.lists(st.integers(0, 5), max_size=4),
        st.sampled_from((np.float32, np.float16, np.int64, np.bool_)),
        st.sampled_from((0.0, 1.0, np.nan)),
    ),
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(
    content=st.one_of(st.binary(max_size=64), tensors),
    classes=st.lists(st.text(max_size=5), max_size=5),
    name=st.one_of(st.just("birds"), st.text(max_size=20)),
)
def test_odd_tasks_are_refused_and_change_nothing(
    made: MadeServer, content: bytes | dict, classes: list[str], name: str
) -> None:
    if isinstance(content, dict):
        with np.errstate(invalid="ignore"):
            content = save(
                {key: np.full(shape, fill).astype(kind) for key, (shape, kind, fill) in content.items()}
            )
    asked = own.RegisterTaskRequest(
        name=name,
        class_names=classes,
        parameters=content,
        trunk=TRUNK,
        latency_ms=100,
        utility=1,
        accuracy=0.5,
    )
    with grpc.insecure_channel(made.target) as channel:
        call = ServingStub(channel).RegisterTask.future(asked, timeout=60)
        assert call.code() is INVALID, (call.code(), call.details())
        assert call.details()
        assert "\n" not in call.details()
    assert set(made.tasks.served) == set(TASKS)
