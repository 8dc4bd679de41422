"""Algorithms 2 and 3 of the thesis, repaired: how many tokens each waiting batch gets.

`allocate` is Algorithm 2. It keeps one (utility, clock) pair per batch and schedule, the one with most
utility so far, which is the slowest prefix: with many batches it spends all time on the early ones.
`exact_plan.py` does not.

Repairs. Algorithm 2: (a) index 0 means "not executed" and has no schedule, so it is None here and cannot be
looked up in the list; (b) only that state exists at the start, all others are unreachable, so that
back-tracking never lands on a schedule of an unexecuted batch and a skipped batch keeps its predecessor's
clock; (c) the `else` of line 15 belongs to line 11; (d) J and its test are after the inner loop, where they
mean what the text says (here: an option without feasible predecessor stays unreachable); (e) the batch's time
is used throughout. A skipped batch is deferred, not lost. Algorithm 3: (f) f(q) is the slowest schedule whose
profiled throughput suffices, without the gaps of Table 3.4; (g) every schedule is tested against the
deadline, also the largest (line 7) and the smallest (line 5), and a batch that none fits is deferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.policies.batching import FormingBatch
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, best_throughput

Allocation = tuple[Schedule | None, ...]
"""A schedule per batch, None if the batch is deferred."""


@dataclass(frozen=True, slots=True)
class AllocationSettings:
    """Section 3.6. few_batches (beta): up to so many batches Algorithm 3 decides. initial_seconds: of the
    service, in which it decides too. critical_utility (kappa): above this average utility a batch gets the
    largest schedule. headroom: of a schedule's profiled throughput, the share to plan with."""

    few_batches: int = 5
    initial_seconds: float = 2.0
    critical_utility: float = 0.8
    headroom: float = 1.0


def expected_utility(batch: FormingBatch, schedule: Schedule) -> float:
    """Sum over the batch of utility times the accuracy of its task (section 3.3.4)."""
    return sum(query.utility * schedule.accuracy[query.task] for query in batch.queries)


def allocate(batches: Sequence[FormingBatch], now: float, profile: Profile) -> Allocation:
    """Algorithm 2 from line 5 on, for batches sorted by deadline."""
    schedules = profile.useful
    seconds = np.array(
        [[schedule.seconds(len(batch.queries)) for schedule in schedules] for batch in batches]
    )
    utility = np.array([[expected_utility(batch, schedule) for schedule in schedules] for batch in batches])
    deadlines = np.array([batch.deadline for batch in batches])
    return tuple(
        None if choice is None else schedules[choice]
        for choice in allocate_indices(seconds, utility, deadlines, now)
    )


def allocate_indices(
    seconds: npt.NDArray[np.float64],
    utility: npt.NDArray[np.float64],
    deadlines: npt.NDArray[np.float64],
    now: float,
) -> tuple[int | None, ...]:
    """The dynamic programme on numbers alone.

    seconds, utility: float (batches, schedules). deadlines: float (batches,), rising. Returns a column per
    batch or None.
    """
    count, options = seconds.shape
    best = np.full((count + 1, options + 1), -np.inf)  # dp; column 0: not executed
    clock = np.full((count + 1, options + 1), np.inf)  # C
    parent = np.zeros((count + 1, options + 1), dtype=np.int64)  # S
    best[0, 0], clock[0, 0] = 0.0, now
    for batch in range(1, count + 1):
        before, at = best[batch - 1], clock[batch - 1]
        source = _most(before, at)
        best[batch, 0], clock[batch, 0], parent[batch, 0] = before[source], at[source], source
        for option in range(1, options + 1):
            finish = at + seconds[batch - 1, option - 1]
            feasible = np.where(finish < deadlines[batch - 1], before, -np.inf)
            source = _most(feasible, at)
            if feasible[source] == -np.inf:
                continue  # line 22: no predecessor lets this option finish in time
            best[batch, option] = feasible[source] + utility[batch - 1, option - 1]
            clock[batch, option], parent[batch, option] = finish[source], source
    choice = _most(best[count], clock[count])
    chosen: list[int | None] = []
    for batch in range(count, 0, -1):
        chosen.append(int(choice) - 1 if choice else None)
        choice = int(parent[batch, choice])
    return tuple(reversed(chosen))


def _most(utility: npt.NDArray[np.float64], clock: npt.NDArray[np.float64]) -> int:
    """Index of the largest utility; of equal ones the earliest clock."""
    return int(np.lexsort((clock, -utility))[0])


def allocate_by_rate(
    batches: Sequence[FormingBatch],
    now: float,
    profile: Profile,
    demand: float,
    settings: AllocationSettings,
) -> Allocation:
    """Algorithm 3 for batches sorted by deadline. demand: queries per second to keep up with."""
    schedules = profile.useful
    wanted = best_throughput(schedules, demand / settings.headroom)
    allocation: list[Schedule | None] = []
    clock = now
    for batch in batches:
        average = sum(query.utility for query in batch.queries) / len(batch.queries)
        target = schedules[-1] if average > settings.critical_utility else wanted
        size = len(batch.queries)
        slower_first = reversed(schedules[: schedules.index(target) + 1])
        fits = next((s for s in slower_first if clock + s.seconds(size) < batch.deadline), None)
        allocation.append(fits)
        clock += fits.seconds(size) if fits is not None else 0.0
    return tuple(allocation)
