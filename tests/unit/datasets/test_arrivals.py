"""Arrival processes have the rates and spreads they promise; traces are read or refused by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedstill.common.errors import DataError
from fedstill.datasets.loads import arrivals
from fedstill.datasets.loads.query_mix import TABLE_3_5, draw_load
from fedstill.datasets.loads.trace_files import read_trace


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def spread(times: arrivals.Times) -> float:
    """Coefficient of variation of the gaps."""
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("variation", [0.5, 1.0, 3.0])
def test_gamma_arrivals_have_rate_and_variation(variation: float) -> None:
    times = arrivals.gamma(100, variation, 500, generator())
    assert len(times) == pytest.approx(50_000, rel=0.05)
    assert spread(times) == pytest.approx(variation, rel=0.05)
    assert times[-1] < 500


def test_poisson_arrivals_have_rate_and_no_memory() -> None:
    times = arrivals.poisson(200, 300.5, generator())
    assert len(times) == pytest.approx(60_100, rel=0.02)
    assert spread(times) == pytest.approx(1, rel=0.02)
    assert np.all(np.diff(times) >= 0)
    assert 300 < times[-1] < 300.5


def test_two_rates_take_turns() -> None:
    times = arrivals.markov_modulated((10, 1000), (9.0, 1.0), 2000, generator())
    per_second = np.bincount(times.astype(int))
    assert len(times) / 2000 == pytest.approx(0.9 * 10 + 0.1 * 1000, rel=0.2)
    assert np.median(per_second) < 20
    assert per_second.max() > 800


def test_a_step_multiplies_the_rate_for_a_while() -> None:
    per_second = np.bincount(arrivals.step(100, 10, 20, 30, 60, generator()).astype(int), minlength=60)
    assert per_second[:20].mean() == pytest.approx(100, rel=0.1)
    assert per_second[20:30].mean() == pytest.approx(1000, rel=0.05)
    assert per_second[30:].mean() == pytest.approx(100, rel=0.1)


def test_the_synthetic_load_moves_between_200_and_700() -> None:
    per_second = np.bincount(arrivals.thesis_synthetic(600, generator()).astype(int))
    assert per_second.mean() == pytest.approx(450, rel=0.03)
    assert np.quantile(per_second, 0.02) == pytest.approx(210, abs=30)
    assert np.quantile(per_second, 0.98) == pytest.approx(690, abs=40)
    doubled = arrivals.thesis_synthetic(600, generator(), load=2)
    assert len(doubled) == pytest.approx(2 * per_second.sum(), rel=0.01)


def test_one_seed_gives_one_load() -> None:
    first, again = (arrivals.thesis_synthetic(10, generator(7)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, arrivals.thesis_synthetic(10, generator(8)))


def test_a_replay_keeps_the_shape_of_the_trace() -> None:
    """Seconds with 0, 1 and 4 arrivals, made 500 times as dense, wherever the replay starts."""
    recorded = np.array([0.5, 2.1, 2.2, 2.3, 2.9])
    per_second = np.bincount(arrivals.replay(recorded, 9, generator(3), factor=500).astype(int), minlength=9)
    rounds = np.sort(per_second.reshape(3, 3), axis=1)
    assert np.allclose(rounds[:, 0], 0)
    assert np.allclose(rounds[:, 1], 500, rtol=0.2)
    assert np.allclose(rounds[:, 2], 2000, rtol=0.1)


@pytest.mark.data
def test_the_azure_trace_scaled_shows_the_three_facts_of_figure_3_9(data_dir: Path) -> None:
    """Over 60 % of the seconds below 300, some above 600, peaks of about 4000."""
    recorded = read_trace(data_dir / "traces" / "azure_llm_2023_code.csv")
    assert len(recorded) == 8819
    times = arrivals.replay(recorded, 3436, generator(), factor=arrivals.thesis_bursty_factor(recorded))
    per_second = np.bincount(times.astype(int))
    assert np.mean(per_second < 300) > 0.6
    assert np.mean(per_second > 600) > 0.01
    assert per_second.max() == pytest.approx(4000, rel=0.1)


def test_arrivals_of_maf_2021_are_end_minus_duration(tmp_path: Path) -> None:
    path = tmp_path / "maf.csv"
    path.write_text("app,func,end_timestamp,duration\na,f,110.5,10.0\nb,g,103.0,0.5\nc,h,104.0,4.0\n")
    assert read_trace(path) == pytest.approx([0.0, 0.5, 2.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s\n1.0\nsoon\n", "line 3: 'soon' is not a time"),
        ("arrival_s\n1.0\nnan\n", "line 3: 'nan' is not a time"),
        ("end_timestamp,duration\n1.0\n", "line 2: None is not a time"),
        ("time\n1.0\n", "needs a column arrival_s, or end_timestamp and duration"),
        ("arrival_s\n", "holds no arrivals"),
    ],
)
def test_a_bad_trace_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_trace(path)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_cannot_be_is_refused(rate: float) -> None:
    with pytest.raises(DataError, match="choose a positive number"):
        arrivals.poisson(rate, 10, generator())


def test_the_mix_is_table_3_5() -> None:
    tasks = ("EuroSAT", "CIFAR10", "CIFAR100")
    load = draw_load(np.arange(60_000) / 1000, tasks, generator())
    assert load.utility.mean() == pytest.approx(sum(kind.utility for kind in TABLE_3_5) / 6, rel=0.02)
    valuable = load.utility == 1.0
    assert set(load.task[valuable]) == {2}
    assert np.allclose((load.deadline - load.arrival)[valuable], 0.6)
    assert np.mean(load.task == 0) == pytest.approx(1 / 3, abs=0.01)


def test_the_mix_reaches_profiles_with_other_tasks() -> None:
    load = draw_load(np.arange(600) / 100, ("cats", "dogs"), generator())
    assert set(load.task) == {0, 1}
