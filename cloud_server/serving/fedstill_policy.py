"""The policy that we believe in: bind late, plan exactly, charge for time.

Late binding: queries wait unbatched; at every idle moment batches are formed from all of them, so that nothing decided earlier
is in the way. Planning: an exact programme over the clock, of which only the first batch is run. Price: what engine
time is worth to the queries that are here and about to come is charged to every plan, and decides who can be
told at once that there will be no room. Times are learned from what batches really take.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.exact_plan import grid_plan
from fedstill.cloud_server.serving.latency_model import CalibrationSettings, LatencyModel
from fedstill.cloud_server.serving.policy import Policy
from fedstill.cloud_server.serving.profile import Profile, Schedule
from fedstill.cloud_server.serving.queries import Batch, Decision, Query, Rejection
from fedstill.cloud_server.serving.shadow_price import Demand, fluid_optimum, upper_hull

Waiting = tuple[float, int, Query]
"""Deadline, identifier, query: sorts by urgency."""


@dataclass(frozen=True, slots=True)
class FedstillSettings:
    """largest_batch: queries. window: seconds of arrivals from which the load and its mix are estimated.
    ahead, capacity: the price is that of serving what waits and what will arrive within `ahead` mean latency objectives in
    `capacity` mean latency objectives of engine time; what arrives last may still be served a little later.
    grid: steps of the plan's clock from now to the last deadline. utility_bins: utilities within a factor of exp(1 / utility_bins)
    wait in one line. patience: a query is turned away when it is asked for this many times what it can pay."""

    largest_batch: int = 64
    window: float = 1.0
    ahead: float = 0.75
    capacity: float = 1.1
    grid: int = 400
    utility_bins: float = 10.0
    patience: float = 3.0
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)


@dataclass(slots=True)
class Line:
    """Waiting queries of one task and about one utility, most urgent first, and how many came lately."""

    task: int
    utility: float
    waiting: list[Waiting] = field(default_factory=list)
    recent: int = 0


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
        self._lines: dict[tuple[int, int], Line] = {}
        self._recent: deque[tuple[float, Line]] = deque()
        self._busy_until = 0.0
        self._started = math.inf
        self._objective = 0.0  # mean latency objective of recent queries, seconds

    def arrive(self, query: Query, now: float) -> Rejection | None:
        line = self._line(query)
        line.recent += 1
        self._recent.append((now, line))
        self._started = min(self._started, now)
        objective = query.deadline - query.arrival
        self._objective = (
            objective if self._objective == 0 else self._objective + 0.01 * (objective - self._objective)
        )
        if max(now, self._busy_until) + self.latency.upper_seconds(self._schedules[0], 1) > query.deadline:
            return Rejection("too_late", 0.0)
        cheapest = self._hulls[query.task][0]
        if self.price * cheapest.seconds > self.settings.patience * query.utility * cheapest.accuracy:
            return Rejection("overload", self._objective)
        insort(line.waiting, (query.deadline, query.identifier, query))
        return None

    def dispatch(self, now: float) -> Decision:
        evicted = self._drop_hopeless(now)
        self.price = self._current_price(now)
        batches = self._form(self.price, now)
        batch = self._choose(batches, now, self.price)
        if batch is None:
            batch = self._choose(self._form(0.0, now), now, 0.0)
        if batch is not None:
            self._take(batch.queries)
            self._busy_until = now + batch.predicted_seconds
        return Decision(batch, evicted)

    def completed(self, batch: Batch, now: float, seconds: float) -> None:
        self._busy_until = now
        self.latency.observe(batch.schedule, len(batch.queries), seconds)

    def withdraw(self, identifier: int) -> Query | None:
        for line in self._lines.values():
            for place, (_, waiting, query) in enumerate(line.waiting):
                if waiting == identifier:
                    del line.waiting[place]
                    return query
        return None

    def queued(self) -> int:
        return sum(len(line.waiting) for line in self._lines.values())

    def _line(self, query: Query) -> Line:
        size = round(self.settings.utility_bins * math.log(query.utility)) if query.utility > 0 else -(10**6)
        key = (query.task, size)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(query.task, query.utility)
        return line

    def _drop_hopeless(self, now: float) -> tuple[Query, ...]:
        """Queries that even a batch of one at the fastest schedule would answer late."""
        last_chance = now + self.latency.upper_seconds(self._schedules[0], 1)
        gone: list[Query] = []
        for line in self._lines.values():
            count = 0
            while count < len(line.waiting) and line.waiting[count][0] < last_chance:
                count += 1
            if count:
                gone += [query for _, _, query in line.waiting[:count]]
                del line.waiting[:count]
        return tuple(gone)

    def _current_price(self, now: float) -> float:
        """Utility per second of engine time."""
        window = self.settings.window
        while self._recent and self._recent[0][0] < now - window:
            self._recent.popleft()[1].recent -= 1
        soon = self.settings.ahead * self._objective / max(min(window, now - self._started), 0.1 * window)
        demand = [
            Demand(line.task, line.utility, line.recent * soon + len(line.waiting))
            for line in self._lines.values()
        ]
        capacity = self.settings.capacity * self._objective / self.latency.scale
        return fluid_optimum(demand, self._hulls, capacity).price / self.latency.scale

    def _form(self, price: float, now: float) -> list[list[Query]]:
        """Batches of queries that would choose the same schedule at this price, most valuable first within each."""
        size = self._largest
        charge = (
            price / size * np.array([self.latency.seconds(schedule, size) for schedule in self._schedules])
        )
        groups: dict[int, list[Line]] = {}
        for line in self._lines.values():
            if line.waiting:
                net = line.utility * self._accuracy[line.task] - charge
                choice = int(net.argmax())
                if net[choice] >= 0:
                    groups.setdefault(choice, []).append(line)
        batches = []
        for lines in groups.values():
            lines.sort(key=lambda line: -line.utility)
            members = [query for line in lines for _, _, query in line.waiting]
            batches += [
                self._possible(members[start : start + size], now) for start in range(0, len(members), size)
            ]
        return [batch for batch in batches if batch]

    def _possible(self, members: list[Query], now: float) -> list[Query]:
        """Those of a batch that can be answered in time together; the fewest, most urgent ones stay behind."""
        fastest = self._schedules[0]
        if now + self.latency.upper_seconds(fastest, len(members)) <= min(
            query.deadline for query in members
        ):
            return members
        ordered = sorted(members, key=lambda query: query.deadline)
        first = 0
        while (
            first < len(ordered)
            and now + self.latency.upper_seconds(fastest, len(ordered) - first) > ordered[first].deadline
        ):
            first += 1
        return ordered[first:]

    def _choose(self, batches: Sequence[Sequence[Query]], now: float, price: float) -> Batch | None:
        """The first batch of the best plan."""
        if not batches:
            return None
        deadlines = [min(query.deadline for query in batch) for batch in batches]
        order = sorted(range(len(batches)), key=deadlines.__getitem__)
        slack = np.array([deadlines[place] - now for place in order])
        lines = np.array([self.latency.line(schedule) for schedule in self._schedules])  # (schedules, 2)
        sizes = np.array([len(batches[place]) for place in order], dtype=np.float64)
        expected = lines[:, 0] + sizes[:, None] * lines[:, 1]
        values = self._worth([batches[place] for place in order]) - price * expected
        seconds = expected * self.latency.margin
        plan = grid_plan(seconds, values, slack, float(slack[-1]) / self.settings.grid)
        for position, choice in enumerate(plan.choices):
            if choice is not None:
                schedule = self._schedules[choice]
                return Batch(tuple(batches[order[position]]), schedule, float(expected[position, choice]))
        return None

    def _worth(self, batches: Sequence[Sequence[Query]]) -> npt.NDArray[np.float64]:
        """Expected utility of each batch at each schedule."""
        stakes = np.zeros((len(batches), len(self._accuracy)))
        for row, batch in zip(stakes, batches, strict=True):
            for query in batch:
                row[query.task] += query.utility
        return stakes @ self._accuracy

    def _take(self, queries: Sequence[Query]) -> None:
        taken = {query.identifier for query in queries}
        for line in self._lines.values():
            if line.waiting:
                line.waiting = [entry for entry in line.waiting if entry[1] not in taken]
