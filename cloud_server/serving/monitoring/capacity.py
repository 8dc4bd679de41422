"""What rate a server could keep up with: full batches, one after the other, of the tasks as they arrive at present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule


@dataclass(frozen=True, slots=True)
class Capacity:
    """Queries per second.

    most: at each trunk's fastest schedule. accurate: at each task's most accurate one. best: the most accurate
    schedule that keeps up with the present rate, if one trunk serves alone and one does; else empty.
    """

    most: float
    accurate: float
    best: str


def capacity(profile: Profile, mix: Mapping[str, float], paces: Mapping[str, float], rate: float) -> Capacity:
    """By a profile and the present pace.

    Args:
        mix: how often each task is asked, in any unit; tasks that are not of the profile are left out. If nobody asks,
            all tasks count alike.
        paces: by trunk, measured over profiled time of its recent batches; 1 if it is not named.
        rate: present queries per second.
    """
    shares = {task: mix.get(task, 0.0) for task in profile.tasks}
    whole = sum(shares.values())
    if whole <= 0:
        shares, whole = dict.fromkeys(profile.tasks, 1.0), float(len(profile.tasks))
    fastest = accurate = 0.0
    for place, task in enumerate(profile.tasks):
        trunk = profile.trunk_of_task[place]
        useful, pace = profile.useful_by_trunk[trunk], paces.get(trunk, 1.0)
        share = shares[task] / whole
        fastest += share * pace / useful[0].throughput
        accurate += share * pace / max(useful, key=lambda one: one.accuracy[place]).throughput
    best = ""
    if len(profile.useful_by_trunk) == 1:
        ((trunk, useful),) = profile.useful_by_trunk.items()
        best = _best(useful, [shares[task] / whole for task in profile.tasks], rate * paces.get(trunk, 1.0))
    return Capacity(1 / fastest, 1 / accurate, best)


def _best(useful: Sequence[Schedule], shares: Sequence[float], rate: float) -> str:
    enough = [one for one in useful if one.throughput >= rate]
    if not enough:
        return ""
    return max(enough, key=lambda one: sum(a * b for a, b in zip(one.accuracy, shares, strict=True))).name


def pace(profile: Profile, trunk: str, ran: Mapping[str, tuple[float, float, float]]) -> float | None:
    """Measured over profiled time of a trunk's batches; None if it ran none.

    ran: batches, queries and seconds of them by schedule, as the profile names it.
    """
    measured = expected = 0.0
    for schedule in profile.schedules:  # a fixed policy may run one that is of no use
        if profile.origin(schedule.name)[0] != trunk:
            continue
        batches, queries, seconds = ran.get(schedule.name, (0.0, 0.0, 0.0))
        measured += seconds
        expected += batches * schedule.fixed_seconds + queries * schedule.per_query_seconds
    return measured / expected if expected > 0 else None
