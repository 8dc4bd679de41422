"""Is a paired difference more than chance? Sign flips over units, a t-test over seeds, Holm over several questions.

A unit is what was drawn independently: a speaker, a recording, an image. All its clips and seeds change sign together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtr

SIGNIFICANT = 0.05
FLIPS = 10_000
FEWEST_SPEAKERS = 6  # all signs alike has p = 2 / 2^n: 0.031 for 6 units, 0.0625 for 5


def sign_flip(changes: NDArray[np.int64], rng: np.random.Generator, flips: int = FLIPS) -> float:
    """Two-sided sign-flip test of the hypothesis that units do not change; `changes` is per unit, summed over seeds.

    Exact if all units that moved did so equally far (then it is McNemar's test), or if there are at most `flips`
    sign patterns; else `flips` random ones, plus the observed one.
    """
    moved = np.abs(changes[changes != 0])
    observed = abs(int(changes.sum()))
    if moved.size == 0:
        return 1.0
    # Units that moved equally far are exchangeable: how many of them point up is one binomial draw.
    sizes, counts = np.unique(moved, return_counts=True)
    if sizes.size == 1:
        return mcnemar(int((changes > 0).sum()), int((changes < 0).sum()))
    if 2**moved.size <= flips:
        patterns = np.arange(2**moved.size)[:, None] >> np.arange(moved.size) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ moved) >= observed))
    totals = (2 * rng.binomial(counts, 0.5, size=(flips, sizes.size)) - counts) @ sizes
    return float((1 + np.sum(np.abs(totals) >= observed)) / (1 + flips))


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p value from the clips that only one of two arms got right; 1 if none."""
    if gained + lost == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p value of a t-test that per-seed differences have mean zero; None below two seeds.

    Equal differences leave no spread to test: 1 if they are zero, else 0.
    """
    if len(differences) < 2:
        return None
    values = np.asarray(differences, dtype=np.float64)
    mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size))
    if error < 1e-12:
        return 1.0 if abs(mean) < 1e-12 else 0.0
    return float(2 * stdtr(values.size - 1, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p values of comparisons that were named beforehand, in the order given (Holm 1979).

    Those below a level can be called differences together: the chance of a false one among them is at most the level.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def p_label(p: float) -> str:
    """ "n.s." from 0.05 up, else the p value."""
    if p >= SIGNIFICANT:
        return "n.s."
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
