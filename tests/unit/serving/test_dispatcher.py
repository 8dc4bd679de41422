"""The dispatcher: one answer per request, whatever happens to it on its way. A clock of our own, no torch, no sleep."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
from helpers.queries import ON_THESIS
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.serving.engine.predictions import ImageError, Prediction
from fedstill.cloud_server.serving.policies.fedstill import FedstillPolicy
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.queries import Batch, Decision, Query, Rejection
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.events import RanBatch
from fedstill.cloud_server.serving.server.requests import Outcome, Request, Response

CLASSES = ("yes", "no")
DELTAS = (0, -5, -10, -15, -20, 2, 4, 8)
LIVE = tuple(name for name in ON_THESIS if name != "infaas")


def made_profile(tasks: tuple[str, ...] = ("cats", "dogs"), largest: int = 4) -> Profile:
    schedules = tuple(
        Schedule(
            str(delta), delta, 0.002, 0.010 + 0.0003 * delta, (0.9 + 0.005 * delta,) * len(tasks), largest
        )
        for delta in DELTAS
    )
    return Profile("made", "by hand", tasks, schedules)


class Preparing(Executor):
    """Runs what it is given at once, or when a test says so."""

    def __init__(self) -> None:
        self.holding = False
        self.held: list[tuple[Future[object], Callable[[], object]]] = []

    def submit(self, call, /, *arguments, **options):  # type: ignore[override]
        done: Future[object] = Future()
        self.held.append((done, partial(call, *arguments, **options)))
        if not self.holding:
            self.finish(1)
        return done

    def finish(self, count: int) -> None:
        """The ``count`` that it was given last."""
        for _ in range(min(count, len(self.held))):
            done, call = self.held.pop()
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(call())
                except Exception as error:
                    done.set_exception(error)


@dataclass
class Watcher:
    """An observer that adds up."""

    offers: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    answers: int = 0
    late: int = 0
    batches: list[RanBatch] = field(default_factory=list)

    def offered(self, task: str, utility: float, queries: int) -> None:
        self.offers += queries

    def dropped(self, task: str, reason: str, queries: int) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + queries

    def answered(self, task: str, utility: float, accuracies: tuple[float, ...], late: bool) -> None:
        self.answers += len(accuracies)
        self.late += late

    def ran(self, batch: RanBatch) -> None:
        self.batches.append(batch)


class World:
    """A dispatcher whose time passes only when the engine works or a test says so."""

    def __init__(self, policy: Policy | None = None, waiting: int = 100) -> None:
        self.now, self.slowdown, self.broken = 100.0, 1.0, False
        self.seen: list[list[object]] = []
        self.outcomes: dict[int, list[Outcome]] = {}
        self.requests: dict[int, Request] = {}
        self.watcher = Watcher()
        self.during: Callable[[], None] = lambda: None
        self.preparing = Preparing()
        self.dispatcher = Dispatcher(
            policy or FedstillPolicy(made_profile()),
            self.infer,
            self.preparing,
            (self.watcher,),
            waiting,
            lambda: self.now,
        )

    def infer(
        self, images: Sequence[object], tasks: Sequence[str], name: str
    ) -> list[Prediction | Rejection]:
        self.during()
        if self.broken:
            raise RuntimeError("the engine is on fire")
        schedule = next(s for s in self.dispatcher.policy.profile.schedules if s.name == name)
        self.now += self.slowdown * schedule.seconds(len(images))
        self.seen.append(list(images))
        return [
            Rejection("bad_image", message="holds NaN")
            if image == "nan"
            else Prediction(np.array([1.0, 0.0], np.float32), CLASSES)
            for image in images
        ]

    def ask(
        self, *images: object, task: str = "cats", latency: float = 1.0, utility: float = 1.0
    ) -> tuple[int, Request]:
        number = len(self.outcomes)
        self.outcomes[number] = []

        def prepared(image: object) -> Callable[[], object]:
            def prepare() -> object:
                if image == "damaged":
                    raise ImageError("cannot be decoded")
                return image

            return prepare

        self.requests[number] = self.dispatcher.submit(
            task, [prepared(image) for image in images], latency, utility, self.outcomes[number].append
        )
        return number, self.requests[number]

    def outcome(self, number: int) -> Outcome:
        (outcome,) = self.outcomes[number]
        return outcome

    def run(self) -> None:
        for _ in range(1000):
            if not self.dispatcher.step() and not self.dispatcher.queued():
                return
            self.now += 0.001
        raise AssertionError("the queue never ends")


class Choosy(Policy):
    """Takes so many queries and no more; runs them one by one."""

    name = "choosy"

    def __init__(self, room: int, profile: Profile | None = None) -> None:
        super().__init__(profile or made_profile())
        self.room, self.waiting, self.coming = room, dict[int, Query](), set[int]()
        self.learnt: list[int] = []

    def admit(self, query: Query, now: float) -> Rejection | None:
        if len(self.waiting) + len(self.coming) == self.room:
            return Rejection("overload", 0.25)
        self.coming.add(query.identifier)
        return None

    def enqueue(self, query: Query, now: float) -> None:
        self.coming.remove(query.identifier)
        self.waiting[query.identifier] = query

    def dispatch(self, now: float) -> Decision:
        if not self.waiting:
            return Decision(None)
        query = self.waiting.pop(min(self.waiting))
        schedule = self.profile.schedules[0]
        return Decision(Batch((query,), schedule, schedule.seconds(1)))

    def withdraw(self, identifier: int) -> Query | None:
        self.coming.discard(identifier)
        return self.waiting.pop(identifier, None)

    def queued(self) -> int:
        return len(self.waiting)

    def completed(self, batch: Batch, now: float, seconds: float) -> None:
        self.learnt.append(len(batch.queries))


def refused(outcome: Outcome) -> str:
    assert isinstance(outcome, Rejection)
    assert outcome.message
    return outcome.reason


def test_a_request_is_answered_with_how_it_came_about() -> None:
    world = World()
    number, _ = world.ask("a")
    world.run()
    outcome = world.outcome(number)
    assert isinstance(outcome, Response)
    assert outcome.predictions[0].label == "yes"
    assert outcome.schedules == ("8",)  # nobody else is there: the sharpest
    assert (outcome.batch_size, outcome.late, outcome.waiting_seconds) == (1, False, 0.0)
    assert outcome.inference_seconds == pytest.approx(0.0144)
    (batch,) = world.watcher.batches
    assert batch.tasks == {"cats": 1}
    assert batch.predicted_seconds == pytest.approx(batch.seconds)


def test_slow_images_of_one_client_hold_up_nobody_else() -> None:
    world = World()
    world.preparing.holding = True
    slow, _ = world.ask("large", "huge", latency=10)
    world.preparing.holding = False
    fast, _ = world.ask("small", latency=10)
    world.dispatcher.step()
    assert isinstance(world.outcome(fast), Response)
    world.now += 0.5
    world.preparing.finish(1)
    assert not world.dispatcher.step()  # its images are answered together
    world.preparing.finish(1)
    world.run()
    assert isinstance(world.outcome(slow), Response)
    assert world.seen == [["small"], ["large", "huge"]]
    for batch in world.watcher.batches:
        assert batch.seconds == pytest.approx(batch.predicted_seconds)  # nor are they taken for a slow engine


def test_images_that_come_too_late_are_not_waited_for() -> None:
    world = World()
    world.preparing.holding = True
    number, ticket = world.ask("huge", latency=0.2)
    world.now += 0.3
    assert not world.dispatcher.step()
    assert refused(world.outcome(number)) == "evicted"
    assert not ticket.images
    world.preparing.finish(1)
    world.run()
    assert len(world.outcomes[number]) == 1
    assert world.seen == []


def test_a_swap_takes_along_who_waits_for_images() -> None:
    world = World()
    world.preparing.holding = True
    number, _ = world.ask("huge", latency=5)
    world.dispatcher.swap(lambda: FedstillPolicy(made_profile()))
    world.dispatcher.step()
    assert world.dispatcher.policy.queued() == 0
    world.preparing.finish(1)
    world.run()
    assert isinstance(world.outcome(number), Response)


def test_images_of_a_request_share_no_batch_but_one_answer() -> None:
    world = World()  # batches of at most 4
    number, _ = world.ask(*range(10), latency=10)
    world.run()
    outcome = world.outcome(number)
    assert isinstance(outcome, Response)
    assert len(outcome.predictions) == len(outcome.schedules) == 10
    assert len(world.seen) >= 3
    assert sorted(image for batch in world.seen for image in batch) == list(range(10))  # type: ignore[type-var]


def test_one_refusal_refuses_the_request_and_takes_the_rest_back() -> None:
    policy = Choosy(room=3)
    world = World(policy)
    first, _ = world.ask("a", "b")
    second, _ = world.ask("c", "d")
    outcome = world.outcome(second)
    assert refused(outcome) == "overload"
    assert isinstance(outcome, Rejection)
    assert outcome.retry_after_seconds == 0.25
    assert policy.queued() == world.dispatcher.queued() == 2
    world.run()
    assert isinstance(world.outcome(first), Response)
    assert world.watcher.drops == {"overload": 2}


def test_a_request_larger_than_the_queue_gets_a_hint() -> None:
    world = World(waiting=3)
    world.ask("a", "b")
    number, _ = world.ask("c", "d")
    outcome = world.outcome(number)
    assert refused(outcome) == "full"
    assert isinstance(outcome, Rejection)
    assert outcome.retry_after_seconds > 0


def test_a_client_that_leaves_is_forgotten() -> None:
    world = World()
    gone, ticket = world.ask("gone", "gone too")
    there, _ = world.ask("there")
    world.dispatcher.cancel(ticket)
    world.dispatcher.cancel(ticket)
    world.run()
    assert world.outcomes[gone] == []
    assert isinstance(world.outcome(there), Response)
    assert world.seen == [["there"]]
    assert world.watcher.drops == {"cancelled": 2}


def test_a_closed_request_holds_no_image() -> None:
    """Its ticket may live on for long: in an exception, in a traceback."""
    world = World()
    tickets = [world.ask("answered")[1], world.ask("damaged")[1], world.ask("gone", "gone too")[1]]
    assert tickets[0].images
    assert tickets[2].images
    world.dispatcher.cancel(tickets[2])
    world.run()
    assert all(ticket.closed and not ticket.images for ticket in tickets)


def test_a_client_that_leaves_while_its_batch_runs_is_forgotten_too() -> None:
    world = World()
    gone, ticket = world.ask("gone")
    there, _ = world.ask("there")
    world.during = lambda: world.dispatcher.cancel(ticket)
    world.run()
    assert world.outcomes[gone] == []
    assert isinstance(world.outcome(there), Response)


def test_all_clients_of_a_batch_leave_before_it_runs() -> None:
    policy = FedstillPolicy(made_profile())
    world = World(policy)
    gone, ticket = world.ask("gone")
    ticket.closed = True
    world.dispatcher.step()
    assert world.seen == []
    later, _ = world.ask("later", latency=0.05)  # the policy does not think that the engine is busy
    world.run()
    assert isinstance(world.outcome(later), Response)
    assert world.outcomes[gone] == []


@pytest.mark.parametrize("name", LIVE)
def test_a_query_whose_time_has_come_is_told_so(name: str) -> None:
    world = World(make_policy(name, made_profile()))
    number, _ = world.ask("a", "b", latency=0.5)
    world.now += 0.6
    world.run()
    assert refused(world.outcome(number)) == "evicted"
    assert world.seen == []
    assert world.watcher.drops == {"evicted": 2}


@pytest.mark.parametrize("name", LIVE)
def test_an_objective_of_zero_is_too_late_at_once(name: str) -> None:
    world = World(make_policy(name, made_profile()))
    number, _ = world.ask("a", latency=0.0)
    assert refused(world.outcome(number)) == "too_late"
    other, _ = world.ask("b")
    world.run()
    assert isinstance(world.outcome(other), Response)


@pytest.mark.parametrize("name", LIVE)
def test_a_worthless_query_is_answered_where_there_is_time(name: str) -> None:
    world = World(make_policy(name, made_profile()))
    number, _ = world.ask("a", utility=0.0)
    world.run()
    assert isinstance(world.outcome(number), Response)


def test_a_late_answer_is_an_answer_that_counts_as_late() -> None:
    world = World()
    world.slowdown = 100
    number, _ = world.ask("a", latency=0.1)
    world.run()
    outcome = world.outcome(number)
    assert isinstance(outcome, Response)
    assert outcome.late
    assert world.watcher.late == 1


@pytest.mark.parametrize("poison", ["damaged", "nan"])
def test_a_poisoned_image_harms_its_own_request_only(poison: str) -> None:
    world = World()
    good, _ = world.ask("a")
    bad, _ = world.ask("b", poison)
    also_good, _ = world.ask("c")
    world.run()
    assert refused(world.outcome(bad)) == "bad_image"
    assert isinstance(world.outcome(good), Response)
    assert isinstance(world.outcome(also_good), Response)


def test_a_task_is_deleted_while_queries_wait() -> None:
    world = World()
    cats, _ = world.ask("a", "b", task="cats")
    dogs, _ = world.ask("c", task="dogs")
    done = world.dispatcher.swap(lambda: FedstillPolicy(made_profile(("dogs",))))
    world.run()
    assert done.result(0) is None
    assert refused(world.outcome(cats)) == "unknown_task"
    assert isinstance(world.outcome(dogs), Response)
    assert refused(world.outcome(world.ask("d", task="cats")[0])) == "unknown_task"


def test_a_swap_takes_along_what_was_learnt_and_who_waits() -> None:
    world = World()
    world.slowdown = 3
    for _ in range(20):
        world.ask("warm", latency=10)
        world.run()
    old = world.dispatcher.policy
    waiting, _ = world.ask("a", task="dogs", latency=10)
    world.dispatcher.swap(lambda: FedstillPolicy(made_profile(("birds", "dogs"))))
    world.run()
    new = world.dispatcher.policy
    assert isinstance(old, FedstillPolicy)
    assert isinstance(new, FedstillPolicy)
    assert new is not old
    assert new.latency.scale > 2
    assert isinstance(world.outcome(waiting), Response)


def test_a_swap_that_fails_changes_nothing() -> None:
    world = World()
    number, _ = world.ask("a")
    old = world.dispatcher.policy

    def fail() -> Policy:
        raise ValueError("no such trunk")

    done = world.dispatcher.swap(fail)
    world.run()
    assert isinstance(done.exception(0), ValueError)
    assert world.dispatcher.policy is old
    assert isinstance(world.outcome(number), Response)


def test_a_drain_answers_who_is_in_and_turns_away_who_comes() -> None:
    world = World()
    early, _ = world.ask("a")
    world.dispatcher.drain()
    late, _ = world.ask("b")
    assert refused(world.outcome(late)) == "draining"
    assert not world.dispatcher.wait_until_idle(0)
    world.run()
    assert isinstance(world.outcome(early), Response)
    assert world.dispatcher.wait_until_idle(0)


def test_a_stop_leaves_nobody_without_an_answer() -> None:
    world = World()
    numbers = [world.ask(str(n))[0] for n in range(5)]
    swap = world.dispatcher.swap(lambda: FedstillPolicy(made_profile()))
    world.dispatcher.stop()
    assert [refused(world.outcome(number)) for number in numbers] == ["draining"] * 5
    assert swap.cancelled()
    assert world.dispatcher.swap(lambda: FedstillPolicy(made_profile())).cancelled()  # nobody would do it


def test_an_engine_that_fails_fails_its_batch_and_teaches_nothing() -> None:
    policy = Choosy(room=10)
    world = World(policy)
    broken, _ = world.ask("a")
    whole, _ = world.ask("b")
    world.broken = True
    world.dispatcher.step()
    world.broken = False
    world.run()
    assert refused(world.outcome(broken)) == "failed"
    assert isinstance(world.outcome(whole), Response)
    assert policy.learnt == [0, 1]


def test_a_delivery_that_fails_is_nobody_elses_trouble() -> None:
    world = World()

    def fail(outcome: Outcome) -> None:
        raise RuntimeError("this client's event loop is closed")

    world.dispatcher.submit("cats", [lambda: "a"], 1.0, 1.0, fail)
    number, _ = world.ask("b")
    world.run()
    assert isinstance(world.outcome(number), Response)


class Crashing(Choosy):
    """Raises at its first decision about a query."""

    crashed = False

    def dispatch(self, now: float) -> Decision:
        if self.waiting and not self.crashed:
            self.crashed = True
            raise ZeroDivisionError
        return super().dispatch(now)


def test_a_policy_that_fails_fails_who_waits_and_the_engine_goes_on() -> None:
    with ThreadPoolExecutor(1) as preparing:
        dispatcher = Dispatcher(
            Crashing(room=9), lambda images, *_: [Prediction(np.zeros(2, np.float32), CLASSES)], preparing
        )
        outcomes: list[Outcome] = []
        arrived = threading.Semaphore(0)

        def deliver(outcome: Outcome) -> None:
            outcomes.append(outcome)
            arrived.release()

        dispatcher.start()
        for _ in range(2):
            dispatcher.submit("cats", [lambda: "a"], 30.0, 1.0, deliver)
            assert arrived.acquire(timeout=30)
        dispatcher.stop()
    first, second = outcomes
    assert refused(first) == "failed"
    assert isinstance(second, Response)


class Waking(Choosy):
    """Lets a test wait for its decisions."""

    def __init__(self) -> None:
        super().__init__(room=0)
        self.asked = threading.Semaphore(0)

    def dispatch(self, now: float) -> Decision:
        self.asked.release()
        return super().dispatch(now)


def test_a_policy_notices_that_the_load_is_gone() -> None:
    policy = Waking()
    with ThreadPoolExecutor(1) as preparing:
        dispatcher = Dispatcher(policy, lambda *_: [], preparing)
        dispatcher.start()
        for _ in range(3):  # although nobody comes
            assert policy.asked.acquire(timeout=30)
        dispatcher.stop()


def test_idle_works_take_turns_and_one_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedstill.cloud_server.serving.server.dispatcher.QUIET_SECONDS", 0.001)
    turns: list[str] = []
    enough = threading.Event()

    def work(name: str) -> None:
        turns.append(name)
        if len(turns) >= 6:
            enough.set()
        if name == "first":
            raise OSError("a device that is away")

    with ThreadPoolExecutor(1) as preparing:
        dispatcher = Dispatcher(Choosy(room=0), lambda *_: [], preparing)
        dispatcher.when_idle(partial(work, "first"))
        dispatcher.when_idle(partial(work, "second"))
        dispatcher.start()
        assert enough.wait(30)
        dispatcher.stop()
    assert turns[:6] == ["first", "second"] * 3


def test_the_first_query_after_an_overload_is_welcome() -> None:
    world = World(waiting=1000)
    outcomes = []
    for turn in range(600):
        outcomes.append(world.ask("x", latency=0.3, utility=0.01 if turn % 3 else 1.0)[0])
        world.now += 0.0005
        if len(outcomes) % 30 == 0:
            world.dispatcher.step()
    world.run()
    assert "overload" in {one.reason for n in outcomes if isinstance(one := world.outcome(n), Rejection)}
    world.now += 5
    world.dispatcher.step()
    number, _ = world.ask("late comer", utility=0.01)
    world.run()
    assert isinstance(world.outcome(number), Response)


ACTIONS = ("ask", "ask", "ask", "step", "step", "cancel", "wait", "swap", "hold", "finish", "finish")


@pytest.mark.parametrize("name", LIVE)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_request_gets_exactly_one_answer(name: str, data: st.DataObject) -> None:
    world = World(make_policy(name, made_profile()), waiting=12)
    cancelled = set()
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(ACTIONS)):
            case "ask":
                images = data.draw(st.lists(st.sampled_from(("x", "nan", "damaged")), min_size=1, max_size=6))
                world.ask(
                    *images,
                    task=data.draw(st.sampled_from(("cats", "dogs", "birds"))),
                    latency=data.draw(st.sampled_from((0.0, 0.005, 0.05, 0.5, 5.0))),
                    utility=data.draw(st.sampled_from((0.0, 0.01, 1.0))),
                )
            case "step":
                world.dispatcher.step()
            case "cancel" if world.requests:
                number = data.draw(st.sampled_from(sorted(world.requests)))
                cancelled |= {number} if not world.outcomes[number] else set()
                world.dispatcher.cancel(world.requests[number])
            case "wait":
                world.now += data.draw(st.sampled_from((0.001, 0.05, 1.0)))
            case "hold":
                world.preparing.holding = not world.preparing.holding
            case "finish":
                world.preparing.finish(2)
            case "swap":
                tasks = data.draw(st.sampled_from((("cats", "dogs"), ("birds",), ("dogs", "birds"))))
                world.dispatcher.swap(lambda tasks=tasks: make_policy(name, made_profile(tasks)))
    world.dispatcher.drain()
    world.preparing.finish(1000)
    world.run()
    assert world.dispatcher.wait_until_idle(0)
    assert world.dispatcher.policy.queued() == 0
    for number, outcomes in world.outcomes.items():
        assert len(outcomes) == (0 if number in cancelled else 1), outcomes
    counted = world.watcher
    assert counted.offers == counted.answers + sum(counted.drops.values())


def test_many_threads_ask_and_leave() -> None:
    profile = made_profile()
    with ThreadPoolExecutor(2) as preparing:
        dispatcher = Dispatcher(
            FedstillPolicy(profile),
            lambda images, *_: [Prediction(np.zeros(2, np.float32), CLASSES) for _ in images],
            preparing,
        )
        dispatcher.start()
        counts = [0] * 400
        gone = set()

        def client(start: int) -> None:
            for number in range(start, start + 100):

                def deliver(outcome: Outcome, number: int = number) -> None:
                    counts[number] += 1

                ticket = dispatcher.submit("dogs", [lambda: "a", lambda: "b"], 20.0, 1.0, deliver)
                if number % 7 == 0:
                    dispatcher.cancel(ticket)
                    gone.add(number)

        threads = [threading.Thread(target=client, args=(100 * part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        dispatcher.drain()
        assert dispatcher.wait_until_idle(60)
        dispatcher.stop()
    assert all(count == 1 for number, count in enumerate(counts) if number not in gone)
    assert all(counts[number] <= 1 for number in gone)


def test_a_task_that_is_never_right_breaks_nothing() -> None:
    profile = made_profile()
    never = replace(profile, schedules=tuple(replace(one, accuracy=(0.9, 0.0)) for one in profile.schedules))
    world = World(FedstillPolicy(never))
    good, _ = world.ask("a", task="cats")
    expired, _ = world.ask("b", task="dogs", latency=0.2)
    world.run()
    assert isinstance(world.outcome(good), Response)
    assert not isinstance(outcome := world.outcome(expired), Rejection) or outcome.reason != "failed"
