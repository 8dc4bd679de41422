"""One queue in order of deadline, which Clipper and SlackFit use instead of batches formed on arrival."""

from __future__ import annotations

from bisect import insort

from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.queries import Query


class DeadlineQueuePolicy(Policy):
    """Queries sorted by deadline; expired ones are evicted before a batch is formed."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self._waiting: list[tuple[float, int, Query]] = []

    def enqueue(self, query: Query, now: float) -> None:
        insort(self._waiting, (query.deadline, query.identifier, query))

    def withdraw(self, identifier: int) -> Query | None:
        for place, (_, waiting, query) in enumerate(self._waiting):
            if waiting == identifier:
                del self._waiting[place]
                return query
        return None

    def queued(self) -> int:
        return len(self._waiting)

    def _evict(self, last_chance: float) -> tuple[Query, ...]:
        """Remove and return all queries whose deadline lies before `last_chance`."""
        count = 0
        while count < len(self._waiting) and self._waiting[count][0] < last_chance:
            count += 1
        return tuple(query for _, _, query in self._pop(count))

    def _pop(self, count: int) -> list[tuple[float, int, Query]]:
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken
