"""The numbers of a load test as people read them: means over seeds with intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fedstill.evaluation.paired_tests import p_label, paired_t
from fedstill.evaluation.serving.results import RunRow, ServingResults
from fedstill.evaluation.statistics import SEEDS_FOR_TEST, signed

BASELINE = "faithful"
OURS = "fedstill"


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean over seeds and its 95 % interval by Student's t (equal to the mean for one seed)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        centre = float(np.mean(values))
        if len(values) < 2:
            return cls(centre, centre, centre)
        reach = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))
        return cls(centre, centre - reach, centre + reach)

    def percent(self) -> str:
        """ "91.2 % [90.8, 91.6]"."""
        return f"{100 * self.value:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


@dataclass(frozen=True, slots=True)
class Gain:
    """Utility over a baseline's on the same loads, in percent of the baseline's; p by a paired t-test over seeds."""

    percent: Mean
    p: float | None

    def __str__(self) -> str:
        spread = f"{signed(self.percent.value)} % [{signed(self.percent.low)}, {signed(self.percent.high)}]"
        return spread if self.p is None else f"{spread}, {p_label(self.p)}"


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """One policy on one trace and load: shares of queries are means over seeds; gain is None for the baseline itself
    and if the baseline was not run. of_window, of_bound: None without upper references."""

    policy: str
    share: Mean
    gain: Gain | None
    of_window: Mean | None
    of_bound: Mean | None
    types: tuple[float, float, float, float]
    mean_batch: float
    waiting_p95_ms: float


def policy_lines(results: ServingResults, trace: str, load: float) -> list[PolicyLine]:
    """All policies on one trace and load, in the order in which they were run."""
    lines = []
    references = results.reference(trace, load)
    for policy in results.policies():
        rows = results.rows(policy, trace, load)
        pairs = list(zip(rows, references, strict=True)) if references else []
        lines.append(
            PolicyLine(
                policy=policy,
                share=Mean.of([row.share for row in rows]),
                gain=None if policy == BASELINE else gain(results, policy, BASELINE, trace, load),
                of_window=_mean([row.utility_earned / reference.window for row, reference in pairs]),
                of_bound=_mean([row.utility_earned / reference.bound for row, reference in pairs]),
                types=_types(rows),
                mean_batch=float(np.mean([row.mean_batch for row in rows])),
                waiting_p95_ms=float(np.mean([row.waiting_ms.get("p95", 0.0) for row in rows])),
            )
        )
    return lines


def _mean(values: Sequence[float]) -> Mean | None:
    return Mean.of(values) if values else None


def _types(rows: Sequence[RunRow]) -> tuple[float, float, float, float]:
    counts = np.array([[r.type1, r.type2, r.type3, r.type4] for r in rows]) / np.array(
        [[r.queries] for r in rows]
    )
    one, two, three, four = counts.mean(axis=0).tolist()
    return one, two, three, four


def gain(results: ServingResults, policy: str, baseline: str, trace: str, load: float) -> Gain | None:
    """How much more utility `policy` earns than `baseline` on the same loads; None if either was not run."""
    ours, theirs = results.rows(policy, trace, load), results.rows(baseline, trace, load)
    if not ours or not theirs:
        return None
    percents = [
        100 * (mine.utility_earned / other.utility_earned - 1)
        for mine, other in zip(ours, theirs, strict=True)
    ]
    p = paired_t(percents) if len(percents) >= SEEDS_FOR_TEST else None
    return Gain(Mean.of(percents), p)


def paired_ratio(results: ServingResults, policy: str, baseline: str, trace: str, load: float) -> Mean | None:
    """Utility of ``policy`` over that of ``baseline``; None if either was not run, see :func:`mean_ratio`."""
    ours, theirs = results.rows(policy, trace, load), results.rows(baseline, trace, load)
    return mean_ratio(
        [(mine.utility_earned, other.utility_earned) for mine, other in zip(ours, theirs, strict=False)]
    )


def mean_ratio(pairs: Sequence[tuple[float, float]]) -> Mean | None:
    """First over second, paired by seed: the geometric mean, and its interval on the logarithm.

    Under overload a ratio of one seed may be ten times that of another, and a ratio is never negative. It is 0 if
    first is 0 for any seed; None without pairs, and if second is 0, which leaves nothing to compare with.
    """
    if not pairs or min(second for _, second in pairs) <= 0:
        return None
    if min(first for first, _ in pairs) <= 0:
        return Mean(0.0, 0.0, 0.0)
    logs = Mean.of([math.log(first / second) for first, second in pairs])
    return Mean(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high))


def bound_room(results: ServingResults, trace: str, load: float) -> Mean | None:
    """How far the strict upper bound lies above the baseline, in percent: no policy can gain more."""
    rows, references = results.rows(BASELINE, trace, load), results.reference(trace, load)
    if not rows or not references:
        return None
    pairs = zip(rows, references, strict=True)
    return Mean.of([100 * (reference.bound / row.utility_earned - 1) for row, reference in pairs])
