"""The reductions that a model may be fine-tuned and served at: thesis Section 4.6's list of merging numbers.

A reduction is the number of tokens that every layer merges away. Two numbers can give the same forward pass once a
layer runs out of tokens (from 98 on for 196 patches). Such duplicates are refused, because a planner would pay twice
for one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedstill.common.errors import DataError
from fedstill.models.vit.schedules import TokenSchedule, constant_schedule, effective_merges

THESIS_REDUCTIONS = (*range(26), 30, 40, 50, 100)
"""Section 4.6.1: 0 to 25, and the additional set."""


def reduction_schedule(reduction: int, layers: int) -> TokenSchedule:
    """``reduction`` tokens merge in each of ``layers`` layers."""
    return constant_schedule(-reduction, layers)


def check_reductions(reductions: Sequence[int], layers: int, patches: int) -> tuple[int, ...]:
    """The list in ascending order.

    Raises:
        DataError: fewer than two, a negative one, or two that are the same forward pass on ``patches`` patches.
    """
    if len(reductions) < 2 or min(reductions) < 0:
        raise DataError(f"reductions: {list(reductions)}: give at least two numbers, none below 0")
    seen: dict[tuple[int, ...], int] = {}
    for reduction in sorted(reductions):
        merges = effective_merges(reduction_schedule(reduction, layers), patches)
        if merges in seen:
            raise DataError(
                f"reductions: {reduction} and {seen[merges]} are the same forward pass on {patches} patches: "
                f"leave {reduction} out"
            )
        seen[merges] = reduction
    return tuple(seen.values())


def spread(measured: Mapping[int, float], reductions: Sequence[int]) -> dict[int, float]:
    """A value for every one of ``reductions``: measured, or on a straight line between measurements, over list
    positions.

    ``measured`` must not be empty; beyond its ends the nearest value holds.
    """
    place = {reduction: at for at, reduction in enumerate(sorted({*reductions, *measured}))}
    known = sorted(measured)
    values = np.interp(
        [place[r] for r in reductions], [place[r] for r in known], [measured[r] for r in known]
    )
    return dict(zip(reductions, values.tolist(), strict=True))
