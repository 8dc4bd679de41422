"""An engine in and out of memory: its tasks are known all the time, and what it took is given back."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from helpers.vit import task

from fedstill.cloud_server.serving.app.serve_budget import _Place
from fedstill.cloud_server.serving.app.trunk_footprint import (
    FootprintFile,
    expected,
    footprint_file,
    least_bytes,
)
from fedstill.cloud_server.serving.engine import openvino_backend
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.memory_limit import resident_bytes
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.server.free_memory import trim_heap
from fedstill.cloud_server.serving.server.loadable_engine import LoadableEngine, NotLoaded, Progress
from fedstill.cloud_server.serving.server.residency import Footprint
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import constant_schedule
from fedstill.models.vit.task_bank import TaskParameters
from fedstill.models.vit.without_weights import weight_bytes, without_weights

LAYERS, WIDTH, SIZE = 6, 64, 160
PLAIN = constant_schedule(0, LAYERS)
SETTINGS = EngineSettings((PLAIN,), (1,), "cpu", "fp32", "torch", "torch fp32")


def network(classes: int = 10) -> ElasticViT:
    """timm's ViT for tests. Its own head takes memory, and is not used."""
    return ElasticViT(timm.create_model("test_vit", num_classes=classes).eval().requires_grad_(False))


def parameters(classes: int) -> dict[str, TaskParameters]:
    return {"cats": task(classes, 0, prompts=(), layers=LAYERS, width=WIDTH)}


def classes(engine: LoadableEngine) -> int:
    (answer,) = engine.infer(torch.zeros(1, 3, SIZE, SIZE), ["cats"], PLAIN)
    assert isinstance(answer, Prediction)
    return len(answer.class_names)


class Weights:
    """Makes engines; ``during`` is called in the middle."""

    def __init__(self, size: int = 10) -> None:
        self.size = size
        self.during: Progress = lambda _: None

    def make(self, tasks: dict[str, TaskParameters], settings: EngineSettings, tell: Progress) -> Engine:
        made = Engine(network(self.size), tasks, settings)
        self.during("")
        made.warm_up(tell)
        return made


def test_tasks_change_whether_it_is_loaded_or_not_and_while_it_is_being_loaded() -> None:
    weights = Weights()
    engine = LoadableEngine(without_weights(network()), SETTINGS, parameters(2), weights.make)
    with pytest.raises(NotLoaded):
        classes(engine)
    engine.swap(parameters(3))
    assert not engine.ready
    engine.load()
    assert classes(engine) == 3
    engine.swap(parameters(4))
    assert classes(engine) == 4
    engine.unload()
    with pytest.raises(NotLoaded):
        classes(engine)
    weights.during = lambda _: engine.swap(parameters(5))
    engine.load()
    assert classes(engine) == 5
    with pytest.raises(ValueError, match="cats"):
        engine.swap({"cats": task(2, 0, prompts=(), layers=LAYERS, width=WIDTH + 1)})
    assert classes(engine) == 5


def test_a_loading_that_ends_early_leaves_it_unloaded() -> None:
    def stop(_: str) -> None:
        raise RuntimeError("the end")

    engine = LoadableEngine(without_weights(network()), SETTINGS, parameters(2), Weights().make)
    with pytest.raises(RuntimeError, match="the end"):
        engine.load(stop)
    assert not engine.ready


def test_what_it_took_is_measured_kept_and_given_back() -> None:
    weights = Weights(200_000)  # 51 MB
    net = network(weights.size)
    size, kept = weight_bytes(net), list[Footprint]()
    net = without_weights(net)
    assert weight_bytes(net) == size > 50e6
    engine = LoadableEngine(net, SETTINGS, parameters(2), weights.make, size, kept.append)
    for _ in range(2):
        trim_heap()  # of what other tests have left: a loading gives it back first
        before = resident_bytes()
        found = engine.load()
        assert size <= found.bytes < 1.5 * size
        assert found.seconds > 0
        assert resident_bytes() - before > 0.8 * size
        engine.unload()
        assert resident_bytes() - before < 0.2 * size
    assert len(kept) == 2


def test_what_a_conversion_leaves_in_cycles_is_freed_once_the_engine_is_warm() -> None:
    """Each OpenVINO loading left copies of the weights there: memory grew by 129 MB a round, until a collection
    happened to come."""
    left: list[weakref.ref[Weights]] = []

    def convert() -> None:
        cycle = Weights()
        cycle.during = cycle.make  # type: ignore[assignment]
        left.append(weakref.ref(cycle))
        openvino_backend._TRACED.set()

    weights = Weights()
    weights.during = lambda _: convert()  # before the engine is warm
    gc.disable()
    try:
        LoadableEngine(without_weights(network()), SETTINGS, parameters(2), weights.make).load()
        assert left[0]() is None
    finally:
        gc.enable()
        openvino_backend._TRACED.clear()


def test_a_network_without_weights_has_its_sizes_and_no_memory() -> None:
    net = network()
    empty = without_weights(net)
    assert {one.device.type for one in (*empty.parameters(), *empty.buffers())} == {"meta"}
    assert {one.device.type for one in net.parameters()} == {"cpu"}
    for name in ("layers", "width", "patches", "image_size", "preprocess", "heads", "hidden"):
        assert getattr(empty, name) == getattr(net, name)


def test_a_footprint_is_kept_for_the_weights_whatever_their_tasks_are(tmp_path: Path) -> None:
    file = footprint_file(tmp_path, "a" * 64, SETTINGS, "this machine")
    assert file.read() is None
    file.write(Footprint(123, 4.5))
    again = footprint_file(tmp_path, "a" * 64, replace(SETTINGS, variant="", memory=9), "this machine")
    assert again.read() == Footprint(123, 4.5)
    for other in (
        footprint_file(tmp_path, "b" * 64, SETTINGS, "this machine"),
        footprint_file(tmp_path, "a" * 64, replace(SETTINGS, batch_buckets=(1, 2)), "this machine"),
        footprint_file(tmp_path, "a" * 64, SETTINGS, "another machine"),
    ):
        assert other.read() is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "bytes": "many", "seconds": 1}',
                '{"format": 1, "bytes": 0, "seconds": 1.0}', '{"format": 1, "bytes": 5, "seconds": 1e999}', "\0",
                 "[" * 100_000],
)  # fmt: skip
def test_a_damaged_footprint_is_none(content: str, tmp_path: Path) -> None:
    file = FootprintFile(tmp_path / "footprint-x.json")
    file.file.write_text(content)
    assert file.read() is None
    file.write(Footprint(5, 1.0))
    assert json.loads(file.file.read_text()) == {"format": 1, "bytes": 5, "seconds": 1.0}


def test_a_loading_beside_queries_never_refuses_the_next_start(tmp_path: Path) -> None:
    """What else the process grew by meanwhile was kept as the trunk's, and the next start found it too large."""
    place = _Place.__new__(_Place)
    place._file, place._budget, place._starting = FootprintFile(tmp_path / "footprint-x.json"), 98, False
    place._remember(Footprint(523, 1.0))
    assert place._file.read() == Footprint(98, 1.0)
    place._starting = True
    place._remember(Footprint(60, 1.0))
    place._starting = False
    for size in (97, 30, 60):
        place._remember(Footprint(size, 2.0))
        assert place._file.read() == Footprint(60, 2.0)


def test_what_is_expected_is_rather_too_much() -> None:
    net = network(100_000)
    weights = weight_bytes(net)
    assert least_bytes(net, SETTINGS) == weights
    assert least_bytes(net, replace(SETTINGS, precision="auto")) == weights // 2
    assert expected(net, SETTINGS).bytes > 1.5 * weights
    compiled = replace(SETTINGS, backend="openvino", variant="openvino fp32")
    assert expected(net, compiled).bytes > least_bytes(net, compiled) > 3 * weights
    few = expected(net, replace(compiled, memory=least_bytes(net, compiled) + 1))
    assert few.bytes < expected(net, compiled).bytes, "with less memory fewer graphs are compiled"
