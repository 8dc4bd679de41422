"""A planner that considers a model's worth at every reduction, not at one pair: greedy facility location.

Eq. (4.1) with the best model at every reduction is the facility-location problem: models are facilities,
reductions are clients, accuracy is the value. It is monotone and submodular, so greedy is within 1 - 1/e of the
best set (Nemhauser, Wolsey and Fisher 1978) *for the accuracies that it assumes*. These come from a small curve, fitted
again after each model: the accuracy that a model of its own would reach at a reduction, and an exponential loss with
the distance to the model that serves it, at one rate for models of less reduction and another for models of more
(Observations 1 and 2). Where a model was measured, the measurement counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedstill.cloud_server.warmup.planner import Budget, Spending, WarmUpBackend
from fedstill.common.errors import DataError

LEAST_GAIN = 1e-4
"""The least gain in mean accuracy over all reductions for which another model is worth its cost."""

LEAST_ACCURACY = 0.01
"""The least accuracy assumed: a model that is never right has no finite loss rate."""


@dataclass(frozen=True, slots=True)
class AccuracyCurve:
    """accuracy(model, reduction), both as positions in the list of reductions.

    own: (position, accuracy) that a model of its own reaches, ascending; straight lines between. up, down: loss rates
    per position for reductions above, and below the one that the model was fine-tuned at.
    """

    own: tuple[tuple[int, float], ...]
    up: float
    down: float

    def accuracy(self, model: int, reduction: int) -> float:
        places, values = zip(*self.own, strict=True)
        return float(np.interp(reduction, places, values)) * self.kept(model, reduction)

    def kept(self, model: int, reduction: int) -> float:
        """Share of its own model's accuracy that a reduction keeps with ``model``."""
        away = reduction - model
        return math.exp(-self.up * away if away > 0 else self.down * away)


def fit_curve(measured: Mapping[tuple[int, int], float]) -> AccuracyCurve:
    """Rates by least squares of logarithms wherever two models are known at one position; then own accuracies from the
    best measurement there, corrected for its loss.

    Keys: positions of (model, reduction), each model at its own among them.
    """
    models = sorted({model for model, _ in measured})
    losses = {
        (model, other): math.log(
            max(measured[other, other], LEAST_ACCURACY) / max(measured[model, other], LEAST_ACCURACY)
        )
        for model in models
        for other in models
        if model != other and (model, other) in measured
    }
    up = _rate({pair: loss for pair, loss in losses.items() if pair[1] > pair[0]})
    down = _rate({pair: loss for pair, loss in losses.items() if pair[1] < pair[0]})
    rates = AccuracyCurve((), up, down)
    own: dict[int, float] = {}
    for (model, reduction), value in measured.items():
        free = min(1.0, value / rates.kept(model, reduction))
        if reduction in models:  # its own model was measured; only a better one adds information
            free = value
        own[reduction] = max(own.get(reduction, 0.0), free)
    return AccuracyCurve(tuple(sorted(own.items())), up, down)


def _rate(losses: Mapping[tuple[int, int], float]) -> float:
    """Loss per position, not below 0; 0 if nothing is known."""
    distances = {pair: abs(pair[1] - pair[0]) for pair in losses}
    squares = sum(distance**2 for distance in distances.values())
    return max(0.0, sum(losses[pair] * distances[pair] for pair in losses) / squares) if squares else 0.0


def plan_by_coverage(
    backend: WarmUpBackend, reductions: Sequence[int], middle: int, budget: Budget
) -> tuple[int, ...]:
    """The reductions that were fine-tuned, in order: ``middle`` and the largest, then the greatest gain each time.

    Gain is that of the mean accuracy over ``reductions``; where time is limited, gain per second.

    Raises:
        DataError: as ``plan_ratios``.
    """
    if middle not in reductions[:-1]:
        raise DataError(f"middle: {middle} is not an allowed reduction below the largest, {reductions[-1]}")
    spending = Spending(backend, budget)
    spending.buy_first((middle, reductions[-1]))
    place = {reduction: at for at, reduction in enumerate(reductions)}
    while True:
        measured = {
            (place[model], place[reduction]): value
            for model in spending.chosen
            for reduction, value in backend.accuracies(model).items()
            if reduction in place
        }
        curve = fit_curve(measured)
        covered = [
            max(
                measured.get((place[model], at), curve.accuracy(place[model], at))
                for model in spending.chosen
            )
            for at in range(len(reductions))
        ]
        best: tuple[float, int] | None = None
        for reduction in reductions:
            cost = backend.cost(reduction)
            affordable = spending.time_allows(cost) and spending.storage_allows(cost)
            if reduction in spending.chosen or not affordable:
                continue
            gain = float(
                np.mean(
                    [max(0.0, curve.accuracy(place[reduction], at) - had) for at, had in enumerate(covered)]
                )
            )
            worth = gain / cost.seconds if budget.seconds is not None else gain
            if gain > LEAST_GAIN and (best is None or worth > best[0]):
                best = (worth, reduction)
        if best is None:
            return tuple(spending.chosen)
        spending.buy(best[1])
