"""Algorithm 4: which reductions to fine-tune at, within a budget of time, storage and number of models.

Repairs of the printed version: the midpoint is taken over positions in the list of allowed reductions (60 is not in
it). A pair is unsplittable if its ends are neighbours *or the same* (splitting makes such pairs). Raising the new
number stops when it fits; it is accepted then, instead of inside the loop. And the budgets are "at most".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedstill.common.errors import DataError


@dataclass(frozen=True, slots=True)
class Cost:
    """Of fine-tuning and keeping one model."""

    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What warm-up may take in all (the thesis' alpha and beta, and how many models); None is no limit."""

    seconds: float | None = None
    bytes: int | None = None
    models: int | None = None

    def __post_init__(self) -> None:
        if any(limit is not None and limit <= 0 for limit in (self.seconds, self.bytes, self.models)):
            raise DataError("budget: limits must be above 0")

    def time_allows(self, seconds: float) -> bool:
        return self.seconds is None or seconds <= self.seconds

    def storage_allows(self, size: int, models: int) -> bool:
        return (self.bytes is None or size <= self.bytes) and (self.models is None or models <= self.models)


class WarmUpBackend(Protocol):
    """The interface that a planner uses: costs, fine-tuning, and the accuracy of the best model so far at a
    reduction.

    Implemented by ``warm_up.WarmUp``.
    """

    def cost(self, reduction: int) -> Cost:
        """Measured estimate for one more model."""

    def fine_tune(self, reduction: int) -> Cost:
        """Make the model; returns its actual cost."""

    def accuracy(self, reduction: int) -> float:
        """Accuracy on the profiling images of the best model so far at that reduction."""

    def accuracies(self, model: int) -> dict[int, float]:
        """Accuracies of one fine-tuned model, at every reduction at which it was measured."""


class Spending:
    """The models fine-tuned and the budget spent so far."""

    def __init__(self, backend: WarmUpBackend, budget: Budget) -> None:
        self._workshop, self._budget = backend, budget
        self.chosen: list[int] = []
        self.seconds = 0.0
        self.bytes = 0

    def time_allows(self, cost: Cost) -> bool:
        return self._budget.time_allows(self.seconds + cost.seconds)

    def storage_allows(self, cost: Cost) -> bool:
        return self._budget.storage_allows(self.bytes + cost.bytes, len(self.chosen) + 1)

    def buy(self, reduction: int) -> None:
        """Fine-tune at ``reduction`` and charge the actual cost."""
        cost = self._workshop.fine_tune(reduction)
        self.chosen.append(reduction)
        self.seconds += cost.seconds
        self.bytes += cost.bytes

    def buy_first(self, reductions: Sequence[int]) -> None:
        """Fine-tune the models that every plan needs.

        Raises:
            DataError: the budget does not hold them; says how much they need.
        """
        costs = [self._workshop.cost(reduction) for reduction in reductions]
        together = Cost(sum(cost.seconds for cost in costs), sum(cost.bytes for cost in costs))
        enough = self._budget.time_allows(together.seconds) and self._budget.storage_allows(
            together.bytes, len(costs)
        )
        if not enough:
            named = " and ".join(map(str, reductions))
            raise DataError(
                f"budget: too small for the first models, at reductions {named}: they take {len(costs)} models, "
                f"{together.seconds:.0f} s and {together.bytes / 1e6:.1f} MB"
            )
        for reduction in reductions:
            self.buy(reduction)


def plan_ratios(
    backend: WarmUpBackend, reductions: Sequence[int], middle: int, budget: Budget
) -> tuple[int, ...]:
    """Algorithm 4. Returns the fine-tuned reductions, in the order of fine-tuning.

    Args:
        reductions: allowed ones, ascending; the last is r_max.
        middle: r_mid, one of them and not the last.

    Raises:
        DataError: ``middle`` is not allowed, or the budget does not hold the first two models.
    """
    if middle not in reductions[:-1]:
        raise DataError(f"middle: {middle} is not an allowed reduction below the largest, {reductions[-1]}")
    spending = Spending(backend, budget)
    spending.buy_first((middle, reductions[-1]))
    pairs = [(reductions.index(middle), len(reductions) - 1)]
    while True:
        pairs.sort(key=lambda pair: _fall(backend, reductions, pair), reverse=True)
        found = None
        while pairs and found is None:
            low, high = pairs.pop(0)
            found = _split(backend, reductions, low, high, spending)
        if found is None:
            return tuple(spending.chosen)
        spending.buy(reductions[found])
        pairs += [(low, found - 1), (found, high)]


def _fall(backend: WarmUpBackend, reductions: Sequence[int], pair: tuple[int, int]) -> float:
    """How much accuracy falls from one end of the pair to the other, with the best model at each."""
    return backend.accuracy(reductions[pair[0]]) - backend.accuracy(reductions[pair[1]])


def _split(
    backend: WarmUpBackend, reductions: Sequence[int], low: int, high: int, spending: Spending
) -> int | None:
    """Position of the new reduction between two others: the middle, or one above it that fits the budget."""
    if high - low <= 1:
        return None
    for new in range((low + high) // 2, high):
        cost = backend.cost(reductions[new])
        if not spending.storage_allows(cost):
            return None
        if spending.time_allows(cost):
            return new
    return None
