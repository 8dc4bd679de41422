"""Arrival times of queries: open-loop arrival processes and replays of traces, all as sorted seconds from zero.

Every generator takes its numpy generator from the caller, so that one seed gives one load to all policies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import DataError

Times = npt.NDArray[np.float64]

THESIS_RATES = (200.0, 700.0)
"""Queries per second between which the thesis' synthetic load moves (section 3.6, Fig. 3.9a)."""
THESIS_BURSTY_PEAK = 4000.0
"""Queries per second that the thesis' MAF load reaches at its peaks (section 3.6, Fig. 3.9c)."""
MOST_ARRIVALS = 20_000_000
"""Of one load: about 1 GB with all that belongs to a query."""


def poisson(rate: float, seconds: float, generator: np.random.Generator) -> Times:
    """Arrivals at a constant mean rate, per second, without memory."""
    _positive(rate=rate, seconds=seconds)
    return modulated(np.full(int(np.ceil(seconds)), rate), seconds, generator)


def gamma(rate: float, variation: float, seconds: float, generator: np.random.Generator) -> Times:
    """Gaps from a Gamma distribution with mean 1 / rate. variation: their coefficient of variation (1: Poisson)."""
    _positive(rate=rate, variation=variation, seconds=seconds)
    _bounded(rate * seconds)
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
    _bounded(max(rates) * seconds)
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
    _bounded(float(rates.sum()))
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
    busy, counts = _per_second(recorded)
    length = int(busy[-1]) + 1
    start = int(generator.integers(length))
    which = (start + np.arange(int(np.ceil(seconds)))) % length
    place = np.minimum(np.searchsorted(busy, which), len(busy) - 1)
    rates = np.where(busy[place] == which, counts[place], 0).astype(np.float64)
    return modulated(rates * (factor * load), seconds, generator)


def thesis_bursty_factor(recorded: Times) -> float:
    """The factor at which the busiest second of a trace has 4000 queries, as the thesis' MAF load.

    For Azure's coding trace of 2023 the other two facts of Fig. 3.9c then hold too: more than 60 % of the seconds stay
    below 300 queries, and some exceed 600.
    """
    return THESIS_BURSTY_PEAK / float(_per_second(recorded)[1].max())


def _per_second(recorded: Times) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The seconds that have arrivals, and how many: a trace with long gaps costs no memory for them."""
    seconds, counts = np.unique(recorded.astype(np.int64), return_counts=True)
    return seconds, counts


def _bounded(expected: float) -> None:
    if expected > MOST_ARRIVALS:
        raise DataError(
            f"the load would hold {expected:.3g} queries, the most are {MOST_ARRIVALS:.0e}: lower rate, load or seconds"
        )


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise DataError(f"{name} is {value}: choose a positive number")
