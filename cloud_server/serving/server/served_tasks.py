"""The interface of a running server's tasks; and tasks that never change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, Protocol

import grpc

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.models.vit.preprocess_settings import Preprocess
from fedstill.models.vit.task_bank import TaskParameters


class ServedTasks(Protocol):
    """Safe to call from any thread but the engine's. Implemented by ``LiveTasks`` and ``FixedTasks``."""

    @property
    def trunk(self) -> str:
        """SHA-256 of the weights that tasks are trained on."""

    @property
    def preprocess(self) -> Preprocess:
        """Of the images of a new task that says nothing else."""

    @property
    def width(self) -> int:
        """Length of an embedding."""

    @property
    def served(self) -> Mapping[str, TaskVersion]:
        """The tasks that are served now, by name."""

    def refresh(self) -> bool:
        """Serve the tasks that are registered now; returns whether anything changed."""

    def register(
        self, name: str, parameters: TaskParameters, latency_ms: float, utility: float, accuracy: float
    ) -> TaskVersion:
        """Serve a task or a new version of it. Raises RequestError; then everything is as it was."""

    def versions(self) -> tuple[TaskVersion, ...]:
        """All registered versions, by name and number."""

    def load(self, name: str, version: int | None = None) -> TaskVersion:
        """Serve a registered version: by default the active one, or the newest of a task that is not served.

        Raises RequestError; then everything is as it was.
        """

    def delete(self, name: str) -> None:
        """Stop serving a task. Raises RequestError for one that is not served, or the last one."""


class FixedTasks:
    """Tasks that only another start of the server changes: those of warmed models, which are trunk and head in one."""

    def __init__(
        self, trunk: str, served: Mapping[str, TaskVersion], preprocess: Preprocess, width: int
    ) -> None:
        self.trunk, self.served, self.preprocess, self.width = trunk, dict(served), preprocess, width

    def refresh(self) -> bool:
        return False

    def register(
        self, name: str, parameters: TaskParameters, latency_ms: float, utility: float, accuracy: float
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
