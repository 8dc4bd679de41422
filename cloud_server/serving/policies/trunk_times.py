"""The trunks that share a device, as the fedstill policy knows them: mostly one, sometimes several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.scheduling.latency_model import CalibrationSettings, LatencyModel
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.shadow_price import HullStep, upper_hull

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds without a batch until a query is tried against what is expected; doubled while it comes too late."""

Floats = npt.NDArray[np.float64]


class TrunkTimes:
    """One trunk: its schedules, how long they take at present, and when it ran last.

    Args:
        schedules: the useful ones, fastest first.
        first: place of the first of them among those of all trunks.
        largest: queries in a batch, at most.
    """

    def __init__(
        self, schedules: Sequence[Schedule], first: int, largest: int, settings: CalibrationSettings
    ) -> None:
        self.schedules = tuple(schedules)
        self.own = slice(first, first + len(self.schedules))
        self.largest = min(largest, *(one.maximum_batch for one in self.schedules))
        self.latency = LatencyModel(self.schedules, settings)
        self.last_batch = -math.inf
        self.pause = FIRST_PAUSE

    @property
    def fastest(self) -> Schedule:
        return self.schedules[0]

    def expected_seconds(self) -> float:
        """Of a batch of one at the fastest schedule."""
        return self.latency.seconds(self.fastest, 1)

    def upper_seconds(self, size: int = 1) -> float:
        """Of a batch at the fastest schedule, as deadlines are checked with it."""
        return self.latency.upper_seconds(self.fastest, size)

    def ran(self, now: float, in_time: bool) -> None:
        """A batch of this trunk ended."""
        self.last_batch = now
        self.pause = FIRST_PAUSE if in_time else min(LONGEST_PAUSE, 2 * self.pause)


class Trunks:
    """All of them, and their schedules in one order.

    Attributes:
        by_name: in the profile's order.
        schedules: of all, each trunk's fastest first.
        accuracy: float (tasks, schedules); 0 at other trunks' schedules.
        largest: int (schedules,), of a batch.
    """

    def __init__(self, profile: Profile, largest: int, settings: CalibrationSettings) -> None:
        self.by_name: dict[str, TrunkTimes] = {}
        self.schedules: list[Schedule] = []
        for name, useful in profile.useful_by_trunk.items():
            self.by_name[name] = TrunkTimes(useful, len(self.schedules), largest, settings)
            self.schedules += useful
        self._of_schedule = {one.name: trunk for trunk in self.by_name.values() for one in trunk.schedules}
        self._of_task = [self.by_name[name] for name in profile.trunk_of_task]
        self.accuracy: Floats = np.array([schedule.accuracy for schedule in self.schedules]).T.copy()
        self.largest = np.array([self.of_schedule(one).largest for one in self.schedules])
        self.hulls = [
            upper_hull(trunk.schedules, task, trunk.largest) for task, trunk in enumerate(self._of_task)
        ]

    @property
    def first(self) -> TrunkTimes:
        return next(iter(self.by_name.values()))

    def of_task(self, task: int) -> TrunkTimes:
        """The trunk of a task, by its place in the profile."""
        return self._of_task[task]

    def of_schedule(self, schedule: Schedule) -> TrunkTimes:
        """The trunk that runs it."""
        return self._of_schedule[schedule.name]

    def pace(self, task: int) -> float:
        """How much slower than its profile the task's trunk is, beside the first trunk."""
        return self._of_task[task].latency.scale / self.first.latency.scale

    def paced_hulls(self) -> Sequence[Sequence[HullStep]]:
        """One per task, with the times of all trunks at the pace of the first one."""
        if len(self.by_name) == 1:
            return self.hulls
        return [
            [HullStep(step.seconds * self.pace(task), step.accuracy) for step in hull]
            for task, hull in enumerate(self.hulls)
        ]

    def charges(self, price: float) -> Floats:
        """What a query of a full batch pays for its time: float (schedules,)."""
        sizes = self.largest
        seconds = [
            self.of_schedule(schedule).latency.seconds(schedule, size)
            for schedule, size in zip(self.schedules, sizes.tolist(), strict=True)
        ]
        charges: Floats = price / sizes * np.array(seconds)
        return charges

    def lines(self) -> Floats:
        """(fixed, per query) seconds at present: float (schedules, 2)."""
        return np.array([self.of_schedule(schedule).latency.line(schedule) for schedule in self.schedules])
