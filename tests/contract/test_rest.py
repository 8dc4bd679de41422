"""The Open Inference Protocol over HTTP: the same answers as over gRPC, its own forms, every mistake by name."""

from __future__ import annotations

import base64
import gc
import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
from helpers.infer_requests import logits, normalised, request
from helpers.serving import SIZE, MadeServer, png, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.auth.tokens import issue, verify
from fedstill.cloud_server.serving.endpoints import serving_server
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.rest_face import REFUSED, RestFace
from fedstill.cloud_server.serving.endpoints.starting import StartProgress
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/cats/infer"
SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MadeServer]:
    with serving(tmp_path_factory.mktemp("serving")) as server:
        yield server


@pytest.fixture(scope="module")
def web(made: MadeServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=made.rest, timeout=60) as client:
        yield client


def image_input(values: np.ndarray, **changes: Any) -> dict[str, Any]:
    return {
        "name": "image",
        "shape": list(values.shape),
        "datatype": "FP32",
        "data": values.tolist(),
    } | changes


def body(*inputs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A right request, or nearly; by default one normalised image in JSON."""
    found = list(inputs) or [image_input(normalised(1))]
    return {"id": "7", "parameters": {"latency_ms": 20_000}, "inputs": found} | changes


def packed(plain: dict[str, Any], *tensors: bytes) -> dict[str, Any]:
    """Content and headers of a request with tensors behind the JSON."""
    head = json.dumps(plain).encode()
    return {"content": head + b"".join(tensors), "headers": {LENGTH: str(len(head))}}


def output(answer: httpx.Response, name: str = "logits") -> Any:
    assert answer.status_code == 200, answer.text
    (found,) = [one for one in answer.json()["outputs"] if one["name"] == name]
    return np.array(found["data"], np.float32).reshape(found["shape"]) if name == "logits" else found["data"]


def test_json_binary_and_grpc_answer_alike(made: MadeServer, web: httpx.Client) -> None:
    images = normalised(3)
    with grpc.insecure_channel(made.target) as channel:
        expected = GRPCInferenceServiceStub(channel).ModelInfer(request(images, model="cats"))
    nested = web.post(INFER, json=body(image_input(images)))
    np.testing.assert_allclose(output(nested), logits(expected), atol=1e-5)
    said = nested.json()
    assert (said["model_name"], said["model_version"], said["id"]) == ("cats", "1", "7")
    assert said["parameters"].keys() == set(expected.parameters)
    flat = web.post(INFER, json=body(image_input(images, data=images.ravel().tolist())))
    np.testing.assert_allclose(output(flat), logits(expected), atol=1e-5)
    sized = image_input(images, parameters={"binary_data_size": images.nbytes})
    del sized["data"]
    for versioned in (INFER, "/v2/models/cats/versions/1/infer"):
        binary = web.post(versioned, **packed(body(sized), images.tobytes()))
        np.testing.assert_allclose(output(binary), logits(expected), atol=1e-5)
    old = web.post(
        "/v2/models/elastic_vit/infer", json=body(parameters={"task": "dogs", "latency_ms": "20000"})
    )
    assert output(old).shape == (1, 2)


def test_outputs_come_as_bytes_where_they_are_asked_for_as_bytes(web: httpx.Client) -> None:
    plain = web.post(INFER, json=body())
    wanted = [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "label"}]
    answer = web.post(INFER, json=body(outputs=wanted))
    assert answer.headers["content-type"] == "application/octet-stream"
    end = int(answer.headers[LENGTH])
    outputs = json.loads(answer.content[:end])["outputs"]
    assert outputs[0] == {
        "name": "logits", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}
    }  # fmt: skip
    assert outputs[1]["data"] == output(plain, "label")
    np.testing.assert_allclose(np.frombuffer(answer.content[end:], "<f4")[None], output(plain), atol=1e-5)
    wanted = [{"name": "label"}, {"name": "logits", "parameters": {"binary_data": False}}]
    parameters = {"latency_ms": 20_000, "binary_data_output": True}
    answer = web.post(INFER, json=body(outputs=wanted, parameters=parameters))
    end = int(answer.headers[LENGTH])
    assert answer.content[end:] == b"\6\0\0\0" + output(plain, "label")[0].encode()
    assert "data" in json.loads(answer.content[:end])["outputs"][1]


def test_classes_are_texts(web: httpx.Client) -> None:
    wanted = [{"name": "logits", "parameters": {"classification": 2}}]
    (found,) = web.post(INFER, json=body(outputs=wanted)).json()["outputs"]
    assert (found["datatype"], found["shape"]) == ("BYTES", [1, 2])
    values = [float(text.split(":")[0]) for text in found["data"]]
    assert values == sorted(values, reverse=True)


def test_an_image_file_is_a_body_or_base64_or_bytes(web: httpx.Client) -> None:
    alone = web.post(INFER, content=png(), headers={LENGTH: "0"})
    tensor = {"name": "encoded", "shape": [1], "datatype": "BYTES"}
    text = web.post(INFER, json=body(tensor | {"data": [base64.b64encode(png()).decode()]}))
    element = len(png()).to_bytes(4, "little") + png()
    sized = tensor | {"parameters": {"binary_data_size": len(element)}}
    binary = web.post(INFER, **packed(body(sized), element))
    for answer in (text, binary):
        np.testing.assert_allclose(output(answer), output(alone), atol=1e-5)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_may_be_compressed(web: httpx.Client, encoding: str, pack: Any) -> None:
    content = pack(json.dumps(body()).encode())
    answer = web.post(INFER, content=content, headers={"Content-Encoding": encoding})
    np.testing.assert_allclose(output(answer), output(web.post(INFER, json=body())), atol=1e-5)
    wrong = web.post(INFER, content=content[:-9], headers={"Content-Encoding": encoding})
    assert (wrong.status_code, wrong.json()) == (400, {"error": f"body: not {encoding}"})


def test_health_is_for_everybody_and_for_head_too(made: MadeServer, web: httpx.Client) -> None:
    for path, said in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/cats/ready", {"name": "cats", "ready": True}),
        ("/v2/models/cats/versions/1/ready", {"name": "cats", "ready": True}),
        ("/v2/models/elastic_vit/ready", {"name": "elastic_vit", "ready": True}),
    ):
        answer = web.get(path)
        assert (answer.status_code, answer.json()) == (200, said)
        head = web.head(path)
        assert (head.status_code, head.content) == (200, b"")
    for path in ("/v2/models/birds/ready", "/v2/models/cats/versions/9/ready"):
        assert web.get(path).status_code == web.head(path).status_code == 404
        assert web.get(path).json()["ready"] is False


def test_descriptions_are_those_of_grpc_as_json(web: httpx.Client) -> None:
    assert web.get("/v2").json()["name"] == "fedstill"
    assert "binary_tensor_data" in web.get("/v2/").json()["extensions"]
    assert web.get("/v2/models").json() == {"models": ["cats", "dogs"]}
    metadata = web.get("/v2/models/cats").json()
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    config = web.get("/v2/models/cats/config").json()
    assert config["version_policy"] == {"specific": {"versions": [1]}}  # of a choice only what was chosen
    assert config["input"][0]["data_type"] == "TYPE_UINT8"
    assert config["parameters"]["accuracy"] == {"string_value": "0.9"}
    web.post(INFER, json=body())
    (stats,) = web.get("/v2/models/cats/versions/1/stats").json()["model_stats"]
    assert stats["inference_count"] >= stats["inference_stats"]["success"]["count"] > 0
    assert [one["name"] for one in web.get("/v2/models/stats").json()["model_stats"]] == ["cats", "dogs"]


def test_the_repository_is_the_registry(tmp_path: Path) -> None:
    with serving(tmp_path) as made, httpx.Client(base_url=made.rest, timeout=60) as web:

        def ready() -> list[str]:
            return [one["name"] for one in web.post("/v2/repository/index", json={"ready": True}).json()]

        assert ready() == ["cats", "dogs"]
        assert web.post("/v2/repository/models/cats/unload").status_code == 200
        assert ready() == ["dogs"]
        states = {one["name"]: one["state"] for one in web.post("/v2/repository/index").json()}
        assert states == {"cats": "UNAVAILABLE", "dogs": "READY"}
        last = web.post("/v2/repository/models/dogs/unload")
        assert (last.status_code, last.json()) == (409, {"error": "model_name: no task is left to serve"})
        config = json.dumps({"version_policy": {"specific": {"versions": [1]}}})
        loaded = web.post("/v2/repository/models/cats/load", json={"parameters": {"config": config}})
        assert loaded.status_code == 200
        assert ready() == ["cats", "dogs"]
        odd = web.post("/v2/repository/index", json={"ready": 1})
        assert (odd.status_code, odd.json()) == (400, {"error": "ready: needs true or false"})
        strange = web.post("/v2/repository/models/cats/load", json={"parameters": {"config": 5}})
        assert (strange.status_code, strange.json()["error"].split(":")[0]) == (400, "parameters['config']")


def changed_input(**changes: Any) -> dict[str, Any]:
    return body(image_input(normalised(1), **changes))


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"{", 400, "body: not JSON"),
        (b"[]", 400, "body: needs a JSON object"),
        (b"[" * 100_000, 400, "body: not JSON"),
        (b"\xff\xfe", 400, "body: not JSON"),
        (b'{"id": "\\ud83d"}', 400, "body: not JSON"),
        (b'{"parameters": {"\\uD83D": 1}}', 400, "body: not JSON"),
        (
            b'{"inputs": [{"name": "encoded", "datatype": "BYTES", "data": '
            + b"[" * 700
            + b"]" * 700
            + b"}]}",
            400,
            "",
        ),
        (body(inputs=[{}] * 17), 400, "inputs: needs one of image, pixels and encoded, got 17 inputs"),
        (body(outputs=[{}] * 17), 400, "outputs: there are fewer than 17"),
        (body(id=5), 400, "id: needs a string"),
        (body(parameters=[]), 400, "parameters: needs a JSON object"),
        (body(parameters={"latency_ms": None}), 400, "parameters['latency_ms']: needs a number or a string"),
        (body(parameters={"latency_ms": 10**400}), 400, "parameters['latency_ms']: must lie between"),
        (body(parameters={"latency_ms": 0}), 504, "latency_ms: "),
        (body(parameters={"timeout": 1}), 504, "timeout: "),
        (body(inputs={}), 400, "inputs: needs a JSON array"),
        (body(inputs=[3]), 400, "inputs[0]: needs a JSON object"),
        (body(inputs=[]), 400, "inputs: needs one of image, pixels and encoded"),
        (body(outputs=[{"name": "top5"}]), 400, "outputs: 'top5' is not one of"),
        (body(outputs=[{}]), 400, "outputs: '' is not one of"),
        (changed_input(name="picture"), 400, "'picture'"),
        (changed_input(datatype="FP64"), 400, "'FP64'"),
        (changed_input(shape=[1, "3"]), 400, "inputs['image'].shape: needs whole numbers"),
        (changed_input(shape=[1, 3, SIZE, 2**70]), 400, "inputs['image'].shape: needs whole numbers"),
        (changed_input(data="pixels"), 400, "inputs['image'].data: needs a JSON array"),
        (changed_input(data=[[1.0], [2.0, 3.0]]), 400, "inputs['image'].data: needs numbers"),
        (changed_input(data=[{}]), 400, "inputs['image'].data: needs numbers"),
        (changed_input(data=[1.0]), 400, "holds 1 values"),
        (changed_input(data=[1e60] * 3 * SIZE * SIZE), 400, "NaN or infinity"),
        (changed_input(datatype="UINT8", data=[1.5]), 400, "needs whole numbers from 0 to 255"),
        (changed_input(datatype="UINT8", data=[256]), 400, "needs whole numbers from 0 to 255"),
        (changed_input(parameters={"binary_data_size": 9}), 400, "0 bytes are behind the JSON"),
        (changed_input(parameters={"binary_data_size": True}), 400, "binary_data_size"),
        (changed_input(parameters={"shared_memory_region": "mine"}), 400, "there is no shared memory"),
        (body({"name": "encoded", "shape": [1], "datatype": "BYTES", "data": ["?"]}), 400, "base64"),
        (body({"name": "encoded", "shape": [1], "datatype": "BYTES", "data": [7]}), 400, "base64"),
        (
            body({"name": "encoded", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}),
            400,
            "neither JPEG nor PNG",
        ),
    ],
)
def test_each_mistake_has_its_status_and_names_its_field(
    web: httpx.Client, content: bytes | dict[str, Any], status: int, said: str
) -> None:
    sent = content if isinstance(content, bytes) else json.dumps(content).encode()
    answer = web.post(INFER, content=sent)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert said in answer.json()["error"]


def test_a_small_file_of_very_many_lists_is_refused_at_once(web: httpx.Client) -> None:
    bomb = gzip.compress(b"[" + b"[]," * 2**20 + b"[]]")
    began = time.monotonic()
    answer = web.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"})
    assert time.monotonic() - began < 1
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("body: holds more than 1048576 lists and objects")


@pytest.mark.parametrize("length", ["-1", "many", "9" * 30, "100000"])
def test_a_wrong_length_of_the_json_part_is_named(web: httpx.Client, length: str) -> None:
    answer = web.post(INFER, content=json.dumps(body(parameters={})), headers={LENGTH: length})
    assert answer.status_code == 400
    assert LENGTH in answer.json()["error"]


def test_bytes_that_belong_to_no_tensor_are_refused(web: httpx.Client) -> None:
    answer = web.post(INFER, **packed(body(), b"12345"))
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "body: 5 bytes are left behind the tensors"},
    )


def test_wrong_paths_methods_and_what_is_not_offered(web: httpx.Client) -> None:
    assert web.get("/v2/nothing").json() == {"error": "/v2/nothing: there is no such path"}
    wrong = web.get(INFER)
    assert (wrong.status_code, wrong.headers["allow"], set(wrong.json())) == (405, "POST", {"error"})
    for path, text in REFUSED.items():
        asked = path.format(name="cats", region="mine")
        answer = web.post(asked) if path.endswith("register") else web.get(asked)
        assert (answer.status_code, answer.json()) == (501, {"error": f"{asked}: {text}"})


def test_bodies_are_limited_before_and_while_they_come_and_when_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_server, "LARGEST_REQUEST", 50_000)
    with serving(tmp_path) as made, httpx.Client(base_url=made.rest, timeout=60) as web:
        said = (413, {"error": "body: is larger than 50000 bytes"})
        announced = web.post(INFER, content=bytes(60_000))
        assert (announced.status_code, announced.json()) == said
        streamed = web.post(INFER, content=(bytes(10_000) for _ in range(6)))
        assert (streamed.status_code, streamed.json()) == said
        bomb = web.post(INFER, content=gzip.compress(bytes(10**7)), headers={"Content-Encoding": "gzip"})
        assert (bomb.status_code, bomb.json()) == said
        other = web.post(INFER, content=b"x", headers={"Content-Encoding": "br"})
        assert (other.status_code, other.json()["error"]) == (
            415, "content-encoding: 'br' is not one of gzip, deflate"
        )  # fmt: skip
        assert web.get("/v2/health/ready").status_code == 200


def test_tokens_are_asked_for_as_over_grpc(tmp_path: Path) -> None:
    def bearer(name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {issue(SECRET, name, int(time.time() + 3600))}"}

    access = AccessPolicy(lambda token: verify(SECRET, token, time.time()), frozenset({"boss"}))
    with serving(tmp_path, access=access) as made, httpx.Client(base_url=made.rest, timeout=60) as web:
        assert web.get("/v2/health/ready").status_code == web.get("/v2/models/cats/ready").status_code == 200
        for path in ("/v2", "/v2/models", "/v2/models/cats", "/v2/models/cats/config", "/v2/models/stats"):
            assert web.get(path).status_code == 401, path
            assert web.get(path, headers=bearer("node")).status_code == 200, path
        index = "/v2/repository/index"
        assert web.post(index, content=b"{").status_code == 401  # before the body is read
        assert web.post(index, headers=bearer("node")).status_code == 200
        bomb, zipped = gzip.compress(bytes(2**20 + 1)), {"Content-Encoding": "gzip"}
        assert web.post(index, content=bomb, headers=bearer("node") | zipped).status_code == 413
        refused = web.post(INFER, json=body())
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json() == {"error": "authorization: a bearer token is needed"}
        assert web.post(INFER, json=body(), headers=bearer("node")).status_code == 200
        unload = "/v2/repository/models/cats/unload"
        assert web.post(unload).status_code == 401
        assert web.post(unload, headers=bearer("node")).status_code == 403
        assert web.post(unload, headers=bearer("boss")).status_code == 200


def test_overload_says_when_to_try_again(tmp_path: Path) -> None:
    with serving(tmp_path, waiting=0) as made, httpx.Client(base_url=made.rest, timeout=60) as web:
        answer = web.post(INFER, json=body())
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1
        assert "wait already" in answer.json()["error"]


def test_a_server_that_starts_is_live_and_says_what_it_does() -> None:
    from starlette.testclient import TestClient

    progress = StartProgress()
    progress.tell("timing 2 schedules")
    web = TestClient(RestFace(lambda: None, progress, 1000).app())
    assert (web.get("/v2/health/live").status_code, web.get("/v2/health/ready").status_code) == (200, 503)
    assert web.get("/v2/models/cats/ready").json() == {"name": "cats", "ready": False}
    answer = web.post(INFER, content=bytes(9999))
    assert (answer.status_code, int(answer.headers["retry-after"])) == (503, 2)
    assert answer.json()["error"].startswith("the server is starting: timing 2 schedules")


def test_a_client_that_leaves_takes_its_query_along(tmp_path: Path) -> None:
    with serving(tmp_path) as made:
        held, go = threading.Event(), threading.Event()
        infer = made.dispatcher._engine._infer

        def slow(*arguments: Any) -> Any:
            held.set()
            assert go.wait(60)
            return infer(*arguments)

        made.dispatcher._engine._infer = slow
        with (
            httpx.Client(base_url=made.rest, timeout=0.5) as first,
            httpx.Client(base_url=made.rest) as second,
        ):
            with pytest.raises(httpx.ReadTimeout):
                first.post(INFER, json=body())
            assert held.is_set()
            with pytest.raises(httpx.ReadTimeout):
                second.post(INFER, json=body(), timeout=0.5)
        end = time.monotonic() + 30
        while made.dispatcher.queued() and time.monotonic() < end:
            time.sleep(0.01)
        assert made.dispatcher.queued() == 0  # the second one never ran
        go.set()
        assert made.dispatcher.wait_until_idle(30)
        assert made.monitor.snapshot()["totals"]["reasons"] == {"cancelled": 2}


def images_alive() -> int:
    return sum(type(one) is torch.Tensor and one.shape == (3, SIZE, SIZE) for one in gc.get_objects())


def test_a_refused_request_leaves_no_image_to_the_garbage_collector(web: httpx.Client) -> None:
    elements = [png(), png()[:60]]
    raw = b"".join(len(one).to_bytes(4, "little") + one for one in elements)
    tensor = {
        "name": "encoded",
        "shape": [2],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(raw)},
    }
    sent = packed(body(tensor), raw)
    gc.collect()
    gc.disable()
    try:
        before = images_alive()
        for _ in range(10):
            assert web.post(INFER, **sent).status_code == 400
        assert images_alive() - before <= 1  # the engine's thread may still hold the last
    finally:
        gc.enable()


def test_the_openapi_file_lists_every_path(web: httpx.Client) -> None:
    described = web.get("/openapi.json").json()
    app = RestFace(lambda: None, StartProgress(), 1000).app()
    routes = {
        (route.path, method.lower())
        for route in app.routes
        for method in route.methods - {"HEAD"}
        if route.path not in REFUSED and route.path != "/v2/"
    }
    assert {(path, method) for path, methods in described["paths"].items() for method in methods} == routes


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
parts = {
    "id": plain,
    "parameters": plain | st.dictionaries(st.sampled_from(("task", "latency_ms", "priority", "x")), plain),
    "inputs": plain
    | st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(("image", "pixels", "encoded")) | plain,
                "shape": st.lists(st.integers(-1, 4), max_size=4) | plain,
                "datatype": st.sampled_from(("FP32", "UINT8", "BYTES")) | plain,
                "parameters": st.dictionaries(st.sampled_from(("binary_data_size", "y")), plain) | plain,
                "data": plain,
            },
        ),
        max_size=2,
    ),
    "outputs": plain | st.lists(st.dictionaries(st.sampled_from(("name", "parameters")), plain), max_size=2),
}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    content=st.binary(max_size=64)
    | st.fixed_dictionaries({}, optional=parts).map(lambda made: json.dumps(made).encode()),
    length=st.none() | st.integers(0, 64),
)
def test_odd_bodies_get_a_refusal_in_one_line(web: httpx.Client, content: bytes, length: int | None) -> None:
    answer = web.post(INFER, content=content, headers={} if length is None else {LENGTH: str(length)})
    assert answer.status_code in (400, 404, 504), answer.text
    assert answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_an_upload_that_breaks_off_is_no_failure(made: MadeServer, caplog: pytest.LogCaptureFixture) -> None:
    host, port = made.rest.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: here\r\nContent-Length: 5000\r\n\r\n{{".encode())
    with httpx.Client(base_url=made.rest, timeout=60) as web:
        assert web.get("/v2/health/live").status_code == 200
    assert "Traceback" not in caplog.text
    assert "Exception" not in caplog.text
