"""The tasks of several devices: the same on all of them. A change is made on the first, and the others follow; if one
cannot, it is undone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import grpc
from sqlalchemy.exc import SQLAlchemyError

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.server.live_tasks import LiveTasks
from fedstill.cloud_server.serving.server.served_tasks import ServedTrunk, TrunkState
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.common.errors import first_line
from fedstill.models.vit.task_bank import TaskParameters

LOG = logging.getLogger(__name__)


class DeviceTasks:
    """The ``ServedTasks`` of all.

    Args:
        parts: one per device, of the same registry and the same weights.
    """

    def __init__(self, parts: Sequence[LiveTasks]) -> None:
        self._first, *self._others = parts
        self._alike = dict[str, TaskVersion]()

    @property
    def trunks(self) -> Mapping[str, ServedTrunk]:
        return self._first.trunks

    @property
    def states(self) -> Mapping[str, TrunkState]:
        return self._first.states

    @property
    def served(self) -> Mapping[str, TaskVersion]:
        """On every device. Of a task in several versions, for a moment or because one device refuses one, it is the
        last one that all had: no task is missing while it changes."""
        found, others = dict[str, TaskVersion](), [one.served for one in self._others]
        for name, task in self._first.served.items():
            if all(one.get(name) == task for one in others):
                found[name] = self._alike[name] = task
            elif all(name in one for one in others):
                found[name] = self._alike.get(name, task)
        return found

    def refresh(self) -> bool:
        changed, failures = False, list[Exception]()
        for one in (self._first, *self._others):
            try:
                changed = one.refresh() or changed
            except Exception as error:  # whatever it is, the others follow
                failures.append(error)
        for failure in failures:
            raise failure
        return changed

    def register(
        self,
        name: str,
        parameters: TaskParameters,
        latency_ms: float,
        utility: float,
        accuracy: float,
        trunk: str = "",
    ) -> TaskVersion:
        before = self._first.registered(name)
        version = self._first.register(name, parameters, latency_ms, utility, accuracy, trunk)
        self._follow(name, version, before)
        return version

    def versions(self) -> tuple[TaskVersion, ...]:
        return self._first.versions()

    def load(self, name: str, version: int | None = None) -> TaskVersion:
        before = self._first.registered(name)
        loaded = self._first.load(name, version)
        self._follow(name, loaded, before)
        return loaded

    def delete(self, name: str) -> None:
        before = self._first.registered(name)
        self._first.delete(name)
        self._follow(name, None, before)

    def _follow(self, name: str, made: TaskVersion | None, before: TaskVersion | None) -> None:
        """Have all serve what the registry says of a task since this change of the first.

        Raises:
            RequestError: one of them cannot; then the change is undone.
        """
        reason = self._looked_at(self._others, name)
        if self._are_alike(name):
            return
        reason = (
            self._looked_at((self._first, *self._others), name) or reason
        )  # somebody may have changed it, too
        if self._are_alike(name):
            return
        try:
            self._first.restore(name, made, before)
            self._looked_at(self._others, name)
        except Exception as error:  # the next look at the registry tries again
            LOG.error("event=devices_differ task=%s reason=%r", name, first_line(error))
        text = f"not every device can serve this: {reason or 'see the log of the server'}"
        raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, "name", text)

    def _are_alike(self, name: str) -> bool:
        wanted = self._first.served.get(name)
        return all(one.served.get(name) == wanted for one in self._others)

    @staticmethod
    def _looked_at(parts: Sequence[LiveTasks], name: str) -> str:
        """Have them look at the registry; what went wrong with a device."""
        reason = ""
        for one in parts:
            try:
                one.refresh()
            except SQLAlchemyError:  # no device's fault
                raise
            except Exception as error:  # whatever it is, of memory perhaps: all have to be alike
                reason = first_line(error)
                LOG.error("event=device_does_not_follow task=%s reason=%r", name, reason)
        return reason
