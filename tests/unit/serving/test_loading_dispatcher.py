"""Queries for trunks that are not in memory: they wait, are refused with a hint, and hold up nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.policies.fedstill import FedstillPolicy
from fedstill.cloud_server.serving.scheduling.joint_profile import join
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.queries import Rejection
from fedstill.cloud_server.serving.server.events import RanBatch
from fedstill.cloud_server.serving.server.loading_dispatcher import LoadingDispatcher
from fedstill.cloud_server.serving.server.requests import Outcome, Request, Response
from fedstill.cloud_server.serving.server.residency import Footprint, Residency
from fedstill.cloud_server.serving.server.served_tasks import TrunkState

PROFILE = join(
    {
        trunk: Profile(trunk, "by hand", (task,), (Schedule("0", 0, 0.001, 0.001, (0.9,), 8),))
        for trunk, task in (("tiny", "cats"), ("small", "cars"))
    }
)
EXPECTED = 0.5
"""Seconds of a loading, as the planner expects."""
LONG = 60.0


@dataclass
class Trunk:
    """Loading takes until a test lets it go on."""

    go: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    broken: bool = False
    loaded: bool = False

    def load(self, progress: Callable[[str], None]) -> Footprint:
        self.began.set()
        while not self.go.wait(0.005):
            progress("reading")
        if self.broken:
            raise ValueError("the file is gone")
        self.loaded = True
        return Footprint(6, EXPECTED)

    def unload(self) -> None:
        self.loaded = False


@dataclass
class Watcher:
    """An observer of queries and of loadings."""

    seen: list[tuple[str, str]] = field(default_factory=list)

    def offered(self, task: str, utility: float, queries: int) -> None:
        self.seen.append(("offered", task))

    def dropped(self, task: str, reason: str, queries: int) -> None:
        self.seen.append((reason, task))

    def answered(self, task: str, utility: float, accuracies: tuple[float, ...], late: bool) -> None:
        self.seen.append(("answered", task))

    def ran(self, batch: RanBatch) -> None:
        pass

    def loaded(self, trunk: str, footprint: Footprint) -> None:
        self.seen.append(("loaded", trunk))

    def load_failed(self, trunk: str) -> None:
        self.seen.append(("load failed", trunk))

    def unloaded(self, trunk: str) -> None:
        self.seen.append(("unloaded", trunk))


class World:
    """Two trunks, of which one is loaded and one has room."""

    def __init__(self) -> None:
        self.trunks = {"tiny": Trunk(loaded=True), "small": Trunk()}
        self.watcher, self.ran = Watcher(), list[str]()
        self.outcomes: dict[int, Outcome] = {}
        self._ended = threading.Condition()

    @contextmanager
    def serving(self) -> Iterator[LoadingDispatcher]:
        residency = Residency(10, {name: Footprint(6, EXPECTED) for name in self.trunks}, ["tiny"])
        with ThreadPoolExecutor(1) as preparing:
            made = LoadingDispatcher(
                FedstillPolicy(PROFILE), self._infer, preparing, [self.watcher], 8, residency, self.trunks
            )
            made.load_observers = [self.watcher]
            self.dispatcher = made
            made.start()
            try:
                yield made
            finally:
                made.stop()

    def ask(self, number: int, task: str, seconds: float = LONG) -> Request:
        def deliver(outcome: Outcome) -> None:
            with self._ended:
                assert number not in self.outcomes, "one answer"
                self.outcomes[number] = outcome
                self._ended.notify_all()

        return self.dispatcher.submit(task, [lambda: "image"], seconds, 1.0, deliver)

    def outcome(self, number: int) -> Outcome:
        with self._ended:
            assert self._ended.wait_for(lambda: number in self.outcomes, 30)
        return self.outcomes[number]

    def refusal(self, number: int) -> Rejection:
        outcome = self.outcome(number)
        assert isinstance(outcome, Rejection)
        return outcome

    def _infer(self, images: object, tasks: list[str], schedule: str) -> list[Prediction]:
        trunk = PROFILE.origin(schedule)[0]
        assert self.trunks[trunk].loaded, "no batch for a trunk that is not in memory"
        self.ran += tasks
        return [Prediction(np.zeros(2, np.float32), ("a", "b")) for _ in tasks]


def test_a_query_waits_and_others_are_answered_meanwhile() -> None:
    world = World()
    with world.serving() as dispatcher:
        world.ask(0, "cars")
        assert world.trunks["small"].began.wait(30)
        assert dispatcher.state("small") == TrunkState(False, 6)
        assert dispatcher.queued() == 1
        # `tiny` had to make room, so nothing of it can be asked; what is loaded is answered while others load.
        assert not world.trunks["tiny"].loaded
        time.sleep(0.05)
        world.trunks["small"].go.set()
        answer = world.outcome(0)
        assert isinstance(answer, Response)
        assert answer.waiting_seconds > 0.05, "loading included"
        assert isinstance((world.ask(1, "cars"), world.outcome(1))[1], Response)
    assert world.watcher.seen == [
        ("unloaded", "tiny"), ("loaded", "small"),
        ("offered", "cars"), ("answered", "cars"), ("offered", "cars"), ("answered", "cars"),
    ]  # fmt: skip


def test_loading_holds_up_no_query_of_a_loaded_trunk() -> None:
    world = World()
    with world.serving() as dispatcher:
        dispatcher._residency.budget = 100
        world.ask(0, "cars")
        assert world.trunks["small"].began.wait(30)
        for number in range(1, 20):
            world.ask(number, "cats")
            assert isinstance(world.outcome(number), Response)
        assert 0 not in world.outcomes
        world.trunks["small"].go.set()
        assert isinstance(world.outcome(0), Response)


def test_who_cannot_wait_is_refused_at_once_and_the_trunk_is_loaded_all_the_same() -> None:
    world = World()
    with world.serving() as dispatcher:
        world.ask(0, "cars", 0.3)
        refused = world.refusal(0)
        assert (refused.reason, refused.retry_after_seconds) == ("loading", pytest.approx(EXPECTED))
        assert refused.message == "small is being loaded, ready in about 0.5 s"
        assert world.trunks["small"].began.wait(30)
        world.trunks["small"].go.set()
        end = time.monotonic() + 30
        while not dispatcher.state("small").loaded:
            assert time.monotonic() < end
            time.sleep(0.005)
        world.ask(1, "cars", 5.0)
        assert isinstance(world.outcome(1), Response)
    assert world.watcher.seen[:2] == [("offered", "cars"), ("loading", "cars")]


def test_who_waits_beyond_the_deadline_leaves_or_fails_gets_one_answer_or_none() -> None:
    world = World()
    with world.serving():
        world.ask(0, "cars", 1.0)  # twice what is expected, and it takes longer
        left = world.ask(1, "cars")
        assert world.trunks["small"].began.wait(30)
        world.dispatcher.cancel(left)
        world.dispatcher.cancel(left)
        assert world.refusal(0).message == "small was not loaded before its deadline"
        world.trunks["small"].broken = True
        world.ask(2, "cars")
        world.trunks["small"].go.set()
        assert world.refusal(2).reason == "failed"
        world.ask(3, "cars")
        assert "the server tries again in about 5 s" in world.refusal(3).message
        assert world.dispatcher.state("small").failed
        world.ask(4, "dogs")
        assert world.refusal(4).reason == "unknown_task"
    assert 1 not in world.outcomes
    reasons = [reason for reason, _ in world.watcher.seen if reason != "offered"]
    assert reasons == ["unloaded", "cancelled", "evicted", "load failed", "failed", "loading", "unknown_task"]


def test_the_end_waits_for_no_loading() -> None:
    world = World()
    with world.serving() as dispatcher:
        world.ask(0, "cars")
        assert world.trunks["small"].began.wait(30)
        dispatcher.drain()
        assert world.refusal(0).reason == "draining"
        world.ask(1, "cars")
        assert world.refusal(1).reason == "draining"
        assert dispatcher.wait_until_idle(5)


def test_no_more_wait_than_may() -> None:
    world = World()
    with world.serving():
        for number in range(9):
            world.ask(number, "cars")
        assert world.refusal(8).reason == "loading"
        world.trunks["small"].go.set()
        assert all(isinstance(world.outcome(number), Response) for number in range(8))
