"""The profile of a model before it serves: accuracy and time of every token schedule.

Time is affine in the batch size, t(n) = fixed + per_query * n, per schedule: all tasks share the trunk, and a head or
a set of prompts costs too little to tell tasks apart. A linear rule (thesis 3.3.4) is wrong for small batches.
A profile is data: the thesis' own (`thesis_profile.py`), or a JSON file that a profiler wrote.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.common.errors import DataError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """One way to run a model.

    name: unique in its profile. token_delta: tokens added (> 0, prompts) or removed (< 0) per layer, the thesis'
    gamma. fixed_seconds, per_query_seconds: of the affine time. accuracy: expected share of right answers per task,
    in the order of the profile's tasks. maximum_batch: the largest batch that fits in memory (Eq. 3.2c). model: which
    warmed model (or soup of them) it runs, empty for the one without warm-up. So a planner that chooses among a
    profile's schedules chooses model and reduction together.
    """

    name: str
    token_delta: int
    fixed_seconds: float
    per_query_seconds: float
    accuracy: tuple[float, ...]
    maximum_batch: int = 64
    model: str = ""

    def __post_init__(self) -> None:
        times = (self.fixed_seconds, self.per_query_seconds)
        if not all(math.isfinite(t) and t >= 0 for t in times) or self.per_query_seconds == 0:
            raise DataError(f"schedule {self.name!r}: fixed_seconds must be >= 0 and per_query_seconds > 0")
        if not all(0 <= share <= 1 for share in self.accuracy):
            raise DataError(f"schedule {self.name!r}: accuracies must lie between 0 and 1")
        if self.maximum_batch < 1:
            raise DataError(f"schedule {self.name!r}: maximum_batch must be at least 1")

    def seconds(self, size: int) -> float:
        """Predicted time of a batch."""
        return self.fixed_seconds + self.per_query_seconds * size

    @property
    def throughput(self) -> float:
        """Queries per second in full batches."""
        return self.maximum_batch / self.seconds(self.maximum_batch)

    def dominates(self, other: Schedule) -> bool:
        """Nowhere slower, nowhere less accurate, fits as large a batch, and better in at least one of these."""
        mine = (-self.seconds(1), -self.seconds(other.maximum_batch), self.maximum_batch, *self.accuracy)
        theirs = (
            -other.seconds(1),
            -other.seconds(other.maximum_batch),
            other.maximum_batch,
            *other.accuracy,
        )
        return all(a >= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


@dataclass(frozen=True, slots=True)
class Variant:
    """Another model that could be loaded instead (INFaaS): its one schedule and how long loading it blocks."""

    schedule: Schedule
    load_seconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.load_seconds) and self.load_seconds >= 0):
            raise DataError(f"variant {self.schedule.name!r}: load_seconds must be >= 0")


@dataclass(frozen=True)
class Profile:
    """A policy's knowledge about the engine.

    tasks: names. schedules: of the elastic model. variants: whole models that INFaaS switches between, by
    accuracy. source: where the numbers come from, one line. trunk: fingerprint of the weights that were measured,
    and engine: variant of the engine that ran them; empty if nobody noted it. Raises DataError for an impossible
    profile.
    """

    name: str
    source: str
    tasks: tuple[str, ...]
    schedules: tuple[Schedule, ...]
    variants: tuple[Variant, ...] = field(default=())
    trunk: str = ""
    engine: str = ""

    def __post_init__(self) -> None:
        if not self.tasks or not self.schedules:
            raise DataError(f"profile {self.name!r}: needs at least one task and one schedule")
        every = [*self.schedules, *(variant.schedule for variant in self.variants)]
        for schedule in every:
            if len(schedule.accuracy) != len(self.tasks):
                raise DataError(
                    f"profile {self.name!r}: schedule {schedule.name!r} has {len(schedule.accuracy)} accuracies, "
                    f"give one for each of the {len(self.tasks)} tasks"
                )
        names = [schedule.name for schedule in every]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise DataError(
                f"profile {self.name!r}: schedule {doubled[0]!r} appears twice, names must differ"
            )

    @property
    def useful_by_trunk(self) -> Mapping[str, tuple[Schedule, ...]]:
        """`useful` for each trunk that it describes: here one, without a name (see ``joint_profile.py``)."""
        return {"": self.useful}

    @property
    def trunk_of_task(self) -> tuple[str, ...]:
        """The name of the trunk of each task."""
        return ("",) * len(self.tasks)

    def origin(self, schedule: str) -> tuple[str, str]:
        """(trunk, name there) of a schedule."""
        return "", schedule

    def with_parts(self, parts: Mapping[str, Profile]) -> Profile:
        """The same with other profiles of some of its trunks, by name."""
        (mine,) = parts.values()
        return mine

    @cached_property
    def useful(self) -> tuple[Schedule, ...]:
        """The schedules that no other dominates, fastest first: a planner needs no others."""
        kept = [s for s in self.schedules if not any(other.dominates(s) for other in self.schedules)]
        return tuple(sorted(kept, key=lambda schedule: -schedule.throughput))

    def without_dominated(self) -> Profile:
        """Only the useful schedules, in the order of this profile."""
        return replace(self, schedules=tuple(s for s in self.schedules if s in self.useful))

    @property
    def fastest(self) -> Schedule:
        """The thesis' min(L): the fallback when time is short."""
        return self.useful[0]

    @cached_property
    def everything(self) -> tuple[Schedule, ...]:
        """All schedules that any policy may run, variants last."""
        return (*self.schedules, *(variant.schedule for variant in self.variants))

    def with_token_delta(self, token_delta: int, int8: bool = False) -> Schedule:
        """The schedule that adds (or removes) that many tokens per layer: the one that is called so, if it is there,
        else the first that comes to as many. int8: only one in int8, whose name ends in q; else rather none of them.
        Raises DataError if there is none."""
        same = [schedule for schedule in self.schedules if schedule.token_delta == token_delta]
        if int8:
            same = [schedule for schedule in same if schedule.name.endswith("q")]
        constant = (f"{token_delta:+d}" if token_delta else "0") + "q" * int8
        if same:
            called = (schedule for schedule in same if schedule.name == constant)
            return next(called, min(same, key=lambda schedule: schedule.name.endswith("q") != int8))
        known = ", ".join(schedule.name for schedule in self.schedules)
        raise DataError(
            f"profile {self.name!r} has no schedule with token delta {token_delta}{' in int8' * int8} (it has {known})"
        )

    def of_model(self, model: str) -> Profile:
        """Only the schedules of one model, without variants. Raises DataError if it has none."""
        mine = tuple(schedule for schedule in self.schedules if schedule.model == model)
        if not mine:
            raise DataError(
                f"profile {self.name!r}: has no schedules of model {model or 'without warm-up'!r}"
            )
        return replace(self, schedules=mine, variants=())

    def task_index(self, name: str) -> int:
        """Place of a task by name. Raises DataError for an unknown one."""
        if name not in self.tasks:
            raise DataError(f"profile {self.name!r} knows no task {name!r} (it has {', '.join(self.tasks)})")
        return self.tasks.index(name)


def read_profile(path: Path) -> Profile:
    """A profile from JSON, as `profile_to_plain` lays it out. Raises DataError, one line, for a file that is not
    one."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: not a readable profile ({error}); give thesis or a profile in JSON"
        ) from None
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise DataError(f"{path}: not a profile of format {FORMAT}: profile the model again")
    try:
        return from_plain(Profile, plain)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def profile_to_plain(profile: Profile) -> dict[str, Any]:
    """The JSON layout of a profile: its fields by name, times in seconds, and the number of the format."""
    return {"format": FORMAT, **to_plain(profile)}


def best_throughput(schedules: Sequence[Schedule], demand: float) -> Schedule:
    """The slowest (so most accurate) schedule that still serves `demand` queries per second, else the fastest.

    Table 3.4 as a rule: it is the thesis' f(q) without its gaps (0 < q < 1, q = 1000, fractions between ranges).
    """
    enough = [schedule for schedule in schedules if schedule.throughput >= demand]
    return min(enough, key=lambda s: s.throughput) if enough else max(schedules, key=lambda s: s.throughput)
