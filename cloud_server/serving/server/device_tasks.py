"""The tasks of several devices: the same on all of them. A change is made on the first, and the others follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedstill.cloud_server.serving.server.served_tasks import ServedTasks, ServedTrunk, TrunkState
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.models.vit.task_bank import TaskParameters


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
        """On every device: a task that is new on some is not served before all have it."""
        others = [one.served for one in self._others]
        return {name: task for name, task in self._first.served.items() if all(name in one for one in others)}

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
        version = self._first.register(name, parameters, latency_ms, utility, accuracy, trunk)
        self._follow()
        return version

    def versions(self) -> tuple[TaskVersion, ...]:
        return self._first.versions()

    def load(self, name: str, version: int | None = None) -> TaskVersion:
        loaded = self._first.load(name, version)
        self._follow()
        return loaded

    def delete(self, name: str) -> None:
        self._first.delete(name)
        self._follow()

    def _follow(self) -> None:
        """What the first can serve, they all can: their engines are of the same weights."""
        for one in self._others:
            one.refresh()
