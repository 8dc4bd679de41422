"""Baselines that never adapt: PetS (the plain model), ToMe (always merging), VPT (always prompting), also in int8."""

from __future__ import annotations

from collections.abc import Sequence

from fedstill.cloud_server.serving.policies.batching import BatchingSettings, FormingBatch
from fedstill.cloud_server.serving.policies.batching_policy import BatchingPolicy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule


class FixedPolicy(BatchingPolicy):
    """Algorithm 1's batches, all run at one schedule, most urgent first."""

    def __init__(
        self,
        name: str,
        profile: Profile,
        token_delta: int,
        batching: BatchingSettings | None = None,
        int8: bool = False,
    ) -> None:
        super().__init__(profile, batching)
        self.name = name
        self._schedule = profile.with_token_delta(token_delta, int8)

    def fastest(self, now: float) -> Schedule:
        return self._schedule

    def allocate(self, batches: Sequence[FormingBatch], now: float) -> Sequence[Schedule | None]:
        return [self._schedule] * len(batches)
