"""Times of all schedules, taken again while a server has nothing to do: a profile measured on a busy machine mends.

A policy learns the times of what it runs. A schedule that was stored as too slow is never run, so nobody would ever
learn better. Here every schedule takes its turn, whatever the profile says of it. A whole machine that is slower or
faster than it was is no fault of the profile: policies follow that themselves. So what counts is one schedule's time
relative to the others', and it must be found twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic, perf_counter

import numpy as np

from fedstill.cloud_server.serving.engine.profiler import fit_affine
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule

ROUNDS = 8
"""Timings of each schedule and size in a sweep."""
LONGEST = 0.05
"""Seconds that the larger of the two timed batches should take: a query that arrives meanwhile waits so long."""
OFF = math.log(1.25)
"""Log of a schedule's time over the profile's, beside that of the others, from which the profile is wrong."""
AGREE = math.log(1.12)
"""Largest difference between two sweeps that say the same; of large deviations, half of the smaller one."""
REST = 600.0
"""Seconds after a sweep that found nothing."""

Run = Callable[[str, int], None]
"""Runs a batch of a schedule, by name, and of a size."""
Key = tuple[str, int]
"""Schedule and batch size."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The least seconds of every schedule at its sizes: whatever else runs makes a batch slower, never faster."""

    seconds: Mapping[Key, float]

    def pace(self, expected: Callable[[str, int], float]) -> float:
        """Log of the median of seconds over ``expected``: how much slower the machine is as a whole."""
        return float(np.median([math.log(seconds / expected(*key)) for key, seconds in self.seconds.items()]))

    def deviations(self, expected: Callable[[str, int], float]) -> dict[Key, float]:
        """Log of seconds over ``expected``, beside the pace."""
        pace = self.pace(expected)
        return {key: math.log(seconds / expected(*key)) - pace for key, seconds in self.seconds.items()}


class IdleTiming:
    """Call `step` whenever there is nothing else to do, from the engine's thread; call `take_correction` from any.

    Args:
        run: the engine's.
        clock: seconds, for the rest between sweeps.
        timer: seconds, for the batches.
    """

    def __init__(
        self,
        run: Run,
        profile: Profile,
        clock: Callable[[], float] = monotonic,
        timer: Callable[[], float] = perf_counter,
    ) -> None:
        self._run, self._clock, self._timer = run, clock, timer
        self.restart(profile)

    def restart(self, profile: Profile) -> None:
        """Another profile is in use: forget what was timed. To be called in the engine's thread."""
        self._profile = profile
        self._schedules = {schedule.name: schedule for schedule in profile.schedules}
        self._keys: Sequence[Key] = [
            (name, size) for name, schedule in self._schedules.items() for size in timed_sizes(schedule)
        ]
        self._before: Sweep | None = None
        self._correction: Profile | None = None
        self._resting_until = -math.inf
        self._begin()

    def take_correction(self) -> Profile | None:
        """Once after two sweeps said so: the profile with other times for the schedules that were found wrong."""
        found, self._correction = self._correction, None
        return found

    def step(self) -> None:
        """Time one batch, unless it is time to rest."""
        if self._clock() < self._resting_until or len(self._schedules) < 2:
            return
        key = self._keys[self._at % len(self._keys)]
        began = self._timer()
        try:
            self._run(*key)
        except Exception:  # what is passing is over by then
            self._resting_until = self._clock() + REST
            self._begin()
            raise
        seconds = max(self._timer() - began, 1e-9)
        if self._at >= len(self._keys):  # the first turn is warm-up
            self._timed[key].append(seconds)
        self._at += 1
        if self._at == (ROUNDS + 1) * len(self._keys):
            sweep = Sweep({key: min(timed) for key, timed in self._timed.items()})
            self._begin()
            self._judge(sweep)

    def _begin(self) -> None:
        self._at = 0
        self._timed: dict[Key, list[float]] = {key: [] for key in self._keys}

    def _judge(self, sweep: Sweep) -> None:
        off, before = sweep.deviations(self._stored), self._before
        if before is None and max(map(abs, off.values())) > OFF:
            self._before = sweep
            return
        if before is not None:
            earlier = before.deviations(self._stored)
            wrong = {key[0] for key, error in off.items() if _both_off(error, earlier[key])}
            if wrong:
                least = {key: min(seconds, before.seconds[key]) for key, seconds in sweep.seconds.items()}
                found = self._corrected(Sweep(least), wrong)
                self._correction = None if found == self._profile else found
        self._before, self._resting_until = None, self._clock() + REST

    def _stored(self, name: str, size: int) -> float:
        return self._schedules[name].seconds(size)

    def _corrected(self, sweep: Sweep, wrong: set[str]) -> Profile:
        """The profile with other lines for the ``wrong`` schedules, at the pace at which it was measured."""
        pace = math.exp(sweep.pace(self._stored))

        def mended(schedule: Schedule) -> Schedule:
            if schedule.name not in wrong:
                return schedule
            sizes = timed_sizes(schedule)
            seconds = [sweep.seconds[schedule.name, size] / pace for size in sizes]
            line = fit_affine(sizes, seconds)
            found = replace(
                schedule, fixed_seconds=line.fixed_seconds, per_query_seconds=line.per_query_seconds
            )

            def worst(one: Schedule) -> float:
                return max(
                    abs(math.log(true / one.seconds(n))) for n, true in zip(sizes, seconds, strict=True)
                )

            return found if worst(found) < worst(schedule) - AGREE else schedule  # no line may fit better

        return replace(self._profile, schedules=tuple(map(mended, self._profile.schedules)))


def _both_off(error: float, earlier: float) -> bool:
    """Whether two deviations of the same time say that the profile is wrong, and say nearly the same."""
    smaller = min(abs(error), abs(earlier))
    return smaller > OFF and abs(error - earlier) < max(AGREE, smaller / 2)


def timed_sizes(schedule: Schedule) -> tuple[int, ...]:
    """1, and the largest power of two that takes at most `LONGEST` seconds (but 2, if it may be run at all)."""
    size = 2
    while 2 * size <= schedule.maximum_batch and schedule.seconds(2 * size) <= LONGEST:
        size *= 2
    return (1, size) if size <= schedule.maximum_batch else (1,)
