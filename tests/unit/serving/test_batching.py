"""Algorithm 1: each threshold, and queries that leave a batch one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.queries import made_profile, made_query
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.serving.policies.batching import BatchingSettings, FormingBatch, add_query
from fedstill.cloud_server.serving.scheduling.queries import Query

SETTINGS = BatchingSettings(arrival_window=0.5, largest_batch=3, deadline_spread=0.5, utility_spread=0.3)
FAST = made_profile().fastest


def batches_of(*queries: Query) -> list[list[int]]:
    """Identifiers per batch after the queries arrived in order."""
    batches: list[FormingBatch] = []
    for query in queries:
        add_query(batches, query, query.arrival, FAST, SETTINGS)
    return [[query.identifier for query in batch.queries] for batch in batches]


FIRST = made_query(0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("second", "together"),
    [
        (made_query(1, 0.5, 1.0, 1.0), True),
        (made_query(1, 0.51, 0.6, 1.0), False),  # after the arrival window
        (made_query(1, 0.1, 1.4, 1.0), True),  # deadline 0.5 later
        (made_query(1, 0.1, 1.41, 1.0), False),
        (made_query(1, 0.1, 1.0, 0.71), True),
        (made_query(1, 0.1, 1.0, 0.69), False),  # utility too far away
        (made_query(1, 0.97, 0.5, 1.0), False),  # would make the first late
    ],
)
def test_one_threshold_at_a_time(second: Query, together: bool) -> None:
    assert batches_of(FIRST, second) == ([[0, 1]] if together else [[0], [1]])


def test_a_full_batch_is_passed_over_for_an_older_open_one() -> None:
    """Newest first: 3 fills the batch that holds 1; 4 finds that one full and goes to the older batch of 0."""
    cheap = [made_query(n, 0.01 * n, 1.0, 0.1) for n in (1, 2, 3)]
    late = made_query(4, 0.05, 1.0, 0.35)
    assert batches_of(replace(FIRST, utility=0.5), *cheap, late) == [[0, 4], [1, 2, 3]]


def test_a_batch_that_could_not_finish_larger_does_not_grow() -> None:
    """Two queries need 30 ms at the fastest schedule; the first has 25 ms left."""
    first, second = made_query(0, 0.0, 0.1), made_query(1, 0.075, 0.4)
    assert batches_of(first, second) == [[0], [1]]


def test_queries_leave_one_by_one() -> None:
    batch = FormingBatch.of(made_query(0, latency=0.001))
    for identifier, latency in ((1, 0.025), (2, 0.5), (3, 0.6)):
        batch.add(made_query(identifier, latency=latency))
    gone = batch.drop_hopeless(0.0, FAST)
    assert [query.identifier for query in gone] == [0, 1]
    assert [query.identifier for query in batch.queries] == [2, 3]
    assert batch.deadline == 0.5


@given(latencies=st.lists(st.floats(0.0, 0.3), min_size=1, max_size=12), now=st.floats(0.0, 0.3))
def test_what_stays_can_finish_and_one_more_could_not(latencies: list[float], now: float) -> None:
    batch = FormingBatch.of(made_query(0, latency=latencies[0]))
    for identifier, latency in enumerate(latencies[1:], start=1):
        batch.add(made_query(identifier, latency=latency))
    gone = batch.drop_hopeless(now, FAST)
    assert len(gone) + len(batch.queries) == len(latencies)
    if batch.queries:
        assert now + FAST.seconds(len(batch.queries)) < min(query.deadline for query in batch.queries)
    if gone:
        last = max(query.deadline for query in gone)
        assert now + FAST.seconds(len(batch.queries) + 1) >= last
