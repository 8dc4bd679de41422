"""The profile of a live server: measured once per model and tasks, kept, and adapted to the tasks as they come and go.

The measurement gives accuracy and time of every schedule. A task without a measurement (it was just registered, or its
images are not available) is expected to lose as much by fewer tokens as the others do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.profiler import Images, make_profile, profile_engine
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.tasks.registry import TaskVersion
from fedstill.common.errors import ConfigError, DataError
from fedstill.models.vit.schedules import TokenSchedule

LEAST_ACCURACY = 1e-3
"""The least accuracy: with 0, a planner would never answer the task."""

Validation = Mapping[str, tuple[Images, npt.NDArray[np.int64]]]


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """All that a measured profile depends on: another key, another profile.

    tasks: (name, fingerprint of the version). images: how many per task, and their seed. engine: the machine, its
    libraries and what was asked of the engine; which variant came of that is in the profile.
    """

    trunk: str
    tasks: tuple[tuple[str, str], ...]
    schedules: tuple[str, ...]
    batches: tuple[int, ...]
    images: tuple[int, int]
    engine: str

    @property
    def digest(self) -> str:
        """The name of the file that keeps the profile."""
        plain = [self.trunk, self.tasks, self.schedules, self.batches, self.images, self.engine]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]


def measure_profile(
    engine: Engine,
    validation: Validation,
    name: str,
    source: str,
    trunk: str = "",
    progress: Callable[[str], None] | None = None,
) -> Profile:
    """Every schedule of the engine, also dominated ones: a fixed policy may be asked for one of them."""
    measured = profile_engine(engine, validation, progress=progress)
    return make_profile(name, source, tuple(validation), measured, trunk, engine.variant)


def check_trunk(profile: Profile, trunk: str) -> None:
    """Raises ConfigError if the profile was measured with other weights."""
    if profile.trunk and profile.trunk != trunk:
        raise ConfigError(
            f"profile {profile.name!r}: measured with other weights ({profile.trunk[:12]}; these are {trunk[:12]}); "
            "measure one with: fedstill tasks profile"
        )


def fit_profile(
    profile: Profile,
    measured: Mapping[str, str],
    tasks: Mapping[str, TaskVersion],
    schedules: Mapping[str, TokenSchedule],
    maximum_batch: int,
) -> Profile:
    """The profile for exactly these tasks, of the engine's schedules that all of the tasks can run.

    Args:
        measured: fingerprint of the task version that each column of the profile belongs to.
        tasks: that are served now.
        schedules: of the engine, by name.

    Raises:
        DataError: no task, or no schedule is left.
    """
    if not tasks:
        raise DataError("no task is left to serve")
    usable = [
        schedule
        for schedule in profile.schedules
        if schedule.name in schedules and _suits(schedules[schedule.name], tasks)
    ]
    if not usable:
        raise DataError(f"profile {profile.name!r}: none of its schedules suits all of {', '.join(tasks)}")
    kept = {name: _kept_shares(profile, measured, version) for name, version in tasks.items()}
    return replace(
        profile,
        tasks=tuple(tasks),
        schedules=tuple(
            replace(
                schedule,
                accuracy=tuple(min(1.0, max(LEAST_ACCURACY, kept[name][schedule.name])) for name in tasks),
                maximum_batch=min(schedule.maximum_batch, maximum_batch),
            )
            for schedule in usable
        ),
        variants=(),
    )


def with_times(profile: Profile, timed: Profile) -> Profile:
    """The profile with the times that ``timed`` has for schedules of the same names."""
    lines = {schedule.name: schedule for schedule in timed.schedules}

    def with_line(schedule: Schedule) -> Schedule:
        line = lines.get(schedule.name, schedule)
        return replace(schedule, fixed_seconds=line.fixed_seconds, per_query_seconds=line.per_query_seconds)

    return replace(profile, schedules=tuple(map(with_line, profile.schedules)))


def _suits(schedule: TokenSchedule, tasks: Mapping[str, TaskVersion]) -> bool:
    return not schedule.prompts or all(schedule.prompts in task.prompts for task in tasks.values())


def _kept_shares(profile: Profile, measured: Mapping[str, str], version: TaskVersion) -> dict[str, float]:
    """Accuracy of a task by schedule: as measured, or its own accuracy times what others keep at that schedule."""
    if measured.get(version.name) == version.fingerprint:
        column = profile.task_index(version.name)
        return {schedule.name: schedule.accuracy[column] for schedule in profile.schedules}
    plain = min(profile.schedules, key=lambda schedule: abs(schedule.token_delta))
    own = version.accuracy or fmean(plain.accuracy)
    return {
        schedule.name: own
        * fmean(
            here / max(there, LEAST_ACCURACY)
            for here, there in zip(schedule.accuracy, plain.accuracy, strict=True)
        )
        for schedule in profile.schedules
    }
