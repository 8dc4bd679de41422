"""Multi-label tasks and embeddings: described and answered alike over gRPC, REST and our own calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import torch
from helpers.infer_requests import logits, normalised, request, texts
from helpers.serving import MadeServer, png, serving
from helpers.vit import LAYERS, WIDTH, task, tiny_trunk

from fedstill.client.serving_client import ServingAddress, ServingClient, ServingError
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import parse_schedule
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

NAMES = ("cat, or two", "dog", "grass")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MadeServer]:
    """Beside the two usual tasks, ``scene`` (multi-label) and ``search`` (embedding), both registered over the wire."""
    head = task(3, seed=9)
    with serving(tmp_path_factory.mktemp("serving")) as server:
        with ServingClient(ServingAddress(server.target)) as client:
            trunk = client.describe().trunk
            client.register_task(
                "scene", NAMES, head.head_weight.numpy(), head.head_bias.numpy(),
                trunk=trunk, accuracy=0.9, output="labels",
            )  # fmt: skip
            client.register_task(
                "search", (), np.zeros((0, WIDTH), np.float32), np.zeros(0, np.float32),
                trunk=trunk, accuracy=0.9, output="embedding",
            )  # fmt: skip
            assert {one.name: one.output for one in client.describe().tasks} == {
                "cats": "classes", "dogs": "classes", "scene": "labels", "search": "embedding",
            }  # fmt: skip
        yield server


@pytest.fixture
def stub(made: MadeServer) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(made.target) as channel:
        yield GRPCInferenceServiceStub(channel)


def features(values: np.ndarray, schedule: str) -> np.ndarray:
    """By the trunk that is served, in the library's own forward."""
    with torch.inference_mode():
        trunk = ElasticViT(tiny_trunk())
        return trunk.features(torch.from_numpy(values), parse_schedule(schedule, LAYERS)).numpy()


def tensor(answer: pb.ModelInferResponse, name: str) -> np.ndarray:
    place = [output.name for output in answer.outputs].index(name)
    assert answer.outputs[place].datatype == "FP32"
    return np.frombuffer(answer.raw_output_contents[place], "<f4").reshape(answer.outputs[place].shape)


def test_a_multi_label_task_answers_each_label_by_itself(
    made: MadeServer, stub: GRPCInferenceServiceStub
) -> None:
    values, head = normalised(4, seed=3), task(3, seed=9)
    answer = stub.ModelInfer(request(values, model="scene"))
    assert [one.name for one in answer.outputs] == ["logits", "probabilities", "labels"]
    wanted = features(values, answer.parameters["schedule"].string_param) @ head.head_weight.numpy().T
    wanted += head.head_bias.numpy()
    np.testing.assert_allclose(logits(answer), wanted, atol=1e-4)
    np.testing.assert_allclose(tensor(answer, "probabilities"), 1 / (1 + np.exp(-wanted)), atol=1e-4)
    said = [set(json.loads(one)) for one in texts(answer, "labels")]
    assert said == [{name for name, value in zip(NAMES, row, strict=True) if value >= 0} for row in wanted]
    assert {len(one) for one in said} - {1}  # none, or two: not always one, as a class is
    best = [json.loads(one)[:1] for one in texts(answer, "labels")]
    assert best == [[NAMES[row.argmax()]] if row.max() >= 0 else [] for row in wanted]


def test_an_embedding_is_the_trunks_feature(made: MadeServer, stub: GRPCInferenceServiceStub) -> None:
    values = normalised(3, seed=4)
    answer = stub.ModelInfer(request(values, model="search"))
    assert [one.name for one in answer.outputs] == ["embedding"]
    wanted = features(values, answer.parameters["schedule"].string_param)
    np.testing.assert_allclose(tensor(answer, "embedding"), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        (
            "scene",
            {"logits": ("FP32", [-1, 3]), "probabilities": ("FP32", [-1, 3]), "labels": ("BYTES", [-1])},
        ),
        ("search", {"embedding": ("FP32", [-1, WIDTH])}),
    ],
)
def test_they_are_described_as_they_answer(
    made: MadeServer, stub: GRPCInferenceServiceStub, name: str, outputs: dict[str, tuple[str, list[int]]]
) -> None:
    found = stub.ModelMetadata(pb.ModelMetadataRequest(name=name))
    assert {one.name: (one.datatype, list(one.shape)) for one in found.outputs} == outputs
    answer = stub.ModelInfer(request(normalised(2), model=name))
    assert {one.name: (one.datatype, [-1, *one.shape[1:]]) for one in answer.outputs} == outputs
    config = stub.ModelConfig(pb.ModelConfigRequest(name=name)).config
    assert [one.name for one in config.output] == list(outputs)
    assert json.loads(config.parameters["output"].string_value) == {"scene": "labels"}.get(name, "embedding")
    plain = {
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": [2, 3, 32, 32], "data": normalised(2).tolist()}
        ]
    }
    with httpx.Client(base_url=made.rest, timeout=60) as web:
        described = web.get(f"/v2/models/{name}").json()["outputs"]
        assert {one["name"]: (one["datatype"], one["shape"]) for one in described} == outputs
        over_rest = web.post(
            f"/v2/models/{name}/infer", json=plain | {"parameters": {"latency_ms": 20_000}}
        ).json()
    for one in over_rest["outputs"]:
        if one["datatype"] == "FP32":
            np.testing.assert_allclose(
                np.reshape(one["data"], one["shape"]), tensor(answer, one["name"]), atol=1e-5
            )
        else:
            assert one["data"] == texts(answer, one["name"])


def test_our_own_call_answers_them_too(made: MadeServer) -> None:
    with ServingClient(ServingAddress(made.target)) as client:
        scene = client.make_query("scene", png(), latency_ms=20_000)
        assert scene.labels == tuple(
            NAMES[place] for place in np.argsort(-scene.logits, kind="stable") if scene.logits[place] >= 0
        )
        assert scene.label == NAMES[scene.logits.argmax()]
        search = client.make_query("search", png(), latency_ms=20_000)
        assert (search.label, search.labels, search.logits.size, search.embedding.shape) == (
            "",
            (),
            0,
            (WIDTH,),
        )
        plain = client.make_query("cats", png(), latency_ms=20_000)
        assert (plain.labels, plain.embedding.size, plain.logits.size) == ((), 0, 3)


def test_what_a_task_does_not_answer_is_refused_by_name(
    made: MadeServer, stub: GRPCInferenceServiceStub
) -> None:
    for model, output, known in (
        ("scene", "label", "logits, probabilities, labels"),
        ("search", "logits", "embedding"),
        ("cats", "embedding", "logits, label"),
    ):
        asked = request(normalised(), model=model)
        asked.outputs.add(name=output)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(asked)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"{output!r} is not one of {known}" in caught.value.details()
    with ServingClient(ServingAddress(made.target)) as client:
        trunk = client.describe().trunk
        for output, names, said in (
            ("box", ("a", "b"), "'box' is not one of classes, labels, embedding"),
            ("embedding", ("a", "b"), "2 names; an embedding has none"),
        ):
            weight, bias = np.zeros((2, WIDTH), np.float32), np.zeros(2, np.float32)
            with pytest.raises(ServingError, match=said):
                client.register_task("odd", names, weight, bias, trunk=trunk, accuracy=0.5, output=output)


def test_a_swap_to_another_kind_of_answer_refuses_who_waited(tmp_path: Path) -> None:
    """A request is checked for one kind; an answer of another one must not be written into its tensors."""
    with serving(tmp_path) as made, grpc.insecure_channel(made.target) as channel:
        queries, stub = made.tasks, GRPCInferenceServiceStub(channel)
        before = dict(queries.served)
        scene = task(3, seed=1)
        made.registry.register("cats", type(scene)(
            scene.class_names, scene.head_weight, scene.head_bias, output="labels"
        ), queries.trunk, accuracy=0.9)  # fmt: skip
        queries.refresh()
        stale, queries._served = queries._served, before  # what a request saw that was parsed before the swap
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request(normalised(), model="cats"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "was replaced by one of other classes" in caught.value.details()
        queries._served = stale
