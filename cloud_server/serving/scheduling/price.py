"""Where a query earns most, and how many replicas are worth their cost: by the prices that replicas publish. No Ray.

A replica says every moment what a second of its engine earns at present (the shadow price of its plan), how much work
waits, and how long a query of each task takes there. A query's net earning at a replica is what its best answer in
time is worth, less that answer's seconds at the price. Figures are old when they arrive, and the queries sent since
are not in them, so a router adds those itself, and draws two of nearly equal ones: else all routers would send
everything to the same replica until its next figures.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

SILENT_SECONDS = 3.0
"""Without new figures, after which a replica gets nothing while another one speaks."""
TOLERANCE = 0.05
"""Share of the best net earning within which fresh replicas count as equal."""
DOUBT = 0.2
"""More tolerance, for figures that are nearly ``SILENT_SECONDS`` old."""
ROOM = 0.7
"""Share of their time that the remaining replicas may be busy when one is taken away."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A task at a replica. utility, latency_ms: of queries that name none. choices: (seconds, accuracy) of a query in a
    full batch at each schedule, fastest first, as the replica times them now."""

    utility: float
    latency_ms: float
    choices: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a replica publishes.

    serial: counts its publications. price: utility per second of engine time. backlog: seconds of work that wait, at
    the fastest schedules. busy: share of the last moments that the engine ran. offers: by task.
    """

    serial: int
    price: float
    backlog: float
    busy: float
    offers: Mapping[str, Offer]


@dataclass(frozen=True, slots=True)
class AskedQuery:
    """What a router knows of a query. utility, seconds (until its deadline): None for the task's. factor: of the
    utility, whosever it is. most: seconds that are left of the call, whatever the task's."""

    task: str
    utility: float | None = None
    seconds: float | None = None
    images: int = 1
    factor: float = 1.0
    most: float = math.inf

    def worth(self, offer: Offer) -> float:
        """Of a right answer in time, per image."""
        return self.factor * (offer.utility if self.utility is None else self.utility)

    def time(self, offer: Offer) -> float:
        """Seconds until its deadline."""
        return min(offer.latency_ms / 1e3 if self.seconds is None else self.seconds, self.most)


@dataclass(slots=True)
class _Standing:
    """heard: when these figures came, by the router's clock. sent: seconds of work that were sent here since."""

    heard: float
    figures: Figures | None = None
    sent: float = 0.0
    queries: int = 0


@dataclass(slots=True)
class Standings:
    """What one router knows of its replicas, by name. Times are those of one clock that never falls."""

    random: Random = field(default_factory=Random)
    _known: dict[str, _Standing] = field(default_factory=dict)

    def hear(self, name: str, plain: object, now: float) -> None:
        """Figures as they came, perhaps the same as before. What makes no sense is not heard."""
        standing = self._known.setdefault(name, _Standing(now))
        figures = read_figures(plain)
        if figures is not None and (standing.figures is None or figures.serial != standing.figures.serial):
            self._known[name] = _Standing(now, figures)

    def forget_others(self, names: Collection[str]) -> None:
        """Only these replicas are there."""
        self._known = {name: one for name, one in self._known.items() if name in names}

    def sent(self, name: str, query: AskedQuery | None) -> None:
        """A query went there."""
        standing = self._known.get(name)
        if standing is not None and query is not None:
            standing.sent += query.images * _fastest(standing.figures, query.task)
            standing.queries += query.images

    def offer(self, task: str) -> Offer | None:
        """One that a replica has published."""
        for one in list(self._known.values()):  # another thread may hear of a further replica meanwhile
            if one.figures is not None and task in one.figures.offers:
                return one.figures.offers[task]
        return None

    def order(self, names: Sequence[str], query: AskedQuery | None, now: float) -> list[str]:
        """The replicas that may get a query, where it earns most first.

        A call that is no query goes to the first by name, so that one who asks twice is told the same.
        """
        for name in names:
            self._known.setdefault(name, _Standing(now))
        speaking = [name for name in names if now - self._known[name].heard <= SILENT_SECONDS]
        candidates = speaking or list(names)  # if nobody speaks, it is not the replicas that are silent
        if query is None:
            return sorted(candidates)
        worth = {name: self._worth(name, query, now) for name in candidates}
        ordered = sorted(candidates, key=lambda name: (-worth[name], self._load(name, now), name))
        if not ordered:
            return []
        best = worth[ordered[0]]
        equal = [
            name for name in ordered if worth[name] >= best - self._tolerance(ordered[0], now) * abs(best)
        ]
        drawn = self.random.sample(equal, min(2, len(equal)))
        first = min(drawn, key=lambda name: self._load(name, now))  # of two alike, the one drawn first
        return [first, *(name for name in ordered if name != first)]

    def _tolerance(self, name: str, now: float) -> float:
        age = min(1.0, (now - self._known[name].heard) / SILENT_SECONDS)
        return TOLERANCE + DOUBT * age

    def _waiting(self, name: str, now: float) -> float:
        """Seconds of work that wait there by now: the engine has run since, and more was sent."""
        standing = self._known[name]
        published = standing.figures.backlog if standing.figures else 0.0
        return max(0.0, published + standing.sent - (now - standing.heard))

    def _load(self, name: str, now: float) -> tuple[float, int]:
        return self._waiting(name, now), self._known[name].queries

    def _worth(self, name: str, query: AskedQuery, now: float) -> float:
        figures = self._known[name].figures
        earned = 0.0 if figures is None else net_earning(figures, query, self._waiting(name, now))
        return earned if earned < math.inf else 0.0  # not a number, or infinite: the least busy one gets it


def net_earning(figures: Figures, query: AskedQuery, waiting: float) -> float:
    """Expected utility of the query's best answer in time, less its seconds at the price; per image.

    waiting: seconds of work before it. Without an answer in time it earns nothing, and a task that is not served there
    less than nothing.
    """
    offer = figures.offers.get(query.task)
    if offer is None:
        return -math.inf
    utility, left = query.worth(offer), query.time(offer)
    nets = [
        utility * accuracy - figures.price * seconds
        for seconds, accuracy in offer.choices
        if waiting + query.images * seconds <= left
    ]
    return max(nets, default=0.0)


def _fastest(figures: Figures | None, task: str) -> float:
    offer = figures.offers.get(task) if figures else None
    return min((seconds for seconds, _ in offer.choices), default=0.0) if offer else 0.0


def read_figures(plain: object) -> Figures | None:
    """From plain values. None for what no replica of ours publishes: it is as good as silence."""
    try:
        return _read(plain)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _read(plain: Any) -> Figures:
    offers = {
        str(name): Offer(
            _amount(one["utility"]),
            _amount(one["latency_ms"]),
            tuple((_amount(seconds), _amount(accuracy)) for seconds, accuracy in one["choices"]),
        )
        for name, one in plain["offers"].items()
    }
    price, backlog, busy = (_amount(plain[key]) for key in ("price", "backlog", "busy"))
    return Figures(int(plain["serial"]), price, backlog, busy, offers)


def _amount(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError("needs a number that is not below 0")
    return number


def plain_figures(figures: Figures) -> dict[str, Any]:
    """As plain values, for `read_figures`."""
    return {
        "serial": figures.serial,
        "price": figures.price,
        "backlog": figures.backlog,
        "busy": figures.busy,
        "offers": {
            name: {
                "utility": one.utility,
                "latency_ms": one.latency_ms,
                "choices": [list(choice) for choice in one.choices],
            }
            for name, one in figures.offers.items()
        },
    }


def wanted_replicas(running: int, prices: Iterable[float], busy: Iterable[float], cost: float) -> int:
    """How many replicas are worth their cost, one more or less at a time.

    One more, if a second of engine time earns more than a replica's second costs. One less, if it earns nothing at
    present and the others have room for the work of all.

    prices: utility per second, of each replica that published one. busy: its share of time. cost: utility per second.
    """
    told, shares = list(prices), list(busy)
    if not told or running < 1:
        return max(1, running)
    mean = sum(told) / len(told)
    if mean > cost:
        return running + 1
    # Replicas that say nothing are taken for busy: they may just have started.
    work = sum(shares) + max(0, running - len(shares))
    if running > 1 and mean == 0 and work <= ROOM * (running - 1):
        return running - 1
    return running
