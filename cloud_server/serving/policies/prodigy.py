"""The reduction scheduler of thesis Section 4.4.4: how much to reduce by the load, and which model serves that best.

A profile's schedules name their model. The best model per reduction is a choice made once, from the profile; the
reduction is chosen per batch, as the most tokens whose throughput still exceeds the load of the last batch's time.
The exact planner (policy ``fedstill``) needs none of this: it chooses among all schedules of the profile anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from fedstill.cloud_server.serving.policies.batching import BatchingSettings, FormingBatch
from fedstill.cloud_server.serving.policies.batching_policy import BatchingPolicy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, best_throughput
from fedstill.cloud_server.serving.scheduling.queries import Decision, Query, Rejection
from fedstill.common.errors import DataError

SHORTEST = 1e-3
"""Seconds below which two dispatches are too close for a rate."""


class ProdigyPolicy(BatchingPolicy):
    """Algorithm 1's batches, most urgent first, at the reduction of the throughput rule."""

    name = "prodigy"

    def __init__(self, profile: Profile, batching: BatchingSettings | None = None) -> None:
        super().__init__(best_models(profile), batching)
        self._arrived = 0
        self._since: float | None = None
        self.load = 0.0
        """Queries per second between the last two dispatches: while the last batch ran, if the engine was busy."""

    def admit(self, query: Query, now: float) -> Rejection | None:
        self._arrived += 1
        return super().admit(query, now)

    def dispatch(self, now: float) -> Decision:
        if self._since is None or now - self._since >= SHORTEST:
            if self._since is not None:
                self.load = self._arrived / (now - self._since)
            self._since, self._arrived = now, 0
        return super().dispatch(now)

    def fastest(self, now: float) -> Schedule:
        return self.profile.fastest

    def allocate(self, batches: Sequence[FormingBatch], now: float) -> Sequence[Schedule | None]:
        chosen = best_throughput(self.profile.useful, self.load)
        # Repair: the rule does not look at deadlines; if its choice would be late, take the fastest.
        return [
            chosen if now + chosen.seconds(len(batch.queries)) <= batch.deadline else self.profile.fastest
            for batch in batches
        ]


def best_models(profile: Profile) -> Profile:
    """One schedule per token delta: that of the model with the best mean accuracy over the tasks."""
    best: dict[int, Schedule] = {}
    for schedule in profile.schedules:
        known = best.get(schedule.token_delta)
        if known is None or fmean(schedule.accuracy) > fmean(known.accuracy):
            best[schedule.token_delta] = schedule
    return Profile(profile.name, profile.source, profile.tasks, tuple(best.values()))


def most_reduced(profile: Profile) -> Profile:
    """Only the schedules of the single model that was fine-tuned at the largest reduction.

    Raises:
        DataError: a profile without warmed models.
    """
    models = {s.model for s in profile.schedules if s.model.removeprefix("r").isdigit()}
    if not models:
        raise DataError(f"profile {profile.name!r} has no warmed models: make one with: fedstill warmup")
    return profile.of_model(max(models, key=lambda model: int(model.removeprefix("r"))))


def warmed_profile(
    name: str,
    source: str,
    task: str,
    plain: Mapping[int, Schedule],
    accuracies: Mapping[str, Mapping[int, float]],
) -> Profile:
    """The profile of a task's warmed models: every model at every reduction.

    Merging costs the same whatever the weights, so all models share the times of ``plain``.

    Args:
        plain: the model without warm-up by reduction, times and accuracy measured.
        accuracies: model name -> reduction -> accuracy. The plain model's own are not among them.
    """
    warmed = [
        warmed_schedule(schedule, model, row[reduction])
        for model, row in accuracies.items()
        for reduction, schedule in plain.items()
        if reduction in row
    ]
    # The plain model first: policies that know no models (Clipper, fixed schedules) take the first that fits.
    return Profile(name, source, (task,), (*plain.values(), *warmed))


def warmed_schedule(plain: Schedule, model: str, accuracy: float) -> Schedule:
    """A schedule of the model without warm-up, run by the warmed model (or average) of that name."""
    return replace(plain, name=f"{plain.name}@{model}", model=model, accuracy=(accuracy,))
