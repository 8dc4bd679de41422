"""One server with two engines, as ``--device cpu:0,cpu:1`` asks for: the same answers, tasks and end as with one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
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

from fedstill.client.serving_client import ServingAddress, ServingClient, ServingError
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.common.errors import ConfigError
from fedstill.models.vit.task_bank import TaskParameters

pytestmark = pytest.mark.slow
DEVICES = "cpu:0,cpu:1"


@dataclass(frozen=True)
class Place:
    """What is in the registry."""

    state: Path
    weights: Weights
    tasks: dict[str, TaskParameters]

    def plan(self, **changes: Any) -> ServePlan:
        profile = Path(self.weights.profile(tuple(self.tasks), 0.004).partition("=")[2])
        return plan_of(self.state, self.weights, profile, **{"device": DEVICES, **changes})

    def lines(self) -> list[dict[str, Any]]:
        """Of the decision log."""
        return [
            json.loads(line) for line in (self.plan().folder / "decisions.jsonl").read_text().splitlines()
        ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("devices")
    weights, state = opened(random_weights(folder, "test_vit")), folder / "tasks"
    tasks = {
        name: weights.register(state, name, classes, seed)
        for seed, (name, classes) in enumerate((("cats", 3), ("dogs", 2)))
    }
    return Place(state, weights, tasks)


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[Server]:
    with served(place.plan()) as made:
        yield made


def test_both_devices_answer_and_answer_alike(place: Place, server: Server) -> None:
    asked = [(name, png(seed)) for seed in range(30) for name in place.tasks]
    with ServingClient(ServingAddress(server.target)) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda one: client.make_query(*one, latency_ms=LATENCY_MS), asked))
    for (name, content), answer in zip(asked, answers, strict=True):
        wanted = logits_of(place.weights, place.tasks[name], content, answer.schedule)
        assert np.allclose(answer.logits, wanted, atol=1e-3)
    lines = place.lines()
    assert {line["device"] for line in lines} == set(DEVICES.split(","))
    assert sum(line["batch"] for line in lines) == len(asked)


def test_a_task_comes_changes_and_goes_on_both(place: Place, server: Server) -> None:
    """Whichever device a query goes to, and whoever changes the registry."""
    trunk = place.weights.trunk.fingerprint
    heads = [place.weights.head(classes, seed) for classes, seed in ((5, 7), (6, 8))]
    with ServingClient(ServingAddress(server.target)) as client, ThreadPoolExecutor(8) as threads:

        def register(made: TaskParameters) -> None:
            head = made.head_weight.numpy(), made.head_bias.numpy()
            client.register_task(
                "birds", made.class_names, *head, trunk=trunk, latency_ms=LATENCY_MS, accuracy=0.9
            )

        def sizes() -> set[int]:
            pictures = [png(seed) for seed in range(24)]
            answers = threads.map(
                lambda one: client.make_query("birds", one, latency_ms=LATENCY_MS), pictures
            )
            return {len(answer.logits) for answer in answers}

        before = len(place.lines())
        register(heads[0])
        assert sizes() == {5}
        assert {line["device"] for line in place.lines()[before:]} == set(DEVICES.split(","))
        register(heads[1])
        assert sizes() == {6}
        registry = TaskRegistry(place.state)  # as `fedstill tasks activate` beside the server
        registry.activate("birds", 1)
        registry.close()
        wait_for(lambda: sizes() == {5})
        client.delete_task("birds")
        for _ in range(4):
            with pytest.raises(ServingError, match="is not served"):
                client.make_query("birds", png())


def test_nobody_goes_without_an_answer_while_tasks_come_and_go(place: Place, server: Server) -> None:
    trunk, head = place.weights.trunk.fingerprint, place.weights.head(4, 3)
    stop, refused, answered = threading.Event(), list[ServingError](), list[int]()
    with ServingClient(ServingAddress(server.target)) as client:

        def ask() -> None:
            while not stop.is_set():
                try:
                    answered.append(len(client.make_query("cats", png(), latency_ms=LATENCY_MS).logits))
                except ServingError as error:
                    refused.append(error)

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for one in asking:
            one.start()
        try:
            for _ in range(5):
                parts = head.head_weight.numpy(), head.head_bias.numpy()
                client.register_task(
                    "frogs", head.class_names, *parts, trunk=trunk, latency_ms=LATENCY_MS, accuracy=0.9
                )
                client.delete_task("frogs")
        finally:
            stop.set()
            for one in asking:
                one.join()
    assert refused == []
    assert set(answered) == {3}


def test_a_change_that_one_device_cannot_take_is_taken_by_none(
    place: Place, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one task would be answered by two versions, as the device has it that a query goes to."""
    trunk, head = place.weights.trunk.fingerprint, place.weights.head(5, 11)
    parts, swap, swaps = (head.head_weight.numpy(), head.head_bias.numpy()), Engine.swap, list[Engine]()

    def only_the_first(engine: Engine, tasks: dict[str, TaskParameters]) -> None:
        if engine not in swaps:
            swaps.append(engine)
        if engine is not swaps[0] and len(tasks["cats"].class_names) == 5:
            raise RuntimeError("CUDA out of memory")
        swap(engine, tasks)

    with ServingClient(ServingAddress(server.target)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "swap", only_the_first)
            for name in 2 * ("cats",):
                with pytest.raises(ServingError, match="not every device can serve this: CUDA out of memory"):
                    client.register_task(
                        name, head.class_names, *parts, trunk=trunk, latency_ms=LATENCY_MS, accuracy=0.9
                    )
                sizes = {
                    len(client.make_query("cats", png(n), latency_ms=LATENCY_MS).logits) for n in range(20)
                }
                assert sizes == {3}
        client.register_task(
            "cats", head.class_names, *parts, trunk=trunk, latency_ms=LATENCY_MS, accuracy=0.9
        )
        assert len(client.make_query("cats", png(), latency_ms=LATENCY_MS).logits) == 5
        registry = TaskRegistry(place.state)
        registry.activate("cats", 1)
        registry.close()
        wait_for(lambda: len(client.make_query("cats", png(), latency_ms=LATENCY_MS).logits) == 3)


def test_page_and_metrics_count_both(place: Place, server: Server) -> None:
    web = f"http://127.0.0.1:{server.ports.web}"
    with httpx.stream("GET", f"{web}/events") as events:
        line = next(one for one in events.iter_lines() if one.startswith("data:"))
    shown = json.loads(line.removeprefix("data:"))
    ran = sum(line["batch"] for line in place.lines())
    assert shown["totals"]["answered"] == ran
    assert 0 <= shown["now"]["busy"] <= 1
    alone = 4 / (0.002 + 4 * 0.7 * 0.004)
    assert shown["capacity"]["most"] > 1.2 * alone / max(1.0, shown["trunks"][0]["pace"])
    assert "fedstill_serving" in httpx.get(f"{web}/metrics").text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"device": "cpu:0,cpu:0"}, "name each of several devices once"),
        ({"device": "cpu,cpu:0"}, "name each of several devices once"),
        ({"device": "auto,cpu"}, "name each of several devices once"),
        ({"device": "cpu:0,tpu"}, "'tpu' is not here"),
        ({"device": "cpu:0,"}, "'' is not here"),
        ({"device": "cpu:0,meta"}, "'meta' is not here"),
        ({"device": "cpu:0,cpu:256"}, "'cpu:256' is not here"),  # for torch it is cpu:0
        ({"device": "cpu:128"}, "'cpu:128' is not here"),
        ({"device": "cpu:00"}, "'cpu:00' is not here"),
        ({"device": DEVICES, "memory_budget": 10**9}, "--memory-budget goes with one device"),
        ({"device": DEVICES, "warmed": Path("warmed")}, "--warmed goes with one device"),
    ],
)
def test_devices_that_cannot_be_are_one_line(place: Place, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        place.plan(**changes).check()
