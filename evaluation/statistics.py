"""Uncertainty of results: intervals for accuracies and paired tests between two arms.

The seeds of a run score the same clips, so 5 seeds on 377 clips are not 1885 independent trials. Intervals
therefore count distinct clips, and the paired test flips a clip's differences over all seeds together. A
difference is called one only when both the clips and the seeds support it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedstill.evaluation.results import ClipRow

SIGNIFICANT = 0.05
FLIPS = 10_000
RESAMPLES = 10_000
SEEDS_FOR_TEST = 3  # with fewer, a t-test over seeds has no power, so the clips alone decide


class Tally(Protocol):
    """Anything that counts correct clips of one client and one seed.

    Implemented by ``AccuracyRow``, ``TeacherRow`` and ``SweepRow`` of ``evaluation/results.py``.
    """

    @property
    def client(self) -> int | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def correct(self) -> int: ...
    @property
    def total(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Fraction correct, its 95 % Wilson interval [low, high], the distinct clips and the seeds behind it."""

    fraction: float
    low: float
    high: float
    clips: int
    seeds: int

    def __str__(self) -> str:
        return f"{100 * self.fraction:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arm minus baseline on the same clips.

    difference_points, low, high: percentage points, with the 95 % bootstrap interval over clips.
    p_clips: sign-flip test with the clip as the unit (McNemar's exact test for a single seed).
    p_seeds: paired t-test over seeds; None for a single seed.
    label: "n.s.", or the larger of the p values that were asked to be below 0.05.
    """

    difference_points: float
    low: float
    high: float
    p_clips: float
    p_seeds: float | None
    label: str

    def __str__(self) -> str:
        return f"{signed(self.difference_points)} [{signed(self.low)}, {signed(self.high)}], {self.label}"


def signed(points: float) -> str:
    """One decimal with its sign, never "-0.0"."""
    return f"{round(points, 1) + 0.0:+.1f}"


def wilson(correct: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), as fractions.

    Counts may be fractional (an accuracy averaged over seeds). ValueError unless 0 <= correct <= total.
    """
    if not 0 <= correct <= total or total <= 0:
        raise ValueError(f"{correct} correct of {total} cannot be")
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high


def distinct_clips(clips: Sequence[ClipRow], scenario: str) -> dict[int, int]:
    """Distinct clips per client over all seeds of one scenario."""
    seen: dict[int, set[str]] = defaultdict(set)
    for row in clips:
        if row.scenario == scenario:
            seen[row.client].update(row.clip_ids)
    return {client: len(ids) for client, ids in seen.items()}


def pooled_accuracy(rows: Sequence[Tally], distinct: Mapping[int, int] | None = None) -> Accuracy:
    """Accuracy over all rows (clients and seeds), with the interval of as many trials as there are clips.

    The seeds see the same clips, so the n of the interval is the number of distinct clips, not clips x seeds:
    more seeds make the mean more stable but say no more about new clips. `distinct` gives the count per client (needed
    if seeds test on different halves); without it, the largest seed counts. Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("no rows to pool")
    per_client: dict[int | None, list[int]] = defaultdict(list)
    for row in rows:
        per_client[row.client].append(row.total)
    trials = sum(_distinct(client, totals, distinct or {}) for client, totals in per_client.items())
    fraction = sum(row.correct for row in rows) / sum(row.total for row in rows)
    low, high = wilson(fraction * trials, trials)
    return Accuracy(fraction, low, high, trials, len({row.seed for row in rows}))


def _distinct(client: int | None, totals: Sequence[int], distinct: Mapping[int, int]) -> int:
    known = distinct.get(client) if client is not None else None
    return max(totals) if known is None else min(known, sum(totals))


def compare(
    clips: Sequence[ClipRow],
    arm: str,
    baseline: str,
    *,
    scenario: str,
    client: int | None = None,
    seed: int = 0,
) -> Comparison | None:
    """Paired comparison of two arms over the (seed, clip) pairs that both have; None if they share none.

    client: one client, or None for all of them together. seed: of the flips and of the bootstrap.
    """
    change: dict[tuple[int, str], int] = defaultdict(int)  # per clip, summed over seeds
    pairs: dict[tuple[int, str], int] = defaultdict(int)
    by_seed: dict[int, list[int]] = defaultdict(list)
    for row in clips:
        wanted = row.scenario == scenario and client in (None, row.client)
        if not wanted or arm not in row.correct or baseline not in row.correct:
            continue
        for clip_id, ours, theirs in zip(row.clip_ids, row.correct[arm], row.correct[baseline], strict=True):
            gain = int(ours) - int(theirs)
            change[row.client, clip_id] += gain
            pairs[row.client, clip_id] += 1
            by_seed[row.seed].append(gain)
    if not change:
        return None
    changes, counts = np.array(list(change.values())), np.array(list(pairs.values()))
    rng = np.random.default_rng(seed)
    low, high = bootstrap_interval(changes, counts, rng)
    if len(by_seed) == 1:
        p_clips = mcnemar(int((changes > 0).sum()), int((changes < 0).sum()))
    else:
        p_clips = sign_flip(changes, rng)
    p_seeds = paired_t([float(np.mean(values)) for values in by_seed.values()])
    difference = 100 * float(changes.sum() / counts.sum())
    return Comparison(difference, low, high, p_clips, p_seeds, _label(p_clips, p_seeds, len(by_seed)))


def _label(p_clips: float, p_seeds: float | None, seeds: int) -> str:
    needed = [p_clips] if p_seeds is None or seeds < SEEDS_FOR_TEST else [p_clips, p_seeds]
    return p_label(max(needed))


def p_label(p: float) -> str:
    """ "n.s." from 0.05 up, else the p value."""
    if p >= SIGNIFICANT:
        return "n.s."
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def sign_flip(changes: NDArray[np.int64], rng: np.random.Generator, flips: int = FLIPS) -> float:
    """Two-sided sign-flip test of the hypothesis that clips do not change; `changes` is per clip, summed over seeds.

    Tries all sign patterns if there are at most `flips`, else `flips` random ones (plus the observed one).
    """
    moved = np.abs(changes[changes != 0])
    observed = abs(int(changes.sum()))
    if moved.size == 0:
        return 1.0
    if 2**moved.size <= flips:
        patterns = np.arange(2**moved.size)[:, None] >> np.arange(moved.size) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ moved) >= observed))
    # Clips that moved equally far are exchangeable: how many of them point up is one binomial draw.
    sizes, counts = np.unique(moved, return_counts=True)
    totals = (2 * rng.binomial(counts, 0.5, size=(flips, sizes.size)) - counts) @ sizes
    return float((1 + np.sum(np.abs(totals) >= observed)) / (1 + flips))


def bootstrap_interval(
    changes: NDArray[np.int64], counts: NDArray[np.int64], rng: np.random.Generator
) -> tuple[float, float]:
    """95 % percentile interval of the mean change in points, resampling whole clips.

    changes, counts: per clip, the summed change and over how many (seed, clip) pairs it was summed.
    """
    kinds, copies = np.unique(np.stack([changes, counts], axis=1), axis=0, return_counts=True)
    # Resampling clips is one multinomial draw over the few kinds of clip that there are.
    drawn = rng.multinomial(changes.size, copies / changes.size, size=RESAMPLES)
    means = 100 * (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p value from the clips that only one of two arms got right; 1 if none."""
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


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
    return float(2 * stats.t.sf(abs(mean) / error, values.size - 1))
