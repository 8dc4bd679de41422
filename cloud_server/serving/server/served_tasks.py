"""The interface of a running server's tasks; and tasks that never change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol

import grpc

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.models.vit.preprocess_settings import Preprocess
from fedstill.models.vit.task_bank import TaskParameters


@dataclass(frozen=True, slots=True)
class ServedTrunk:
    """What clients have to know of a trunk.

    fingerprint: SHA-256 of the weights that tasks are trained on. name: for people; empty for the only one of a server.
    image_size: side of its images. width: of an embedding. preprocess: of the images of a new task that says nothing
    else.
    """

    fingerprint: str
    name: str
    image_size: int
    width: int
    preprocess: Preprocess


@dataclass(frozen=True, slots=True)
class TrunkState:
    """Of a trunk now.

    loaded: whether it is in memory. bytes: that it takes there; None for a server without a budget, which does not
    measure it. failed: whether it could not be loaded when it was last tried.
    """

    loaded: bool = True
    bytes: int | None = None
    failed: bool = False


class ServedTasks(Protocol):
    """Safe to call from any thread but the engine's. Implemented by ``LiveTasks`` and ``FixedTasks``."""

    @property
    def trunks(self) -> Mapping[str, ServedTrunk]:
        """By fingerprint; the first is that of whatever names no trunk and no task."""

    @property
    def states(self) -> Mapping[str, TrunkState]:
        """Of the trunks, by fingerprint."""

    @property
    def served(self) -> Mapping[str, TaskVersion]:
        """The tasks that are served now, by name."""

    def refresh(self) -> bool:
        """Serve the tasks that are registered now; returns whether anything changed."""

    def register(
        self,
        name: str,
        parameters: TaskParameters,
        latency_ms: float,
        utility: float,
        accuracy: float,
        trunk: str = "",
    ) -> TaskVersion:
        """Serve a task or a new version of it. Raises RequestError; then everything is as it was.

        trunk: fingerprint of a served one; empty for the first.
        """

    def versions(self) -> tuple[TaskVersion, ...]:
        """All registered versions, by name and number."""

    def load(self, name: str, version: int | None = None) -> TaskVersion:
        """Serve a registered version: by default the active one, or the newest of a task that is not served.

        Raises RequestError; then everything is as it was.
        """

    def delete(self, name: str) -> None:
        """Stop serving a task. Raises RequestError for one that is not served, or the last one of its trunk."""


def first_trunk(tasks: ServedTasks) -> ServedTrunk:
    """The one that is meant by whoever names none."""
    return next(iter(tasks.trunks.values()))


def trunk_of(tasks: ServedTasks, task: TaskVersion | None) -> ServedTrunk:
    """The trunk of a served task; of no task, the first."""
    return first_trunk(tasks) if task is None else tasks.trunks.get(task.trunk) or first_trunk(tasks)


class FixedTasks:
    """Tasks that only another start of the server changes: those of warmed models, which are trunk and head in one."""

    def __init__(self, trunk: ServedTrunk, served: Mapping[str, TaskVersion]) -> None:
        self.trunks, self.served = {trunk.fingerprint: trunk}, dict(served)
        self.states = {trunk.fingerprint: TrunkState()}

    def refresh(self) -> bool:
        return False

    def register(
        self,
        name: str,
        parameters: TaskParameters,
        latency_ms: float,
        utility: float,
        accuracy: float,
        trunk: str = "",
    ) -> TaskVersion:
        _refuse()

    def versions(self) -> tuple[TaskVersion, ...]:
        return tuple(self.served.values())

    def load(self, name: str, version: int | None = None) -> TaskVersion:
        _refuse()

    def delete(self, name: str) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise RequestError(
        grpc.StatusCode.FAILED_PRECONDITION, "name", "the tasks of a server of warmed models stay as they are"
    )
