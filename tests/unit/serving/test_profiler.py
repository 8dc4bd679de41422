"""The profile holds the measurements, without schedules that no planner should choose."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.vit import LAYERS, PATCHES, task, tiny_trunk
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.serving.engine import profiler
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.profiler import (
    AffineTime,
    ScheduleProfile,
    activation_bytes,
    fit_affine,
    make_profile,
    measure_right,
    measure_times,
    predicted,
    profile_engine,
    time_ratios,
    token_delta,
)
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, profile_to_plain
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess import image_batch
from fedstill.models.vit.preprocess_settings import PLAIN
from fedstill.models.vit.schedules import TokenSchedule, constant_schedule, parse_schedule
from fedstill.models.vit.task_bank import embedding_task

SCHEDULES = tuple(constant_schedule(delta, LAYERS) for delta in (-3, 0, 2, 4))


@pytest.fixture(scope="module")
def engine() -> Engine:
    tasks = {"a": task(3, 1), "b": task(5, 2)}  # both have two prompts, none has four
    settings = EngineSettings(SCHEDULES, (1, 2, 4), device="cpu", precision="fp32")
    return Engine(ElasticViT(tiny_trunk()), tasks, settings)


def pictures(count: int, seed: int):
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8) for _ in range(count))


def made(name: str, fixed: float, slope: float, *accuracy: float, batch: int = 32) -> ScheduleProfile:
    return ScheduleProfile(
        parse_schedule(name, LAYERS), AffineTime(fixed, slope, 0.0), accuracy, batch, PATCHES
    )


@given(st.floats(0, 0.1), st.floats(1e-4, 0.1))
def test_an_affine_time_is_found_again(fixed: float, slope: float) -> None:
    sizes = (1, 2, 8, 32)
    found = fit_affine(sizes, [fixed + slope * n for n in sizes])
    assert found.seconds(5) == pytest.approx(fixed + slope * 5, rel=1e-6)
    assert found.worst_error < 1e-6


@given(st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=6))
def test_no_measurement_yields_negative_parts(seconds: list[float]) -> None:
    found = fit_affine(range(1, len(seconds) + 1), seconds)
    assert found.fixed_seconds >= 0
    assert found.per_query_seconds > 0  # no planner takes a profile by which larger batches are free
    assert found.seconds(1) > 0


def test_times_that_fall_with_the_batch_are_a_schedule_all_the_same() -> None:
    found = fit_affine((1, 2, 4), (0.03, 0.02, 0.01))
    assert found.seconds(4) == pytest.approx(found.seconds(1), rel=1e-3)
    Schedule("0", 0, found.fixed_seconds, found.per_query_seconds, (0.5,))  # takes it


def test_times_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="need one positive time per size"):
        fit_affine((1, 2), (0.0, 1.0))


def useful(profiles: Sequence[ScheduleProfile]) -> tuple[ScheduleProfile, ...]:
    """Those that stay in a profile without dominated schedules."""
    tasks = [f"task {place}" for place in range(len(profiles[0].accuracy))]
    kept = make_profile("made", "a test", tasks, profiles).without_dominated().schedules
    return tuple(profile for profile in profiles if profile.planned in kept)


def test_dominated_schedules_are_left_out() -> None:
    fast, exact = made("-3", 0.001, 0.01, 0.7, 0.8), made("0", 0.001, 0.02, 0.9, 0.9)
    slower_and_worse = made("-2", 0.002, 0.021, 0.8, 0.8)
    slow_start = made("-1", 0.02, 0.009, 0.6, 0.6)  # worse, but faster in large batches
    assert useful((fast, exact, slower_and_worse, slow_start)) == (fast, exact, slow_start)
    assert useful((fast, made("-1", 0.001, 0.01, 0.7, 0.8))) == (fast, made("-1", 0.001, 0.01, 0.7, 0.8))


def test_larger_patches_are_measured_stored_and_named_like_any_schedule() -> None:
    schedules = tuple(parse_schedule(name, LAYERS) for name in ("0", "g3", "g2-1"))
    settings = EngineSettings(schedules, (1, 2), device="cpu", precision="fp32", backend="torch")
    engine = Engine(ElasticViT(tiny_trunk()), {"a": task(3, 1)}, settings)
    profiles = profile_engine(engine, {"a": (pictures(4, 1), np.zeros(4, np.int64))}, rounds=1)
    plain = json.loads(json.dumps(profile_to_plain(make_profile("made", "a test", ["a"], profiles))))
    again = [parse_schedule(entry["name"], LAYERS) for entry in plain["schedules"]]
    assert again == list(schedules)
    assert [entry["token_delta"] for entry in plain["schedules"]] == [0, -3, -6]


def test_a_profile_of_what_all_tasks_can_run(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    sets = {name: (pictures(6, 1), rng.integers(0, 3, 6)) for name in ("a", "b")}
    profiles = profile_engine(engine, sets, rounds=2)
    assert [profile.schedule.name for profile in profiles] == ["-3", "0", "+2"]
    for profile in profiles:
        assert len(profile.accuracy) == 2
        assert profile.time.seconds(1) > 0
        assert profile.maximum_batch == 4
    profile = make_profile("made", "a test", list(sets), profiles).without_dominated()
    plain = json.loads(json.dumps(profile_to_plain(profile)))
    assert (plain["format"], plain["tasks"], plain["variants"]) == (1, ["a", "b"], [])
    for entry in plain["schedules"]:
        assert parse_schedule(entry["name"], LAYERS).prompts == max(entry["token_delta"], 0)
    assert {entry["name"] for entry in plain["schedules"]} == {p.schedule.name for p in useful(profiles)}


class Clocked:
    """An engine whose batches take what a test says; only what a timing needs."""

    def __init__(
        self, seconds: Callable[[TokenSchedule, int], float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.settings = EngineSettings(SCHEDULES[:3], (1, 4, 16))
        self.bank, self.net = SimpleNamespace(names=("a",)), SimpleNamespace(image_size=8, patches=PATCHES)
        self.maximum_batch, self._seconds, self._now = 16, seconds, 0.0
        monkeypatch.setattr(profiler, "perf_counter", lambda: self._now)

    def infer(self, images: torch.Tensor, tasks: list[str], schedule: TokenSchedule) -> None:
        self._now += self._seconds(schedule, len(images))


def quiet(schedule: TokenSchedule, size: int) -> float:
    return 0.01 + (0.01 + 0.001 * token_delta(schedule, PATCHES)) * size


def test_times_of_a_busy_machine_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the batches meet another process; and one schedule has bad luck in all of its first timings."""
    rng, calls = np.random.default_rng(0), Counter[str]()

    def busy(schedule: TokenSchedule, size: int) -> float:
        calls[schedule.name] += 1
        unlucky = schedule.name == "-3" and calls["-3"] <= 24  # 8 rounds of three sizes
        return quiet(schedule, size) * (3.0 if unlucky or rng.random() < 0.5 else 1.0)

    times = measure_times(Clocked(busy, monkeypatch), SCHEDULES[:3], rounds=7)
    for schedule, time in times.items():
        for size in (1, 16):
            assert time.seconds(size) == pytest.approx(quiet(schedule, size), rel=0.1)


def test_times_that_fit_together_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter[str]()

    def counted(schedule: TokenSchedule, size: int) -> float:
        calls[schedule.name] += 1
        return quiet(schedule, size)

    measure_times(Clocked(counted, monkeypatch), SCHEDULES[:3], rounds=4)
    assert set(calls.values()) == {5 * 3}


def test_a_kept_profile_is_compared_with_today(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tuple(made(name, 0.02, 0.02, 0.9).planned for name in ("-3", "0"))
    profile = Profile("kept", "a busy day", ("a",), kept)
    ratios = time_ratios(Clocked(quiet, monkeypatch), profile, rounds=2)
    for name, delta in (("-3", -3), ("0", 0)):
        schedule = constant_schedule(delta, LAYERS)
        assert token_delta(schedule, PATCHES) == delta
        wanted = np.mean([quiet(schedule, size) / (0.02 + 0.02 * size) for size in (1, 16)])
        assert ratios[name] == pytest.approx(wanted, rel=1e-6)


def test_larger_patches_count_as_the_merging_that_takes_as_many_tokens_away() -> None:
    """In the mean over 12 layers, -15 has 6.5 x 15 = 97 tokens less, and a grid of 10 x 10 has 96 less."""
    for name, delta in (("0", 0), ("g14", 0), ("g10", -15), ("g8", -20), ("g10-3", -18), ("+4g10", -11)):
        assert token_delta(parse_schedule(name, 12), 196) == delta


def test_accuracy_is_of_the_right_task_and_images(engine: Engine) -> None:
    images, schedule = pictures(7, 3), SCHEDULES[1]
    right = measure_right(engine, schedule, "a", images, np.zeros(7, np.int64))
    answers = [measure_right(engine, schedule, "a", images, np.full(7, label)) for label in range(3)]
    assert (np.sum(answers, axis=0) == 1).all()  # exactly one label is the answer
    np.testing.assert_array_equal(right, answers[0])
    assert not measure_right(
        engine, SCHEDULES[3], "a", images, np.zeros(7, np.int64)
    ).any()  # refused: no prompts


def test_embeddings_are_right_if_the_nearest_plain_one_is_of_their_class() -> None:
    trunk = tiny_trunk()
    tasks = {"search": embedding_task(trunk.embed_dim, PLAIN)}
    engine = Engine(ElasticViT(trunk), tasks, EngineSettings(SCHEDULES[:2], (1, 4), "cpu", "fp32"))
    twice = [
        *pictures(3, 5),
        *pictures(3, 5),
    ]  # each has a twin, which is nearest without merging and with it
    for labels, right in (([0, 1, 2, 0, 1, 2], 1.0), ([0, 1, 2, 3, 4, 5], 0.0)):
        measured = profile_engine(engine, {"search": (twice, np.array(labels))}, rounds=1)
        assert [one.accuracy for one in measured] == [(right,)] * 2
    plain = predicted(engine, SCHEDULES[1], "search", twice)
    with torch.inference_mode():
        net = ElasticViT(tiny_trunk())  # the engine's own keeps no weights
        wanted = net.features(image_batch(twice[:2], net.image_size, PLAIN), SCHEDULES[1])
    np.testing.assert_allclose(plain[:2], wanted.numpy(), atol=1e-5)


def test_memory_bounds_the_batch(engine: Engine) -> None:
    per_image = [activation_bytes(engine.net, schedule, 4) for schedule in SCHEDULES]
    assert all(a < b for a, b in pairwise(per_image[1:]))
    sets = {"a": (pictures(2, 1), np.zeros(2, np.int64))}
    profiles = profile_engine(engine, sets, rounds=1, memory_limit=2 * per_image[1])
    assert {p.schedule.name: p.maximum_batch for p in profiles}["0"] == 2
    assert all(p.maximum_batch >= 1 for p in profile_engine(engine, sets, rounds=1, memory_limit=1))


def test_nothing_to_profile_is_said() -> None:
    settings = EngineSettings((SCHEDULES[3],), (1,), device="cpu", precision="fp32")
    engine = Engine(ElasticViT(tiny_trunk()), {"a": task(3, 1)}, settings)
    with pytest.raises(ValueError, match="suits all of the tasks a"):
        profile_engine(engine, {"a": (pictures(2, 1), np.zeros(2, np.int64))})
