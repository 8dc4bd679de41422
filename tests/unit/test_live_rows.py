"""Records of a live load test: types by true labels and the client's clock, batches put together from answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedstill.cloud_server.serving.virtual_time import EVICTED, LATE, RIGHT, WRONG
from fedstill.datasets.query_mix import Load
from fedstill.simulation.live_rows import batches_of, kinds_of, run_row, series_row
from fedstill.simulation.open_loop import UNSENT, Record, Reply

LABELS = ["cat", "dog", "cat", "dog", "cat", "dog"]


def answer(label: str, batch: float = 30.0, size: int = 2, schedule: str = "-10") -> Reply:
    return Reply("answered", label, schedule, waiting_ms=100.0, inference_ms=batch, batch_size=size)


REPLIES = (
    answer("cat"),  # right, in time
    answer("cat"),  # wrong, in time
    answer("cat", 50.0, 1, "0"),  # right, but late
    Reply("too_late"),
    Reply("overload"),
    UNSENT,
)


@pytest.fixture
def load() -> Load:
    arrival = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
    utility = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    return Load(arrival, arrival + 0.6, np.zeros(6, dtype=np.int64), utility, np.zeros(6))


@pytest.fixture
def record() -> Record:
    seconds = np.array([0.6, 0.2, 0.7, 0.01, 0.01, np.inf])
    return Record(REPLIES, seconds, np.array([0.0, 0.001, 0.002, 0.0, 0.0, np.nan]))


def test_kinds(load: Load, record: Record) -> None:
    assert kinds_of(load, LABELS, record).tolist() == [RIGHT, WRONG, LATE, EVICTED, EVICTED, EVICTED]


def test_a_row_counts_everything_once(load: Load, record: Record) -> None:
    row = run_row("fedstill", "synthetic", 2.0, 1, load, LABELS, record, 3.0)
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
    assert row.client.lag_ms["p50"] == pytest.approx(0.0)
    assert row.client.round_trip_ms["p50"] == pytest.approx(600.0)


def test_answers_with_the_same_measured_time_shared_a_batch(record: Record) -> None:
    assert batches_of(REPLIES) == {("-10", 2, 30.0): [0, 1], ("0", 1, 50.0): [2]}


def test_a_batch_of_which_one_answer_was_wrong_is_half_right(load: Load, record: Record) -> None:
    row = run_row("fedstill", "synthetic", 2.0, 1, load, LABELS, record, 3.0)
    assert row.batch_accuracy[10] == 1
    assert row.batch_accuracy[19] == 1


def test_series_put_answers_where_their_batch_began(load: Load, record: Record) -> None:
    row = series_row("fedstill", "synthetic", 2.0, 0, load, LABELS, record, 3.0, {"-10": -10})
    assert row.incoming == (2, 2, 2)
    assert row.served == (2, 0, 0)
    assert row.token_delta == (-10.0, None, None)
    unknown = series_row("fedstill", "synthetic", 2.0, 0, load, LABELS, record, 3.0, {})
    assert unknown.token_delta == (None, None, None)


def test_a_server_that_answers_nothing_makes_a_row(load: Load, record: Record) -> None:
    silent = replace(record, replies=(Reply("overload"),) * 6, seconds=np.full(6, np.inf))
    row = run_row("pets", "synthetic", 2.0, 1, load, LABELS, silent, 3.0)
    assert (row.type4, row.utility_earned, row.batches, row.busy) == (6, 0.0, 0, 0.0)
