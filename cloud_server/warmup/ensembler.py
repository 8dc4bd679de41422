"""Algorithm 5 and our alternative: from accuracies at a reduction to the weights of an averaged model.

The printed algorithm normalises accuracies by their sum, which gives nearly uniform weights (61 % and 77 % give 0.44
and 0.56, although Table 4.1 finds 0.1 and 0.9 best). It also lets a model that is useless at a reduction spoil the
average. Ours takes few models, sharpens their weights by a temperature, and keeps the soup only if it beats the best
single model on images that did not choose it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedstill.cloud_server.warmup.warmed_models import Recipe, single


@dataclass(frozen=True, slots=True)
class EnsembleSettings:
    """temperatures: to try, in units of accuracy. most: models in a soup."""

    temperatures: tuple[float, ...] = (0.02, 0.1)
    most: int = 2

    def __post_init__(self) -> None:
        if self.most < 1 or not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError("ensemble: most must be at least 1, and temperatures above 0")


def printed_recipe(accuracies: Mapping[int, float]) -> Recipe:
    """Algorithm 5 as printed: every model, weighted by its accuracy over their sum; vanishing weights are left out.

    All zero: equal weights.
    """
    total = sum(accuracies.values())
    if total == 0:
        return Recipe({str(model): 1 / len(accuracies) for model in accuracies})
    return Recipe({str(model): value / total for model, value in accuracies.items() if value / total > 0})


def softmax_recipe(accuracies: Mapping[int, float], temperature: float, most: int) -> Recipe:
    """The ``most`` best models with weights softmax(accuracy / temperature); vanishing weights are left out."""
    best = sorted(accuracies, key=lambda model: -accuracies[model])[:most]
    top = accuracies[best[0]]
    shares = {model: math.exp((accuracies[model] - top) / temperature) for model in best}
    total = sum(shares.values())
    kept = {model: share for model, share in shares.items() if share / total >= 0.01}
    total = sum(kept.values())
    return Recipe({str(model): share / total for model, share in kept.items()})


def best_single(right: Mapping[int, str]) -> Recipe:
    """The model with the most right answers; of equals, the one that was fine-tuned at less reduction."""
    return single(min(right, key=lambda model: (-right[model].count("1"), model)))


def choose_recipe(
    right: Mapping[int, str], answers: Callable[[Recipe], str], settings: EnsembleSettings
) -> Recipe:
    """Choose the model or soup that serves a reduction.

    Every second profiling image chooses among soups; the others judge: a soup must be right more often on them than the
    best single model, which all images chose. Otherwise that model stays.

    Args:
        right: digits of right answers at this reduction by model.
        answers: digits of a soup.
    """
    alone = best_single(right)
    chosen: tuple[int, Recipe, str] | None = None
    for temperature in settings.temperatures:
        accuracies = {
            model: _half(digits, 0).count("1") / len(_half(digits, 0)) for model, digits in right.items()
        }
        recipe = softmax_recipe(accuracies, temperature, settings.most)
        if len(recipe.weights) == 1:
            continue
        digits = answers(recipe)
        count = _half(digits, 0).count("1")
        if chosen is None or count > chosen[0]:
            chosen = (count, recipe, digits)
    if chosen is None:
        return alone
    better = _half(chosen[2], 1).count("1") > _half(right[alone.models[0]], 1).count("1")
    return chosen[1] if better else alone


def affordable_models(
    accuracies: Mapping[int, Mapping[int, float]], sizes: Mapping[int, int], limit: int
) -> tuple[int, ...]:
    """Models to keep in ``limit`` bytes, as greedy takes them (Section 4.4.3's resource-aware choice).

    The thesis calls it a knapsack, but a model's value depends on the others: it is the facility-location problem
    again, and greedy takes the most mean accuracy gained per byte.

    Args:
        accuracies: model -> reduction -> accuracy, all at the same reductions. sizes: bytes by model.
    """
    kept: list[int] = []
    best: dict[int, float] = {}
    while True:
        left = limit - sum(sizes[model] for model in kept)
        gains = {
            model: sum(max(0.0, value - best.get(r, 0.0)) for r, value in row.items()) / sizes[model]
            for model, row in accuracies.items()
            if model not in kept and sizes[model] <= left
        }
        if not gains or max(gains.values()) <= 0:
            return tuple(kept)
        kept.append(max(gains, key=lambda model: gains[model]))
        for r, value in accuracies[kept[-1]].items():
            best[r] = max(best.get(r, 0.0), value)


def ranking(right: Mapping[int, str]) -> tuple[Recipe, ...]:
    """The single models that can serve a reduction, most right answers first."""
    return tuple(map(single, sorted(right, key=lambda model: (-right[model].count("1"), model))))


def _half(digits: str, which: int) -> str:
    return digits[which::2]
