"""Which trunks are in memory, within a budget: what to load and to unload next, and whether a query can wait for it.

No thread, no clock, no file: a caller passes the time, does what ``next_step`` says, and reports when it is done.

Trunks that are asked for are loaded in turn, one at a time. For each, those that were used least recently and have
nothing to do make room; a busy one does so after its stay, and then takes its own turn. So all that are asked for come
in, however they alternate, and loading takes a bounded share of the time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

LEAST_STAY, STAY_LOADS = 5.0, 4.0
"""Seconds that a loaded trunk stays although others are asked for, or so many times what its loading took."""
QUIET = 0.5
"""Seconds without a query, after which one that has answered what it was loaded for goes earlier."""
MARGIN = 1.25
"""A query waits for a trunk if its deadline allows for so many times the expected seconds."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds until another try after a trunk could not be loaded; doubled every time."""

Ticket = Hashable
"""A request, as its owner knows it."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a trunk takes: bytes while it is loaded, and seconds to load it."""

    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next, and with which trunk."""

    kind: Literal["load", "unload"]
    trunk: str


@dataclass(frozen=True, slots=True)
class NotYet:
    """A refusal. seconds: after which a retry makes sense. failed: whether the last loading failed."""

    seconds: float
    failed: bool = False


@dataclass(eq=False, slots=True)
class _Trunk:
    name: str
    footprint: Footprint
    loaded: bool = False
    leaving: bool = False  # takes no new queries, and is unloaded when it has answered
    since: float = -math.inf
    used: float = -math.inf
    answered: bool = False  # anything since it was loaded
    open: int = 0
    waiting: dict[Ticket, float] = field(default_factory=dict)  # and their deadlines
    retry_at: float = -math.inf
    pause: float = FIRST_PAUSE

    def free_at(self) -> float:
        """From when it may be unloaded for another one."""
        stay = self.since + max(LEAST_STAY, STAY_LOADS * self.footprint.seconds)
        return min(stay, self.used + QUIET) if self.answered and not self.open else stay


class Residency:
    """Calls must not overlap. Every ticket is in ``arrive`` once; one that was let in is reported by ``ended``.

    Args:
        budget: bytes.
        trunks: by name; each alone fits.
        loaded: those that are loaded already.
    """

    def __init__(
        self, budget: int, trunks: Mapping[str, Footprint], loaded: Collection[str] = frozenset()
    ) -> None:
        self.budget = budget
        self._trunks = {name: _Trunk(name, one, loaded=name in loaded) for name, one in trunks.items()}
        self._open: dict[Ticket, _Trunk] = {}
        self._wanted: list[_Trunk] = []
        self._busy: Step | None = None
        self._busy_until = -math.inf

    @property
    def loaded(self) -> tuple[str, ...]:
        """Trunks in memory, or on their way in or out."""
        return tuple(one.name for one in self._trunks.values() if self._takes_memory(one))

    @property
    def bytes(self) -> int:
        """Of all that are in memory, or on their way in or out."""
        return sum(one.footprint.bytes for one in self._trunks.values() if self._takes_memory(one))

    def footprint(self, name: str) -> Footprint:
        """As last measured, or as expected."""
        return self._trunks[name].footprint

    def is_loaded(self, name: str) -> bool:
        """Whether its queries are answered now."""
        return self._trunks[name].loaded

    def failed(self, name: str) -> bool:
        """Whether its last loading failed."""
        return self._trunks[name].pause > FIRST_PAUSE

    def arrive(
        self, name: str, ticket: Ticket, now: float, deadline: float
    ) -> Literal["in", "wait"] | NotYet:
        """Let a query in, have it wait for its trunk, or refuse it; then its trunk is wanted all the same."""
        one = self._trunks[name]
        one.used = max(one.used, now)
        if one.loaded and not one.leaving:
            self._let_in(one, ticket)
            return "in"
        if now < one.retry_at:
            return NotYet(one.retry_at - now + one.footprint.seconds, failed=True)
        if one not in self._wanted and self._busy != Step("load", name):
            self._wanted.append(one)
        seconds = self.ready_in(name, now)
        if now + MARGIN * seconds > deadline:
            return NotYet(seconds)
        one.waiting[ticket] = deadline
        return "wait"

    def ended(self, ticket: Ticket, now: float) -> None:
        """A query has its answer, or its client has left; also of one that waits. A second time is nothing."""
        one = self._open.pop(ticket, None)
        if one is not None:
            one.open -= 1
            one.answered, one.used = True, max(one.used, now)
            return
        for other in self._trunks.values():
            other.waiting.pop(ticket, None)

    def expired(self, now: float) -> list[Ticket]:
        """Queries that have waited until their deadlines; they are forgotten."""
        found: list[Ticket] = []
        for one in self._trunks.values():
            late = [ticket for ticket, deadline in one.waiting.items() if deadline <= now]
            for ticket in late:
                del one.waiting[ticket]
            found += late
        return found

    def next_step(self, now: float) -> Step | None:
        """What to do now; None while something is being done, or if nothing is to be done before ``wake_at``."""
        if self._busy is not None:
            return None
        head = self._wanted[0] if self._wanted else None
        room = self.budget - self.bytes
        needed = head.footprint.bytes if head is not None and not head.loaded else 0
        if room >= needed and head is not None and not head.loaded:
            self._wanted.pop(0)
            return self._do(Step("load", head.name), now + head.footprint.seconds)
        if room < needed:
            for one in self._victims(needed - room, now):
                one.leaving = True
        gone = [one for one in self._trunks.values() if one.leaving and not one.open]
        return self._do(Step("unload", gone[0].name), now) if gone else None

    def wake_at(self, now: float) -> float:
        """When to ask again, if nothing happens before: infinity if never."""
        moments = [deadline for one in self._trunks.values() for deadline in one.waiting.values()]
        if self._busy is None and (self._wanted or self.bytes > self.budget):
            moments += [one.free_at() for one in self._trunks.values() if one.loaded and one.free_at() > now]
        return min(moments, default=math.inf)

    def has_loaded(self, name: str, now: float, footprint: Footprint) -> list[Ticket]:
        """The step is done, and this was measured. Returns the queries that waited: they are let in."""
        one = self._trunks[name]
        # One that grew beyond the budget can still be loaded, alone.
        one.footprint = Footprint(min(footprint.bytes, self.budget), footprint.seconds)
        one.loaded, one.since, one.answered, one.pause = True, now, False, FIRST_PAUSE
        self._busy = None
        found = list(one.waiting)
        one.waiting.clear()
        for ticket in found:
            self._let_in(one, ticket)
        return found

    def has_failed(self, name: str, now: float) -> list[Ticket]:
        """The trunk could not be loaded. Returns the queries that waited: they are forgotten."""
        one = self._trunks[name]
        one.retry_at, one.pause = now + one.pause, min(LONGEST_PAUSE, 2 * one.pause)
        self._busy = None
        found = list(one.waiting)
        one.waiting.clear()
        return found

    def has_unloaded(self, name: str, now: float) -> None:
        """The step is done."""
        one = self._trunks[name]
        one.loaded = one.leaving = False
        self._busy = None

    def give_up(self) -> list[Ticket]:
        """Nothing more is loaded. Returns all queries that wait: they are forgotten."""
        self._wanted.clear()
        found = [ticket for one in self._trunks.values() for ticket in one.waiting]
        for one in self._trunks.values():
            one.waiting.clear()
        return found

    def ready_in(self, name: str, now: float) -> float:
        """Expected seconds until a trunk that is not loaded will be: of those in front of it, and until there is room.

        Those in front are expected to go as soon as they have answered what waits for them, or after their stay.
        """
        one = self._trunks[name]
        at = now if self._busy is None else max(self._busy_until, now)
        if self._busy == Step("load", name):
            return max(at - now, 0.1 * one.footprint.seconds)
        place = self._wanted.index(one) if one in self._wanted else len(self._wanted)
        leaving = [
            (now if each.leaving else each.free_at(), each.footprint.bytes)
            for each in self._trunks.values()
            if each.loaded
        ]
        if self._busy is not None and self._busy.kind == "load":
            coming = self._trunks[self._busy.trunk]
            leaving.append((_expected_to_go(coming, at), coming.footprint.bytes))
        room = self.budget - self.bytes
        for other in [*self._wanted[:place], one]:
            leaving.sort()
            while room < other.footprint.bytes and leaving:
                moment, freed = leaving.pop(0)
                at, room = max(at, moment), room + freed
            at, room = at + other.footprint.seconds, room - other.footprint.bytes
            leaving.append((_expected_to_go(other, at), other.footprint.bytes))
        return at - now

    def _victims(self, missing: int, now: float) -> Iterable[_Trunk]:
        """What makes so much room: first those that leave already, then idle ones, then busy ones; of each kind the
        least recently used. None, if that is not enough now."""
        may = [one for one in self._trunks.values() if one.loaded and (one.leaving or one.free_at() <= now)]
        may.sort(key=lambda one: (not one.leaving, one.open > 0, one.used))
        chosen: list[_Trunk] = []
        for one in may:
            if missing <= 0:
                break
            chosen.append(one)
            missing -= one.footprint.bytes
        return chosen if missing <= 0 else []

    def _let_in(self, one: _Trunk, ticket: Ticket) -> None:
        one.open += 1
        self._open[ticket] = one

    def _do(self, step: Step, until: float) -> Step:
        self._busy, self._busy_until = step, until
        return step

    def _takes_memory(self, one: _Trunk) -> bool:
        return one.loaded or self._busy == Step("load", one.name)


def _expected_to_go(one: _Trunk, loaded_at: float) -> float:
    """From when a trunk that will be loaded then may be unloaded again."""
    if one.waiting:
        return loaded_at + QUIET
    return loaded_at + max(LEAST_STAY, STAY_LOADS * one.footprint.seconds)
