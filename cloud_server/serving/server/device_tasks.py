"""The tasks of several devices: the same on all of them. A change is made on the first, and the others follow; if one
cannot, it is undone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import grpc

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks, ServedTrunk, TrunkState
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.common.errors import first_line
from fedstill.models.vit.task_bank import TaskParameters

LOG = logging.getLogger(__name__)


class DeviceTasks:
    """The ``ServedTasks`` of all.

    Args:
        parts: one per device, of the same registry and the same weights.
    """

    def __init__(self, parts: Sequence[ServedTasks]) -> None:
        self._first, *self._others = parts

    @property
    def trunks(self) -> Mapping[str, ServedTrunk]:
        return self._first.trunks

    @property
    def states(self) -> Mapping[str, TrunkState]:
        return self._first.states

    @property
    def served(self) -> Mapping[str, TaskVersion]:
        """On every device: what is new on some is not served before all have it."""
        others = [one.served for one in self._others]
        return {
            name: task
            for name, task in self._first.served.items()
            if all(one.get(name) == task for one in others)
        }

    def refresh(self) -> bool:
        changed = [one.refresh() for one in (self._first, *self._others)]  # all of them
        return any(changed)

    def register(
        self,
        name: str,
        parameters: TaskParameters,
        latency_ms: float,
        utility: float,
        accuracy: float,
        trunk: str = "",
    ) -> TaskVersion:
        before = self._first.served.get(name)
        version = self._first.register(name, parameters, latency_ms, utility, accuracy, trunk)
        self._follow(name, before)
        return version

    def versions(self) -> tuple[TaskVersion, ...]:
        return self._first.versions()

    def load(self, name: str, version: int | None = None) -> TaskVersion:
        before = self._first.served.get(name)
        loaded = self._first.load(name, version)
        self._follow(name, before)
        return loaded

    def delete(self, name: str) -> None:
        before = self._first.served.get(name)
        self._first.delete(name)
        self._follow(name, before)

    def _follow(self, name: str, before: TaskVersion | None) -> None:
        """Raises RequestError if one of the others does not serve what the first does; then all serve ``before``."""
        reason = "see the server's log"
        for one in self._others:
            try:
                one.refresh()
            except Exception as error:  # whatever it is, of memory perhaps: all have to be alike
                reason = first_line(error)
                LOG.error("event=device_does_not_follow task=%s reason=%r", name, reason)
        wanted = self._first.served.get(name)
        if all(one.served.get(name) == wanted for one in self._others):
            return
        try:
            if before is None:
                self._first.delete(name)
            else:
                self._first.load(name, before.version)
            for one in self._others:
                one.refresh()
        except Exception as error:  # the next look at the registry tries again
            LOG.error("event=devices_differ task=%s reason=%r", name, first_line(error))
        text = f"not every device can serve this: {reason}"
        raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, "name", text)
