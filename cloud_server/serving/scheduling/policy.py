"""The interface of every serving policy, for the simulator and the live server alike."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.queries import Batch, Decision, Query, Rejection


class Policy(ABC):
    """Owns the queue and decides what runs next. One engine, one thread: calls never overlap.

    The caller guarantees three things: `now` never falls; a query that waits here gets exactly one fate (in a batch or
    evicted by `dispatch`, or returned by `withdraw`); and `completed` follows every batch before the next `dispatch`.
    """

    name: str
    price: float = 0.0
    """Utility that another second of engine time would earn; 0 for a policy that knows no price."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def offers(self, task: int) -> tuple[tuple[float, float], ...]:
        """(seconds, accuracy) of a query of the task in a full batch, at each useful schedule, fastest first."""
        trunk = self.profile.trunk_of_task[task]
        return tuple(
            (1 / schedule.throughput, schedule.accuracy[task])
            for schedule in self.profile.useful_by_trunk[trunk]
        )

    def least_seconds(self) -> float:
        """Of a query in a full batch at its task's fastest schedule, mean of the tasks."""
        tasks = range(len(self.profile.tasks))
        return sum(self.offers(task)[0][0] for task in tasks) / len(tasks)

    def arrive(self, query: Query, now: float) -> Rejection | None:
        """`admit`, and at once `enqueue`: a query whose image needs no preparation."""
        rejection = self.admit(query, now)
        if rejection is None:
            self.enqueue(query, now)
        return rejection

    def admit(self, query: Query, now: float) -> Rejection | None:
        """Take note of the query, and reject it or not. Called at once on arrival, also while a batch is running."""
        return None

    @abstractmethod
    def enqueue(self, query: Query, now: float) -> None:
        """The image of an accepted query is ready: from now on it waits here. Also called while a batch is running."""

    @abstractmethod
    def dispatch(self, now: float) -> Decision:
        """The engine is idle: what to run now, and which queries can no longer be served in time."""

    @abstractmethod
    def withdraw(self, identifier: int) -> Query | None:
        """Withdraw a waiting query (its client left, its task was deleted); None if it does not wait here."""

    @abstractmethod
    def queued(self) -> int:
        """How many queries wait."""

    def completed(self, batch: Batch, now: float, seconds: float) -> None:  # noqa: B027 - most policies do not learn
        """A batch ended at `now` after `seconds` on the engine; a policy may learn from that.

        `batch` holds the queries that did run: none if their clients left or the engine failed.
        """

    def adopt(self, other: Policy) -> None:  # noqa: B027 - most policies have learnt nothing
        """Continue with what `other` has learnt about the engine that both have run on (a hot swap of tasks)."""
