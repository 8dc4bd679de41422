"""Our own policy: late binding, exact planning, a price on engine time.

Late binding: queries wait unbatched. At every idle moment batches are formed from all of them, so no earlier decision
is in the way. Planning: an exact dynamic programme over the clock, of which only the first batch is run. Price: every
plan is charged for engine time, by its worth to the queries that wait and those about to come. Admission: a query is
rejected at once if the price is far above what it can pay, or if queries that earn as much or more leave no room for
it before its deadline; a client that is refused late has lost the time in which it could have asked elsewhere. Times
are learned from the measured times of batches.

Several trunks may share the device. A batch is of one trunk; plan, price and admission are of the device, so its time
goes to the trunk whose queries earn most with it. Times are learned for each trunk by itself.
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
from fedstill.cloud_server.serving.policies.trunk_times import FIRST_PAUSE, LONGEST_PAUSE, Trunks, TrunkTimes
from fedstill.cloud_server.serving.scheduling.latency_model import CalibrationSettings, LatencyModel
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.serving.scheduling.queries import Batch, Decision, Query, Rejection
from fedstill.cloud_server.serving.scheduling.shadow_price import Demand, fluid_optimum

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "FedstillPolicy", "FedstillSettings"]

MARGINAL = 0.99
"""At the full price the kind of query that sets the price would be worth exactly nothing; it should still be run."""
SHORTEST = 1e-6
"""Seconds; whose deadline is nearer has expired."""


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
        self._trunks = Trunks(profile, self.settings.largest_batch, self.settings.calibration)
        self._queues: dict[tuple[int, int], Queue] = {}
        self._coming: dict[int, tuple[float, Queue]] = {}  # accepted, their images not ready yet
        self._recent: deque[tuple[float, Queue]] = deque()
        self._busy_until = 0.0
        self._running: TrunkTimes | None = None
        self._started = math.inf
        self._objective = 0.0  # mean latency objective of recent queries, seconds

    @property
    def latency(self) -> LatencyModel:
        """Times of the first trunk, mostly the only one."""
        return self._trunks.first.latency

    def offers(self, task: int) -> tuple[tuple[float, float], ...]:
        trunk = self._trunks.of_task(task)
        return tuple(
            (trunk.latency.seconds(schedule, trunk.largest) / trunk.largest, schedule.accuracy[task])
            for schedule in trunk.schedules
        )

    def admit(self, query: Query, now: float) -> Rejection | None:
        queue, trunk = self._queue(query), self._trunks.of_task(query.task)
        queue.recent += 1
        self._recent.append((now, queue))
        self._started = min(self._started, now)
        objective = query.deadline - query.arrival
        self._objective = (
            objective if self._objective == 0 else self._objective + 0.01 * (objective - self._objective)
        )
        alone = self._running is None and not self.queued()
        trying = self._may_try(trunk, now) and self._first_deadline(trunk) == math.inf
        seconds = trunk.expected_seconds() if alone else trunk.upper_seconds()
        late = max(now, self._busy_until) + seconds > query.deadline
        if late and not (trying and now < query.deadline):
            return Rejection("too_late", 0.0)
        if not alone:
            crowded = (self.price and self._asks_too_much(query)) or (
                not trying and self._has_no_room(query, queue, now)
            )
            if crowded:
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
        choice = self._try(choice, now) or choice
        if choice is None:
            return Decision(None, evicted)
        forming, schedule = choice
        trunk = self._trunks.of_schedule(schedule)
        seconds = trunk.latency.seconds(schedule, forming.size)
        self._busy_until, self._running = now + seconds, trunk
        return Decision(Batch(forming.take(), schedule, seconds), evicted)

    def completed(self, batch: Batch, now: float, seconds: float) -> None:
        self._busy_until, self._running = now, None
        trunk = self._trunks.of_schedule(batch.schedule)
        trunk.ran(now, all(now <= query.deadline for query in batch.queries))
        if batch.queries:
            trunk.latency.observe(batch.schedule, len(batch.queries), seconds)

    def adopt(self, other: Policy) -> None:
        if isinstance(other, FedstillPolicy):
            before = other._trunks.by_name
            for name in self._trunks.by_name.keys() & before.keys():
                self._trunks.by_name[name].latency.adopt(before[name].latency)

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
        hull = self._trunks.hulls[query.task]
        if not hull:  # a task with no right answers
            return True
        return self.price * hull[0].seconds > self.settings.patience * query.utility * hull[0].accuracy

    def _has_no_room(self, query: Query, queue: Queue, now: float) -> bool:
        """Whether the queries that earn as much per second fill the time up to its deadline, or, if it were accepted,
        up to the last one's: then somebody who is worth as much would be refused too late. Those that earn far more
        count by the price alone: beside them it may wait for a pause between two bursts."""
        expected = self.settings.foresight / self.settings.window * (query.deadline - now)
        start = max(now, self._busy_until)
        own = self._trunks.pace(queue.task)
        mine = queue.earning / own
        last, before, in_all = query.deadline, queue.seconds * own, queue.seconds * own
        for other in self._queues.values():
            pace = self._trunks.pace(other.task)
            theirs = other.earning / pace
            if not mine <= theirs <= self.settings.patience * mine:
                continue
            more = other.coming + (expected * other.recent if theirs > mine else 0.0)
            before += other.seconds * pace * (more + other.due(start, query.deadline))
            in_all += other.seconds * pace * (more + other.due(start, math.inf))
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
            hull = self._trunks.hulls[query.task]
            seconds, accuracy = (hull[0].seconds, hull[0].accuracy) if hull else (SHORTEST, 0.0)
            earning = query.utility * accuracy / seconds
            queue = self._queues[key] = Queue(query.task, query.utility, seconds, earning)
        return queue

    def _drop_expired(self, now: float) -> tuple[Query, ...]:
        """Queries that even a batch of one at the fastest schedule would answer late."""
        for identifier in [number for number, (deadline, _) in self._coming.items() if deadline <= now]:
            self._forget_coming(identifier)
        chances = {trunk: now + self._seconds_alone(trunk, now) for trunk in self._trunks.by_name.values()}
        return tuple(
            query
            for queue in self._queues.values()
            for query in queue.drop_before(chances[self._trunks.of_task(queue.task)])
        )

    def _first_deadline(self, trunk: TrunkTimes) -> float:
        """Of the queries of a trunk that wait; without any, never."""
        return min(
            (
                queue.waiting[0][0]
                for queue in self._queues.values()
                if queue.waiting and self._trunks.of_task(queue.task) is trunk
            ),
            default=math.inf,
        )

    def _may_try(self, trunk: TrunkTimes, now: float) -> bool:
        """Whether an idle trunk may try a query against what is expected: nothing else would teach it otherwise."""
        return self._running is not trunk and now - trunk.last_batch >= trunk.pause

    def _seconds_alone(self, trunk: TrunkTimes, now: float) -> float:
        """Of a batch of one at the fastest schedule, as deadlines are checked with it. A query that has the engine to
        itself makes nobody else late: what is expected will do, and of a try next to nothing is expected."""
        if self._may_try(trunk, now):
            return SHORTEST
        return trunk.expected_seconds() if self.queued() == 1 else trunk.upper_seconds()

    def _try(
        self, choice: tuple[CandidateBatch, Schedule] | None, now: float
    ) -> tuple[CandidateBatch, Schedule] | None:
        """A batch of one, against the plan. On an idle engine: of what waits alone, or of a trunk that may try. Instead
        of a planned one: of another trunk that may try, if its most urgent query can wait no longer. What is expected
        of that trunk may be wrong, and as long as others keep the engine busy nobody would find out."""
        lone = choice is None and self.queued() == 1
        planned: TrunkTimes | None = None
        until = math.inf
        if choice is not None:
            batch, schedule = choice
            planned = self._trunks.of_schedule(schedule)
            until = now + planned.latency.upper_seconds(schedule, batch.size)
        starving = [
            trunk
            for trunk in self._trunks.by_name.values()
            if trunk is not planned
            and self._may_try(trunk, now)
            and until + trunk.upper_seconds() > self._first_deadline(trunk)
        ]
        if not starving and not lone:
            return None
        for batch in self._form(0.0, now):
            trunk = self._of_batch(batch)
            if lone or trunk in starving:
                while batch.size > 1:
                    batch.drop_most_urgent()
                return batch, trunk.fastest
        return None

    def _of_batch(self, batch: CandidateBatch) -> TrunkTimes:
        return self._trunks.of_task(batch.slices[0].queue.task)

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
        return (
            MARGINAL * fluid_optimum(demand, self._trunks.paced_hulls(), capacity).price / self.latency.scale
        )

    def _form(self, price: float, now: float) -> list[CandidateBatch]:
        """Batches of queries that would choose the same schedule at this price, most valuable first within each."""
        charge = self._trunks.charges(price)
        groups: dict[int, list[tuple[float, Queue]]] = {}
        for queue in self._queues.values():
            if queue.waiting:
                own = self._trunks.of_task(queue.task).own
                net = queue.utility * self._trunks.accuracy[queue.task, own] - charge[own]
                choice = int(net.argmax())
                if net[choice] >= 0:
                    groups.setdefault(own.start + choice, []).append((queue.utility, queue))
        batches: list[CandidateBatch] = []
        for choice, queues in groups.items():
            queues.sort(key=lambda entry: -entry[0])
            batches += fill(
                [queue for _, queue in queues], int(self._trunks.largest[choice]), self.settings.most_batches
            )
        for batch in batches:
            self._trim(batch, now)
        return [batch for batch in batches if batch.size]

    def _trim(self, batch: CandidateBatch, now: float) -> None:
        """Leave out the fewest, most urgent queries, so that the rest can be answered in time together."""
        trunk = self._of_batch(batch)
        while batch.size and now + self._upper_seconds(trunk, batch.size, now) > batch.deadline():
            batch.drop_most_urgent()

    def _upper_seconds(self, trunk: TrunkTimes, size: int, now: float) -> float:
        return self._seconds_alone(trunk, now) if size == 1 else trunk.upper_seconds(size)

    def _choose(
        self, batches: list[CandidateBatch], now: float, price: float
    ) -> tuple[CandidateBatch, Schedule] | None:
        """The first batch of the best plan, and its schedule."""
        if not batches:
            return None
        lines = self._trunks.lines()
        margins = np.array([self._of_batch(batch).latency.margin for batch in batches])
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
            (seconds * margins[:, None])[order],
            values[order],
            slack[order],
            float(slack[order[-1]]) / self.settings.grid,
        )
        for place, choice in zip(order.tolist(), plan.choices, strict=True):
            if choice is not None:
                return batches[place], self._trunks.schedules[choice]
        return None

    def _worth(self, batches: Sequence[CandidateBatch]) -> npt.NDArray[np.float64]:
        """Expected utility of each batch at each schedule: float (batches, schedules)."""
        stakes = np.zeros((len(batches), len(self._trunks.accuracy)))
        for row, batch in zip(stakes, batches, strict=True):
            for slice_ in batch.slices:
                row[slice_.queue.task] += (slice_.stop - slice_.start) * slice_.queue.utility
        worth: npt.NDArray[np.float64] = stakes @ self._trunks.accuracy
        return worth
