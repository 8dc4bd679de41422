"""The history of a server: its memory is bounded, its time never falls, and longer steps say what shorter ones did."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.serving.monitoring.history import MOST_COLUMNS, SPANS, History, Span
from fedstill.cloud_server.serving.monitoring.latency_counts import LEAST, MOST, LatencyCounts
from fedstill.cloud_server.serving.monitoring.recorder import Recorder
from fedstill.cloud_server.serving.monitoring.tally import Key, Tally

QUERIES: Key = ("server", "", "queries")
LATENCIES = st.lists(st.floats(LEAST, 1000.0), min_size=1, max_size=200)


def tally(seconds: float, queries: float = 0.0, latencies: tuple[float, ...] = ()) -> Tally:
    made = Tally(seconds)
    made.sums[QUERIES] += queries
    for one in latencies:
        made.latencies[""].add(one)
    return made


@given(LATENCIES, LATENCIES)
def test_percentiles_are_true_to_a_fiftieth_also_when_merged(first: list[float], second: list[float]) -> None:
    counts, more = LatencyCounts(), LatencyCounts()
    for seconds in first:
        counts.add(seconds)
    for seconds in second:
        more.add(seconds)
    counts.merge(more)
    ordered = sorted(first + second)
    found = counts.quantiles((0.5, 0.95, 0.99))
    assert found is not None
    for share, value in zip((0.5, 0.95, 0.99), found, strict=True):
        true = ordered[math.ceil(share * len(ordered)) - 1]
        assert value == pytest.approx(true, rel=0.02 + 1e-9)


def test_latencies_beyond_the_range_count_as_its_ends_and_nothing_has_no_percentile() -> None:
    counts = LatencyCounts()
    assert counts.quantiles() is None
    for seconds in (0.0, -1.0, 1e9, math.inf):
        counts.add(seconds)
    found = counts.quantiles((0.5, 1.0))
    assert found is not None
    assert found == (pytest.approx(LEAST, rel=0.05), pytest.approx(MOST, rel=0.05))


@given(st.lists(st.tuples(st.floats(0.01, 500.0), st.integers(0, 50)), max_size=80))
def test_whatever_the_steps_rows_are_bounded_and_rise_and_lose_no_query(
    steps: list[tuple[float, int]],
) -> None:
    spans = (Span("short", 1.0, 7), Span("long", 10.0, 1000))
    history, now = History(spans), 0.0
    next_row, read = 0, 0.0
    for seconds, queries in steps:
        now += seconds
        history.add(tally(seconds, queries), now)
        rows = history.read("long", next_row)
        assert len(rows.ends) <= 1  # never more than was not read yet
        next_row = rows.next
        if len(rows.ends):
            read += float((rows.values[QUERIES] * rows.seconds).sum())
    for span in spans:
        rows = history.read(span.name)
        assert len(rows.ends) == len(rows.values.get(QUERIES, rows.ends)) <= span.rows
        assert (np.diff(rows.ends) > 0).all()
        assert (rows.seconds >= span.step_seconds - 0.5).all()
    asked = sum(queries for _, queries in steps)
    assert read <= asked + 1e-3
    assert history.total(QUERIES, 1e9, now) == pytest.approx(asked, rel=1e-4, abs=1e-3)


def test_a_long_step_has_the_percentile_of_all_its_answers_not_the_mean_of_percentiles() -> None:
    history = History((Span("short", 1.0, 60), Span("long", 10.0, 60)))
    for second in range(10):
        slow = second == 9
        history.add(tally(1.0, 0, (1.0,) * 2 if slow else (0.01,) * 98), second + 1.0)
    (median,) = history.read("long").values["server", "", "p50"]
    (highest,) = history.read("long").values["server", "", "p99"]
    assert median == pytest.approx(10, rel=0.03)
    assert highest == pytest.approx(10, rel=0.03)  # 2 of 884 are slow
    assert history.read("short").values["server", "", "p50"][-1] == pytest.approx(1000, rel=0.03)


def test_names_without_end_take_no_more_memory() -> None:
    history = History((Span("short", 1.0, 5),))
    for place in range(MOST_COLUMNS + 50):
        made = tally(1.0, 1)
        made.sums["task", f"task{place}", "queries"] = 1
        history.add(made, place + 1.0)
    assert len(history.read("short").values) == MOST_COLUMNS
    history.forget(lambda key: key[0] == "task")
    assert set(history.read("short").values) == {QUERIES}


def test_a_day_of_the_largest_server_takes_some_megabytes() -> None:
    assert sum(4 * span.rows for span in SPANS) * MOST_COLUMNS < 6 * 2**20
    assert [round(span.step_seconds * span.rows) for span in SPANS] == [300, 3600, 86400]


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_ticks_at_any_time_make_true_rates_and_one_without_time_makes_nothing() -> None:
    clock = Clock()
    recorder = Recorder(lambda: ("cats",), clock)
    recorder.offered("cats", 0.5, 6)
    recorder.offered("strange", 0.5, 6)
    recorder.tick(0, 0.0)  # no time has passed
    assert not len(recorder.rows("5m", 0, lambda _: True).ends)
    clock.now += 3.0  # the process was stopped meanwhile
    recorder.tick(4, 100.0)
    clock.now -= 2.0  # cannot be, and must not matter
    recorder.tick(0, 0.0)
    rows = recorder.rows("5m", 0, lambda _: True)
    assert rows.ends.tolist() == [3.0]
    assert rows.values[QUERIES].tolist() == [4.0]
    assert rows.values["task", "cats", "queries"].tolist() == [2.0]
    assert rows.values["server", "", "queued"].tolist() == [4.0]
    assert not any(key[1] == "strange" for key in rows.values)
    assert recorder.totals()[QUERIES] == 12
    assert recorder.recent(10).rate(QUERIES) == 4.0


def test_what_is_no_longer_served_is_forgotten() -> None:
    clock, served = Clock(), ["cats", "dogs"]
    recorder = Recorder(lambda: tuple(served), clock)
    clock.now += 1
    recorder.offered("dogs", 0.5, 1)
    recorder.tick(0, 0.0)
    served.remove("dogs")
    recorder.forget()
    assert {key[1] for key in recorder.rows("5m", 0, lambda _: True).values if key[0] == "task"} == {"cats"}
