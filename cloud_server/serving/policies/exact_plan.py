"""The best plan for the waiting batches: a dynamic programme over the clock, exact up to the clock's grid.

With one engine, and a deadline per batch, some best plan runs its batches in order of deadline (Jackson 1955),
so it is enough to decide for each batch in that order whether and how to run it. That is the scheme of Lawler and Moore
(1969) for the weighted number of late jobs; the problem is weakly NP-hard, not strongly, and the thesis' reduction
(Theorem 1) does not show otherwise. Unlike Algorithm 2 the state is the clock itself, so no prefix is forgotten.

`exact_plan` keeps the list of states that no other beats on both clock and value: exact, for few batches.
`grid_plan` rounds times up to a grid: as good up to rounding, never late, and fast enough for a full queue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """choices: per batch the index of its option, None if it is not run. value: the sum over the batches that run."""

    choices: tuple[int | None, ...]
    value: float


def exact_plan(seconds: Floats, values: Floats, slack: Floats) -> BatchPlan:
    """The plan of most value in which every batch that runs ends within its slack.

    seconds, values: float (batches, options). slack: float (batches,), seconds from now to the deadline, rising.
    """
    states: list[tuple[float, float, tuple[int | None, ...]]] = [(0.0, 0.0, ())]
    for batch in range(len(slack)):
        grown = [(clock, value, (*chosen, None)) for clock, value, chosen in states]
        for option, (needed, gain) in enumerate(
            zip(seconds[batch].tolist(), values[batch].tolist(), strict=True)
        ):
            if gain <= 0:
                continue  # not running the batch is at least as good
            grown += [
                (clock + needed, value + gain, (*chosen, option))
                for clock, value, chosen in states
                if clock + needed <= slack[batch]
            ]
        grown.sort(key=lambda state: (state[0], -state[1]))
        states, best = [], -math.inf
        for state in grown:
            if state[1] > best:
                states.append(state)
                best = state[1]
    _, value, chosen = states[-1]
    return BatchPlan(chosen, value)


def grid_plan(seconds: Floats, values: Floats, slack: Floats, resolution: float) -> BatchPlan:
    """As `exact_plan`, with every time rounded up to a multiple of `resolution` seconds (and every slack down)."""
    count = len(slack)
    if count == 0:
        return BatchPlan((), 0.0)
    limits = np.maximum(0, np.floor(slack / resolution + 1e-9)).astype(np.int64)
    steps = np.ceil(seconds / resolution - 1e-9).astype(np.int64)
    cells = int(limits.max()) + 1
    best = np.zeros(cells)  # best[k]: most value of the batches so far when the engine is free by k
    taken = np.full((count, cells), -1, dtype=np.int8)
    for batch in range(count):
        limit = int(limits[batch])
        useful = _worth_trying(steps[batch].tolist(), values[batch].tolist(), limit)
        if not useful:
            continue
        grown, choice = best.copy(), taken[batch]
        for option, needed, gain in useful:
            candidate = best[: limit + 1 - needed] + gain
            target = grown[needed : limit + 1]
            better = candidate > target
            np.copyto(target, candidate, where=better)
            np.copyto(choice[needed : limit + 1], option, where=better)
        # Ending by a later time is at least as good as ending by the limit.
        late = grown[limit + 1 :]
        if late.size and grown[limit] > late[0]:
            better = grown[limit] > late
            choice[limit + 1 :][better] = choice[limit]
            late[better] = grown[limit]
        best = grown
    return BatchPlan(_walk_back(taken, steps, limits, cells - 1), float(best[-1]))


def _worth_trying(steps: list[int], values: list[float], limit: int) -> list[tuple[int, int, float]]:
    """(option, steps, value) of the options that fit and beat not running and every option that is as fast."""
    kept: list[tuple[int, int, float]] = []
    most = 0.0
    for needed, _, option in sorted(
        (needed, -gain, option) for option, (needed, gain) in enumerate(zip(steps, values, strict=True))
    ):
        if needed <= limit and values[option] > most:
            kept.append((option, needed, values[option]))
            most = values[option]
    return kept


def _walk_back(
    taken: npt.NDArray[np.int8], steps: npt.NDArray[np.int64], limits: npt.NDArray[np.int64], cell: int
) -> tuple[int | None, ...]:
    chosen: list[int | None] = []
    for batch in range(len(taken) - 1, -1, -1):
        option = int(taken[batch, cell])
        if option < 0:
            chosen.append(None)
        else:
            chosen.append(option)
            cell = min(cell, int(limits[batch])) - int(steps[batch, option])
    return tuple(reversed(chosen))
