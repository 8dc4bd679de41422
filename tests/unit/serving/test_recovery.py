"""Whatever the tier has met: once its engine is well again, queries are answered again."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from helpers.queries import made_profile, made_query
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.serving.policies.fedstill import FIRST_PAUSE, LONGEST_PAUSE, FedstillPolicy

ALONE = 0.02
"""Seconds of one query at the fast schedule of the made-up profile."""
PAST = st.lists(
    st.tuples(
        st.floats(1e-4, 1e3),  # seconds that the batch took
        st.integers(1, 8),  # its queries
        st.floats(0.0, 2.0),  # seconds until the next ones
        st.floats(0.01, 2.0),  # their latency objective
    ),
    max_size=40,
)

WITHOUT_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]
"""A flood takes half a second; to shrink one that fails would take hundreds."""


class Engine:
    """Runs what the policy dispatches, ``slower`` times as long as the profile says."""

    def __init__(self, policy: FedstillPolicy) -> None:
        self.policy, self.now, self.slower, self.number = policy, 0.0, 1.0, 0

    def ask(self, objective: float, queries: int = 1, took: float | None = None) -> int:
        """Queries that arrive now; how many are answered in time."""
        for _ in range(queries):
            self.policy.arrive(made_query(self.number, self.now, objective), self.now)
            self.number += 1
        return self.run(took)

    def request(self, objective: float, images: int) -> bool:
        """A request of several images, all of which are accepted or none; whether all are answered in time."""
        queries = [made_query(self.number + place, self.now, objective) for place in range(images)]
        self.number += images
        if any(self.policy.admit(query, self.now) is not None for query in queries):
            return False
        for query in queries:
            self.policy.enqueue(query, self.now)
        return self.run() == images

    def run(self, took: float | None = None) -> int:
        """What waits; how many are answered in time."""
        in_time = 0
        while (batch := self.policy.dispatch(self.now).batch) is not None:
            seconds = batch.schedule.seconds(len(batch.queries)) * self.slower if took is None else took
            self.now += seconds
            in_time += sum(self.now <= query.deadline for query in batch.queries)
            self.policy.completed(batch, self.now, seconds)
        return in_time

    def flooded(self, seconds: float, rate: float, objective: float) -> tuple[int, int]:
        """Queries that arrive evenly, also while a batch runs: how many are answered in time, and how many late."""
        arrivals = iter(np.arange(self.now, self.now + seconds, 1 / rate).tolist())
        coming = next(arrivals, math.inf)
        in_time = late = 0
        while coming < math.inf or self.policy.queued():
            batch = self.policy.dispatch(self.now).batch
            if batch is not None:
                until = self.now + batch.schedule.seconds(len(batch.queries))
            else:
                until = min(coming, self.now + 0.01) if self.policy.queued() else coming
            if until == math.inf:  # the last ones were evicted
                break
            while coming <= until:
                self.policy.arrive(made_query(self.number, coming, objective), coming)
                self.number += 1
                coming = next(arrivals, math.inf)
            seconds, self.now = until - self.now, until
            if batch is None:
                continue
            met = sum(until <= query.deadline for query in batch.queries)
            in_time, late = in_time + met, late + len(batch.queries) - met
            self.policy.completed(batch, until, seconds)
        return in_time, late

    def answered(self, seconds: float, objective: float, every: float = 0.25) -> float:
        """The part of the queries of the next ``seconds`` that is answered in time."""
        asked = in_time = 0
        end = self.now + seconds
        while self.now < end:
            asked, in_time = asked + 1, in_time + self.ask(objective)
            self.now += every
        return in_time / asked


@pytest.mark.parametrize("stall", [0.5, 1, 2, 3, 5, 10, 1000])
@pytest.mark.parametrize("later", [0.01, 1, 60, 3600, 86_400])
def test_one_slow_batch_does_not_lock_it_out(stall: float, later: float) -> None:
    engine = Engine(FedstillPolicy(made_profile()))
    engine.ask(0.3, took=stall)
    engine.now += later
    assert engine.ask(0.3) == 1


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(PAST)
def test_it_recovers_from_any_past(past: list[tuple[float, int, float, float]]) -> None:
    engine = Engine(FedstillPolicy(made_profile()))
    for seconds, queries, pause, objective in past:
        engine.ask(objective, queries, took=seconds)
        engine.now += pause
    engine.now += LONGEST_PAUSE
    engine.answered(120, 8 * ALONE)
    assert engine.answered(20, 8 * ALONE) > 0.95


@settings(max_examples=15, deadline=None, phases=WITHOUT_SHRINKING)
@given(PAST, st.sampled_from([0.25, 0.6, 2.0]))
@example(
    [(1e-4, 1, 1.0, 1.0)], 0.25
)  # a time of nearly nothing once outweighed all others in its schedule's line
def test_it_recovers_from_any_past_under_a_flood(
    past: list[tuple[float, int, float, float]], objective: float
) -> None:
    """More than it can do, also at once after the longest pause: within 30 s it does again what it can do."""
    engine = Engine(FedstillPolicy(made_profile()))
    for seconds, queries, pause, short in past:
        engine.ask(short, queries, took=seconds)
        engine.now += pause
    capacity = engine.policy.profile.fastest.throughput
    engine.now += LONGEST_PAUSE
    engine.flooded(30, 1.5 * capacity, objective)
    in_time, late = engine.flooded(5, 5 * capacity, objective)
    assert in_time > 0.85 * 5 * capacity
    assert late <= 0.01 * (in_time + late)


@pytest.mark.parametrize("slower", [0.02, 0.2, 1.0, 3.0])
def test_it_recovers_from_a_profile_of_a_busy_machine(slower: float) -> None:
    """The objective is below what the profile promises, and above what is true."""
    engine = Engine(FedstillPolicy(made_profile()))
    engine.slower = slower
    objective = 2.5 * slower * ALONE
    engine.answered(60, objective)
    assert engine.answered(20, objective) > 0.95


@pytest.mark.parametrize("images", [2, 4, 8])
@pytest.mark.parametrize("slower", [0.02, 0.2, 1.0, 3.0])
def test_requests_of_several_images_recover_from_it_too(slower: float, images: int) -> None:
    policy = FedstillPolicy(made_profile())
    engine = Engine(policy)
    engine.slower = slower
    objective = 2.5 * slower * policy.profile.fastest.seconds(images)
    in_time = []
    for _ in range(300):
        in_time.append(engine.request(objective, images))
        engine.now += 0.25
    assert sum(in_time[-50:]) > 45


def test_what_can_never_be_answered_in_time_is_tried_ever_less_often() -> None:
    engine = Engine(FedstillPolicy(made_profile()))
    engine.slower, tried = 50.0, []
    for _ in range(2000):
        engine.policy.arrive(made_query(engine.number, engine.now, 0.3), engine.now)
        engine.number += 1
        if (batch := engine.policy.dispatch(engine.now).batch) is not None:
            tried.append(engine.now)
            engine.now += batch.schedule.seconds(1) * engine.slower
            engine.policy.completed(batch, engine.now, batch.schedule.seconds(1) * engine.slower)
        engine.now += 0.25
    gaps = [later - earlier for earlier, later in pairwise(tried)]
    assert LONGEST_PAUSE <= gaps[-1] < 2 * LONGEST_PAUSE
    assert min(gaps) >= min(FIRST_PAUSE, ALONE)
    assert len(tried) < 40


@pytest.mark.parametrize("price", [1.0, math.inf])
def test_a_price_does_not_outlive_the_queue(price: float) -> None:
    engine = Engine(FedstillPolicy(made_profile()))
    engine.policy.price = price
    assert engine.ask(0.3) == 1
