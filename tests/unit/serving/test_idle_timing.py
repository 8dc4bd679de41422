"""Times taken while a server is idle: a wrong profile becomes true, whatever it said, and a true one stays."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.serving.engine.idle_timing import (
    LONGEST,
    OFF,
    REST,
    ROUNDS,
    IdleTiming,
    timed_sizes,
)
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule

TRUE = Profile(
    "true",
    "by hand",
    ("cats",),
    tuple(
        Schedule(str(delta), delta, 0.003, 0.005 + 0.0002 * delta, (0.9 + 0.005 * delta,), 32)
        for delta in (0, -5, -10, -15, -20)
    ),
)


def stored(factors: list[float]) -> Profile:
    """The true profile with the times of each schedule multiplied."""
    return replace(
        TRUE,
        schedules=tuple(
            replace(
                one,
                fixed_seconds=factor * one.fixed_seconds,
                per_query_seconds=factor * one.per_query_seconds,
            )
            for one, factor in zip(TRUE.schedules, factors, strict=True)
        ),
    )


class Machine:
    """Takes the true times, times ``slow``; time goes by only here."""

    def __init__(self, slow: Callable[[], float] = lambda: 1.0) -> None:
        self.now, self.slow, self.ran = 0.0, slow, 0
        self._lines = {one.name: one for one in TRUE.schedules}

    def run(self, schedule: str, size: int) -> None:
        self.now += self.slow() * self._lines[schedule].seconds(size)
        self.ran += 1

    def clock(self) -> float:
        return self.now


def after_quiet(machine: Machine, profile: Profile, steps: int = 400) -> Profile:
    """The profile in use after so many quiet moments."""
    timing = IdleTiming(machine.run, profile, machine.clock, machine.clock)
    for _ in range(steps):
        timing.step()
        machine.now += 0.5
        found = timing.take_correction()
        if found is not None:
            profile = found
            timing.restart(profile)
    return profile


def shape(profile: Profile, size: int) -> list[float]:
    """Seconds of every schedule beside the first one's."""
    seconds = [one.seconds(size) for one in profile.schedules]
    return [one / seconds[0] for one in seconds]


@settings(deadline=None, max_examples=40)
@given(factors=st.lists(st.floats(0.1, 10), min_size=5, max_size=5), pace=st.floats(0.2, 5))
def test_any_wrong_profile_becomes_true(factors: list[float], pace: float) -> None:
    found = after_quiet(Machine(lambda: pace), stored(factors))
    for size in (1, 8):
        for mine, true in zip(shape(found, size), shape(TRUE, size), strict=True):
            assert (
                abs(math.log(mine / true)) <= 2 * OFF + 1e-9
            )  # two schedules may each be so far off, unnoticed


def test_one_wrong_schedule_is_mended_and_the_others_stay() -> None:
    wrong = stored([1, 1, 1, 1, 6])
    found = after_quiet(Machine(lambda: 2.0), wrong)  # twice as slow as a whole: nobody's fault
    assert found.schedules[:4] == wrong.schedules[:4]
    assert abs(found.schedules[4].seconds(8) / TRUE.schedules[4].seconds(8) - 1) < 0.01
    assert found.schedules[4] in found.useful
    assert wrong.schedules[4] not in wrong.useful  # so no policy would ever have run it


def test_a_true_profile_survives_a_busy_machine() -> None:
    noise = random.Random(0)
    machine = Machine(lambda: noise.choice((1.0, 1.0, 1.0, 1.5, 4.0)))
    assert after_quiet(machine, TRUE, 3000) == TRUE


def test_a_change_needs_two_sweeps_that_agree() -> None:
    machine = Machine()
    timing = IdleTiming(machine.run, stored([1, 1, 1, 1, 6]), machine.clock, machine.clock)
    sweep = (ROUNDS + 1) * 2 * len(TRUE.schedules)
    for _ in range(sweep):
        timing.step()
    assert timing.take_correction() is None
    for _ in range(sweep):
        timing.step()
    assert timing.take_correction() is not None
    assert timing.take_correction() is None  # it is told once


def test_times_that_no_line_fits_are_corrected_once_at_most() -> None:
    machine = Machine()
    lines = {one.name: one for one in TRUE.schedules}

    def bent(schedule: str, size: int) -> None:
        machine.now += lines[schedule].seconds(size) * (2 if schedule == "-20" and size > 1 else 1)

    timing = IdleTiming(bent, TRUE, machine.clock, machine.clock)
    corrections = 0
    for _ in range(3000):
        timing.step()
        machine.now += 0.5
        if (found := timing.take_correction()) is not None:
            corrections += 1
            timing.restart(found)
    assert corrections <= 1


def test_a_failure_ends_the_sweep_and_not_the_timing() -> None:
    machine = Machine()
    broken = [True]

    def run(schedule: str, size: int) -> None:
        if broken[0]:
            raise MemoryError
        machine.run(schedule, size)

    timing = IdleTiming(run, stored([1, 1, 1, 1, 6]), machine.clock, machine.clock)
    with pytest.raises(MemoryError):
        timing.step()
    timing.step()  # it rests, so a log is not filled
    broken[0] = False
    machine.now += REST
    for _ in range(2 * (ROUNDS + 1) * 2 * len(TRUE.schedules)):
        timing.step()
    assert timing.take_correction() is not None


def test_it_rests_once_all_is_well() -> None:
    machine = Machine()
    timing = IdleTiming(machine.run, TRUE, machine.clock, machine.clock)
    for _ in range(500):
        timing.step()
    once = machine.ran
    assert once == (ROUNDS + 1) * 2 * len(TRUE.schedules)
    machine.now += REST
    timing.step()
    assert machine.ran == once + 1


def test_no_timing_keeps_a_query_waiting_long() -> None:
    for one in TRUE.schedules:
        assert max(timed_sizes(one)) >= 4
        assert one.seconds(max(timed_sizes(one))) <= LONGEST
    slow = Schedule("0", 0, 0.01, 0.2, (0.9,), 32)
    assert timed_sizes(slow) == (1, 2)
    assert timed_sizes(replace(slow, maximum_batch=1)) == (1,)
