"""Algorithms 2 and 3, repaired: a hand-worked example, and the purpose of each repair."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.queries import made_profile, made_query

from fedstill.cloud_server.serving.policies.batching import FormingBatch
from fedstill.cloud_server.serving.policies.exact_plan import BatchPlan, exact_plan
from fedstill.cloud_server.serving.policies.token_allocation import (
    AllocationSettings,
    allocate,
    allocate_by_rate,
    allocate_indices,
    expected_utility,
)
from fedstill.cloud_server.serving.scheduling.profile import best_throughput


def batch(first: int, size: int, latency: float, utility: float = 1.0, task: int = 0) -> FormingBatch:
    """A batch of equal queries that arrived at 0."""
    forming = FormingBatch.of(made_query(first, 0.0, latency, utility, task))
    for identifier in range(first + 1, first + size):
        forming.add(made_query(identifier, 0.0, latency, utility, task))
    return forming


def test_a_hand_worked_example() -> None:
    """Three batches, two schedules (0 fast, 1 slow), clock T = 10.

    batch  deadline  fast: time, utility  slow: time, utility
    1      12        1, 3                 2, 5
    2      13        1, 2                 2, 6
    3      14        1, 1                 3, 9

    State (utility, clock) per choice; a finish must lie before the deadline.
    after 1: skip (0, 10); fast (3, 11); slow: 10 + 2 = 12 is not before 12, unreachable.
    after 2: skip: best of after 1 = (3, 11), from fast.
             fast: 11 < 13 from skip (0 + 2), 12 < 13 from fast (3 + 2) -> (5, 12), from fast.
             slow: from skip 12 < 13 (6, 12); from fast 13 is not before 13 -> (6, 12), from skip.
    after 3: skip: (6, 12), from slow.
             fast: from skip (3, 11) -> 4 at 12; from fast (5, 12) -> 6 at 13; from slow (6, 12) -> 7 at 13: the last.
             slow: from skip (3, 11): 14 is not before 14; from the others later still: unreachable.
    The most is 7: batch 3 fast, its parent batch 2 slow, whose parent skipped batch 1.
    The exact plan finds 9 instead (only batch 3, slow, 10 + 3 = 13): the state that would lead there, (0, 10) after
    skipping both, was overwritten by one with more utility and a later clock.
    """
    seconds = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]])
    utility = np.array([[3.0, 5.0], [2.0, 6.0], [1.0, 9.0]])
    deadlines = np.array([12.0, 13.0, 14.0])
    assert allocate_indices(seconds, utility, deadlines, 10.0) == (None, 1, 0)
    just_before = deadlines - 10.0 - 1e-9
    assert exact_plan(seconds, utility, just_before) == BatchPlan((None, None, 1), 9.0)


def test_skipping_everything_keeps_the_clock_and_looks_up_no_schedule() -> None:
    """Printed, an unexecuted batch ends on index 1 of the list, with the clock back at T."""
    seconds, utility = np.full((3, 2), 5.0), np.ones((3, 2))
    assert allocate_indices(seconds, utility, np.array([1.0, 2.0, 5.5]), 0.0) == (None, None, 0)
    assert allocate_indices(seconds, utility, np.array([1.0, 2.0, 3.0]), 0.0) == (None, None, None)


def test_of_equal_utility_the_earlier_clock_is_kept() -> None:
    """Batch 1 earns 1 either way; only its fast schedule leaves time for batch 2."""
    seconds, utility = np.array([[1.0, 3.0], [2.0, 9.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])
    assert allocate_indices(seconds, utility, np.array([4.0, 3.5]), 0.0) == (0, 0)


def test_batches_get_schedules_by_name() -> None:
    """Slow for both takes 0.04 + 0.04 s; with a deadline at 0.07 s the first stays slow and the second goes fast."""
    profile = made_profile()
    plan = allocate([batch(0, 1, 0.065, task=1), batch(1, 1, 0.0651, 0.1)], 0.0, profile)
    assert [schedule.name if schedule else None for schedule in plan] == ["slow", "fast"]


def test_expected_utility_sums_utility_times_accuracy() -> None:
    forming = batch(0, 2, 1.0, 0.5, task=1)
    forming.add(made_query(9, utility=0.2, task=0))
    assert expected_utility(forming, made_profile().schedules[0]) == pytest.approx(2 * 0.5 * 0.9 + 0.2)


@pytest.mark.parametrize(
    ("demand", "name"),
    [
        (0.0, "slow"),
        (0.5, "slow"),
        (44.4, "slow"),
        (44.5, "fast"),
        (88.8, "fast"),
        (1000.0, "fast"),
        (1e9, "fast"),
    ],
)
def test_the_rate_chooses_the_slowest_schedule_that_keeps_up_without_gaps(demand: float, name: str) -> None:
    """In full batches of 8: slow 8 / 0.18 = 44.4 queries per second, fast 88.9."""
    assert best_throughput(made_profile().useful, demand).name == name


def test_algorithm_3_tests_every_schedule_against_the_deadline() -> None:
    """A critical batch gets the largest schedule only where that is in time (printed: always)."""
    profile, settings = made_profile(), AllocationSettings()
    critical, relaxed = batch(0, 2, 0.05, utility=1.0), batch(2, 2, 0.5, utility=1.0)
    plan = allocate_by_rate([critical, relaxed], 0.0, profile, demand=1e6, settings=settings)
    assert [schedule.name if schedule else None for schedule in plan] == ["fast", "slow"]


def test_algorithm_3_defers_what_even_the_fastest_schedule_misses() -> None:
    """Printed, such a batch gets the smallest schedule and pushes the clock for all behind it."""
    profile, settings = made_profile(), AllocationSettings()
    plan = allocate_by_rate([batch(0, 4, 0.04, 0.1), batch(4, 1, 0.05, 0.1)], 0.0, profile, 0.0, settings)
    assert [schedule.name if schedule else None for schedule in plan] == [None, "slow"]


def test_headroom_plans_with_a_share_of_the_throughput() -> None:
    profile = made_profile()
    plan = allocate_by_rate([batch(0, 1, 1.0, 0.1)], 0.0, profile, 40.0, AllocationSettings(headroom=0.75))
    assert plan[0] is not None
    assert plan[0].name == "fast"
