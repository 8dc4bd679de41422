"""Our own policy: late binding, exact planning, a price on engine time.

Late binding: queries wait unbatched. At every idle moment batches are formed from all of them, so no earlier decision
is in the way. Planning: an exact dynamic programme over the clock, of which only the first batch is run. Price: every
plan is charged for engine time, by its worth to the queries that wait and those about to come. Admission: a query is
rejected at once if the price is far above what it can pay, or if queries that earn as much or more leave no room for
it before its deadline; a client that is refused late has lost the time in which it could have asked elsewhere. Times
are learned from the measured times of batches.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.policies.exact_plan import grid_plan
from fedstill.cloud_server.serving.policies.queues import CandidateBatch, Queue, fill
from fedstill.cloud_server.serving.scheduling.latency_model import CalibrationSettings, LatencyModel
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.queries import Batch, Decision, Query, Rejection
from fedstill.cloud_server.serving.scheduling.shadow_price import Demand, fluid_optimum, upper_hull

MARGINAL = 0.99
"""At the full price the kind of query that sets the price would be worth exactly nothing; it should still be run."""
SHORTEST = 1e-6
"""Seconds; whose deadline is nearer has expired."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds without a batch until a query is tried against what is expected; doubled while it comes too late."""


@dataclass(frozen=True, slots=True)
class FedstillSettings:
    """Tunable parameters.

    largest_batch: queries. window: seconds of arrivals from which the load and its mix are estimated. ahead, capacity:
    the price is that of serving what waits and what will arrive within `ahead` mean latency objectives, in `capacity`
    mean latency objectives of engine time (what arrives last may still be served a little later). grid: steps of the
    plan's clock up to the last deadline. most_batches: that one plan looks at. utility_bins: utilities within a factor
    of exp(1 / utility_bins) wait in one queue and count as its first query's. patience: a query is rejected if the
    price is more than this many times what it can pay. room: share of the time up to a deadline that accepted queries
    may fill. foresight: share of the queries expected to arrive until then, and to earn more, that room is kept for;
    below 1, because bursts end.
    """

    largest_batch: int = 64
    window: float = 1.0
    ahead: float = 0.75
    capacity: float = 1.1
    grid: int = 400
    most_batches: int = 24
    utility_bins: float = 10.0
    patience: float = 3.0
    room: float = 0.95
    foresight: float = 0.4
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)


class FedstillPolicy(Policy):
    """Late binding, exact plan, shadow price, admission, calibration."""

    name = "fedstill"

    def __init__(self, profile: Profile, settings: FedstillSettings | None = None) -> None:
        super().__init__(profile)
        self.settings = settings or FedstillSettings()
        self.latency = LatencyModel(profile.useful, self.settings.calibration)
        self.price = 0.0
        self._schedules = profile.useful
        self._accuracy = np.array(
            [schedule.accuracy for schedule in self._schedules]
        ).T.copy()  # (tasks, schedules)
        self._largest = min(self.settings.largest_batch, *(s.maximum_batch for s in self._schedules))
        self._hulls = [upper_hull(self._schedules, task, self._largest) for task in range(len(profile.tasks))]
        self._queues: dict[tuple[int, int], Queue] = {}
        self._coming: dict[int, tuple[float, Queue]] = {}  # accepted, their images not ready yet
        self._recent: deque[tuple[float, Queue]] = deque()
        self._busy_until = 0.0
        self._running = False
        self._last_batch = -math.inf
        self._pause = FIRST_PAUSE
        self._started = math.inf
        self._objective = 0.0  # mean latency objective of recent queries, seconds

    def admit(self, query: Query, now: float) -> Rejection | None:
        queue = self._queue(query)
        queue.recent += 1
        self._recent.append((now, queue))
        self._started = min(self._started, now)
        objective = query.deadline - query.arrival
        self._objective = (
            objective if self._objective == 0 else self._objective + 0.01 * (objective - self._objective)
        )
        alone = not self._running and not self.queued()
        expected = now + self.latency.seconds(self._schedules[0], 1)
        if alone and expected > query.deadline and (now >= query.deadline or not self._may_try(now)):
            return Rejection("too_late", 0.0)
        if not alone:
            if (
                max(now, self._busy_until) + self.latency.upper_seconds(self._schedules[0], 1)
                > query.deadline
            ):
                return Rejection("too_late", 0.0)
            if (self.price and self._asks_too_much(query)) or self._has_no_room(query, queue, now):
                return Rejection("overload", self._objective)
        self._coming[query.identifier] = (query.deadline, queue)
        queue.coming += 1
        return None

    def enqueue(self, query: Query, now: float) -> None:
        self._forget_coming(query.identifier)
        self._queue(query).add(query)

    def dispatch(self, now: float) -> Decision:
        evicted = self._drop_expired(now)
        self.price = self._current_price(now)
        choice = self._choose(self._form(self.price, now), now, self.price)
        if choice is None:  # nothing pays the price, but an idle engine earns even less
            choice = self._choose(self._form(0.0, now), now, 0.0)
        if choice is None and (self.queued() == 1 or self._may_try(now)) and (lone := self._form(0.0, now)):
            while lone[0].size > 1:
                lone[0].drop_most_urgent()
            choice = lone[0], self._schedules[0]
        if choice is None:
            return Decision(None, evicted)
        forming, schedule = choice
        seconds = self.latency.seconds(schedule, forming.size)
        self._busy_until, self._running = now + seconds, True
        return Decision(Batch(forming.take(), schedule, seconds), evicted)

    def completed(self, batch: Batch, now: float, seconds: float) -> None:
        self._busy_until, self._running, self._last_batch = now, False, now
        in_time = all(now <= query.deadline for query in batch.queries)
        self._pause = FIRST_PAUSE if in_time else min(LONGEST_PAUSE, 2 * self._pause)
        if batch.queries:
            self.latency.observe(batch.schedule, len(batch.queries), seconds)

    def adopt(self, other: Policy) -> None:
        if isinstance(other, FedstillPolicy):
            self.latency.adopt(other.latency)

    def withdraw(self, identifier: int) -> Query | None:
        self._forget_coming(identifier)
        for queue in self._queues.values():
            for place, (_, waiting, query) in enumerate(queue.waiting):
                if waiting == identifier:
                    del queue.waiting[place]
                    return query
        return None

    def queued(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def _asks_too_much(self, query: Query) -> bool:
        """Whether the price of the cheapest way to serve the query is far above what the query can pay."""
        hull = self._hulls[query.task]
        if not hull:  # a task with no right answers
            return True
        return self.price * hull[0].seconds > self.settings.patience * query.utility * hull[0].accuracy

    def _has_no_room(self, query: Query, queue: Queue, now: float) -> bool:
        """Whether the queries that earn as much per second fill the time up to its deadline, or, if it were accepted,
        up to the last one's: then somebody who is worth as much would be refused too late. Those that earn far more
        count by the price alone: beside them it may wait for a pause between two bursts."""
        expected = self.settings.foresight / self.settings.window * (query.deadline - now)
        start = max(now, self._busy_until)
        last, before, in_all = query.deadline, queue.seconds, queue.seconds
        for other in self._queues.values():
            if not queue.earning <= other.earning <= self.settings.patience * queue.earning:
                continue
            more = other.coming + (expected * other.recent if other.earning > queue.earning else 0.0)
            before += other.seconds * (more + other.due(start, query.deadline))
            in_all += other.seconds * (more + other.due(start, math.inf))
            if other.waiting:
                last = max(last, other.waiting[-1][0])
        room = self.settings.room / self.latency.scale
        return before > room * (query.deadline - start) or in_all > room * (last - start)

    def _forget_coming(self, identifier: int) -> None:
        coming = self._coming.pop(identifier, None)
        if coming is not None:
            coming[1].coming -= 1

    def _queue(self, query: Query) -> Queue:
        size = round(self.settings.utility_bins * math.log(query.utility)) if query.utility > 0 else -(10**6)
        key = (query.task, size)
        queue = self._queues.get(key)
        if queue is None:
            hull = self._hulls[query.task]
            seconds, accuracy = (hull[0].seconds, hull[0].accuracy) if hull else (SHORTEST, 0.0)
            earning = query.utility * accuracy / seconds
            queue = self._queues[key] = Queue(query.task, query.utility, seconds, earning)
        return queue

    def _drop_expired(self, now: float) -> tuple[Query, ...]:
        """Queries that even a batch of one at the fastest schedule would answer late."""
        for identifier in [number for number, (deadline, _) in self._coming.items() if deadline <= now]:
            self._forget_coming(identifier)
        last_chance = now + self._seconds_alone(now)
        return tuple(query for queue in self._queues.values() for query in queue.drop_before(last_chance))

    def _may_try(self, now: float) -> bool:
        """Whether an idle engine may try a query against what is expected: nothing else would teach it otherwise."""
        return not self._running and now - self._last_batch >= self._pause

    def _seconds_alone(self, now: float) -> float:
        """Of a batch of one at the fastest schedule, as deadlines are checked with it. A query that has the engine to
        itself makes nobody else late: what is expected will do, and of a try next to nothing is expected."""
        if self._may_try(now):
            return SHORTEST
        if self.queued() == 1:
            return self.latency.seconds(self._schedules[0], 1)
        return self.latency.upper_seconds(self._schedules[0], 1)

    def _current_price(self, now: float) -> float:
        """Utility per second of engine time."""
        window = self.settings.window
        while self._recent and self._recent[0][0] < now - window:
            self._recent.popleft()[1].recent -= 1
        soon = self.settings.ahead * self._objective / max(min(window, now - self._started), 0.1 * window)
        demand = [
            Demand(queue.task, queue.utility, queue.recent * soon + len(queue.waiting))
            for queue in self._queues.values()
        ]
        capacity = self.settings.capacity * self._objective / self.latency.scale
        return MARGINAL * fluid_optimum(demand, self._hulls, capacity).price / self.latency.scale

    def _form(self, price: float, now: float) -> list[CandidateBatch]:
        """Batches of queries that would choose the same schedule at this price, most valuable first within each."""
        size = self._largest
        charge = (
            price / size * np.array([self.latency.seconds(schedule, size) for schedule in self._schedules])
        )
        groups: dict[int, list[tuple[float, Queue]]] = {}
        for queue in self._queues.values():
            if queue.waiting:
                net = queue.utility * self._accuracy[queue.task] - charge
                choice = int(net.argmax())
                if net[choice] >= 0:
                    groups.setdefault(choice, []).append((queue.utility, queue))
        batches: list[CandidateBatch] = []
        for queues in groups.values():
            queues.sort(key=lambda entry: -entry[0])
            batches += fill([queue for _, queue in queues], size, self.settings.most_batches)
        for batch in batches:
            self._trim(batch, now)
        return [batch for batch in batches if batch.size]

    def _trim(self, batch: CandidateBatch, now: float) -> None:
        """Leave out the fewest, most urgent queries, so that the rest can be answered in time together."""
        while batch.size and now + self._upper_seconds(batch.size, now) > batch.deadline():
            batch.drop_most_urgent()

    def _upper_seconds(self, size: int, now: float) -> float:
        return self._seconds_alone(now) if size == 1 else self.latency.upper_seconds(self._schedules[0], size)

    def _choose(
        self, batches: list[CandidateBatch], now: float, price: float
    ) -> tuple[CandidateBatch, Schedule] | None:
        """The first batch of the best plan, and its schedule."""
        if not batches:
            return None
        lines = np.array([self.latency.line(schedule) for schedule in self._schedules])  # (schedules, 2)
        sizes = np.array([batch.size for batch in batches], dtype=np.float64)
        seconds = lines[:, 0] + sizes[:, None] * lines[:, 1]
        values = self._worth(batches) - price * seconds
        slack = np.array([batch.deadline() for batch in batches]) - now
        if len(batches) > self.settings.most_batches:
            # Not all can run before the last deadline: plan for those that earn most per second.
            best = np.argsort(-(values / seconds).max(axis=1))[: self.settings.most_batches]
            order = best[np.argsort(slack[best], kind="stable")]
        else:
            order = np.argsort(slack, kind="stable")
        plan = grid_plan(
            seconds[order] * self.latency.margin,
            values[order],
            slack[order],
            float(slack[order[-1]]) / self.settings.grid,
        )
        for place, choice in zip(order.tolist(), plan.choices, strict=True):
            if choice is not None:
                return batches[place], self._schedules[choice]
        return None

    def _worth(self, batches: Sequence[CandidateBatch]) -> npt.NDArray[np.float64]:
        """Expected utility of each batch at each schedule: float (batches, schedules)."""
        stakes = np.zeros((len(batches), len(self._accuracy)))
        for row, batch in zip(stakes, batches, strict=True):
            for slice_ in batch.slices:
                row[slice_.queue.task] += (slice_.stop - slice_.start) * slice_.queue.utility
        worth: npt.NDArray[np.float64] = stakes @ self._accuracy
        return worth
