"""The dispatcher's events for its observers: metrics, the decision log, tests. No torch, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from fedstill.cloud_server.serving.scheduling.queries import RejectionReason


@dataclass(frozen=True, slots=True)
class RanBatch:
    """One dispatch decision and its result.

    Attributes:
        time: seconds since 1970, at the decision.
        schedule: name, of its trunk.
        tasks: queries by task.
        predicted_seconds, seconds: of the batch, as predicted by the policy and as measured.
        waiting_seconds: of each query, from arrival to the decision.
        queued: queries that still wait after the decision.
        evicted: queries that the decision gave up.
        decision_seconds: that the policy took to decide.
        versions: of the tasks, as they answered.
        nodes: queries by the node of their caller's token.
        requests: ids of their requests, in the order of the batch.
        trunk: that ran it, by name; empty if there is only one.
        device: that ran it; empty if there is only one.
    """

    time: float
    schedule: str
    tasks: dict[str, int]
    predicted_seconds: float
    seconds: float
    waiting_seconds: tuple[float, ...]
    queued: int
    evicted: int
    decision_seconds: float
    versions: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    requests: tuple[str, ...] = ()
    trunk: str = ""
    device: str = ""

    @property
    def size(self) -> int:
        return len(self.waiting_seconds)


class Observer(Protocol):
    """Is called under the dispatcher's lock, so it must be quick and must not call back.

    Implemented by ``DecisionLog`` and ``ServingMetrics``.
    """

    def offered(self, task: str, utility: float, queries: int) -> None:
        """A request of so many queries arrived; ``utility`` of each."""

    def dropped(self, task: str, reason: RejectionReason, queries: int) -> None:
        """A request ended without answers."""

    def answered(self, task: str, utility: float, accuracies: tuple[float, ...], late: bool) -> None:
        """A request was answered; ``accuracies`` that its queries' schedules are expected to have."""

    def ran(self, batch: RanBatch) -> None:
        """A batch ended."""
