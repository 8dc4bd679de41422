"""Who calls: rate limits per token and request ids, by both ways alike, in answers, metrics and decision log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from helpers.infer_requests import normalised, request
from helpers.serving import MadeServer, png, serving

from fedstill.client.serving_client import ServingAddress, ServingClient, ServingError
from fedstill.cloud_server.auth.tokens import TokenError
from fedstill.cloud_server.serving.callers.rate_limits import Rate, RateLimits
from fedstill.cloud_server.serving.endpoints import rest_face
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

INFER = "/v2/models/cats/infer"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def authorise(token: str) -> str:
    """Tokens are names here."""
    if token not in ("shop", "yard", "barn"):
        raise TokenError("token is not one of this server's")
    return token


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[MadeServer]:
    counts: list[Any] = []
    limits = RateLimits(
        {"shop": Rate(0.5, 3), "barn": Rate(1, 1)}, (lambda *what: [one(*what) for one in counts],), clock
    )
    access = AccessPolicy(authorise, frozenset(), limits)
    with serving(tmp_path_factory.mktemp("serving"), access=access) as server:
        counts += [server.metrics.limited, server.log.limited]
        yield server


def bearer(node: str, **more: Any) -> dict[str, Any]:
    return {"authorization": f"Bearer {node}", **more}


def infer(made: MadeServer, node: str, images: int, **more: Any) -> httpx.Response:
    values = normalised(images)
    body = {
        "parameters": {"latency_ms": 20_000},
        "inputs": [
            {
                "name": "image",
                "shape": list(values.shape),
                "datatype": "FP32",
                "data": values.ravel().tolist(),
            }
        ],
    } | ({"id": more.pop("protocol_id")} if "protocol_id" in more else {})
    return httpx.post(made.rest + INFER, json=body, headers=bearer(node, **more), timeout=60)


def decisions(made: MadeServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in made.decisions.read_text().splitlines()]


def test_a_token_is_limited_by_both_ways_together_and_told_when_to_come_again(
    made: MadeServer, clock: Clock
) -> None:
    assert infer(made, "shop", 2).status_code == 200
    with ServingClient(ServingAddress(made.target, token="shop")) as client:
        assert client.make_query("cats", png(), latency_ms=20_000).label
        with pytest.raises(ServingError) as caught:
            client.make_query("cats", png(), latency_ms=20_000)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.retry_after_ms == 2000  # at half a query per second
        assert str(caught.value) == "rate limit: shop may ask 0.5 queries per second, 3 at once"
        refused = infer(made, "shop", 2)
        assert refused.status_code == 429
        assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("4", "4000")
        assert refused.json() == {"error": "rate limit: shop may ask 0.5 queries per second, 3 at once"}
        assert infer(made, "yard", 3).status_code == 200  # has no limit
        clock.now += 2
        assert client.make_query("cats", png(), latency_ms=20_000).label
        with pytest.raises(ServingError):
            client.make_query("cats", png(), latency_ms=20_000)
    never = infer(made, "shop", 4)
    assert never.status_code == 400  # a retry cannot help
    assert never.json()["error"].startswith("inputs: 4 images in one request: shop may ask")
    assert "retry-after" not in never.headers
    metrics = made.metrics.text().decode()
    assert 'fedstill_serving_limited_queries_total{node="shop",taken="true"} 4.0' in metrics
    assert 'fedstill_serving_limited_queries_total{node="shop",taken="false"} 8.0' in metrics
    assert "yard" not in metrics  # only limited nodes are labels
    assert infer(made, "yard", 1).status_code == 200
    lines = decisions(made)
    assert sum(line.get("rate_limited", {}).get("shop", 0) for line in lines) == 8
    assert sum(line.get("nodes", {}).get("shop", 0) for line in lines) == 4
    assert sum(line.get("nodes", {}).get("yard", 0) for line in lines) == 4


def test_a_stream_is_limited_image_by_image(made: MadeServer, clock: Clock) -> None:
    clock.now += 1000
    with grpc.insecure_channel(made.target) as channel:
        metadata = (("authorization", "Bearer barn"),)
        stub = GRPCInferenceServiceStub(channel)
        answers = list(
            stub.ModelStreamInfer(
                iter([request(normalised(1), model="cats") for _ in "ab"]), metadata=metadata
            )
        )
    assert not answers[0].error_message
    assert answers[1].error_message.startswith("rate limit: barn may ask 1 queries per second")
    parameters = answers[1].infer_response.parameters
    assert parameters["code"].string_param == "RESOURCE_EXHAUSTED"
    assert parameters["retry-after-ms"].int64_param == 1000


def test_health_and_descriptions_are_not_limited(made: MadeServer) -> None:
    for _ in range(5):
        assert httpx.get(made.rest + "/v2/models/cats", headers=bearer("barn")).status_code == 200
        assert httpx.get(made.rest + "/v2/health/ready").status_code == 200


def test_a_fault_of_the_server_says_its_request_id(made: MadeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(rest_face, "_shown", broken)
    answer = httpx.get(made.rest + "/v2", headers=bearer("yard", **{"x-request-id": "mine-5"}))
    assert (answer.status_code, answer.headers.get_list("x-request-id")) == (500, ["mine-5"])
    assert "broken" not in answer.text


def test_every_answer_says_its_request_id(made: MadeServer) -> None:
    assert infer(made, "yard", 1, **{"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert infer(made, "yard", 1, protocol_id="p-7").headers["x-request-id"] == "p-7"
    assert (
        infer(made, "yard", 1, protocol_id="p-8", **{"x-request-id": "h-8"}).headers["x-request-id"] == "h-8"
    )
    odd = infer(made, "yard", 1, **{"x-request-id": b"\xe9" + 200 * b"a"}).headers["x-request-id"]
    assert odd == "?" + 127 * "a"
    refused = infer(made, "nobody", 1, **{"x-request-id": "mine-2"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (401, "mine-2")
    assert len(httpx.get(made.rest + "/v2/health/live").headers["x-request-id"]) == 16
    assert (
        httpx.get(made.rest + "/nowhere", headers={"x-request-id": "mine-3"}).headers["x-request-id"]
        == "mine-3"
    )

    with grpc.insecure_channel(made.target) as channel:
        stub = GRPCInferenceServiceStub(channel)
        named = (("authorization", "Bearer yard"), ("x-request-id", "mine-4"))
        asked = request(normalised(1), model="cats")
        _, call = stub.ModelInfer.with_call(asked, metadata=named)
        assert dict(call.trailing_metadata())["x-request-id"] == "mine-4"
        asked.id = "p-9"
        _, call = stub.ModelInfer.with_call(asked, metadata=named[:1])
        assert dict(call.trailing_metadata())["x-request-id"] == "p-9"
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(pb.ModelInferRequest(model_name="birds"), metadata=named)
        assert dict(caught.value.trailing_metadata())["x-request-id"] == "mine-4"
        answers = list(stub.ModelStreamInfer(iter([asked]), metadata=named[:1]))
        assert not answers[0].error_message
    infer(made, "yard", 1)
    logged = {name for line in decisions(made) for name in line["requests"]}
    assert {"mine-1", "p-7", "h-8", odd, "mine-4", "p-9"} <= logged


def test_the_decision_log_says_versions(made: MadeServer, tmp_path: Path) -> None:
    infer(made, "yard", 1)
    infer(made, "yard", 1)
    assert decisions(made)[-1]["versions"] == {"cats": 1}
