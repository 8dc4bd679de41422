"""OTAS as the thesis describes it: Algorithm 1 on arrival, Algorithm 2 or 3 whenever the engine is idle.

When to run Algorithm 2 is left open there: here at every idle moment, of whose plan only the first batch is run.
The "previous inference window" of Algorithm 3 is read as the last second, the unit of the thesis' figures.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedstill.cloud_server.serving.policies.batching import BatchingSettings, FormingBatch
from fedstill.cloud_server.serving.policies.batching_policy import BatchingPolicy, RateMeter
from fedstill.cloud_server.serving.policies.token_allocation import (
    AllocationSettings,
    allocate,
    allocate_by_rate,
)
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.queries import Query, Rejection

RATE_WINDOW = 1.0


class OtasPolicy(BatchingPolicy):
    """Algorithms 1, 2 and 3 with the settings of section 3.6."""

    name = "faithful"

    def __init__(
        self,
        profile: Profile,
        batching: BatchingSettings | None = None,
        allocation: AllocationSettings | None = None,
    ) -> None:
        super().__init__(profile, batching)
        self.allocation = allocation or AllocationSettings()
        self._meter = RateMeter(RATE_WINDOW)
        self._started: float | None = None

    def admit(self, query: Query, now: float) -> Rejection | None:
        self._started = now if self._started is None else self._started
        self._meter.arrived(now)
        return super().admit(query, now)

    def fastest(self, now: float) -> Schedule:
        return self.profile.fastest

    def allocate(self, batches: Sequence[FormingBatch], now: float) -> Sequence[Schedule | None]:
        initial = self._started is None or now - self._started < self.allocation.initial_seconds
        if len(batches) > self.allocation.few_batches and not initial:
            plan = allocate(batches, now, self.profile)
            if any(schedule is not None for schedule in plan):
                return plan
        return allocate_by_rate(batches, now, self.profile, self._meter.rate(now), self.allocation)
