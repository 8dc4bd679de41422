"""Which queries a front sends to its replicas: as many as are answered in time, the most useful first; and it always
learns again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.serving.replicas import admission as admission_module
from fedstill.cloud_server.serving.replicas.admission import (
    MOST_WAITING,
    PATIENCE,
    WELL,
    Admission,
    Passage,
)
from fedstill.cloud_server.serving.replicas.concurrency_limit import DECREASE, START, ConcurrencyLimit
from fedstill.cloud_server.serving.replicas.way_time import LARGEST_SHARE, WayTime

OBJECTIVE = 0.6


@pytest.fixture(autouse=True)
def _busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who waits is refused because the machine had no time for the test."""
    monkeypatch.setattr(admission_module, "LONGEST_WAIT", 60.0)


def test_nobody_waits_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        admission = Admission(lambda: 1)
        await filled(admission)
        monkeypatch.setattr(admission_module, "LONGEST_WAIT", 0.05)
        assert await asyncio.wait_for(admission.enter(9.0, 1, 3600.0), 20) is None

    run(test())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


async def entered(admission: Admission, worth: float = 1.0, images: int = 1) -> Passage:
    passage = await admission.enter(worth, images, OBJECTIVE)
    assert passage is not None
    return passage


async def filled(admission: Admission) -> list[Passage]:
    return [await entered(admission) for _ in range(int(admission.limit))]


def test_what_finds_no_room_waits_for_a_share_of_its_time_and_is_refused() -> None:
    async def test() -> None:
        admission = Admission(lambda: 1)
        passages = await filled(admission)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await admission.enter(9.0, 1, OBJECTIVE) is None
        assert pytest.approx(loop.time() - began, abs=0.05) == PATIENCE * OBJECTIVE
        admission.leave(passages.pop(), "other")
        await entered(admission)  # who has given up holds no place

    run(test())


def test_the_most_useful_goes_next_and_of_equal_ones_the_latest() -> None:
    async def test() -> None:
        admission = Admission(lambda: 1)
        passages = await filled(admission)
        order: list[str] = []

        async def come(name: str, worth: float) -> None:
            await admission.enter(worth, 1, 100.0)
            order.append(name)

        async with asyncio.TaskGroup() as group:
            for name, worth in (("first", 1.0), ("useful", 2.0), ("second", 1.0), ("least", 0.5)):
                group.create_task(come(name, worth))
                await asyncio.sleep(0)
            for passage in passages[:4]:
                admission.leave(passage, "other")
                await asyncio.sleep(0.001)
        assert order == ["useful", "second", "first", "least"]

    run(test())


def test_a_client_that_leaves_gives_its_place_back() -> None:
    async def test() -> None:
        admission = Admission(lambda: 1)
        passages = await filled(admission)
        waiting = asyncio.create_task(admission.enter(1.0, 1, 100.0))
        late = asyncio.create_task(admission.enter(1.0, 1, 100.0))
        await asyncio.sleep(0.001)
        waiting.cancel()
        admission.leave(passages.pop(), "other")
        late.cancel()  # has got its place, and does not know yet
        await asyncio.wait((waiting, late))
        await entered(admission)

    run(test())


def test_a_request_larger_than_the_limit_enters_beside_a_few_small_ones() -> None:
    async def test() -> None:
        admission = Admission(lambda: 1)
        small = [await entered(admission) for _ in range(int(START) // 2 + 1)]
        assert await admission.enter(1.0, 64, OBJECTIVE) is None
        admission.leave(small.pop(), "other")
        large = await entered(admission, images=64)
        assert await admission.enter(1.0, 1, OBJECTIVE) is None
        admission.leave(large, "other")
        await entered(admission)

    run(test())


def test_the_limit_grows_by_the_images_that_are_answered() -> None:
    single, many = ConcurrencyLimit(), ConcurrencyLimit()
    for _ in range(64):
        single.good(1, 1e9, 2)
    for _ in range(4):
        many.good(16, 1e9, 2)
    assert many.images(2) == pytest.approx(single.images(2), rel=0.05)


def test_deadlines_that_nobody_meets_say_nothing_however_many_there_are() -> None:
    async def test() -> None:
        clock = Clock()
        admission = Admission(lambda: 1, clock)
        for turn in range(400):
            hopeless = turn % 4 > 0 and turn > 3
            passage = await admission.enter(1.0, 1, 0.05 if hopeless else OBJECTIVE)
            assert passage is not None
            clock.now += 0.005 if hopeless else 0.2
            admission.leave(passage, "no_time" if hopeless else "answered")
        assert admission.limit == START

    run(test())


def test_what_was_possible_once_does_not_count_for_ever() -> None:
    """Answers that were well in time for the deadlines of before would make every later query hopeless."""

    async def test() -> None:
        clock = Clock()
        admission = Admission(lambda: 1, clock)
        for _ in range(200):
            passage = await admission.enter(1.0, 1, 60.0, "cats")
            assert passage is not None
            clock.now += 0.52
            admission.leave(passage, "answered")
        for _ in range(200):
            passage = await admission.enter(1.0, 1, OBJECTIVE, "cats")
            assert passage is not None
            clock.now += 2 * OBJECTIVE
            admission.leave(passage, "answered")
        assert admission.limit < START / 2

    run(test())


def test_a_task_that_cannot_be_in_time_does_not_take_the_places_of_another() -> None:
    async def test() -> None:
        clock = Clock()
        admission = Admission(lambda: 1, clock)
        for turn in range(400):
            heavy = turn % 3 == 2
            passage = await admission.enter(1.0, 1, OBJECTIVE, "heavy" if heavy else "light")
            assert passage is not None
            clock.now += 0.005 if heavy else 0.2
            admission.leave(passage, "no_time" if heavy else "answered")
        assert admission.limit == START

    run(test())


def test_shorter_deadlines_than_before_become_the_usual_ones() -> None:
    async def test() -> None:
        clock = Clock()
        admission = Admission(lambda: 1, clock)
        for _ in range(200):
            passage = await admission.enter(1.0, 1, 60.0)
            assert passage is not None
            clock.now += 0.1
            admission.leave(passage, "answered")
        for _ in range(200):
            passage = await entered(admission)
            clock.now += 2 * OBJECTIVE
            admission.leave(passage, "answered")
        assert admission.limit < START / 2

    run(test())


def test_a_replica_has_what_is_left_less_the_way_and_some_to_spare() -> None:
    async def test() -> None:
        clock = Clock()
        admission = Admission(lambda: 1, clock)
        first = await entered(admission)
        assert first.elapsed == pytest.approx((1 - WELL) * OBJECTIVE)
        clock.now += 0.25
        admission.leave(first, "answered", 0.2)
        second = await entered(admission)
        assert second.elapsed == pytest.approx((1 - WELL) * OBJECTIVE + 0.05 + 2 * 0.025)

    run(test())


def test_too_many_that_wait_are_refused_from_the_least_useful_on() -> None:
    async def test() -> None:
        admission = Admission(lambda: 1)
        await filled(admission)
        least = asyncio.create_task(admission.enter(0.5, 1, 100.0))
        others = [asyncio.create_task(admission.enter(1.0, 1, 100.0)) for _ in range(MOST_WAITING)]
        assert await asyncio.wait_for(least, 5) is None
        assert not any(one.done() for one in others)
        admission.close()
        assert await asyncio.gather(*others) == [None] * MOST_WAITING

    run(test())


def test_late_answers_lower_the_limit_once_for_all_that_were_sent_before() -> None:
    async def test() -> None:
        clock = Clock()
        admission = Admission(lambda: 2, clock)
        passages = await filled(admission)
        assert len(passages) == 2 * START
        clock.now = 1.1 * OBJECTIVE
        for passage in passages:
            admission.leave(passage, "answered")
        assert admission.limit == pytest.approx(2 * START * DECREASE)
        passage = await entered(admission)
        admission.leave(passage, "no_time")
        assert admission.limit == pytest.approx(2 * START * DECREASE**2)
        passage = await entered(admission)
        clock.now += 99.0
        admission.leave(passage, "other")  # an unknown task, a lost replica: nothing to do with room
        assert admission.limit == pytest.approx(2 * START * DECREASE**2)

    run(test())


def test_a_front_whose_every_answer_is_late_asks_less_and_less() -> None:
    async def test() -> None:
        clock = Clock()
        admission = Admission(lambda: 1, clock)
        for _ in range(50):
            passage = await entered(admission)
            clock.now += 2 * OBJECTIVE
            admission.leave(passage, "answered")
        assert admission.limit == 1.0

    run(test())


def test_a_few_hopeless_deadlines_do_not_lower_the_limit() -> None:
    async def test() -> None:
        clock = Clock()
        admission = Admission(lambda: 1, clock)
        for round_of in range(200):
            hopeless = round_of % 5 == 4
            passage = await admission.enter(1.0, 1, 0.001 if hopeless else OBJECTIVE)
            assert passage is not None
            clock.now += 0.05
            admission.leave(passage, "no_time" if round_of % 2 and hopeless else "answered")
        assert admission.limit >= START

    run(test())


def test_a_limit_that_nobody_reaches_does_not_grow() -> None:
    limit = ConcurrencyLimit()
    for _ in range(1000):
        limit.good(1, 1, 2)
    assert limit.images(2) == 2 * START
    for _ in range(1000):
        limit.good(1, limit.images(2), 2)
    assert 2 * START + 10 < limit.images(2) < 2 * START + 100


PAST = st.lists(
    st.tuples(st.sampled_from(("good", "bad")), st.floats(0, 100), st.floats(0, 1e6)), max_size=200
)


@given(PAST, st.integers(0, 8))
def test_from_any_past_the_limit_grows_again_as_fast_as_answers_come(
    past: list[tuple[str, float, float]], replicas: int
) -> None:
    limit, now = ConcurrencyLimit(), 0.0
    for kind, seconds, used in past:
        now += seconds
        if kind == "good":
            limit.good(1, used, replicas)
        else:
            limit.bad(now - seconds, now)
    places = max(1, replicas)
    assert limit.images(replicas) >= places  # an idle front always sends
    turns = 0
    while limit.images(replicas) < START * places:
        for _ in range(int(limit.images(replicas))):
            limit.good(1, limit.images(replicas), replicas)
        turns += 1
    assert turns <= 1.5 * START  # each turn is as long as an answer takes


@given(st.lists(st.floats(0, 1e6), max_size=100), st.floats(0.001, 0.5))
def test_from_any_past_the_way_is_known_again_after_some_answers(past: list[float], true: float) -> None:
    way = WayTime()
    for seconds in past:
        way.hear(seconds)
    assert way.allowance(OBJECTIVE) <= LARGEST_SHARE * OBJECTIVE  # a replica can always answer some
    for _ in range(250):
        way.hear(true)
    assert way.allowance(1e9) == pytest.approx(true, rel=0.1)


def test_the_way_counts_as_its_mean_and_its_deviation() -> None:
    way = WayTime()
    assert way.allowance(1.0) == 0.0
    for turn in range(400):
        way.hear(0.1 if turn % 2 else 0.2)
    assert 0.2 < way.allowance(1.0) < 0.3
    assert way.allowance(0.1) == 0.05
    assert way.allowance(-1.0) == 0.0
