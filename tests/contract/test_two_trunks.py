"""One server, two trunks, one device: every task is answered by its own trunk, also while tasks come, move and go."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
from helpers.serving import png
from helpers.two_trunks import (
    LATENCY_MS,
    Server,
    Weights,
    logits_of,
    opened,
    plan_of,
    random_weights,
    served,
    wait_for,
)
from helpers.vit import task

from fedstill.client.serving_client import ServingAddress, ServingClient, ServingError
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.serve_registry import registry_models
from fedstill.cloud_server.serving.app.serve_trunk import ready_trunk
from fedstill.cloud_server.serving.app.trunk_options import TrunkOptions
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.request_images import ImageForm, encoded
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.common.errors import ConfigError
from fedstill.models.vit.preprocess_settings import PLAIN
from fedstill.models.vit.task_bank import TaskParameters
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Place:
    """What is in the registry."""

    state: Path
    first: Weights
    second: Weights
    tasks: dict[str, tuple[Weights, TaskParameters]]

    def plan(self, **changes: Any) -> ServePlan:
        profiles = [
            Path(self.first.profile(("cats", "dogs"), 0.004).partition("=")[2]),
            Path(self.second.profile(("cars",), 0.006).partition("=")[2]),
        ]
        others = (TrunkOptions(str(self.second.file), None, profiles[1]),)
        return plan_of(self.state, self.first, profiles[0], **{"others": others, **changes})

    def logits(self, name: str, content: bytes, schedule: str) -> np.ndarray:
        """What the task's own trunk says, without a server."""
        return logits_of(*self.tasks[name], content, schedule)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("trunks")
    first, second = (opened(random_weights(folder, name)) for name in ("test_vit", "vit_tiny_patch16_224"))
    assert first.trunk.net.width != second.trunk.net.width
    assert first.trunk.net.image_size != second.trunk.net.image_size
    state = folder / "tasks"
    tasks = {
        "cats": (first, first.register(state, "cats", 3, 0)),
        "dogs": (first, first.register(state, "dogs", 2, 1)),
        "cars": (second, second.register(state, "cars", 4, 2)),
    }
    registry = TaskRegistry(state)
    registry.register("alien", task(2, 0, prompts=()), "f" * 64)
    registry.close()
    return Place(state, first, second, tasks)


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[Server]:
    with served(place.plan()) as made:
        yield made


def test_every_task_is_answered_by_its_own_trunk(place: Place, server: Server) -> None:
    with ServingClient(ServingAddress(server.target)) as client, ThreadPoolExecutor(8) as threads:
        asked = [(name, png(seed)) for seed in range(12) for name in place.tasks]
        answers = list(threads.map(lambda one: client.make_query(*one, latency_ms=LATENCY_MS), asked))
    for (name, content), answer in zip(asked, answers, strict=True):
        wanted = place.logits(name, content, answer.schedule)
        assert np.allclose(answer.logits, wanted, atol=1e-3)
    lines = [json.loads(line) for line in (place.plan().folder / "decisions.jsonl").read_text().splitlines()]
    assert {line["trunk"] for line in lines} == {place.first.name, place.second.name}
    for line in lines:
        assert set(line["tasks"]) <= ({"cars"} if line["trunk"] == place.second.name else {"cats", "dogs"})
        assert line["schedule"] in ("0", "-4")


def test_rest_says_the_sizes_of_each_task(place: Place, server: Server) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.ports.rest}") as client:
        for name, (weights, _) in place.tasks.items():
            said = client.get(f"/v2/models/{name}").json()
            side = weights.trunk.net.image_size
            assert said["inputs"][0]["shape"] == [-1, side, side, 3]
            pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).tolist()
            tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, side, side, 3], "data": pixels}
            body = {"inputs": [tensor], "parameters": {"latency_ms": LATENCY_MS}}
            answer = client.post(f"/v2/models/{name}/infer", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"][0]["shape"] == [1, len(place.tasks[name][1].class_names)]


def test_index_description_metrics_and_page_say_whose_a_task_is(place: Place, server: Server) -> None:
    with grpc.insecure_channel(server.target) as channel:
        models = GRPCInferenceServiceStub(channel).RepositoryIndex(pb.RepositoryIndexRequest()).models
    states = {one.name: (one.state, one.reason) for one in models}
    assert states["alien"] == ("UNAVAILABLE", "trained on another trunk")
    assert {name for name, (state, _) in states.items() if state == "READY"} == set(place.tasks)
    with ServingClient(ServingAddress(server.target)) as client:
        said = client.describe()
        for name in place.tasks:
            client.make_query(name, png(), latency_ms=LATENCY_MS)
    assert said.trunk == place.first.trunk.fingerprint
    for one in said.tasks:
        trunk = place.tasks[one.name][0].trunk
        assert (one.trunk, one.image_size) == (trunk.fingerprint, trunk.net.image_size)
    web = f"http://127.0.0.1:{server.ports.web}"
    metrics = httpx.get(f"{web}/metrics").text
    for weights in (place.first, place.second):
        assert f'fedstill_serving_trunk_queries_total{{trunk="{weights.name}"}}' in metrics
    with httpx.stream("GET", f"{web}/events") as events:
        line = next(one for one in events.iter_lines() if one.startswith("data:"))
    shown = json.loads(line.removeprefix("data:"))
    tasks = {one["name"]: one["trunk"] for one in shown["tasks"]}
    assert tasks == {"cats": place.first.name, "dogs": place.first.name, "cars": place.second.name}
    assert {one["name"]: one["tasks"] for one in shown["trunks"]} == {
        place.first.name: 2,
        place.second.name: 1,
    }


def test_a_task_comes_moves_to_the_other_trunk_and_goes(place: Place, server: Server) -> None:
    """Nobody who asks meanwhile goes without an answer, or gets one of the wrong trunk."""
    first, second = place.first, place.second
    heads = [first.head(5, 7), second.head(6, 8)]

    with ServingClient(ServingAddress(server.target)) as client:

        def register(trunk: str, made: TaskParameters) -> None:
            head = made.head_weight.numpy(), made.head_bias.numpy()
            client.register_task(
                "birds", made.class_names, *head, trunk=trunk, latency_ms=LATENCY_MS, accuracy=0.9
            )

        with pytest.raises(ServingError, match="train the task on that one"):
            register("a" * 64, heads[0])
        with pytest.raises(ServingError, match="parameters"):
            register(second.trunk.fingerprint, replace(heads[0], head_weight=torch.zeros(5, 3)))
        register(first.trunk.fingerprint, heads[0])
        stop, sizes, refused = threading.Event(), [], []

        def ask() -> None:
            while not stop.is_set():
                try:
                    answer = client.make_query("birds", png(len(sizes)), latency_ms=LATENCY_MS)
                    sizes.append(len(answer.logits))
                except ServingError as error:
                    refused.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            wait_for(lambda: 5 in sizes)
            register(second.trunk.fingerprint, heads[1])
            wait_for(lambda: 6 in sizes)
            registry = TaskRegistry(place.state)  # as `fedstill tasks activate` beside the server
            registry.activate("birds", 1)
            registry.close()
            before = len(sizes)
            wait_for(lambda: 5 in sizes[before:])
        finally:
            stop.set()
            asking.join()
        # A query that was prepared for one trunk's images may be too late for it; it is told to ask again.
        assert all(error.code is grpc.StatusCode.UNAVAILABLE for error in refused), refused
        assert set(sizes) == {5, 6}
        client.delete_task("birds")
        with pytest.raises(ServingError, match="is not served"):
            client.make_query("birds", png())
        with pytest.raises(ServingError, match="no task is left"):
            client.delete_task("cars")
        assert len(client.make_query("cars", png(), latency_ms=LATENCY_MS).logits) == 4
        registry = TaskRegistry(place.state)  # as `fedstill tasks remove` beside the server
        registry.remove("cars")
        registry.close()
        first.register(place.state, "trees", 7, 5)

        def trees() -> int:
            try:
                return len(client.make_query("trees", png(), latency_ms=LATENCY_MS).logits)
            except ServingError:
                return 0

        wait_for(lambda: trees() == 7)
        assert len(client.make_query("cars", png(), latency_ms=LATENCY_MS).logits) == 4, (
            "weights keep their last task"
        )
        client.delete_task("trees")
        second.register(place.state, "cars", 4, 2)


def test_a_trunk_without_tasks_is_left_out(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its tasks may have been removed while a server ran, and the others have to be served again after a restart."""
    other = random_weights(tmp_path, "test_vit2")
    plan = place.plan(others=(TrunkOptions(str(other), None, None),))
    models = registry_models(plan, lambda _: None)
    image = encoded(png(), ImageForm(models.image_size, PLAIN))()
    assert len(models.infer([image], ["cats"], "0")) == 1
    models.close()
    assert any(f"event=weights_left_out weights={other}" in one for one in caplog.messages)
    copy = tmp_path / "test_vit_copy.safetensors"
    copy.write_bytes(place.first.file.read_bytes())
    with pytest.raises(ConfigError, match="the same weights as another file's"):
        registry_models(place.plan(others=(TrunkOptions(str(copy), None, None),)), lambda _: None)


def test_a_query_that_was_prepared_for_the_other_trunk_harms_itself_only(place: Place) -> None:
    registry = TaskRegistry(place.state)
    plan = place.plan()
    ready = ready_trunk(plan, "", place.first.trunk, plan.profile, registry, lambda _: None)
    registry.close()
    mine, theirs = torch.zeros(3, 160, 160), torch.zeros(3, 224, 224)
    schedule = ready.schedules["0"]
    answers = ready.infer([theirs, mine, theirs], ["dogs", "cats", "dogs"], schedule)
    assert [isinstance(one, Prediction) for one in answers] == [False, True, False]
    assert [
        one.reason for one in ready.infer([theirs], ["dogs"], schedule) if isinstance(one, Rejection)
    ] == ["moved"]
