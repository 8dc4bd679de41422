"""The fastest way to run the network is chosen once, not by noise, and kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.vit import LAYERS, task, tiny_trunk

from fedstill.cloud_server.serving.engine import variants
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.variants import (
    TRIAL_BATCHES,
    TRIAL_ROUNDS,
    choose,
    possible_variants,
    time_backends,
)
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule, constant_schedule

PLAIN = constant_schedule(0, LAYERS)
SETTINGS = EngineSettings((PLAIN,), (1, 2), "cpu")


class Clocked:
    """A backend that takes what a test says."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, clock: list[float], seconds: list[float]) -> None:
        self._clock, self._seconds, self.runs = clock, seconds, 0

    def warm_up(self, schedule: TokenSchedule, sizes: tuple[int, ...]) -> None: ...

    def features(self, images: torch.Tensor, schedule: TokenSchedule, prompts: None) -> torch.Tensor:
        self._clock[0] += self._seconds[self.runs % len(self._seconds)] * len(images)
        self.runs += 1
        return torch.zeros(1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(variants.time, "perf_counter", lambda: now[0])
    return now


def test_a_simpler_variant_stays_unless_another_is_clearly_faster() -> None:
    assert choose({"torch fp32": 1.04, "torch fp32 packed": 1.01, "openvino fp32": 1.0}) == "torch fp32"
    assert choose({"torch fp32": 1.3, "torch fp32 packed": 1.01, "openvino fp32": 1.0}) == "torch fp32 packed"
    assert choose({"torch fp32": 1.3, "torch fp32 packed": 1.1, "openvino fp32": 1.0}) == "openvino fp32"


def test_a_neighbour_that_slows_half_of_the_runs_changes_no_time(clock: list[float]) -> None:
    busy, quiet = Clocked(clock, [0.03, 0.03, 0.01, 0.01]), Clocked(clock, [0.01])
    seconds = time_backends({"busy": busy, "quiet": quiet}, 8, PLAIN)
    assert seconds["busy"] == pytest.approx(seconds["quiet"], rel=1e-6)


def test_what_is_far_behind_is_run_once(clock: list[float]) -> None:
    slow, fast = Clocked(clock, [0.04]), Clocked(clock, [0.01])
    seconds = time_backends({"slow": slow, "fast": fast}, 8, PLAIN)
    assert slow.runs == len(TRIAL_BATCHES)
    assert fast.runs == len(TRIAL_BATCHES) * TRIAL_ROUNDS
    assert seconds["slow"] == pytest.approx(4 * seconds["fast"])


def test_a_variant_that_is_named_is_taken_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a trial")

    net, tasks = ElasticViT(tiny_trunk()), {"three": task(3, 1)}
    possible = possible_variants(net, SETTINGS)
    assert next(iter(possible)) == "torch fp32"
    with monkeypatch.context() as patch:
        patch.setattr(variants, "time_backends", never)
        for name in possible:
            assert Engine(net, tasks, replace(SETTINGS, variant=name)).variant == name
    assert Engine(net, tasks, replace(SETTINGS, variant="gone")).variant in possible


def test_a_variant_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no such kernel\nat line 3")

    net, tasks = ElasticViT(tiny_trunk()), {"three": task(3, 1)}
    possible = possible_variants(net, SETTINGS)
    monkeypatch.setattr(variants, "possible_variants", lambda *_: {"openvino fp32": fail} | possible)
    assert Engine(net, tasks, SETTINGS).variant in possible
    monkeypatch.setattr(variants, "possible_variants", lambda *_: {"one": fail, "two": fail})
    with pytest.raises(RuntimeError, match="no such kernel"):
        Engine(net, tasks, SETTINGS)


def test_a_backend_for_another_device_is_refused_in_one_line() -> None:
    settings = replace(SETTINGS, backend="openvino", device="meta")
    with pytest.raises(ValueError, match="openvino: it runs on the CPU only: use --device cpu"):
        possible_variants(ElasticViT(tiny_trunk()), settings)
