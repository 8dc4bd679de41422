"""Rate limits: a token gets its rate, and never more than rate * time + burst in any time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.serving.callers.rate_limits import EVERY_OTHER, Rate, RateLimits, parse_rates
from fedstill.common.errors import ConfigError

STARTS = st.sampled_from([0.0, 12.3, 1e6])
"""Of a clock: large values have coarse steps."""
RATES = st.floats(0.01, 1000.0)
BURSTS = st.floats(1.0, 50.0)
SLACK = 1e-5
"""Of a query, for rounding."""


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@given(
    rate=RATES, burst=BURSTS, start=STARTS,
    asked=st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(1, 20)), min_size=1, max_size=60),
)  # fmt: skip
def test_in_no_time_are_more_taken_than_the_rate_times_it_and_the_burst(
    rate: float, burst: float, start: float, asked: list[tuple[float, int]]
) -> None:
    clock = Clock(start)
    limits = RateLimits({"shop": Rate(rate, burst)}, clock=clock)
    taken: list[tuple[float, int]] = []
    for pause, queries in asked:
        clock.now += pause / rate
        if limits.take("shop", queries) == 0:
            taken.append((clock.now, queries))
    for first in range(len(taken)):
        total = 0
        for moment, queries in taken[first:]:
            total += queries
            assert total <= rate * (moment - taken[first][0]) + burst + SLACK


@given(rate=RATES, burst=BURSTS, start=STARTS, late=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60))
def test_who_keeps_to_the_rate_is_never_refused(
    rate: float, burst: float, start: float, late: list[float]
) -> None:
    clock = Clock(start)
    limits = RateLimits({"shop": Rate(rate, burst)}, clock=clock)
    for pause in (0.0, *late):  # each at least 1 / rate after the one before
        clock.now += (1.0 + pause) / rate
        assert limits.take("shop", 1) == 0


@given(rate=RATES, burst=BURSTS, start=STARTS, asked=st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_who_waits_as_told_is_taken_so_the_whole_rate_can_be_had(
    rate: float, burst: float, start: float, asked: list[int]
) -> None:
    clock = Clock(start)
    limits = RateLimits({"shop": Rate(rate, burst)}, clock=clock)
    total = 0
    for queries in asked:
        seconds = limits.take("shop", queries)
        if queries > burst + SLACK:
            assert math.isinf(seconds)
            continue
        if seconds > 0:
            clock.now += seconds
            assert limits.take("shop", queries) == 0
        total += queries
    assert total >= rate * (clock.now - start) - SLACK  # nobody waited longer than necessary


def test_each_node_has_its_own_and_without_a_token_there_is_none() -> None:
    clock = Clock()
    counted: list[tuple[str, int, bool]] = []
    count = lambda *what: counted.append(what)  # noqa: E731
    limits = RateLimits({"shop": Rate(1, 2), EVERY_OTHER: Rate(1, 1)}, (count,), clock)
    assert [limits.take("shop", 1) for _ in range(3)] == [0, 0, 1]
    assert [limits.take("yard", 1), limits.take("yard", 1), limits.take("barn", 1)] == [0, 1, 0]
    assert limits.take("", 99) == 0
    assert RateLimits({"shop": Rate(1, 1)}).take("yard", 99) == 0
    assert counted == [
        ("shop", 1, True), ("shop", 1, True), ("shop", 1, False),
        ("yard", 1, True), ("yard", 1, False), ("barn", 1, True),
    ]  # fmt: skip
    clock.now = 1.5
    assert limits.take("shop", 2) == 0.5  # all or none: one and a half are there
    assert limits.take("shop", 1) == 0


def test_the_forms_of_a_limit() -> None:
    assert parse_rates(["shop=20:40", "yard=0.5", "*=3"]) == {
        "shop": Rate(20, 40), "yard": Rate(0.5, 1), "*": Rate(3, 3)
    }  # fmt: skip
    for texts, said in (
        (["shop"], "needs a number of queries per second above 0, as in shop=20:40"),
        (["shop=0"], "above 0"),
        (["shop=nan"], "above 0"),
        (["shop=inf"], "above 0"),
        (["shop=-1"], "above 0"),
        (["shop=5:"], "needs a number of queries at once at least 1"),
        (["shop=5:0.5"], "needs a number of queries at once at least 1"),
        (["Shop=5"], "write NODE=QUERIES_PER_SECOND[:BURST]"),
        (["=5"], "write NODE=QUERIES_PER_SECOND[:BURST]"),
        (["shop=5", "shop=6"], "shop has a limit already"),
    ):
        with pytest.raises(ConfigError, match="--rate-limit") as caught:
            parse_rates(texts)
        assert said in str(caught.value)
