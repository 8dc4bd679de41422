"""Runs a policy against a load in virtual time: one engine, no sleeping, the same policy objects as the live server.

The engine takes the profile's times, multiplied by an optional seeded jitter and slowdown, which the policy can only
observe. All random numbers are drawn beforehand: two policies on one load meet the same arrivals and the same outcomes,
so that their differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.queries import Batch, Query
from fedstill.datasets.loads.query_mix import Load

RIGHT, WRONG, LATE, EVICTED = 1, 2, 3, 4
"""The thesis' types of a query: right in time, wrong in time, answered too late, not answered."""

IDLE_STEP = 0.01  # seconds after which a policy that holds its queries back is asked again
TOLERANCE = 1e-9  # of float sums, not of deadlines


@dataclass(frozen=True, slots=True)
class VirtualEngine:
    """What differs between the engine and its profile. jitter: standard deviation of the log of a batch's time.
    slowdown: factor on all times at a moment (seconds)."""

    jitter: float = 0.0
    slowdown: Callable[[float], float] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a load. Arrays have shape (queries,) or (batches,).

    kind: int8, RIGHT .. EVICTED. rejected: bool, those of the EVICTED that were rejected on arrival. waiting: seconds
    from arrival to the start of the batch, NaN if there was none. schedule: index into profile.everything, -1 if not
    run. batch_*: start (s), seconds on the engine, size, schedule, and the share of right answers. loading_seconds:
    engine time spent on loading other models.
    """

    kind: npt.NDArray[np.int8]
    rejected: npt.NDArray[np.bool_]
    waiting: npt.NDArray[np.float64]
    schedule: npt.NDArray[np.int16]
    batch_start: npt.NDArray[np.float64]
    batch_seconds: npt.NDArray[np.float64]
    batch_size: npt.NDArray[np.int64]
    batch_schedule: npt.NDArray[np.int16]
    batch_accuracy: npt.NDArray[np.float64]
    loading_seconds: float

    def utility_earned(self, load: Load) -> float:
        """Sum of the utilities of the queries answered right in time."""
        return float(load.utility[self.kind == RIGHT].sum())


def simulate(
    policy: Policy,
    load: Load,
    queries: list[Query],
    profile: Profile,
    generator: np.random.Generator,
    engine: VirtualEngine | None = None,
) -> Outcome:
    """Run `load` to its end and until the queue is empty.

    queries: the load as objects, `as_queries(load)`, made once for all policies. generator: of the jitter.
    Raises RuntimeError if a policy breaks its contract (a query served twice, or never answered).
    """
    engine = engine or VirtualEngine()
    recorder = _Recorder(len(load), profile)
    resident = {variant.schedule.name: variant.load_seconds for variant in profile.variants}
    loaded = ""
    arrivals = load.arrival.tolist()
    now, following, loading = 0.0, 0, 0.0
    while True:
        following = _arrive(policy, queries, arrivals, following, now, recorder)
        decision = policy.dispatch(now)
        recorder.evict(decision.evicted)
        batch = decision.batch
        if batch is None:
            if following == len(queries) and not policy.queued():
                break
            retry = now + IDLE_STEP if policy.queued() else math.inf
            now = min(retry, arrivals[following] if following < len(queries) else math.inf)
            continue
        switching = resident.get(batch.schedule.name, 0.0) if batch.schedule.name != loaded else 0.0
        loaded = batch.schedule.name if batch.schedule.name in resident else loaded
        seconds = batch.schedule.seconds(len(batch.queries))
        if engine.slowdown is not None:
            seconds *= engine.slowdown(now)
        if engine.jitter:
            seconds *= float(np.exp(engine.jitter * generator.standard_normal()))
        start = now + switching
        finish = start + seconds
        loading += switching
        following = _arrive(policy, queries, arrivals, following, finish, recorder)
        recorder.run(batch, start, seconds)
        policy.completed(batch, finish, seconds)
        now = finish
    return recorder.outcome(load, loading)


def as_queries(load: Load) -> list[Query]:
    """The load as the objects that policies see."""
    columns = (load.task.tolist(), load.arrival.tolist(), load.deadline.tolist(), load.utility.tolist())
    return [
        Query(identifier, task, arrival, deadline, utility)
        for identifier, (task, arrival, deadline, utility) in enumerate(zip(*columns, strict=True))
    ]


def _arrive(
    policy: Policy,
    queries: list[Query],
    arrivals: list[float],
    following: int,
    until: float,
    recorder: _Recorder,
) -> int:
    """Submit all queries that arrive up to `until`; returns the index of the first later one."""
    while following < len(arrivals) and arrivals[following] <= until:
        rejection = policy.arrive(queries[following], arrivals[following])
        if rejection is not None:
            recorder.reject(queries[following])
        following += 1
    return following


class _Recorder:
    """Collects fates per query and facts per batch."""

    def __init__(self, count: int, profile: Profile) -> None:
        self._profile = profile
        self._index = {schedule.name: place for place, schedule in enumerate(profile.everything)}
        self._answered = np.zeros(count, dtype=np.int8)
        self._rejected = np.zeros(count, dtype=np.bool_)
        self._finish = np.full(count, np.inf)
        self._start = np.full(count, np.nan)
        self._schedule = np.full(count, -1, dtype=np.int16)
        self._batch = np.full(count, -1, dtype=np.int64)
        self._batches: list[tuple[float, float, int, int]] = []

    def reject(self, query: Query) -> None:
        self._answered[query.identifier] += 1
        self._rejected[query.identifier] = True

    def evict(self, queries: tuple[Query, ...]) -> None:
        for query in queries:
            self._answered[query.identifier] += 1

    def run(self, batch: Batch, start: float, seconds: float) -> None:
        members = np.array([query.identifier for query in batch.queries])
        schedule = self._index[batch.schedule.name]
        self._answered[members] += 1
        self._start[members], self._finish[members] = start, start + seconds
        self._schedule[members], self._batch[members] = schedule, len(self._batches)
        self._batches.append((start, seconds, len(members), schedule))

    def outcome(self, load: Load, loading_seconds: float) -> Outcome:
        wrong = np.flatnonzero(self._answered != 1)
        if wrong.size:
            raise RuntimeError(f"query {wrong[0]} was answered {self._answered[wrong[0]]} times")
        accuracy = np.array([schedule.accuracy for schedule in self._profile.everything])
        served = self._schedule >= 0
        in_time = served & (self._finish <= load.deadline + TOLERANCE)
        right = served & (load.draw < accuracy[self._schedule, load.task])
        kind = np.full(len(load), EVICTED, dtype=np.int8)
        kind[served] = LATE
        kind[in_time] = WRONG
        kind[in_time & right] = RIGHT
        start, seconds, size, schedule = (
            (np.array(column) for column in zip(*self._batches, strict=True))
            if self._batches
            else (np.empty(0),) * 4
        )
        right_in_batch = np.bincount(self._batch[served], weights=right[served], minlength=len(self._batches))
        return Outcome(
            kind=kind,
            rejected=self._rejected,
            waiting=self._start - load.arrival,
            schedule=self._schedule,
            batch_start=start.astype(np.float64),
            batch_seconds=seconds.astype(np.float64),
            batch_size=size.astype(np.int64),
            batch_schedule=schedule.astype(np.int16),
            batch_accuracy=right_in_batch / np.maximum(1, size),
            loading_seconds=loading_seconds,
        )
