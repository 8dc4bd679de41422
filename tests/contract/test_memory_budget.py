"""A server whose budget has room for one of its two trunks: both are answered, one after the other."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from helpers.serve_process import draw_pictures
from helpers.serving import png
from helpers.two_trunks import Server, Weights, logits_of, opened, plan_of, random_weights, served, wait_for

from fedstill.client.serving_client import ServingAddress, ServingClient, ServingError
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.serve_registry import registry_models
from fedstill.cloud_server.serving.app.trunk_options import TrunkOptions
from fedstill.cloud_server.serving.server import residency
from fedstill.common.errors import ConfigError
from fedstill.models.vit.task_bank import TaskParameters
from fedstill.protos import open_inference_pb2 as pb
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

pytestmark = pytest.mark.slow

PATIENT_MS, HASTY_MS = 60_000.0, 40.0
"""Enough for any loading; not enough for one."""
CLASSES, STAY = 200_000, 1.0
"""51 MB of weights that cost no time; seconds that a trunk stays."""
ROOM_FOR_ONE = 95_000_000


@dataclass
class Place:
    """Two files of weights of one architecture, a task of each, and a budget."""

    state: Path
    weights: dict[str, Weights]
    heads: dict[str, TaskParameters]
    budget: int

    def plan(self, **changes: Any) -> ServePlan:
        others = (TrunkOptions(str(self.weights["cars"].file), None, self.profile("cars")),)
        asked = {"waiting": 64, "others": others, "memory_budget": self.budget, **changes}
        return plan_of(self.state, self.weights["cats"], self.profile("cats"), **asked)

    def profile(self, name: str) -> Path:
        """That says what runs the network: nothing has to be tried."""
        file = Path(self.weights[name].profile((name,), 0.006).partition("=")[2])
        file.write_text(json.dumps(json.loads(file.read_text()) | {"engine": "torch fp32"}))
        return file

    def logits(self, name: str, content: bytes, schedule: str) -> np.ndarray:
        """What the task's own trunk says, without a server."""
        return logits_of(self.weights[name], self.heads[name], content, schedule)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("budget")
    weights = {}
    for seed, name in enumerate(("cats", "cars")):
        (folder / name).mkdir()
        file = random_weights(folder / name, "test_vit", seed, CLASSES)
        weights[name] = opened(file.rename(file.with_name(f"test_vit_{name}.safetensors")))
    state = folder / "tasks"
    heads = {
        name: one.register(state, name, 3 + seed, seed) for seed, (name, one) in enumerate(weights.items())
    }
    return Place(state, weights, heads, 10**10)


@pytest.fixture(scope="module", autouse=True)
def short_stays() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residency, "LEAST_STAY", STAY)
        yield


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[Server]:
    """A start with much room measures both; this one has room for one."""
    registry_models(place.plan(), lambda _: None).close()
    sizes = [json.loads(file.read_text())["bytes"] for file in place.plan().folder.glob("footprint-*.json")]
    assert len(sizes) == 2
    place.budget = max(sizes) + min(sizes) // 2
    with served(place.plan()) as made:
        yield made


def metrics(server: Server) -> dict[str, float]:
    """Of the trunks, by the name of their task."""
    text = httpx.get(f"http://127.0.0.1:{server.ports.web}/metrics").text
    found = re.findall(r'^fedstill_serving_trunk_(\w+)\{trunk="test_vit_(\w+)"\} (\S+)$', text, re.M)
    return {f"{name} {trunk}": float(value) for name, trunk, value in found}


def trunks(server: Server) -> dict[str, dict[str, Any]]:
    """As the page shows them."""
    with httpx.stream("GET", f"http://127.0.0.1:{server.ports.web}/events") as events:
        line = next(one for one in events.iter_lines() if one.startswith("data:"))
    return {one["name"].rpartition("_")[2]: one for one in json.loads(line.removeprefix("data:"))["trunks"]}


def test_a_query_waits_for_its_trunk_and_the_other_one_makes_room(place: Place, server: Server) -> None:
    assert {name: one["loaded"] for name, one in trunks(server).items()} == {"cats": True, "cars": False}
    with ServingClient(ServingAddress(server.target)) as client:
        for turn, name in enumerate(("cats", "cars", "cats", "cars")):
            answer = client.make_query(name, png(turn), latency_ms=PATIENT_MS)
            assert np.allclose(answer.logits, place.logits(name, png(turn), answer.schedule), atol=1e-3)
            assert not answer.late
    shown, counted = trunks(server), metrics(server)
    assert {name: one["loaded"] for name, one in shown.items()} == {"cats": False, "cars": True}
    assert all(0 < one["bytes"] <= place.budget for one in shown.values())
    assert sum(one["bytes"] for one in shown.values()) > place.budget
    assert (counted["loads_total cars"], counted["unloads_total cars"], counted["loads_total cats"]) == (
        2,
        1,
        1,
    )
    assert (counted["loaded cars"], counted["loaded cats"]) == (1, 0)
    assert counted["load_seconds_count cars"] == 2


def test_who_cannot_wait_is_told_when_to_come_again(place: Place, server: Server) -> None:
    with ServingClient(ServingAddress(server.target)) as client:
        client.make_query("cats", png(), latency_ms=PATIENT_MS)
        began = time.monotonic()
        with pytest.raises(ServingError, match=r"test_vit_cars is being loaded, ready in about") as caught:
            client.make_query("cars", png(), latency_ms=HASTY_MS)
        assert time.monotonic() - began < 1
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        wait_for(lambda: trunks(server)["cars"]["loaded"])
        assert len(client.make_query("cars", png(), latency_ms=5_000).logits) == 4, "it is there now"
    rest = httpx.Client(base_url=f"http://127.0.0.1:{server.ports.rest}")
    side = place.weights["cats"].trunk.net.image_size
    data = np.zeros((side, side, 3), np.uint8).tolist()
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, side, side, 3], "data": data}
    refused = rest.post(
        "/v2/models/cats/infer", json={"inputs": [tensor], "parameters": {"latency_ms": HASTY_MS}}
    )
    assert refused.status_code == 503
    assert "is being loaded" in refused.json()["error"]
    assert int(refused.headers["retry-after-ms"]) >= 100
    wait_for(lambda: trunks(server)["cats"]["loaded"])
    rest.close()


def test_the_index_says_what_is_loaded_and_a_task_is_ready_all_the_same(place: Place, server: Server) -> None:
    loaded = {name for name, one in trunks(server).items() if one["loaded"]}
    with grpc.insecure_channel(server.target) as channel:
        stub = GRPCInferenceServiceStub(channel)
        states = {
            one.name: (one.state, one.reason)
            for one in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        }
        ready = {one.name for one in stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models}
        assert all(stub.ModelReady(pb.ModelReadyRequest(name=name)).ready for name in place.heads)
    assert ready == loaded
    assert len(loaded) == 1
    for name in place.heads:
        assert states[name] == (("READY", "") if name in loaded else ("UNAVAILABLE", "not loaded"))


def test_a_task_of_a_trunk_that_is_not_loaded_is_swapped(place: Place, server: Server) -> None:
    with ServingClient(ServingAddress(server.target)) as client:
        client.make_query("cats", png(), latency_ms=PATIENT_MS)
        assert not trunks(server)["cars"]["loaded"]
        loads = metrics(server)["loads_total cars"]
        cars = place.weights["cars"]
        new = cars.head(6, 9)
        head = new.head_weight.numpy(), new.head_bias.numpy()
        fingerprint = cars.trunk.fingerprint
        client.register_task("cars", new.class_names, *head, trunk=fingerprint, latency_ms=400, accuracy=0.9)
        client.register_task("vans", new.class_names, *head, trunk=fingerprint, latency_ms=400, accuracy=0.9)
        assert not trunks(server)["cars"]["loaded"]
        assert metrics(server)["loads_total cars"] == loads
        answer = client.make_query("vans", png(), latency_ms=PATIENT_MS)
        place.heads["cars"] = new
        assert np.allclose(answer.logits, place.logits("cars", png(), answer.schedule), atol=1e-3)
        assert len(client.make_query("cars", png(), latency_ms=PATIENT_MS).logits) == 6
        client.delete_task("vans")


def test_a_crowd_of_both_gets_one_answer_each_and_the_budget_holds(place: Place, server: Server) -> None:
    stop, found, refused = threading.Event(), dict.fromkeys(place.heads, 0), list[ServingError]()

    def ask(name: str, latency_ms: float) -> None:
        with ServingClient(ServingAddress(server.target)) as client:
            while not stop.is_set():
                try:
                    answer = client.make_query(name, png(found[name]), latency_ms=latency_ms)
                except ServingError as error:
                    refused.append(error)
                    stop.wait(0.1)
                    continue
                assert len(answer.logits) == len(place.heads[name].class_names)
                found[name] += 1

    threads = [
        threading.Thread(target=ask, args=(name, latency))
        for name in place.heads
        for latency in (PATIENT_MS, 500.0)
    ]
    for thread in threads:
        thread.start()
    before, began = metrics(server), time.monotonic()
    while min(found.values()) < 10 and time.monotonic() < began + 120:
        shown = trunks(server)
        assert sum(one["bytes"] for one in shown.values() if one["loaded"]) <= place.budget
    stop.set()
    for thread in threads:
        thread.join()
    assert min(found.values()) >= 10, "each has its turn"
    codes = {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    assert {error.code for error in refused} <= codes
    after = metrics(server)
    loads = sum(after[f"loads_total {name}"] - before[f"loads_total {name}"] for name in place.heads)
    assert 1 <= loads <= 2 + (time.monotonic() - began) / STAY, "each stays for a while"


def test_weights_that_are_another_file_now_are_said_and_tried_again_later(
    place: Place, server: Server
) -> None:
    with ServingClient(ServingAddress(server.target)) as client:
        client.make_query("cats", png(), latency_ms=PATIENT_MS)
        wait_for(lambda: not trunks(server)["cars"]["loaded"])
        file = place.weights["cars"].file
        content = file.read_bytes()
        file.write_bytes(place.weights["cats"].file.read_bytes())
        with pytest.raises(ServingError, match="cars could not be loaded; see the server's log") as caught:
            client.make_query("cars", png(), latency_ms=PATIENT_MS)
        assert caught.value.code is grpc.StatusCode.INTERNAL
        with pytest.raises(ServingError, match="cars could not be loaded; the server tries again in about"):
            client.make_query("cars", png(), latency_ms=PATIENT_MS)
        with grpc.insecure_channel(server.target) as channel:
            stub = GRPCInferenceServiceStub(channel)
            ready = {name: stub.ModelReady(pb.ModelReadyRequest(name=name)).ready for name in place.heads}
            models = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        assert ready == {"cats": True, "cars": False}
        assert {one.reason for one in models if one.name == "cars"} >= {"could not be loaded"}
        assert metrics(server)["load_failures_total cars"] == 1
        assert len(client.make_query("cats", png(), latency_ms=PATIENT_MS).logits) == 3, (
            "others are served on"
        )
        file.write_bytes(content)

        def cars() -> int:
            try:
                return len(client.make_query("cars", png(), latency_ms=PATIENT_MS).logits)
            except ServingError:
                return 0

        wait_for(cars)


def test_one_without_a_profile_is_measured_once_though_there_is_no_room(place: Place) -> None:
    for name, one in place.heads.items():
        draw_pictures(place.state.parent / "pictures" / name, one.class_names)
    pictures = tuple(f"{name}={place.state.parent / 'pictures' / name}" for name in place.heads)
    others = (TrunkOptions(str(place.weights["cars"].file)),)
    plan = place.plan(
        profile=None, others=others, images=pictures, schedules="0", batches="1", memory_budget=ROOM_FOR_ONE
    )

    def start() -> tuple[list[str], set[str]]:
        """Steps of the start, and what is loaded at its end."""
        said: list[str] = []
        models = registry_models(plan, said.append)
        models.close()
        assert set(models.profile.tasks) == set(place.heads)
        assert models.loading is not None
        return said, set(models.loading.residency.loaded)

    before = set(plan.folder.glob("profile-*.json"))
    said, loaded = start()
    assert len(set(plan.folder.glob("profile-*.json")) - before) == 2
    assert len(loaded) == 1
    assert [one for one in said if "no room" in one]
    again, loaded = start()
    assert not [one for one in again if "measured schedule" in one]
    assert loaded == {"test_vit_cats"}, "the first one; no other was loaded"
    assert not [one for one in again if one.startswith("test_vit_cars") and "weights" in one]


def test_what_does_not_fit_alone_ends_the_start_with_figures(place: Place, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"--memory-budget 5MB: .*cats.safetensors alone takes 5\dMB \((at least|by the last)",
    ):
        registry_models(place.plan(memory_budget=5_000_000), lambda _: None)
    with pytest.raises(ConfigError, match="--warmed stay in memory"):
        replace(place.plan(), warmed=tmp_path, others=()).check()
