"""Which trunks are in memory: whatever is asked in whatever order, all stay within the budget and none is forgotten."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.serving.server.residency import (
    FIRST_PAUSE,
    LEAST_STAY,
    MARGIN,
    QUIET,
    STAY_LOADS,
    Footprint,
    NotYet,
    Residency,
    Step,
)

WITHOUT_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]
SERVICE, UNLOAD = 0.02, 0.1
"""Seconds of an answer, and of giving memory back."""


@dataclass(frozen=True)
class Asked:
    at: float
    trunk: str
    patience: float


@dataclass
class World:
    """A loader and an engine in virtual time. An engine answers every query on its own, or later if it is slow."""

    budget: int
    trunks: dict[str, Footprint]
    loaded: Sequence[str] = ()
    slow: float = SERVICE
    broken: set[str] = field(default_factory=set)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.residency = Residency(self.budget, self.trunks, self.loaded)
        self.outcomes: dict[int, tuple[str, float]] = {}  # and when
        self.steps: list[tuple[float, Step]] = []
        self._events: list[tuple[float, int, object]] = []
        self._doing: set[str] = set()
        self._number, self._next_wake = 0, -math.inf

    def at(self, moment: float, event: object) -> None:
        heapq.heappush(self._events, (moment, self._number, event))
        self._number += 1

    def run(self, asked: Sequence[Asked]) -> None:
        """Until everybody has an outcome and nothing more happens."""
        self.asked = asked
        for number, one in enumerate(asked):
            self.at(one.at, number)
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            self._take(event)
            self._decide()
            assert self.residency.bytes <= self.budget

    def _take(self, event: object) -> None:
        residency = self.residency
        if isinstance(event, int):
            one = self.asked[event]
            verdict = residency.arrive(one.trunk, event, self.now, self.now + one.patience)
            if verdict == "in":
                assert one.trunk in residency.loaded
                self.at(self.now + self.slow, ("answered", event))
            elif isinstance(verdict, NotYet):
                assert verdict.seconds > 0
                self._end(event, "refused")
        elif isinstance(event, Step):
            self._doing.discard(event.trunk)
            if event.kind == "unload":
                residency.has_unloaded(event.trunk, self.now)
            elif event.trunk in self.broken:
                for ticket in residency.has_failed(event.trunk, self.now):
                    self._end(ticket, "failed")
            else:
                for ticket in residency.has_loaded(event.trunk, self.now, self.trunks[event.trunk]):
                    self.at(self.now + self.slow, ("answered", ticket))
        elif isinstance(event, tuple):
            residency.ended(event[1], self.now)
            self._end(event[1], "answered")

    def _decide(self) -> None:
        for ticket in self.residency.expired(self.now):
            self._end(ticket, "expired")
        step = self.residency.next_step(self.now)
        if step is not None:
            assert not self._doing, "one at a time"
            self._doing.add(step.trunk)
            self.steps.append((self.now, step))
            seconds = self.trunks[step.trunk].seconds if step.kind == "load" else UNLOAD
            self.at(self.now + seconds, step)
        wake = self.residency.wake_at(self.now)
        if step is None and wake < math.inf and not self.now < self._next_wake <= wake:
            self._next_wake = max(wake, self.now + 1e-6)
            self.at(self._next_wake, "wake")

    def _end(self, ticket: object, outcome: str) -> None:
        assert isinstance(ticket, int)
        assert ticket not in self.outcomes, "one outcome"
        self.outcomes[ticket] = (outcome, self.now)

    def loads(self, trunk: str) -> list[float]:
        return [at for at, step in self.steps if step == Step("load", trunk)]


NAMES = ("a", "b", "c", "d")
WORLDS = st.builds(
    lambda sizes, seconds, spare: World(
        max(sizes) + spare, {n: Footprint(*two) for n, two in zip(NAMES, zip(sizes, seconds, strict=True), strict=True)}
    ),
    st.lists(st.integers(1, 100), min_size=4, max_size=4),
    st.lists(st.floats(0.1, 8.0), min_size=4, max_size=4),
    st.integers(0, 150),
)  # fmt: skip
QUERIES = st.lists(
    st.builds(Asked, st.floats(0, 60), st.sampled_from(NAMES), st.one_of(st.floats(0.05, 5), st.floats(5, 200))),
    min_size=1,
    max_size=60,
)  # fmt: skip


def longest_wait(world: World, trunks: int, patience: float) -> float:
    """Seconds after which a trunk that is asked for is in: for itself and each before it, stays, answers, loading."""
    load = max(one.seconds for one in world.trunks.values())
    stay = max(LEAST_STAY, STAY_LOADS * load)
    return (trunks + 1) * (stay + max(world.slow, patience) + load + trunks * UNLOAD + QUIET)


@settings(deadline=None, phases=WITHOUT_SHRINKING)
@given(WORLDS, QUERIES, st.sampled_from([SERVICE, 0.5, 7.0]))
def test_every_query_has_one_outcome_and_no_trunk_starves(
    world: World, asked: list[Asked], slow: float
) -> None:
    world.slow = slow
    world.run(asked)
    assert set(world.outcomes) == set(range(len(asked)))
    for number, one in enumerate(asked):
        outcome, moment = world.outcomes[number]
        assert outcome in ("answered", "refused", "expired")
        assert moment <= one.at + one.patience + slow + 1e-3, "nobody waits beyond the deadline"
        if one.patience > MARGIN * longest_wait(world, 4, slow):
            assert outcome == "answered", "who can wait long enough is answered, whatever others ask"
        if outcome == "refused":
            assert any(one.at - 60 < at for at in world.loads(one.trunk)), "a refusal loads it, too"


@settings(max_examples=30, deadline=None, phases=WITHOUT_SHRINKING)
@given(WORLDS, st.floats(0.05, 2.0), st.lists(st.floats(0.1, 3.0), min_size=2, max_size=2))
def test_two_that_alternate_do_not_starve_each_other(
    world: World, patience: float, pauses: list[float]
) -> None:
    """Nobody waits for long; those who are refused ask again, for three minutes. Both trunks are answered again and
    again, and loading takes no more than a fair share of the time."""
    asked = sorted(
        (Asked(place * pause, name, patience) for name, pause in zip("ab", pauses, strict=True)
         for place in range(int(180 / pause))),
        key=lambda one: one.at,
    )  # fmt: skip
    world.run(asked)
    turn = longest_wait(world, 2, patience) + max(pauses)
    for name in "ab":
        moments = [
            world.outcomes[number][1]
            for number, one in enumerate(asked)
            if one.trunk == name and world.outcomes[number][0] == "answered"
        ]
        gaps = [later - sooner for sooner, later in zip([0.0, *moments], [*moments, 180.0], strict=True)]
        assert max(gaps) <= 2 * turn
    # Each loading is followed by a stay, or by an answer and a while without a question.
    loads = sorted((at, step.trunk) for at, step in world.steps if step.kind == "load")
    for name in "ab":
        own = [at for at, trunk in loads if trunk == name]
        for sooner, later in pairwise(own):
            assert later - sooner >= world.trunks[name].seconds + QUIET


def pair(budget: int = 10, seconds: float = 2.0, **more: float) -> World:
    return World(budget, {"a": Footprint(6, seconds), "b": Footprint(6, seconds)}, loaded=["a"], **more)  # type: ignore[arg-type]


def test_a_query_waits_if_its_deadline_allows_and_else_is_refused_with_a_hint() -> None:
    world = pair()
    residency = world.residency
    assert residency.arrive("b", 0, 0.0, 1.0) == NotYet(2.0)
    assert residency.next_step(0.0) == Step("unload", "a")
    assert residency.next_step(0.0) is None
    residency.has_unloaded("a", 0.1)
    assert residency.next_step(0.1) == Step("load", "b")
    assert residency.arrive("b", 1, 1.1, 1.5) == NotYet(pytest.approx(1.0))
    assert residency.arrive("b", 2, 1.1, 9.0) == "wait"
    assert residency.has_loaded("b", 2.1, Footprint(6, 2.0)) == [2]
    assert residency.arrive("b", 3, 2.2, 2.3) == "in"


def test_the_least_recently_used_goes_first_and_only_as_many_as_needed() -> None:
    trunks = {name: Footprint(4, 1.0) for name in "abc"}
    world = World(8, trunks, loaded=["a", "b"])
    world.run([Asked(0.0, "b", 9.0), Asked(1.0, "a", 9.0), Asked(2.0, "c", 9.0)])
    assert [step for _, step in world.steps] == [Step("unload", "b"), Step("load", "c")]


def test_a_busy_trunk_ends_its_stay_and_answers_what_it_let_in() -> None:
    """Queries of ``a`` come without a pause; ``b`` gets its turn when the stay is over, and then ``a`` again."""
    world = pair(seconds=1.0, slow=0.3)
    stream = [Asked(place / 10, "a", 60.0) for place in range(300)]
    world.run(sorted([Asked(0.05, "b", 60.0), *stream], key=lambda one: one.at))
    assert {outcome for outcome, _ in world.outcomes.values()} == {"answered"}
    assert [step for _, step in world.steps] == [
        Step("unload", "a"), Step("load", "b"), Step("unload", "b"), Step("load", "a"),
    ]  # fmt: skip


def test_a_trunk_that_was_loaded_for_refused_queries_is_there_when_they_come_again() -> None:
    world = pair(seconds=3.0)
    hint = 3.0
    world.run([Asked(0.0, "b", 0.4), Asked(0.5, "a", 0.4), Asked(hint + 2.0, "b", 0.4)])
    assert [world.outcomes[number][0] for number in range(3)] == ["refused", "refused", "answered"]


def test_one_that_cannot_be_loaded_is_tried_again_later_and_holds_up_nobody() -> None:
    world = pair()
    world.broken = {"b"}
    world.run([Asked(0.0, "b", 60.0), Asked(3.0, "b", 60.0), Asked(4.0, "a", 60.0), Asked(60.0, "b", 60.0)])
    assert [world.outcomes[number][0] for number in range(4)] == ["failed", "refused", "answered", "failed"]
    assert len(world.loads("b")) == 2
    assert world.residency.failed("b")
    assert FIRST_PAUSE > 3.0 - 2.0


def test_one_that_grew_makes_others_go() -> None:
    trunks = {name: Footprint(4, 1.0) for name in "ab"}
    residency = Residency(8, trunks, ["a"])
    residency.arrive("b", 0, 0.0, 60.0)
    assert residency.next_step(0.0) == Step("load", "b")
    assert residency.has_loaded("b", 1.0, Footprint(7, 1.0)) == [0]
    assert residency.next_step(1.0) == Step("unload", "a")
    residency.has_unloaded("a", 1.1)
    assert (residency.loaded, residency.bytes) == (("b",), 7)
    residency.has_loaded("b", 2.0, Footprint(70, 1.0))
    assert residency.bytes == 8, "alone it is still served"


def test_who_leaves_is_forgotten() -> None:
    residency = pair().residency
    assert residency.arrive("a", 0, 0.0, 9.0) == "in"
    assert residency.arrive("b", 1, 0.0, 9.0) == "wait"
    residency.ended(1, 0.1)
    residency.ended(0, 0.2)
    residency.ended(0, 0.2)
    assert residency.next_step(1.0) == Step("unload", "a")
    residency.has_unloaded("a", 1.0)
    residency.next_step(1.0)
    assert residency.has_loaded("b", 3.0, Footprint(6, 2.0)) == []
    residency.arrive("a", 2, 3.0, 90.0)
    assert residency.give_up() == [2]
