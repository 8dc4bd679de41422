"""The types that policies, simulator and live server share: a query, a batch, a decision, a rejection.

They hold plain numbers only (no images, no tensors), so that a policy can run in virtual time and in a server without
knowing which it is in. All times are seconds on one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedstill.cloud_server.serving.scheduling.profile import Schedule

RejectionReason = Literal[
    "too_late",  # no room before its deadline, rejected on arrival
    "evicted",  # its deadline came too near while it waited
    "overload",  # the policy expects to earn more with other queries
    "full",  # the server's queue is full
    "unknown_task",
    "no_prompts",  # of the engine only: the task lacks the prompts of the schedule
    "bad_image",
    "moved",  # to a trunk with images of another size, while it waited
    "loading",  # its trunk is not in memory, and will not be in time
    "draining",
    "cancelled",  # its client left
    "failed",  # the server's own fault
]


@dataclass(frozen=True, slots=True)
class Query:
    """One image of a request, as a policy sees it.

    task: index into the profile's tasks. utility: what a right answer by `deadline` earns.
    """

    identifier: int
    task: int
    arrival: float
    deadline: float
    utility: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Queries that run in one forward pass, the schedule that they run at, and how long that should take."""

    queries: tuple[Query, ...]
    schedule: Schedule
    predicted_seconds: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for an idle engine: the batch to run now (None: nothing to run), and the queries that left the queue
    unserved."""

    batch: Batch | None
    evicted: tuple[Query, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejection:
    """The reason why there is no response: from a policy for a query on arrival, from the engine for a row of a batch,
    from the server for a request. retry_after_seconds: after how long a retry makes sense, 0 for unknown or never."""

    reason: RejectionReason
    retry_after_seconds: float = 0.0
    message: str = ""
