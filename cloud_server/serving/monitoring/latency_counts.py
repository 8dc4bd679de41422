"""Counts of latencies in buckets of equal ratio: percentiles of any stretch of time in little memory.

Buckets are merged by adding, so the percentiles of an hour are as exact as those of a second: within a fiftieth of the
true value (a DDSketch, Masson et al. 2019, without its collapsing: the range is fixed).
"""

from __future__ import annotations

import math
from collections import Counter

LEAST, MOST = 1e-5, 1e5
"""Seconds; whatever lies beyond counts as this."""
RATIO = 1.04
"""Upper over lower bound of a bucket."""
_LOG = math.log(RATIO)
SHARES = (0.5, 0.95, 0.99)


class LatencyCounts:
    """At most ``log(MOST / LEAST) / log(RATIO)`` = 588 numbers."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """One more. seconds: 0 and more."""
        self._counts[math.floor(math.log(min(max(seconds, LEAST), MOST) / LEAST) / _LOG)] += 1

    def merge(self, other: LatencyCounts) -> None:
        """Count what the other one has counted, too."""
        self._counts.update(other._counts)

    def quantiles(self, shares: tuple[float, ...] = SHARES) -> tuple[float, ...] | None:
        """Seconds below which these shares (rising) lie; None of nothing."""
        total = self._counts.total()
        if not total:
            return None
        ranks = [math.ceil(share * total) for share in shares]
        found: list[float] = []
        so_far = 0
        for bucket in sorted(self._counts):
            so_far += self._counts[bucket]
            while len(found) < len(ranks) and so_far >= ranks[len(found)]:
                found.append(LEAST * math.exp((bucket + 0.5) * _LOG))
        return tuple(found)
