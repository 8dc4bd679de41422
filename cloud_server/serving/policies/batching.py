"""Algorithm 1: put a query into a batch of similar arrival, deadline and utility, or open a new batch.

Repairs to the printed algorithm, each named where it happens: batches stay in order of creation (the printed one is
sorted in place by Algorithm 2, after which the `break` on line 3 is wrong), a batch must still be able to
finish after it has grown, and expired queries leave one by one instead of removing their whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedstill.cloud_server.serving.scheduling.profile import Schedule
from fedstill.cloud_server.serving.scheduling.queries import Query


@dataclass(frozen=True, slots=True)
class BatchingSettings:
    """The thresholds of Algorithm 1 with the values of section 3.6.

    arrival_window (delta): seconds since a batch's first query. largest_batch (epsilon). deadline_spread (eta):
    seconds. utility_spread (mu).
    """

    arrival_window: float = 0.5
    largest_batch: int = 64
    deadline_spread: float = 0.5
    utility_spread: float = 0.8


@dataclass(slots=True)
class FormingBatch:
    """A batch that is still open. Its deadline is its most urgent query's, its utility its first query's."""

    queries: list[Query] = field(default_factory=list)
    created: float = 0.0
    deadline: float = float("inf")
    utility: float = 0.0

    @classmethod
    def of(cls, query: Query) -> FormingBatch:
        return cls([query], query.arrival, query.deadline, query.utility)

    def add(self, query: Query) -> None:
        self.queries.append(query)
        self.deadline = min(self.deadline, query.deadline)

    def drop_hopeless(self, now: float, fastest: Schedule) -> list[Query]:
        """Remove the fewest queries, most urgent first, after which the rest can finish in time; return them."""
        if now + fastest.seconds(len(self.queries)) < self.deadline:
            return []
        ordered = sorted(self.queries, key=lambda query: query.deadline)
        gone = 0
        while gone < len(ordered) and now + fastest.seconds(len(ordered) - gone) >= ordered[gone].deadline:
            gone += 1
        self.queries = ordered[gone:]
        self.deadline = ordered[gone].deadline if self.queries else float("inf")
        return ordered[:gone]


def add_query(
    batches: list[FormingBatch], query: Query, now: float, fastest: Schedule, settings: BatchingSettings
) -> FormingBatch:
    """Lines 1-13: put `query` into a batch of `batches` (in order of creation) or a new one; return that batch."""
    for batch in reversed(batches):
        if batch.created + settings.arrival_window < query.arrival:
            break  # right only in order of creation: every earlier batch is older still
        size = len(batch.queries)
        if size >= min(settings.largest_batch, fastest.maximum_batch):
            continue
        if abs(batch.deadline - query.deadline) > settings.deadline_spread:
            continue
        if abs(batch.utility - query.utility) > settings.utility_spread:
            continue
        # Repair: nothing in Algorithm 1 keeps a batch from growing past what its deadline allows.
        if now + fastest.seconds(size + 1) >= min(batch.deadline, query.deadline):
            continue
        batch.add(query)
        return batch
    batches.append(FormingBatch.of(query))
    return batches[-1]


def drop_hopeless(batches: Sequence[FormingBatch], now: float, fastest: Schedule) -> list[Query]:
    """All queries that cannot finish in time even alone or at the fastest schedule; they are removed from their
    batches."""
    return [query for batch in batches for query in batch.drop_hopeless(now, fastest)]
