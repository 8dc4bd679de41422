"""Arrival times of queries: open-loop arrival processes and recorded traces, all as sorted seconds from zero.

Every generator takes its numpy generator from the caller, so that one seed gives one load to all policies.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.clip import DataError

Times = npt.NDArray[np.float64]

THESIS_RATES = (200.0, 700.0)
"""Queries per second between which the thesis' synthetic load moves (section 3.6, Fig. 3.9a)."""
THESIS_BURSTY_PEAK = 4000.0
"""Queries per second that the thesis' MAF load reaches at its peaks (section 3.6, Fig. 3.9c)."""


def poisson(rate: float, seconds: float, generator: np.random.Generator) -> Times:
    """Arrivals at a constant mean rate, per second, without memory."""
    _positive(rate=rate, seconds=seconds)
    return modulated(np.full(int(np.ceil(seconds)), rate), seconds, generator)


def gamma(rate: float, variation: float, seconds: float, generator: np.random.Generator) -> Times:
    """Gaps from a Gamma distribution with mean 1 / rate. variation: their coefficient of variation (1: Poisson)."""
    _positive(rate=rate, variation=variation, seconds=seconds)
    shape = 1 / variation**2
    times = np.empty(0)
    end = 0.0
    while end < seconds:
        count = max(64, int(1.2 * rate * (seconds - end)))
        gaps = generator.gamma(shape, 1 / (rate * shape), size=count)
        times = np.concatenate([times, end + np.cumsum(gaps)])
        end = float(times[-1])
    return times[times < seconds]


def markov_modulated(
    rates: tuple[float, float],
    dwell_seconds: tuple[float, float],
    seconds: float,
    generator: np.random.Generator,
) -> Times:
    """A Markov-modulated Poisson process: two rates that take turns, each for an exponential time of that mean."""
    _positive(rate=max(rates), dwell=min(dwell_seconds), seconds=seconds)
    pieces, start, state = [], 0.0, int(generator.random() < dwell_seconds[1] / sum(dwell_seconds))
    while start < seconds:
        length = min(generator.exponential(dwell_seconds[state]), seconds - start)
        pieces.append(start + np.sort(generator.uniform(0, length, generator.poisson(rates[state] * length))))
        start, state = start + length, 1 - state
    return np.concatenate(pieces)


def step(
    rate: float, factor: float, start: float, stop: float, seconds: float, generator: np.random.Generator
) -> Times:
    """A constant rate that is `factor` times as high from second `start` to second `stop`."""
    _positive(rate=rate, factor=factor, seconds=seconds)
    if not 0 <= start < stop <= seconds:
        raise DataError(f"a step from {start} to {stop} s does not fit into {seconds} s")
    calm = poisson(rate, seconds, generator)
    burst = start + poisson(rate * factor, stop - start, generator)
    return np.sort(np.concatenate([calm[(calm < start) | (calm >= stop)], burst]))


def thesis_synthetic(seconds: float, generator: np.random.Generator, load: float = 1.0) -> Times:
    """The thesis' synthetic load: Poisson, with a new random rate between 200 and 700 every second, times `load`."""
    _positive(seconds=seconds, load=load)
    low, high = THESIS_RATES
    rates = generator.uniform(load * low, load * high, int(np.ceil(seconds)))
    return modulated(rates, seconds, generator)


def modulated(rates: Times, seconds: float, generator: np.random.Generator) -> Times:
    """Poisson arrivals with a mean rate of its own in each second: float (seconds rounded up,), queries per second."""
    counts = generator.poisson(rates)
    times = np.sort(np.repeat(np.arange(len(rates)), counts) + generator.random(int(counts.sum())))
    return times[times < seconds]


def replay(
    recorded: Times, seconds: float, generator: np.random.Generator, *, factor: float, load: float = 1.0
) -> Times:
    """A recorded trace made `factor * load` times as dense: each second keeps its share of the load.

    A second with c recorded arrivals becomes Poisson with mean c * factor * load, spread over that second, so bursts
    stay bursts. The trace starts at a random second and wraps around.
    """
    _positive(factor=factor, load=load, seconds=seconds)
    per_second = np.bincount(recorded.astype(np.int64))
    start = int(generator.integers(len(per_second)))
    which = (start + np.arange(int(np.ceil(seconds)))) % len(per_second)
    return modulated(per_second[which].astype(np.float64) * (factor * load), seconds, generator)


def thesis_bursty_factor(recorded: Times) -> float:
    """The factor at which the busiest second of a trace has 4000 queries, as the thesis' MAF load.

    For Azure's coding trace of 2023 the other two facts of Fig. 3.9c then hold too: more than 60 % of the seconds stay
    below 300 queries, and some exceed 600.
    """
    return THESIS_BURSTY_PEAK / float(np.bincount(recorded.astype(np.int64)).max())


def read_trace(path: Path) -> Times:
    """Arrivals of a CSV, sorted and counted from the first one.

    Known columns: `arrival_s` (seconds), or those of Microsoft's MAF 2021, `end_timestamp` and `duration`
    (seconds), from which an arrival is end - duration. Raises DataError naming the row that cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            columns = set(rows.fieldnames or ())
            if "arrival_s" in columns:
                times = [_number(row["arrival_s"], path, place) for place, row in _numbered(rows)]
            elif {"end_timestamp", "duration"} <= columns:
                times = [
                    _number(row["end_timestamp"], path, place) - _number(row["duration"], path, place)
                    for place, row in _numbered(rows)
                ]
            else:
                raise DataError(f"{path}: needs a column arrival_s, or end_timestamp and duration")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable trace ({error})") from None
    if not times:
        raise DataError(f"{path}: holds no arrivals")
    arrivals: Times = np.sort(np.array(times, dtype=np.float64))
    arrivals -= arrivals[0]
    return arrivals


def _numbered(rows: Iterable[dict[str, str]]) -> Iterable[tuple[int, dict[str, str]]]:
    return enumerate(rows, start=2)  # line 1 is the header


def _number(text: str | None, path: Path, line: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"{path}, line {line}: {text!r} is not a time in seconds")
    return value


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise DataError(f"{name} is {value}: choose a positive number")
