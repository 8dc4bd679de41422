"""The engine answers every row once: the same as the plain network, whatever is swapped or broken around it."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from helpers.vit import LAYERS, WIDTH, images, task, tiny_trunk

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.environment import (
    CPU_SETTINGS,
    cached_kernels,
    missing_settings,
    serving_environment,
)
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.packed_linear import can_pack, pack_linears
from fedstill.models.vit.schedules import TokenSchedule, constant_schedule
from fedstill.models.vit.task_bank import TaskBank

PLAIN, MERGING, PROMPTED = (
    constant_schedule(0, LAYERS),
    constant_schedule(-3, LAYERS),
    constant_schedule(2, LAYERS),
)
SETTINGS = EngineSettings((PLAIN, MERGING, PROMPTED), (1, 2, 4, 8), device="cpu", precision="fp32")
TASKS = {"three": task(3, 1), "five": task(5, 2), "bare": task(4, 3, prompts=())}


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = Engine(ElasticViT(tiny_trunk()), TASKS, SETTINGS)
    assert not engine.ready
    engine.warm_up()
    assert engine.ready
    return engine


@pytest.mark.parametrize("schedule", SETTINGS.schedules, ids=lambda schedule: schedule.name)
def test_answers_are_those_of_the_plain_network(engine: Engine, schedule: TokenSchedule) -> None:
    names, batch = ["five", "three", "five"], images(3)
    bank, net = TaskBank(TASKS, LAYERS, WIDTH), ElasticViT(tiny_trunk())
    rows = bank.rows(names)
    with torch.inference_mode():
        wanted = bank.logits(net.features(batch, schedule, bank.prompts(rows, schedule.prompts)), rows)
    for row, answer in enumerate(engine.infer(batch, names, schedule)):
        assert isinstance(answer, Prediction)
        assert answer.class_names == TASKS[names[row]].class_names
        np.testing.assert_allclose(answer.logits, wanted[row, : len(answer.logits)], atol=1e-4)


def test_a_bad_row_does_not_disturb_the_others(engine: Engine) -> None:
    batch = images(4)
    batch[1, 0, 3, 3] = torch.nan
    alone = engine.infer(images(4)[3:], ["three"], PROMPTED)
    results = engine.infer(batch, ["nothing", "five", "bare", "three"], PROMPTED)
    assert [r.reason for r in results if isinstance(r, Rejection)] == [
        "unknown_task",
        "bad_image",
        "no_prompts",
    ]
    np.testing.assert_allclose(results[3].logits, alone[0].logits, atol=1e-5)
    assert all(isinstance(r, Rejection) for r in engine.infer(images(2), ["x", "y"], PLAIN))


def test_values_too_large_to_compute_with_are_refused(engine: Engine) -> None:
    batch = images(3)
    batch[1, 0, 3, 3] = 1e38  # finite, but not for long
    results = engine.infer(batch, ["three"] * 3, PLAIN)
    assert isinstance(results[1], Rejection)
    assert results[1].reason == "bad_image"
    assert isinstance(results[0], Prediction)
    assert isinstance(results[2], Prediction)


def test_a_swap_changes_later_batches_only_and_a_bad_one_nothing() -> None:
    engine = Engine(ElasticViT(tiny_trunk()), TASKS, SETTINGS)
    before = engine.infer(images(1), ["three"], PLAIN)[0]
    engine.swap({"three": task(3, 9)})
    after = engine.infer(images(1), ["three"], PLAIN)[0]
    assert np.abs(before.logits - after.logits).max() > 0.1
    assert engine.infer(images(1), ["five"], PLAIN)[0].reason == "unknown_task"
    with pytest.raises(ValueError, match="made for another trunk"):
        engine.swap({"three": task(3, 1, width=WIDTH + 1)})
    assert engine.bank.names == ("three",)


def test_swapping_under_load_answers_every_row_by_one_version_or_the_other() -> None:
    engine = Engine(ElasticViT(tiny_trunk()), {"t": task(3, 1)}, SETTINGS)
    possible = []
    for seed in (1, 2):
        engine.swap({"t": task(3, seed)})
        possible.append(engine.infer(images(1), ["t"], MERGING)[0].logits)
    stop, results = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            results.extend(engine.infer(images(1).expand(4, -1, -1, -1), ["t"] * 4, MERGING))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    turn = 0
    while turn < 200 or len(results) <= 20:  # a busy machine may swap 200 times before it answers
        engine.swap({"t": task(3, 1 + turn % 2)})
        turn += 1
    stop.set()
    for asker in askers:
        asker.join()
    for result in results:
        assert min(np.abs(result.logits - one).max() for one in possible) < 1e-4


def test_wrong_batches_are_the_callers_mistake(engine: Engine) -> None:
    with pytest.raises(ValueError, match="a batch of 9 is not between 1 and 8"):
        engine.infer(images(9), ["three"] * 9, PLAIN)
    with pytest.raises(ValueError, match="for 1 tasks and 32 pixels"):
        engine.infer(images(1, size=16), ["three"], PLAIN)
    with pytest.raises(ValueError, match=r"schedule: -2 is not one of 0, -3, \+2"):
        engine.infer(images(1), ["three"], constant_schedule(-2, LAYERS))
    with pytest.raises(ValueError, match="not ascending"):
        EngineSettings((PLAIN,), (4, 2))
    with pytest.raises(ValueError, match="schedules: none given"):
        EngineSettings(())
    doubled = EngineSettings((constant_schedule(-8, LAYERS), constant_schedule(-9, LAYERS)), device="cpu")
    with pytest.raises(ValueError, match="are the same on 16 patches"):
        Engine(ElasticViT(tiny_trunk()), TASKS, doubled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_linears_compute_the_same(dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this CPU or torch has no packed {dtype} linears")
    plain = ElasticViT(tiny_trunk()).to(dtype)
    packed = pack_linears(ElasticViT(tiny_trunk()).to(dtype))
    batch, tolerance = images(2).to(dtype), 1e-5 if dtype == torch.float32 else 0.2
    with torch.inference_mode():
        for schedule in (PLAIN, TokenSchedule((0,) * LAYERS, grid=2)):
            found, wanted = packed(batch, schedule), plain(batch, schedule)
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert type(packed.trunk.blocks[0].mlp.fc1) is not torch.nn.Linear


def test_the_chosen_precision_is_kept() -> None:
    engine = Engine(ElasticViT(tiny_trunk()), TASKS, EngineSettings((PLAIN,), (1,), "cpu", "bf16"))
    assert engine.dtype == torch.bfloat16
    answer = engine.infer(images(1), ["three"], PLAIN)[0]
    assert answer.logits.dtype == np.float32
    auto = Engine(ElasticViT(tiny_trunk()), TASKS, EngineSettings((PLAIN,), (1,), "cpu"))
    assert auto.variant.split()[:2] in (["torch", "fp32"], ["torch", "bf16"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_give_the_same_answers_on_cuda() -> None:
    settings = EngineSettings(SETTINGS.schedules, (1, 4, 8), "cuda", "fp32")
    graphs, plain = (Engine(ElasticViT(tiny_trunk()), TASKS, settings) for _ in range(2))
    graphs.warm_up()
    names = ["five", "three", "five"]
    for schedule in SETTINGS.schedules:
        for one, other in zip(*(e.infer(images(3), names, schedule) for e in (graphs, plain)), strict=True):
            np.testing.assert_allclose(one.logits, other.logits, atol=1e-3)


@pytest.mark.parametrize(("gigabytes", "kernels"), [(0, 256), (4, 1000), (24, 6000), (1000, 65_536)])
def test_kernels_are_kept_for_a_quarter_of_the_memory(gigabytes: float, kernels: int) -> None:
    assert cached_kernels(int(1e9 * gigabytes)) == kernels


def test_the_serving_environment_keeps_what_the_user_set() -> None:
    environment = serving_environment({"PATH": "/bin", "MALLOC_MMAP_MAX_": "7"})
    assert environment["MALLOC_MMAP_MAX_"] == "7"
    assert environment["PATH"] == "/bin"
    assert missing_settings(environment) == ()
    assert serving_environment({"LRU_CACHE_CAPACITY": "5"})["LRU_CACHE_CAPACITY"] == "5"
    assert set(missing_settings({"KMP_BLOCKTIME": "0"})) == set(CPU_SETTINGS) - {"KMP_BLOCKTIME"}
    program = "import sys, fedstill.cloud_server.serving.engine.environment; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
