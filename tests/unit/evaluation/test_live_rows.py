"""Records of a live load test: types by true labels and the client's clock, batches put together from answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedstill.cloud_server.serving.scheduling.virtual_time import EVICTED, LATE, RIGHT, WRONG
from fedstill.datasets.loads.query_mix import Load
from fedstill.evaluation.serving.live_rows import LiveRun, batches_of, run_row, series_row
from fedstill.evaluation.serving.open_loop import UNSENT, Record, Response

LABELS = ["cat", "dog", "cat", "dog", "cat", "dog"]


def answer(label: str, batch: float = 30.0, size: int = 2, schedule: str = "-10") -> Response:
    return Response("answered", label, schedule, waiting_ms=100.0, inference_ms=batch, batch_size=size)


REPLIES = (
    answer("cat"),  # right, in time
    answer("cat"),  # wrong, in time
    answer("cat", 50.0, 1, "0"),  # right, but late
    Response("too_late"),
    Response("overload"),
    UNSENT,
)


@pytest.fixture
def run() -> LiveRun:
    arrival = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
    utility = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    load = Load(arrival, arrival + 0.6, np.zeros(6, dtype=np.int64), utility, np.zeros(6))
    seconds = np.array([0.59, 0.2, 0.7, 0.01, 0.01, np.inf])
    record = Record(REPLIES, seconds, np.array([0.0, 0.001, 0.002, 0.0, 0.0, np.nan]))
    return LiveRun("fedstill", "synthetic", 2.0, 1, load, LABELS, record, 3.0)


def test_kinds(run: LiveRun) -> None:
    assert run.kinds().tolist() == [RIGHT, WRONG, LATE, EVICTED, EVICTED, EVICTED]


def test_a_row_counts_everything_once(run: LiveRun) -> None:
    row = run_row(run)
    assert (row.type1, row.type2, row.type3, row.type4, row.rejected) == (1, 1, 1, 3, 1)
    assert (row.utility_offered, row.utility_earned) == (63.0, 1.0)
    assert row.accuracy == pytest.approx(2 / 3)
    assert row.batch_sizes == (1, 1)
    assert row.schedules == {"-10": 2, "0": 1}
    assert row.busy == pytest.approx(0.08 / 3)
    assert sum(row.earned_per_window) == 1.0
    assert row.client is not None
    assert row.client.refused == {"too_late": 1, "overload": 1}
    assert row.client.failed == {UNSENT.detail: 1}
    assert row.client.refused_after["p50"] == pytest.approx(0.01 / 0.6)  # of the latency objective
    assert row.client.lag_ms["p50"] == pytest.approx(0.0)
    assert row.client.round_trip_ms["p50"] == pytest.approx(590.0)


def test_answers_with_the_same_measured_time_shared_a_batch() -> None:
    assert batches_of(REPLIES) == {("-10", 2, 30.0): [0, 1], ("0", 1, 50.0): [2]}


def test_a_batch_of_which_one_answer_was_wrong_is_half_right(run: LiveRun) -> None:
    accuracy = run_row(run).batch_accuracy
    assert accuracy[10] == 1
    assert accuracy[19] == 1


def test_series_put_answers_where_their_batch_began(run: LiveRun) -> None:
    row = series_row(run, {"-10": -10})
    assert row.incoming == (2, 2, 2)
    assert row.served == (2, 0, 0)
    assert row.token_delta == (-10.0, None, None)
    assert series_row(run, {}).token_delta == (None, None, None)


def test_a_server_that_answers_nothing_makes_a_row(run: LiveRun) -> None:
    record = replace(run.record, responses=(Response("overload"),) * 6, seconds=np.full(6, np.inf))
    row = run_row(replace(run, record=record))
    assert (row.type4, row.utility_earned, row.batches, row.busy) == (6, 0.0, 0, 0.0)


def test_a_server_that_says_nothing_of_its_waiting_has_no_percentiles_of_it(run: LiveRun) -> None:
    silent = tuple(replace(response, waiting_ms=float("nan")) for response in REPLIES)
    assert run_row(replace(run, record=replace(run.record, responses=silent))).waiting_ms == {}
