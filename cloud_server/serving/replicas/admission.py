"""Which queries a front sends to its replicas, and when: as many as are answered in time, the most useful first.

A query that finds the replicas full waits at the front for a short share of its time, at almost no cost, and is refused
then. Of those that wait the one that is worth most goes next, of equal ones the latest, which has most time left.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from fedstill.cloud_server.serving.replicas.concurrency_limit import ConcurrencyLimit
from fedstill.cloud_server.serving.replicas.way_time import WayTime

PATIENCE = 0.15
"""Share of a query's time for which it waits here."""
MOST_WAITING = 1024
"""Queries; beyond, the one that is worth least is refused."""
WELL = 0.8
"""Share of a query's time within which its answer counts as well in time: the last part belongs to the client's link,
and a limit that only late answers lower has made them late."""
RECENT = 64
"""Queries whose times are the usual ones."""

Ending = Literal["answered", "no_time", "other"]
"""What became of a query at its replica; ``no_time``: refused for want of time."""


@dataclass(order=True, slots=True)
class _Waiting:
    """Ordered by worth, then by when it came."""

    worth: float
    serial: int
    images: int = field(compare=False)
    entered: asyncio.Future[bool] = field(compare=False)


@dataclass(eq=False, slots=True)
class Passage:
    """A query at the replicas. arrived, sent: by the front's clock. seconds: from its arrival to its deadline.
    allowance: seconds that the way there and back is expected to take. overdue: whether its deadline has passed; then
    it holds no place any more, for else a replica that hangs would hold all of them."""

    arrived: float
    sent: float
    seconds: float
    images: int
    allowance: float
    timer: asyncio.TimerHandle | None = None
    overdue: bool = False


class Admission:
    """For one event loop.

    Args:
        replicas: how many there are now.
        clock: seconds, never falling.
    """

    def __init__(self, replicas: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._replicas, self._clock = replicas, clock
        self._limit, self._way = ConcurrencyLimit(), WayTime()
        self._asked = self._serial = 0
        self._waiting: list[_Waiting] = []
        self._times: deque[float] = deque(maxlen=RECENT)

    @property
    def limit(self) -> float:
        """Images that may be at the replicas at once."""
        return self._limit.images(self._replicas())

    async def enter(self, worth: float, images: int, seconds: float) -> Passage | None:
        """The way to the replicas, once there is room; None if they stay full. Every passage has to ``leave``.

        worth: of each image. seconds: until the deadline.
        """
        arrived = self._clock()
        mine = _Waiting(worth, self._serial, images, asyncio.get_running_loop().create_future())
        self._serial += 1
        insort(self._waiting, mine)
        self._let_in()
        if len(self._waiting) > MOST_WAITING:
            self._waiting.pop(0).entered.set_result(False)
        try:
            if not mine.entered.done():
                await asyncio.wait((mine.entered,), timeout=PATIENCE * seconds)
        except asyncio.CancelledError:
            if mine.entered.done() and mine.entered.result():
                self._free(images)
            raise
        finally:
            if not mine.entered.done():
                self._waiting.remove(mine)
        if not (mine.entered.done() and mine.entered.result()):
            return None
        now = self._clock()
        left = arrived + seconds - now
        passage = Passage(arrived, now, seconds, images, self._way.allowance(left))
        passage.timer = asyncio.get_running_loop().call_later(max(0.0, left), self._late, passage)
        return passage

    def leave(self, passage: Passage, ending: Ending, there: float | None = None) -> None:
        """The query has its answer, or will get none. there: seconds that its replica had it."""
        now = self._clock()
        if passage.timer is not None:
            passage.timer.cancel()
        if there is not None:
            self._way.hear(now - passage.sent - there)
        if ending != "other":
            self._times.append(passage.seconds)
        if ending == "answered" and now - passage.arrived <= WELL * max(passage.seconds, self._usual()):
            self._limit.good(self._asked, self._replicas())
        elif ending == "answered" or (ending == "no_time" and self._counts(passage)):
            self._limit.bad(passage.sent, now)
        if not passage.overdue:
            self._free(passage.images)

    def _late(self, passage: Passage) -> None:
        passage.overdue = True
        if self._counts(passage):
            self._limit.bad(passage.sent, self._clock())
        self._free(passage.images)

    def _counts(self, passage: Passage) -> bool:
        return 2 * passage.seconds >= self._usual()

    def close(self) -> None:
        """Nobody who waits gets in any more."""
        for one in self._waiting:
            one.entered.set_result(False)
        self._waiting.clear()

    def _usual(self) -> float:
        """The lower quartile of the times that queries have: a few hopeless deadlines say nothing of the others."""
        return sorted(self._times)[len(self._times) // 4] if self._times else 0.0

    def _free(self, images: int) -> None:
        self._asked -= images
        self._let_in()

    def _let_in(self) -> None:
        """Those for whom there is room. A request that is larger than the limit goes alone."""
        while self._waiting:
            first = self._waiting[-1]
            if self._asked and self._asked + first.images > self.limit:
                return
            self._waiting.pop()
            self._asked += first.images
            first.entered.set_result(True)
