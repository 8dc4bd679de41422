"""A client's request in the live server: images that belong together, their one outcome, and where they wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedstill.cloud_server.serving.callers.call import Call
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.queries import Rejection

NOBODY = Call()

Prepare = Callable[[], Any]
"""Makes one image ready for the engine. Raises ImageError."""


@dataclass(frozen=True, slots=True)
class Response:
    """A request's predictions, one per image, with schedules and times.

    waiting_seconds, inference_seconds, batch_size: the largest of its queries'. schedules: names, one per image.
    versions: of the task that answered, one per image; they differ if it was swapped in between.
    """

    predictions: tuple[Prediction, ...]
    schedules: tuple[str, ...]
    versions: tuple[int, ...]
    waiting_seconds: float
    inference_seconds: float
    batch_size: int
    late: bool


Outcome = Response | Rejection
Deliver = Callable[[Outcome], None]


@dataclass(eq=False, slots=True)
class Request:
    """An accepted request; the submitter keeps it as a ticket for `cancel` and uses nothing else of it.

    Tickets may outlive their requests for long, so a closed request holds no image. rows: how many it had.
    request_id, node: of its caller, if there is one. queue: number of the device's, if there are several.
    """

    task: str
    utility: float
    arrival: float
    deadline: float
    deliver: Deliver
    rows: int
    request_id: str = ""
    node: str = ""
    images: list[Future[Any]] = field(default_factory=list)
    unready: int = 0
    """How many of them are still being prepared."""
    queries: list[int] = field(default_factory=list)
    predictions: dict[int, Prediction] = field(default_factory=dict)
    schedules: dict[int, str] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    accuracies: dict[int, float] = field(default_factory=dict)
    waiting_seconds: float = 0.0
    inference_seconds: float = 0.0
    batch_size: int = 0
    closed: bool = False
    queue: int = 0

    @property
    def complete(self) -> bool:
        """Whether each of its images has its prediction."""
        return len(self.predictions) == self.rows

    def took(self, row: int, prediction: Prediction, *, schedule: str, version: int, accuracy: float) -> None:
        """One of its images has its prediction, by this schedule and version of the task; ``accuracy`` as expected."""
        self.predictions[row], self.schedules[row] = prediction, schedule
        self.versions[row], self.accuracies[row] = version, accuracy

    def response(self, late: bool) -> Response:
        """Of a complete request."""
        rows = range(self.rows)
        return Response(
            predictions=tuple(self.predictions[row] for row in rows),
            schedules=tuple(self.schedules[row] for row in rows),
            versions=tuple(self.versions[row] for row in rows),
            waiting_seconds=self.waiting_seconds,
            inference_seconds=self.inference_seconds,
            batch_size=self.batch_size,
            late=late,
        )

    def expected_accuracies(self) -> tuple[float, ...]:
        """Of a complete request, by image."""
        return tuple(self.accuracies[row] for row in range(self.rows))


class QueryQueue(Protocol):
    """Where requests wait for their answers. Implemented by ``Dispatcher`` and ``DeviceQueues``, which say more."""

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""

    @property
    def profile(self) -> Profile:
        """What is planned by, for one device."""

    @property
    def engines(self) -> int:
        """How many batches can run at once."""

    def queued(self) -> int:
        """Queries that wait."""

    def submit(
        self,
        task: str,
        images: Sequence[Prepare],
        latency_seconds: float,
        utility: float,
        deliver: Deliver,
        caller: Call = NOBODY,
    ) -> Request:
        """Accept a request, or refuse it."""

    def cancel(self, request: Request) -> None:
        """The client has left."""

    def start(self) -> None:
        """Answer from now on."""

    def drain(self) -> None:
        """Refuse new requests from now on; accepted ones are still answered."""

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until every request has its answer, for at most so long; returns whether all have."""

    def stop(self) -> None:
        """Refuse all waiting requests, and end."""
