"""The common part of the policies that batch on arrival by Algorithm 1: faithful OTAS and the fixed baselines.

They differ only in the schedule that each waiting batch gets. Eviction, order and bookkeeping are shared code, as in
the thesis ("we implement all evaluated policies in our OTAS prototype").
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence

from fedstill.cloud_server.serving.policies.batching import (
    BatchingSettings,
    FormingBatch,
    add_query,
    drop_hopeless,
)
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.queries import Batch, Decision, Query


class BatchingPolicy(Policy):
    """Batches on arrival, evicts expired queries, and runs the first batch by deadline that gets a schedule."""

    def __init__(self, profile: Profile, settings: BatchingSettings | None = None) -> None:
        super().__init__(profile)
        self.batching = settings or BatchingSettings()
        self._batches: list[FormingBatch] = []

    @abstractmethod
    def fastest(self, now: float) -> Schedule:
        """The schedule against which a query's last chance is judged."""

    @abstractmethod
    def allocate(self, batches: Sequence[FormingBatch], now: float) -> Sequence[Schedule | None]:
        """A schedule per batch, sorted by deadline; None defers the batch."""

    def enqueue(self, query: Query, now: float) -> None:
        add_query(self._batches, query, now, self.fastest(now), self.batching)

    def dispatch(self, now: float) -> Decision:
        evicted = drop_hopeless(self._batches, now, self.fastest(now))
        self._batches = [batch for batch in self._batches if batch.queries]
        if not self._batches:
            return Decision(None, tuple(evicted))
        # Repair of Algorithm 2, line 1: a sorted view; the queue itself stays in order of creation for Algorithm 1.
        ordered = sorted(self._batches, key=lambda batch: batch.deadline)
        for batch, schedule in zip(ordered, self.allocate(ordered, now), strict=True):
            if schedule is not None:
                self._batches = [other for other in self._batches if other is not batch]
                seconds = schedule.seconds(len(batch.queries))
                return Decision(Batch(tuple(batch.queries), schedule, seconds), tuple(evicted))
        return Decision(None, tuple(evicted))

    def withdraw(self, identifier: int) -> Query | None:
        for batch in self._batches:
            for query in batch.queries:
                if query.identifier == identifier:
                    batch.queries.remove(query)
                    return query
        return None

    def queued(self) -> int:
        return sum(len(batch.queries) for batch in self._batches)


class RateMeter:
    """Queries per second over a sliding window of the recent past."""

    def __init__(self, window_seconds: float) -> None:
        self._window = window_seconds
        self._arrivals: deque[float] = deque()
        self._since: float | None = None

    def arrived(self, now: float) -> None:
        self._since = now if self._since is None else self._since
        self._arrivals.append(now)

    def rate(self, now: float) -> float:
        """Arrivals of the window over its length, which is shorter while the service is young."""
        while self._arrivals and self._arrivals[0] < now - self._window:
            self._arrivals.popleft()
        if self._since is None:
            return 0.0
        return len(self._arrivals) / max(min(self._window, now - self._since), 0.05)
