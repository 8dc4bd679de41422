"""The queues of the fedstill policy, and batches as slices of them, so that forming one needs no loop over queries."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedstill.cloud_server.serving.scheduling.queries import Query

Waiting = tuple[float, int, Query]
"""Deadline, identifier, query: sorts by urgency."""


@dataclass(slots=True)
class Queue:
    """Waiting queries of one task and similar utility, most urgent first.

    seconds: engine time of one of them in a full batch, at the schedule that earns most per second. earning: utility
    per second there. recent: how many arrived recently. coming: how many are accepted and do not wait yet.
    """

    task: int
    utility: float
    seconds: float
    earning: float
    waiting: list[Waiting] = field(default_factory=list)
    recent: int = 0
    coming: int = 0

    def add(self, query: Query) -> None:
        insort(self.waiting, (query.deadline, query.identifier, query))

    def due(self, after: float, until: float) -> int:
        """How many wait whose deadline lies after the one moment and not after the other."""
        return max(0, self._up_to(until) - self._up_to(after))

    def _up_to(self, deadline: float) -> int:
        if not self.waiting or self.waiting[0][0] > deadline:
            return 0
        if self.waiting[-1][0] <= deadline:
            return len(self.waiting)
        return bisect_right(self.waiting, (deadline, math.inf))

    def drop_before(self, deadline: float) -> list[Query]:
        """Remove and return the queries whose deadline lies before `deadline`."""
        count = 0
        while count < len(self.waiting) and self.waiting[count][0] < deadline:
            count += 1
        gone = [query for _, _, query in self.waiting[:count]]
        del self.waiting[:count]
        return gone


@dataclass(slots=True)
class Slice:
    """The queries of a queue from `start` up to `stop`."""

    queue: Queue
    start: int
    stop: int


@dataclass(slots=True)
class CandidateBatch:
    """A batch made of slices of queues; nothing is moved until `take`."""

    slices: list[Slice]
    size: int

    def deadline(self) -> float:
        """Of the most urgent query."""
        return min(slice_.queue.waiting[slice_.start][0] for slice_ in self.slices)

    def drop_most_urgent(self) -> None:
        """Leave the most urgent query in its queue."""
        slice_ = min(self.slices, key=lambda slice_: slice_.queue.waiting[slice_.start][0])
        slice_.start += 1
        self.size -= 1
        if slice_.start == slice_.stop:
            self.slices.remove(slice_)

    def take(self) -> tuple[Query, ...]:
        """Move the queries out of their queues. No other batch formed before may be used after that."""
        taken = [
            query
            for slice_ in self.slices
            for _, _, query in slice_.queue.waiting[slice_.start : slice_.stop]
        ]
        for slice_ in self.slices:
            del slice_.queue.waiting[slice_.start : slice_.stop]
        return tuple(taken)


def fill(queues: Sequence[Queue], size: int, most: int) -> list[CandidateBatch]:
    """Batches of up to `size` queries from the queues in order, at most `most` of them."""
    batches: list[CandidateBatch] = []
    for queue in queues:
        start = 0
        while start < len(queue.waiting):
            if not batches or batches[-1].size == size:
                if len(batches) == most:
                    return batches
                batches.append(CandidateBatch([], 0))
            batch = batches[-1]
            stop = min(len(queue.waiting), start + size - batch.size)
            batch.slices.append(Slice(queue, start, stop))
            batch.size += stop - start
            start = stop
    return batches
