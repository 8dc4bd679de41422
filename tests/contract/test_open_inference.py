"""The Open Inference Protocol over gRPC beyond an answer: models, versions, repository, statistics, streams, limits."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from helpers.infer_requests import logits, normalised, parameter, request, texts
from helpers.serving import SIZE, TRUNK, MadeServer, png, serving
from helpers.vit import task

from fedstill.cloud_server.serving.endpoints.open_inference import REFUSED
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MadeServer]:
    """For tests that change nothing."""
    with serving(tmp_path_factory.mktemp("serving")) as server:
        yield server


@pytest.fixture(scope="module")
def stub(made: MadeServer) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(made.target) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[MadeServer]:
    with serving(tmp_path) as server:
        yield server


@pytest.fixture
def own_stub(own: MadeServer) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(own.target) as channel:
        yield GRPCInferenceServiceStub(channel)


def refusal(call, message) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=60)
    return caught.value.code(), caught.value.details()


def index(stub: GRPCInferenceServiceStub, **asked: object) -> dict[tuple[str, str], tuple[str, str]]:
    models = stub.RepositoryIndex(pb.RepositoryIndexRequest(**asked)).models
    return {(one.name, one.version): (one.state, one.reason) for one in models}


def load(model: str, version: object = None, **parameters: str) -> pb.RepositoryModelLoadRequest:
    asked = pb.RepositoryModelLoadRequest(model_name=model)
    if version is not None:
        config = {"version_policy": {"specific": {"versions": [version]}}}
        asked.parameters["config"].string_param = json.dumps(config)
    for name, value in parameters.items():
        asked.parameters[name].string_param = value
    return asked


def test_a_task_is_a_model_and_the_old_name_still_works(stub: GRPCInferenceServiceStub) -> None:
    images = normalised(2)
    by_name = stub.ModelInfer(request(images, model="cats"))
    by_parameter = stub.ModelInfer(request(images, task="cats"))
    assert (by_name.model_name, by_name.model_version) == ("cats", "1")
    assert (by_parameter.model_name, by_parameter.model_version) == ("elastic_vit", "1")
    np.testing.assert_array_equal(logits(by_name), logits(by_parameter))
    assert logits(stub.ModelInfer(request(images, model="dogs", task="dogs"))).shape == (2, 2)
    code, text = refusal(stub.ModelInfer, request(images, model="dogs", task="cats"))
    assert (code, text) == (
        INVALID,
        "parameters['task']: is not the model's name 'dogs': drop one of the two",
    )
    for name in ("cats", "dogs", "elastic_vit"):
        assert stub.ModelReady(pb.ModelReadyRequest(name=name)).ready


def test_an_unknown_model_is_not_ready_and_everything_else_about_it_is_not_found(
    stub: GRPCInferenceServiceStub,
) -> None:
    assert not stub.ModelReady(pb.ModelReadyRequest(name="birds")).ready
    assert not stub.ModelReady(pb.ModelReadyRequest(name="cats", version="2")).ready
    for call, message in (
        (stub.ModelMetadata, pb.ModelMetadataRequest(name="birds")),
        (stub.ModelConfig, pb.ModelConfigRequest(name="birds")),
        (stub.ModelStatistics, pb.ModelStatisticsRequest(name="birds")),
        (stub.ModelInfer, request(normalised(), model="birds")),
    ):
        code, text = refusal(call, message)
        assert code is MISSING
        assert "'birds' is not served (served: cats, dogs)" in text
    code, text = refusal(stub.ModelInfer, request(normalised(), model="cats", version="7"))
    assert (code, text) == (MISSING, "model_version: '7' is not served (cats is served in version 1)")


def test_metadata_describes_one_input_that_can_be_sent_as_it_is(stub: GRPCInferenceServiceStub) -> None:
    for name, classes in (("cats", 3), ("dogs", 2)):
        found = stub.ModelMetadata(pb.ModelMetadataRequest(name=name))
        assert (found.name, list(found.versions)) == (name, ["1"])
        (described,) = found.inputs
        values = np.zeros([2 if side == -1 else side for side in described.shape], np.uint8)
        answer = stub.ModelInfer(request(values, described.name, described.datatype, model=name))
        shapes = {one.name: (one.datatype, list(one.shape)) for one in found.outputs}
        assert shapes == {"logits": ("FP32", [-1, classes]), "label": ("BYTES", [-1])}
        assert {one.name: (one.datatype, [-1, *one.shape[1:]]) for one in answer.outputs} == shapes


def test_the_configuration_says_versions_batching_and_preparation(stub: GRPCInferenceServiceStub) -> None:
    config = stub.ModelConfig(pb.ModelConfigRequest(name="cats")).config
    assert list(config.version_policy.specific.versions) == [1]
    assert (config.max_batch_size, list(config.input[0].dims)) == (64, [SIZE, SIZE, 3])
    assert config.dynamic_batching.default_queue_policy.default_timeout_microseconds == 600_000
    assert not config.model_transaction_policy.decoupled
    assert json.loads(config.parameters["class_names"].string_value) == ["class0", "class1", "class2"]
    assert json.loads(config.parameters["preprocess"].string_value)["mean"] == [0.5, 0.5, 0.5]


def test_versions_are_loaded_unloaded_and_true_in_answers(
    own: MadeServer, own_stub: GRPCInferenceServiceStub
) -> None:
    own.registry.register("cats", task(4, seed=8), TRUNK, accuracy=0.9)
    own.registry.register("alien", task(2, seed=4), "f" * 64)
    own.registry.remove("alien")
    assert own.tasks.refresh()
    assert index(own_stub) == {
        ("alien", "1"): ("UNAVAILABLE", "trained on another trunk"),
        ("cats", "1"): ("UNAVAILABLE", "version 2 is served"),
        ("cats", "2"): ("READY", ""),
        ("dogs", "1"): ("READY", ""),
    }
    assert index(own_stub, ready=True) == {("cats", "2"): ("READY", ""), ("dogs", "1"): ("READY", "")}
    newer = own_stub.ModelInfer(request(normalised(), model="cats"))
    assert (newer.model_version, logits(newer).shape) == ("2", (2, 4))
    own_stub.RepositoryModelLoad(load("cats", 1))
    older = own_stub.ModelInfer(request(normalised(), model="cats", version="1"))
    assert (older.model_version, logits(older).shape) == ("1", (2, 3))
    assert own_stub.ModelInfer(request(normalised())).parameters["task_version"].int64_param == 1
    own_stub.RepositoryModelLoad(load("cats"))  # of a model that is loaded: it stays as it is
    assert index(own_stub)["cats", "1"] == ("READY", "")

    own_stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="cats"))
    assert index(own_stub)["cats", "2"] == ("UNAVAILABLE", "removed")
    assert not own_stub.ModelReady(pb.ModelReadyRequest(name="cats")).ready
    own_stub.RepositoryModelLoad(load("cats"))  # of one that is not: the newest version
    assert index(own_stub, ready=True) == {("cats", "2"): ("READY", ""), ("dogs", "1"): ("READY", "")}
    assert own.registry.active()["cats"].version == 2


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (load("birds"), MISSING, "model_name: task 'birds' is not active"),
        (load("cats", 9), MISSING, "model_name: task cats has no version 9"),
        (load("cats", "two"), INVALID, "a version is a whole number"),
        (load("cats", **{"file:1/model.onnx": "x"}), grpc.StatusCode.UNIMPLEMENTED, "register a task"),
        (load("cats", configuration="{}"), INVALID, "parameters['configuration']: unknown; known is config"),
        (load("cats", config="{"), INVALID, "parameters['config']: needs JSON"),
        (load("cats", config='{"max_batch_size": 2}'), INVALID, "nothing else of a task"),
        (
            load("cats", config='{"version_policy": {"specific": {"versions": [1]}}, "max_batch_size": 2}'),
            INVALID,
            "nothing else of a task",
        ),
        (load("cats", "1" * 5000), INVALID, "a version is a whole number"),
        (load("cats", config="[" * 100_000), INVALID, "parameters['config']: needs JSON"),
        (load("cats", config='{"version_policy": {"all": {}}}'), INVALID, "one version of a task"),
        (
            pb.RepositoryModelLoadRequest(model_name="cats", repository_name="mine"),
            INVALID,
            "repository_name: leave it empty",
        ),
    ],
)
def test_a_load_that_cannot_be_is_refused_and_changes_nothing(
    made: MadeServer,
    stub: GRPCInferenceServiceStub,
    asked: pb.RepositoryModelLoadRequest,
    code: grpc.StatusCode,
    said: str,
) -> None:
    before = index(stub)
    found, text = refusal(stub.RepositoryModelLoad, asked)
    assert found is code
    assert said in text
    assert index(stub) == before


def test_a_version_that_is_swapped_while_a_query_waits_is_said(
    own: MadeServer, own_stub: GRPCInferenceServiceStub
) -> None:
    """Queries and swaps at once: the number of logits says which version has really answered."""
    classes = {1: 3, 2: 4}
    own.registry.register("cats", task(classes[2], seed=8), TRUNK, accuracy=0.9)
    calls = []
    for turn in range(60):
        calls.append(own_stub.ModelInfer.future(request(normalised(1, turn), model="cats")))
        if turn % 10 == 5:
            own_stub.RepositoryModelLoad(load("cats", 1 + turn // 10 % 2))
    versions = set()
    for call in calls:
        answer = call.result(60)
        versions.add(int(answer.model_version))
        assert logits(answer).shape == (1, classes[int(answer.model_version)])
    assert versions == {1, 2}


def test_statistics_count_requests_images_and_batches(own_stub: GRPCInferenceServiceStub) -> None:
    for count in (1, 3):
        own_stub.ModelInfer(request(normalised(count), model="cats"))
    for late in (0, 0.001):
        refusal(own_stub.ModelInfer, request(normalised(2), model="cats", latency_ms=late))
    (found,) = own_stub.ModelStatistics(pb.ModelStatisticsRequest(name="cats", version="1")).model_stats
    assert (found.name, found.version, found.inference_count) == ("cats", "1", 4)
    assert found.execution_count == 2
    assert {one.batch_size: one.compute_infer.count for one in found.batch_stats} == {1: 1, 3: 1}
    stats = found.inference_stats
    assert (stats.success.count, stats.fail.count, stats.queue.count) == (2, 2, 2)
    assert stats.success.ns >= stats.compute_infer.ns > 0
    assert abs(found.last_inference / 1e3 - time.time()) < 60
    everything = own_stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
    assert [(one.name, one.inference_count) for one in everything] == [("cats", 4), ("dogs", 0)]


def test_a_stream_answers_in_order_and_outlives_refusals(stub: GRPCInferenceServiceStub) -> None:
    def asked() -> Iterator[pb.ModelInferRequest]:
        for number in range(30):
            one = request(normalised(1, number), model="birds" if number % 7 == 3 else "cats")
            one.id = str(number)
            one.parameters["triton_enable_empty_final_response"].bool_param = number == 0
            yield one

    answers = list(stub.ModelStreamInfer(asked(), timeout=60))
    assert [one.infer_response.id for one in answers] == [str(number) for number in range(30)]
    failed = {int(one.infer_response.id) for one in answers if one.error_message}
    assert failed == {3, 10, 17, 24}
    assert answers[3].error_message.startswith("model_name: 'birds' is not served")
    assert answers[3].infer_response.parameters["code"].string_param == "NOT_FOUND"
    assert answers[0].infer_response.parameters["triton_final_response"].bool_param
    alone = stub.ModelInfer(request(normalised(1, 29), model="cats"))
    np.testing.assert_allclose(logits(answers[29].infer_response), logits(alone), atol=1e-5)


def test_a_stream_whose_client_leaves_leaves_nothing_behind(
    made: MadeServer, stub: GRPCInferenceServiceStub
) -> None:
    stream = stub.ModelStreamInfer(request(normalised(16, number), model="cats") for number in range(8))
    next(stream)
    stream.cancel()
    assert made.dispatcher.wait_until_idle(30)
    assert made.dispatcher.policy.queued() == 0


def test_reflection_names_the_services_and_knows_their_messages(made: MadeServer) -> None:
    with grpc.insecure_channel(made.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert {
            "inference.GRPCInferenceService",
            "fedstill.serving.v1.Serving",
            "grpc.health.v1.Health",
        } <= services
        pool = DescriptorPool(database)
        found = pool.FindServiceByName("inference.GRPCInferenceService")
        assert (
            found.FindMethodByName("ModelStreamInfer").input_type.full_name == "inference.ModelInferRequest"
        )
        assert (
            pool.FindMessageTypeByName("inference.ModelConfig").fields_by_name["max_batch_size"].number == 4
        )


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_what_is_not_offered_is_refused_by_name(made: MadeServer, method: str) -> None:
    with grpc.insecure_channel(made.target) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        code, text = refusal(call, b"")
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert text == f"{method}: {REFUSED[method]}"


@pytest.mark.parametrize("place", ["request", "input", "output"])
def test_shared_memory_is_refused_wherever_it_is_asked_for(
    stub: GRPCInferenceServiceStub, place: str
) -> None:
    asked = request(normalised(), model="cats")
    asked.outputs.add(name="logits")
    holder = {"request": asked, "input": asked.inputs[0], "output": asked.outputs[0]}[place]
    holder.parameters["shared_memory_region"].string_param = "mine"
    code, text = refusal(stub.ModelInfer, asked)
    assert code is INVALID
    assert "parameters['shared_memory_region']: there is no shared memory here" in text


def test_classes_are_texts_with_the_best_first(stub: GRPCInferenceServiceStub) -> None:
    asked = request(normalised(2), model="cats")
    plain = logits(stub.ModelInfer(asked))
    asked.outputs.add(name="logits").parameters["classification"].int64_param = 2
    answer = stub.ModelInfer(asked)
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [2, 2])
    best = [sorted(range(3), key=lambda place: -row[place])[:2] for row in plain]
    expected = [
        f"{row[place]:.6f}:{place}:class{place}"
        for row, places in zip(plain, best, strict=True)
        for place in places
    ]
    found = texts(answer, "logits")
    assert [one.split(":")[1:] for one in found] == [one.split(":")[1:] for one in expected]
    values = [[float(one.split(":")[0]) for one in texts] for texts in (found, expected)]
    np.testing.assert_allclose(*values, atol=1e-5)
    asked.outputs[0].parameters["classification"].int64_param = 99
    assert list(stub.ModelInfer(asked).outputs[0].shape) == [2, 3]
    del asked.outputs[:]
    asked.outputs.add(name="label").parameters["classification"].int64_param = 2
    code, text = refusal(stub.ModelInfer, asked)
    assert (code, text) == (
        INVALID,
        "outputs['label'].parameters['classification']: only logits can be given as classes",
    )


def test_numbers_may_be_texts_and_strange_parameters_have_no_effect(
    stub: GRPCInferenceServiceStub,
) -> None:
    values = np.zeros((1, 3, SIZE, SIZE), np.float32)
    asked = request(values, model="cats", latency_ms="20000", utility="0.5", timeout="30000000", priority="1")
    asked.parameters["trace_of_mine"].string_param = "7"
    assert "warning" not in stub.ModelInfer(asked).parameters
    asked.parameters["latncy_ms"].CopyFrom(parameter(3))
    warning = stub.ModelInfer(asked).parameters["warning"].string_param
    assert warning == "parameters['latncy_ms'] has no effect: did you mean latency_ms?"


def test_long_names_and_many_of_them_cost_no_time(stub: GRPCInferenceServiceStub) -> None:
    asked = request(np.zeros((1, 3, SIZE, SIZE), np.float32), model="cats", latency_ms=20_000)
    asked.parameters["latency_m" + "s" * 4_000_000].bool_param = True  # compared, it would take seconds
    for number in range(20_000):
        asked.parameters[f"latency_{number}"].bool_param = True
    began = time.monotonic()
    stub.ModelInfer(asked)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"timeout": 1}, "timeout"),
        ({"timeout": 1, "latency_ms": 0.0005}, "latency_ms"),
        ({"timeout": 0, "latency_ms": 0.0005}, "latency_ms"),  # 0: no limit of its own
    ],
)
def test_the_shortest_limit_counts_and_is_named(
    stub: GRPCInferenceServiceStub, parameters: dict[str, float], field: str
) -> None:
    code, text = refusal(stub.ModelInfer, request(normalised(), model="cats", **parameters))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert text.startswith(f"{field}: ")


@pytest.mark.parametrize(
    "parameters", [{"timeout": -1}, {"timeout": "soon"}, {"priority": -1}, {"priority": True}]
)
def test_odd_limits_are_refused_by_name(
    stub: GRPCInferenceServiceStub, parameters: dict[str, object]
) -> None:
    code, text = refusal(stub.ModelInfer, request(normalised(), model="cats", **parameters))
    assert code is INVALID
    assert text.startswith(f"parameters['{next(iter(parameters))}']: ")


def test_pixels_are_taken_in_every_form(stub: GRPCInferenceServiceStub) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    forms = [
        request(pixels, "image", model="cats"),
        request(pixels, "pixels", model="cats"),
        request(pixels.astype(np.float32), "pixels", model="cats"),
        request(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), "pixels", model="cats"),
        request(pixels.transpose(0, 3, 1, 2).astype(np.float32), "pixels", model="cats"),
    ]
    answers = [stub.ModelInfer(form) for form in forms]
    for answer in answers:
        np.testing.assert_allclose(logits(answer), logits(answers[0]), atol=1e-5)
        assert "warning" not in answer.parameters


def test_values_that_no_normalised_pixel_has_are_warned_of(
    own_stub: GRPCInferenceServiceStub, caplog: pytest.LogCaptureFixture
) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (1, 3, SIZE, SIZE)).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            warning = own_stub.ModelInfer(request(raw, model="cats")).parameters["warning"].string_param
    assert "normalised pixels of this task lie from -1 to 1. Send 0 to 255 as the input 'pixels'" in warning
    assert caplog.text.count("event=unlikely_request task=cats") == 1
    right = (raw / 255 - 0.5) / 0.5
    answer = own_stub.ModelInfer(request(right.astype(np.float32), model="cats"))
    assert "warning" not in answer.parameters
    np.testing.assert_allclose(
        logits(answer), logits(own_stub.ModelInfer(request(raw, "pixels", model="cats"))), atol=1e-4
    )
    shares = own_stub.ModelInfer(request(raw / 255, "pixels", model="cats"))
    assert "pixels lie from 0 to 255, not to 1" in shares.parameters["warning"].string_param


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((1, 8, 8, 3), 255.5, np.float32), "pixels lie from 0 to 255"),
        (np.full((1, 8, 8, 3), -1, np.float32), "pixels lie from 0 to 255"),
        (np.full((1, 8, 8, 3), np.nan, np.float32), "image 0 holds NaN"),
        (np.zeros((1, 8, 8, 4), np.float32), "[n, height, width, 3] or [n, 3, height, width]"),
        (np.zeros((8, 8, 3), np.uint8), "[n, height, width, 3] or [n, 3, height, width]"),
    ],
)
def test_pixels_that_are_none_are_refused(
    stub: GRPCInferenceServiceStub, values: np.ndarray, said: str
) -> None:
    code, text = refusal(stub.ModelInfer, request(values, "pixels", model="cats"))
    assert code is INVALID
    assert said in text


def test_an_encoded_image_by_the_models_name(made: MadeServer, stub: GRPCInferenceServiceStub) -> None:
    answer = stub.ModelInfer(request([png()], model="dogs"))
    assert texts(answer, "label") == [["class0", "class1"][int(logits(answer)[0].argmax())]]
    assert torch.isfinite(torch.from_numpy(logits(answer).copy())).all()
