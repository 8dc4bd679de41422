"""Queries among several devices: each goes where it earns most, has one outcome, and is cancelled where it waits."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pytest

from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.device_queues import DeviceQueues
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.events import RanBatch
from fedstill.cloud_server.serving.server.requests import Outcome, Request, Response

SECONDS = 0.002
"""Of a query, at all tokens."""


def profile(tasks: Sequence[str] = ("cats", "dogs")) -> Profile:
    made = tuple(
        Schedule(name, delta, 0.001, seconds, (accuracy,) * len(tasks), 4)
        for name, delta, seconds, accuracy in (("0", 0, SECONDS, 0.9), ("-4", -4, 0.6 * SECONDS, 0.7))
    )
    return Profile("made", "by hand", tuple(tasks), made)


@dataclass
class Watcher:
    """Counts, and notices if two threads tell it something at once."""

    counts: Counter[str] = field(default_factory=Counter)
    devices: Counter[str] = field(default_factory=Counter)
    inside: int = 0
    overlapped: bool = False

    def _note(self, name: str, queries: int) -> None:
        self.inside += 1
        self.overlapped |= self.inside > 1
        self.counts[name] += queries
        self.inside -= 1

    def offered(self, task: str, utility: float, queries: int) -> None:
        self._note("offered", queries)

    def dropped(self, task: str, reason: str, queries: int) -> None:
        self._note("dropped", queries)

    def answered(self, task: str, utility: float, accuracies: tuple[float, ...], late: bool) -> None:
        self._note("answered", len(accuracies))

    def ran(self, batch: RanBatch) -> None:
        self._note("ran", 0)
        self.devices[batch.device] += batch.size


class World:
    """Dispatchers of so many devices. paces: how much longer than profiled each takes."""

    def __init__(self, paces: Sequence[float] = (1.0, 1.0), policy: str = "fedstill") -> None:
        self.watcher, self.lock = Watcher(), threading.Condition()
        self.preparing = ThreadPoolExecutor(1)
        self.dispatchers = [
            Dispatcher(
                make_policy(policy, profile()), self._engine(pace), self.preparing, (self.watcher,), 64,
                device=f"gpu:{place}", lock=self.lock,
            )
            for place, pace in enumerate(paces)
        ]  # fmt: skip
        self.queues = DeviceQueues(self.dispatchers)
        self.outcomes: list[list[Outcome]] = []

    def __enter__(self) -> World:
        self.queues.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.queues.stop()
        self.preparing.shutdown()

    def ask(self, task: str = "cats", latency: float = 1.0, utility: float = 1.0, images: int = 1) -> Request:
        self.outcomes.append([])
        prepare: Callable[[], object] = object
        return self.queues.submit(task, [prepare] * images, latency, utility, self.outcomes[-1].append)

    def _engine(self, pace: float) -> Callable[..., list[Prediction]]:
        def infer(images: Sequence[object], tasks: Sequence[str], name: str) -> list[Prediction]:
            schedule = next(one for one in profile().schedules if one.name == name)
            time.sleep(pace * schedule.seconds(len(images)))
            return [Prediction(np.array([1.0, 0.0], np.float32), ("yes", "no"))] * len(images)

        return infer


def test_work_is_shared_before_anything_ran() -> None:
    world = World(paces=(1.0, 1.0, 1.0))
    assert [world.ask().queue for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    assert world.queues.queued() == 6
    assert world.queues.engines == 3
    world.queues.stop()


def test_a_device_that_runs_a_batch_is_not_idle() -> None:
    """Its queue is empty, but whoever comes would wait for the batch."""
    world = World(paces=(50.0, 50.0))
    with world:
        first = world.ask()
        end = time.monotonic() + 10
        while world.dispatchers[first.queue].queued():
            assert time.monotonic() < end
            time.sleep(0.001)
        assert world.ask().queue != first.queue
        assert world.queues.wait_until_idle(20)


def test_a_query_avoids_the_device_whose_time_is_dear() -> None:
    world = World()
    world.dispatchers[0].policy.price = 50.0
    assert [world.ask().queue for _ in range(3)] == [1, 1, 1]
    world.dispatchers[1].policy.price = 100.0
    assert world.ask().queue == 0
    world.queues.stop()


def test_a_deadline_that_one_device_only_can_keep_decides() -> None:
    world = World()
    for _ in range(40):
        world.dispatchers[0].submit("cats", [object], 1.0, 1.0, lambda _: None)
    assert world.dispatchers[0].backlog() > 10 * SECONDS
    assert world.ask(latency=5 * SECONDS).queue == 1
    world.queues.stop()


def test_a_slow_device_gets_less() -> None:
    with World(paces=(1.0, 6.0)) as world:
        for _ in range(300):
            world.ask(latency=5.0)
            time.sleep(0.7 * SECONDS)
        assert world.queues.wait_until_idle(20)
    ran = world.watcher.devices
    assert ran["gpu:0"] > 1.2 * ran["gpu:1"] > 0
    assert sum(ran.values()) == 300


def test_a_broken_device_does_not_draw_all_queries_and_is_tried_again() -> None:
    """It fails at once, so it is the one with the least work."""
    with World() as world:
        broken, works = threading.Event(), world.dispatchers[0]._engine._infer
        broken.set()

        def infer(*batch: Any) -> Any:
            if broken.is_set():
                raise RuntimeError("an illegal memory access was encountered")
            return works(*batch)

        world.dispatchers[0]._engine._infer = infer
        for _ in range(100):
            world.ask()
            assert world.queues.wait_until_idle(10)
        failed = [one for (one,) in world.outcomes if isinstance(one, Rejection)]
        assert 1 <= len(failed) <= 3
        assert world.dispatchers[0].failing
        world.dispatchers[1]._engine._infer = infer  # both: somebody has to be asked
        world.ask()
        assert world.queues.wait_until_idle(10)
        broken.clear()
        end = time.monotonic() + 20
        while any(one.failing for one in world.dispatchers) or not world.watcher.devices["gpu:0"]:
            assert time.monotonic() < end
            world.ask()
            time.sleep(0.01)


def test_an_engine_may_fail_for_ever() -> None:
    with World() as world:
        for one in world.dispatchers:
            one._engine._failures = 5000

            def infer(*_: Any) -> Any:
                raise RuntimeError("an illegal memory access was encountered")

            one._engine._infer = infer
        for _ in range(3):
            world.ask()
            assert world.queues.wait_until_idle(10)
        outcomes = [one for (one,) in world.outcomes]
        assert len(outcomes) == 3
        assert all(isinstance(one, Rejection) and "engine" in one.message for one in outcomes)
        assert any(one.failing for one in world.dispatchers)


def test_a_client_that_leaves_takes_nobody_else_away() -> None:
    """The same query number waits on both devices."""
    world = World()
    first, second = world.ask(), world.ask()
    assert (first.queue, second.queue) == (0, 1)
    assert first.queries == second.queries
    world.queues.cancel(second)
    assert (world.dispatchers[0].queued(), world.dispatchers[1].queued()) == (1, 0)
    world.queues.cancel(second)
    world.queues.start()
    assert world.queues.wait_until_idle(10)
    world.queues.stop()
    assert isinstance(world.outcomes[0][0], Response)
    assert world.outcomes[1] == []


@pytest.mark.parametrize("utility", [0.0, math.inf, math.nan, -1.0])
def test_whatever_it_is_worth_a_query_has_one_outcome(utility: float) -> None:
    with World() as world:
        world.ask(utility=utility)
        assert world.queues.wait_until_idle(10)
    assert len(world.outcomes[0]) == 1


def test_an_unknown_task_and_a_passed_deadline_are_refused_once() -> None:
    with World() as world:
        world.ask(task="birds")
        world.ask(latency=-1.0)
        world.queues.drain()
        assert world.queues.draining
        world.ask()
    reasons = [one.reason for (one,) in world.outcomes if isinstance(one, Rejection)]
    assert reasons == ["unknown_task", "too_late", "draining"]


@pytest.mark.parametrize("policy", ["fedstill", "slackfit", "clipper"])
def test_every_request_has_one_outcome_whoever_leaves_and_whenever_it_ends(policy: str) -> None:
    random = Random(policy)
    world, left = World(paces=(1.0, 2.0, 0.5), policy=policy), list[int]()
    with world:
        for number in range(400):
            request = world.ask(
                random.choice(("cats", "dogs")),
                random.uniform(0.001, 0.1),
                random.random(),
                random.randint(1, 3),
            )
            if random.random() < 0.1:
                world.queues.cancel(request)
                left.append(number)
            if random.random() < 0.3:
                time.sleep(SECONDS * random.random())
    counts = world.watcher.counts
    assert all(len(one) <= 1 for one in world.outcomes)
    missing = [number for number, one in enumerate(world.outcomes) if not one]
    assert set(missing) <= set(left)
    assert counts["offered"] == counts["answered"] + counts["dropped"]
    assert counts["answered"] > 0
    assert not world.watcher.overlapped
    assert world.queues.queued() == 0
