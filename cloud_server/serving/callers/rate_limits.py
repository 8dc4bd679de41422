"""How many queries the token of a node may ask: a token bucket per node.

A bucket holds ``burst`` queries and fills at ``per_second``. In any time t a node gets at most per_second * t + burst
queries, and one that keeps to its rate is never refused. A small rate with a large burst is a quota.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedstill.common.credentials import NAME
from fedstill.common.errors import ConfigError

EVERY_OTHER = "*"
"""In place of a node's name: each node that is not named, with a bucket of its own."""
ROUNDING = 1e-6
"""Of a query: sums of floating-point times may lack as much."""

Count = Callable[[str, int, bool], None]
"""Called with a limited node, its queries, and whether they were taken."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Queries per second in the long run, and at once after a pause."""

    per_second: float
    burst: float


@dataclass(slots=True)
class _Bucket:
    left: float
    time: float


class RateLimits:
    """To be used from one thread.

    Args:
        rates: by node, or ``EVERY_OTHER``.
        counts: are told of every decision.
        clock: seconds, never falling.
    """

    def __init__(
        self,
        rates: Mapping[str, Rate] | None = None,
        counts: Sequence[Count] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates, self._counts, self._clock = dict(rates or {}), counts, clock
        self._buckets: dict[str, _Bucket] = {}

    def rate(self, node: str) -> Rate | None:
        """Of a node; None if it is not limited. Without a token there is no node."""
        return self._rates.get(node, self._rates.get(EVERY_OTHER)) if node else None

    def take(self, node: str, queries: int) -> float:
        """Take so many queries at once, all or none.

        Returns the seconds after which it may be tried again: 0 if they were taken, infinity if they never can be.
        """
        rate = self.rate(node)
        if rate is None:
            return 0.0
        now = self._clock()
        bucket = self._buckets.setdefault(node, _Bucket(rate.burst, now))
        bucket.left = min(rate.burst, bucket.left + rate.per_second * (now - bucket.time))
        bucket.time = now
        taken = bucket.left + ROUNDING >= queries
        if taken:
            bucket.left -= queries
        for count in self._counts:
            count(node, queries, taken)
        if taken:
            return 0.0
        return (queries - bucket.left) / rate.per_second if queries <= rate.burst + ROUNDING else math.inf


def parse_rates(texts: Sequence[str]) -> dict[str, Rate]:
    """Of ``--rate-limit``: ``NODE=QUERIES_PER_SECOND[:BURST]``; without a burst, that of one second, at least 1.

    Raises ConfigError for another form, and for a node that is named twice.
    """
    found: dict[str, Rate] = {}
    for text in texts:
        node, _, amounts = text.partition("=")
        per_second, colon, burst = amounts.partition(":")
        if not (node == EVERY_OTHER or NAME.fullmatch(node)):
            raise ConfigError(
                f"--rate-limit {text!r}: write NODE=QUERIES_PER_SECOND[:BURST], or *=... for all others"
            )
        if node in found:
            raise ConfigError(f"--rate-limit {text!r}: {node} has a limit already")
        rate = _amount(text, per_second, "queries per second", 0.0)
        found[node] = Rate(rate, _amount(text, burst, "queries at once", 1.0) if colon else max(1.0, rate))
    return found


def _amount(text: str, number: str, what: str, least: float) -> float:
    try:
        found = float(number)
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or found <= 0 or found < least:
        bound = "above 0" if least == 0 else f"at least {least:g}"
        raise ConfigError(f"--rate-limit {text!r}: needs a number of {what} {bound}, as in shop=20:40")
    return found
