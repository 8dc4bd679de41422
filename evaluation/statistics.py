"""Uncertainty of results: intervals for accuracies and paired comparisons of two arms.

The seeds of a run score the same clips, so 5 seeds on 377 clips are not 1885 independent trials; nor are the clips of
one recording, or of one speaker. Intervals resample speakers and their recordings (``clusters.py``), and the paired
test flips a speaker's differences over all seeds together. A difference is called one only when both the speakers and
the seeds support it. docs/decisions/025 says why.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedstill.evaluation.clusters import Recordings, by_recording
from fedstill.evaluation.paired_tests import FEWEST_SPEAKERS, p_label, paired_t, sign_flip
from fedstill.evaluation.results import AccuracyRow, ClipRow

SEEDS_FOR_TEST = 3  # with fewer, a t-test over seeds has no power, so the speakers alone decide


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
    """Fraction correct, its 95 % interval [low, high], the distinct recordings and the seeds behind it."""

    fraction: float
    low: float
    high: float
    recordings: int
    seeds: int

    def __str__(self) -> str:
        return f"{100 * self.fraction:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arm minus baseline on the same clips.

    difference_points, low, high: percentage points, with the 95 % interval of the hierarchical bootstrap.
    p_flips: sign-flip test with the speaker as the unit; with the recording if the speakers are unknown.
    p_seeds: paired t-test over seeds; None for a single seed.
    label: "n.s.", with the reason if there are too few speakers for any other outcome; or the larger of the p values
        that were asked to be below 0.05.
    """

    difference_points: float
    low: float
    high: float
    p_flips: float
    p_seeds: float | None
    label: str

    def __str__(self) -> str:
        if self.low == self.high != 0:
            return f"{signed(self.difference_points)} (all recordings alike, so no interval), {self.label}"
        return f"{signed(self.difference_points)} [{signed(self.low)}, {signed(self.high)}], {self.label}"

    @property
    def short_label(self) -> str:
        """The label without a reason, for a narrow table."""
        return self.label.partition(":")[0]


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


def distinct_recordings(clips: Sequence[ClipRow], scenario: str) -> dict[int, int]:
    """Distinct recordings per client over all seeds of one scenario; clips, if the file has no groups."""
    seen: dict[int, set[str]] = defaultdict(set)
    for row in clips:
        if row.scenario == scenario:
            seen[row.client].update(row.groups or row.clip_ids)
    return {client: len(ids) for client, ids in seen.items()}


def pooled_accuracy(rows: Sequence[Tally], distinct: Mapping[int, int] | None = None) -> Accuracy:
    """Accuracy over all rows (clients and seeds), with Wilson's interval of as many trials as there are recordings.

    For rows whose clips are not known. The seeds see the same clips, so the n of the interval is the number of distinct
    recordings, not clips x seeds: more seeds make the mean more stable but say no more about new clips. `distinct`
    gives the count per client (needed if seeds test on different halves, or clips share a recording); without it, the
    clips of the largest seed count. Raises ValueError for no rows.
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


def arm_accuracy(rows: Sequence[AccuracyRow], clips: Sequence[ClipRow], seed: int = 0) -> Accuracy:
    """Accuracy over the rows of one arm in one scenario, with the interval of the hierarchical bootstrap.

    If the speakers of these clips are unknown, or if no resample differs (all recordings are alike), the interval is
    Wilson's over recordings. Raises ValueError for no rows. seed: of the bootstrap.
    """
    pooled = pooled_accuracy(rows, distinct_recordings(clips, rows[0].scenario) if rows else None)
    kept = {(row.scenario, row.client, row.seed): row for row in clips}
    outcomes = []
    for row in rows:
        clip_row = kept.get((row.scenario, row.client, row.seed))
        if clip_row is None or row.arm not in clip_row.correct:
            return pooled
        outcomes.append((clip_row, [int(digit) for digit in clip_row.correct[row.arm]]))
    found = by_recording(outcomes)
    low, high = found.interval(np.random.default_rng(seed))
    if not found.known or low == high:
        return pooled
    return Accuracy(pooled.fraction, low / 100, high / 100, len(found.sums), pooled.seeds)


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
    gains: list[tuple[ClipRow, list[int]]] = []
    for row in clips:
        wanted = row.scenario == scenario and client in (None, row.client)
        if not wanted or arm not in row.correct or baseline not in row.correct:
            continue
        pairs = zip(row.correct[arm], row.correct[baseline], strict=True)
        gains.append((row, [int(ours) - int(theirs) for ours, theirs in pairs]))
    return paired(gains, seed)


def paired(gains: Sequence[tuple[ClipRow, Sequence[int]]], seed: int = 0) -> Comparison | None:
    """The comparison behind paired outcomes: per row, what each of its clips gains, -1, 0 or 1; None without clips."""
    by_seed: dict[int, list[int]] = defaultdict(list)
    for row, differences in gains:
        by_seed[row.seed] += differences
    if not any(by_seed.values()):
        return None
    found = by_recording(gains)
    rng = np.random.default_rng(seed)
    low, high = found.interval(rng)
    p_flips = sign_flip(found.speaker_sums, rng)
    p_seeds = paired_t([float(np.mean(values)) for values in by_seed.values()])
    difference = 100 * float(found.sums.sum() / found.counts.sum())
    label = _label(found, p_flips, p_seeds if len(by_seed) >= SEEDS_FOR_TEST else None)
    return Comparison(difference, low, high, p_flips, p_seeds, label)


def _label(found: Recordings, p_flips: float, p_seeds: float | None) -> str:
    if found.known and found.speaker_count < FEWEST_SPEAKERS:
        speakers = "1 speaker" if found.speaker_count == 1 else f"{found.speaker_count} speakers"
        return f"n.s.: {speakers} cannot show it"
    return p_label(p_flips if p_seeds is None else max(p_flips, p_seeds))
