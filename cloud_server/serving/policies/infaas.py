"""INFaaS (Romero et al., ATC 2021) as the thesis compares with it: model adaptation among three whole models.

Once a second the most accurate model that keeps up with the load is chosen; switching to it blocks the engine
while its weights are loaded, which the simulator charges and the policy, as published, does not plan for.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedstill.cloud_server.serving.policies.batching import BatchingSettings, FormingBatch
from fedstill.cloud_server.serving.policies.batching_policy import BatchingPolicy, RateMeter
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, best_throughput
from fedstill.cloud_server.serving.scheduling.queries import Query, Rejection
from fedstill.common.errors import DataError

MONITOR_SECONDS = 1.0
HEADROOM = 0.9  # of a model's throughput; at the limit itself a queue would never drain


class InfaasPolicy(BatchingPolicy):
    """One of the profile's variants at a time. Raises DataError for a profile without variants."""

    name = "infaas"

    def __init__(self, profile: Profile, batching: BatchingSettings | None = None) -> None:
        super().__init__(profile, batching)
        if not profile.variants:
            raise DataError(f"profile {profile.name!r} has no variants: leave infaas out of --policies")
        self._models = [variant.schedule for variant in profile.variants]
        self._model = max(self._models, key=lambda model: model.throughput)
        self._meter = RateMeter(MONITOR_SECONDS)
        self._decided = float("-inf")

    def admit(self, query: Query, now: float) -> Rejection | None:
        self._meter.arrived(now)
        return super().admit(query, now)

    def fastest(self, now: float) -> Schedule:
        return self._model

    def allocate(self, batches: Sequence[FormingBatch], now: float) -> Sequence[Schedule | None]:
        if now - self._decided >= MONITOR_SECONDS:
            self._decided = now
            self._model = best_throughput(self._models, self._meter.rate(now) / HEADROOM)
        seconds = [self._model.seconds(len(batch.queries)) for batch in batches]
        on_time = [now + spent <= batch.deadline for spent, batch in zip(seconds, batches, strict=True)]
        return [
            self._model if fits else None for fits in on_time
        ]  # a slower model may be too slow for a batch
