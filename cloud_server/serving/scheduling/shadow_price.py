"""The present worth of a second of engine time: the dual price of the fluid multiple-choice knapsack.

If time were a fluid, the best use of a second would be found greedily: every kind of query climbs the upper
hull of its (time, utility) choices, from not being served to its most accurate schedule, steepest step first,
until the second is full (Sinha and Zoltners 1979). The steepness at which it is full is the price: a plan that pays it
for its time leaves room for the queries about to arrive. A query that cannot pay it even at its best schedule can be
rejected at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedstill.cloud_server.serving.scheduling.profile import Schedule


@dataclass(frozen=True, slots=True)
class HullStep:
    """From one choice on the hull to the next: extra seconds and extra accuracy per query."""

    seconds: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Demand:
    """So many queries of one task, each worth `utility`."""

    task: int
    utility: float
    count: float


def upper_hull(schedules: Sequence[Schedule], task: int, batch_size: float) -> tuple[HullStep, ...]:
    """The steps of a task's concave hull, starting from (0, 0), by falling steepness.

    batch_size: over how many queries a batch's fixed time is spread.
    """
    points = sorted(
        (schedule.per_query_seconds + schedule.fixed_seconds / batch_size, schedule.accuracy[task])
        for schedule in schedules
    )
    hull = [(0.0, 0.0)]
    for seconds, accuracy in points:
        if accuracy <= hull[-1][1]:
            continue
        while len(hull) > 1 and _steepness(hull[-2], hull[-1]) <= _steepness(hull[-1], (seconds, accuracy)):
            hull.pop()
        hull.append((seconds, accuracy))
    return tuple(HullStep(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(hull))


def _steepness(start: tuple[float, float], end: tuple[float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])


@dataclass(frozen=True, slots=True)
class FluidOptimum:
    """value: most expected utility within the capacity. price: utility of one more second, 0 if time is left over."""

    value: float
    price: float


def fluid_optimum(
    demand: Iterable[Demand], hulls: Sequence[Sequence[HullStep]], capacity: float
) -> FluidOptimum:
    """Fill `capacity` seconds with the steepest steps of all queries in `demand`. hulls: one per task."""
    steps = [
        (some.utility * step.accuracy / step.seconds, some.count * step.seconds)
        for some in demand
        if some.utility > 0 and some.count > 0
        for step in hulls[some.task]
    ]
    steps.sort(reverse=True)
    value, left = 0.0, capacity
    for steepness, seconds in steps:
        if seconds > left:
            return FluidOptimum(value + steepness * max(0.0, left), steepness)
        value += steepness * seconds
        left -= seconds
    return FluidOptimum(value, 0.0)
