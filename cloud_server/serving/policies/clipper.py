"""Clipper (Crankshaw et al., NSDI 2017): one model, and the largest batch that still meets the most urgent deadline."""

from __future__ import annotations

from fedstill.cloud_server.serving.policies.deadline_queue import DeadlineQueuePolicy
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.queries import Batch, Decision


class ClipperPolicy(DeadlineQueuePolicy):
    """The plain model (token delta 0), expired queries removed first, batch size by the latency model."""

    name = "clipper"

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self._schedule = profile.with_token_delta(0)

    def dispatch(self, now: float) -> Decision:
        schedule = self._schedule
        evicted = self._evict(now + schedule.seconds(1))
        if not self._waiting:
            return Decision(None, evicted)
        slack = self._waiting[0][0] - now
        fits = int((slack - schedule.fixed_seconds) / schedule.per_query_seconds + 1e-9)
        members = self._pop(max(1, min(fits, schedule.maximum_batch)))
        batch = Batch(tuple(query for _, _, query in members), schedule, schedule.seconds(len(members)))
        return Decision(batch, evicted)
