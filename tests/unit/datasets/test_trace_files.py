"""Traces as logs and spreadsheets have them: read in the right unit, or one line that says what is wrong."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fedstill.common.errors import DataError
from fedstill.datasets.loads import arrivals
from fedstill.datasets.loads.arrivals import Times, replay
from fedstill.datasets.loads.trace_files import read_trace

RECORDED: Times = np.cumsum(np.random.default_rng(0).exponential(0.2, 300))
FROM_ZERO = RECORDED - RECORDED[0]


def write(folder: Path, values: list[str], header: str = "arrival_s") -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join([header, *values]) + "\n", encoding="utf-8")
    return path


def test_marks_separators_and_empty_rows(tmp_path: Path) -> None:
    path = write(tmp_path, ["0.5;a", "", ";", "2.0;b"], "arrival_s;note")
    text = path.read_text(encoding="utf-8")
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert read_trace(path).tolist() == [0.0, 1.5]


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_the_columns_name_is_the_unit(tmp_path: Path, unit: str, per_second: float) -> None:
    path = write(tmp_path, [repr(time * per_second) for time in RECORDED.tolist()], f"Arrival_{unit}")
    assert read_trace(path) == pytest.approx(FROM_ZERO, abs=1e-6)


@pytest.mark.parametrize("per_second", [1, 10**3, 10**6, 10**9])
def test_unix_times_say_their_unit_themselves(tmp_path: Path, per_second: int) -> None:
    values = [str(1_700_000_000 * per_second + round(time * per_second)) for time in RECORDED]
    assert read_trace(write(tmp_path, values)) == pytest.approx(
        np.rint(RECORDED * per_second) / per_second - np.rint(RECORDED[0] * per_second) / per_second, abs=1e-6
    )


@pytest.mark.parametrize("per_second", [10**3, 10**6, 10**9])
def test_relative_times_that_cannot_be_seconds_are_asked_about(tmp_path: Path, per_second: int) -> None:
    path = write(tmp_path, [str(round(time * per_second)) for time in RECORDED])
    with pytest.raises(
        DataError, match="if these are not seconds, name the column arrival_ms, arrival_us or"
    ):
        read_trace(path)


@pytest.mark.parametrize(
    "text",
    ["2023-11-16 18:15:{:09.6f}", "2023-11-16T18:15:{:09.6f}Z", "2023-11-16T19:15:{:010.7f}+01:00"],
)
def test_dates_are_times(tmp_path: Path, text: str) -> None:
    seconds = [1.5, 3.25, 59.0]
    assert read_trace(write(tmp_path, [text.format(second) for second in seconds])) == pytest.approx(
        [0, 1.75, 57.5]
    )
    assert read_trace(write(tmp_path, [text.format(second) for second in seconds], "arrival_ms"))[-1] == 57.5


@pytest.mark.parametrize("wrong", ["0", "-1", "1700000000000", "1e300", "1"])
@pytest.mark.parametrize("place", [0, 100, 300])
def test_a_time_far_from_the_others_is_named(tmp_path: Path, wrong: str, place: int) -> None:
    values = [repr(1_700_000_000 + time) for time in RECORDED.tolist()]
    path = write(tmp_path, [*values[:place], wrong, *values[place:]])
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"trace\.csv, line {place + 2}: lies \d+ days from the other times"):
        read_trace(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


@pytest.mark.parametrize(
    ("values", "header", "message"),
    [
        (["0,5", "1,5"], "arrival_s", "line 2: has 2 values, the header 1: write decimals with a point"),
        (["1", "inf"], "arrival_s", "line 3: 'inf' is not a time"),
        (["1,2"], "arrival_s,arrival_s", "has 2 columns 'arrival_s': keep one"),
        (["2023-13-01"], "arrival_s", "line 2: '2023-13-01' is not a time: write a number, or a date"),
        (['"1'], "arrival_s", "is not a readable UTF-8 CSV"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, values: list[str], header: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        read_trace(write(tmp_path, values, header))
    assert "\n" not in str(refused.value)


def test_more_arrivals_than_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstill.datasets.loads.trace_files.MOST_ARRIVALS", 10)
    with pytest.raises(DataError, match=r"holds more than 1e\+01 arrivals: take a part"):
        read_trace(write(tmp_path, ["1"] * 11))


def test_a_replay_needs_no_memory_for_gaps_and_draws_as_before() -> None:
    recorded = np.array([0.5, 2.1, 2.2, 2.3, 2.9, 7.0])
    dense = np.bincount(recorded.astype(int))
    for seed in range(20):
        generator = np.random.default_rng(seed)
        start = int(generator.integers(len(dense)))
        rates = dense[(start + np.arange(9)) % len(dense)] * 50.0
        expected = arrivals.modulated(rates, 9, generator)
        np.testing.assert_array_equal(replay(recorded, 9, np.random.default_rng(seed), factor=50), expected)
    tracemalloc.start()
    replay(np.array([0.5, 1e12]), 9, np.random.default_rng(0), factor=50)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert arrivals.thesis_bursty_factor(np.array([0.5, 1e12, 1e12])) == 2000


def test_a_load_beyond_memory_is_refused() -> None:
    generator = np.random.default_rng(0)
    for make in (
        lambda: arrivals.poisson(1e6, 1e5, generator),
        lambda: arrivals.gamma(1e6, 2.0, 1e5, generator),
        lambda: arrivals.markov_modulated((1e6, 2e6), (1.0, 1.0), 1e5, generator),
        lambda: replay(RECORDED, 1e3, generator, factor=1e9),
    ):
        with pytest.raises(DataError, match=r"the load would hold .* queries, the most are 2e\+07: lower"):
            make()
