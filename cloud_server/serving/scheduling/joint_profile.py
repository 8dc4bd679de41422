"""The profile of a device that several trunks share: the tasks and the schedules of all of them.

A task runs at the schedules of its own trunk only. So that a plan can name a schedule of any trunk, its name there
begins with the trunk's; whoever looks at an answer sees the schedule's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.common.errors import DataError


@dataclass(frozen=True)
class JointProfile(Profile):
    """parts: the profile of each trunk, by the trunk's name. Made by :func:`join`."""

    parts: Mapping[str, Profile] = field(default_factory=dict)

    @cached_property
    def useful_by_trunk(self) -> Mapping[str, tuple[Schedule, ...]]:
        joint = {schedule.name: schedule for schedule in self.schedules}
        return {
            trunk: tuple(joint[joint_name(trunk, schedule.name)] for schedule in part.useful)
            for trunk, part in self.parts.items()
        }

    @cached_property
    def trunk_of_task(self) -> tuple[str, ...]:
        return tuple(trunk for trunk, part in self.parts.items() for _ in part.tasks)

    @cached_property
    def _origins(self) -> Mapping[str, tuple[str, str]]:
        return {
            joint_name(trunk, schedule.name): (trunk, schedule.name)
            for trunk, part in self.parts.items()
            for schedule in part.schedules
        }

    def origin(self, schedule: str) -> tuple[str, str]:
        return self._origins[schedule]

    def with_parts(self, parts: Mapping[str, Profile]) -> JointProfile:
        """The same with other profiles of some trunks. Raises DataError if two trunks then have a task of one name."""
        return join({**self.parts, **parts})


def join(parts: Mapping[str, Profile]) -> JointProfile:
    """One profile for trunks that share a device, in this order. Raises DataError for a task that two of them have."""
    tasks = [task for part in parts.values() for task in part.tasks]
    twice = sorted({task for task in tasks if tasks.count(task) > 1})
    if twice:
        raise DataError(f"task {twice[0]!r} is of two trunks at once")
    schedules: list[Schedule] = []
    before = 0
    for trunk, part in parts.items():
        after = len(tasks) - before - len(part.tasks)
        schedules += [
            replace(
                schedule,
                name=joint_name(trunk, schedule.name),
                accuracy=(*before * (0.0,), *schedule.accuracy, *after * (0.0,)),
            )
            for schedule in part.schedules
        ]
        before += len(part.tasks)
    return JointProfile(
        name=" and ".join(part.name for part in parts.values()),
        source="; ".join(part.source for part in parts.values()),
        tasks=tuple(tasks),
        schedules=tuple(schedules),
        parts=dict(parts),
    )


def joint_name(trunk: str, schedule: str) -> str:
    """Of a schedule among those of all trunks; a trunk without a name is alone."""
    return f"{trunk}:{schedule}" if trunk else schedule
