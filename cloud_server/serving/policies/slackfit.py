"""SlackFit (SuperServe: Khare et al., NSDI 2025), on token schedules in place of its supernet's subnetworks.

Every (schedule, batch size) has a latency; latencies are divided into even buckets, and each bucket keeps the tuple
that answers most queries right. The slack of the most urgent query chooses the bucket: under load slack shrinks, so
latencies shrink to small, fast schedules; with more slack they grow to large, accurate ones. Utilities and tasks are
not considered.
"""

from __future__ import annotations

from bisect import bisect_right

from fedstill.cloud_server.serving.policies.deadline_queue import DeadlineQueuePolicy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.queries import Batch, Decision

BUCKETS = 32


class SlackFitPolicy(DeadlineQueuePolicy):
    """Most urgent first; (schedule, batch size) by slack."""

    name = "slackfit"

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        tuples = [
            (schedule.seconds(size), size * sum(schedule.accuracy), schedule, size)
            for schedule in profile.useful
            for size in range(1, schedule.maximum_batch + 1)
        ]
        low, high = min(t[0] for t in tuples), max(t[0] for t in tuples)
        width = (high - low) / BUCKETS
        best: dict[int, tuple[float, float, Schedule, int]] = {}
        for entry in tuples:
            bucket = min(BUCKETS - 1, int((entry[0] - low) / width))
            if bucket not in best or entry[1] > best[bucket][1]:
                best[bucket] = entry
        self._choices = sorted(((t[0], t[2], t[3]) for t in best.values()), key=lambda choice: choice[0])
        self._latencies = [choice[0] for choice in self._choices]

    def dispatch(self, now: float) -> Decision:
        fastest = self.profile.fastest
        evicted = self._evict(now + fastest.seconds(1))
        if not self._waiting:
            return Decision(None, evicted)
        slack = self._waiting[0][0] - now
        place = bisect_right(self._latencies, slack) - 1
        schedule, size = (fastest, 1) if place < 0 else self._choices[place][1:]
        members = self._pop(size)
        batch = Batch(tuple(query for _, _, query in members), schedule, schedule.seconds(len(members)))
        return Decision(batch, evicted)
