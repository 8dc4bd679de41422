"""A client's request in the live server: images that belong together, and their one outcome."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.scheduling.queries import Rejection

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
    request_id, node: of its caller, if there is one.
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
