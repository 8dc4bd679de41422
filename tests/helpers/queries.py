"""Small serving profiles and queries for the serving tests."""

from __future__ import annotations

from fedstill.cloud_server.serving.policies.registry import POLICIES
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, Variant
from fedstill.cloud_server.serving.scheduling.queries import Query

ON_THESIS = sorted(set(POLICIES) - {"maxprune", "int8", "tome15q", "tome20q"})
"""Policies that the thesis' profile can serve; Maxprune needs a warmed model."""


def made_profile(maximum_batch: int = 8) -> Profile:
    """Two tasks; "fast" takes 10 ms + 10 ms per query, "slow" twice as long and is more accurate; two variants."""
    return Profile(
        name="made",
        source="made up",
        tasks=("easy", "hard"),
        schedules=(
            Schedule("slow", 0, 0.02, 0.02, (1.0, 0.9), maximum_batch),
            Schedule("fast", -10, 0.01, 0.01, (0.8, 0.5), maximum_batch),
        ),
        variants=(
            Variant(Schedule("small", 0, 0.01, 0.005, (0.7, 0.4), maximum_batch), 0.5),
            Variant(Schedule("large", 0, 0.01, 0.05, (1.0, 1.0), maximum_batch), 1.0),
        ),
    )


def made_query(
    identifier: int, arrival: float = 0.0, latency: float = 1.0, utility: float = 1.0, task: int = 0
) -> Query:
    """A query whose deadline is `latency` seconds after its arrival."""
    return Query(identifier, task, arrival, arrival + latency, utility)
