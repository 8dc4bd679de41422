"""Which queries a front sends to its replicas, and when: as many as are answered in time, the most useful first.

A query that finds the replicas full waits at the front for a short share of its time, at almost no cost, and is refused
then. Of those that wait the one that is worth most goes next, of those that are worth the same the latest.
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

PATIENCE, LONGEST_WAIT = 0.15, 2.0
"""Share of a query's time for which it waits here, and seconds at most."""
MOST_WAITING = 1024
"""Queries; beyond, the one that is worth least is refused."""
WELL = 0.8
"""Share of a query's time that its replica may use, so that its plan, which uses all that it has, ends well in time.
The rest is for what nobody expects, and for the client's link."""
RECENT = 64
"""Queries whose times are the usual ones, and answers of each task whose fastest tells what is possible."""
FRESH_SECONDS = 10.0
"""After which an answer no longer tells what is possible."""
ROUNDING = 1e-6
"""Seconds: a timer may be that early."""
LONGEST_HELD = 30.0
"""Seconds for which a query holds its place: replicas hang, and deadlines may be hours away."""

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
    """A query at the replicas. arrived, sent: by the front's clock. seconds: from its arrival to its deadline. elapsed:
    seconds of them that its replica may not use: those that are gone, the way there and back, and some to spare.
    overdue: whether it holds no place any more. judged: whether the limit knows of its end."""

    arrived: float
    sent: float
    seconds: float
    images: int
    elapsed: float
    task: str = ""
    timer: asyncio.TimerHandle | None = None
    overdue: bool = False
    judged: bool = False

    @property
    def deadline(self) -> float:
        return self.arrived + self.seconds


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
        self._answers: dict[str, deque[tuple[float, float]]] = {}

    @property
    def limit(self) -> float:
        """Images that may be at the replicas at once."""
        return self._limit.images(self._replicas())

    async def enter(self, worth: float, images: int, seconds: float, task: str = "") -> Passage | None:
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
                await asyncio.wait((mine.entered,), timeout=min(PATIENCE * seconds, LONGEST_WAIT))
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
        elapsed = now - arrived + (1 - WELL) * left + self._way.allowance(WELL * left)
        passage = Passage(arrived, now, seconds, images, elapsed, task)
        held = min(max(0.0, left), LONGEST_HELD)
        passage.timer = asyncio.get_running_loop().call_later(held, self._overdue, passage)
        return passage

    def leave(self, passage: Passage, ending: Ending, there: float | None = None) -> None:
        """The query has its answer, or will get none. there: seconds that its replica had it, if it was asked once."""
        now = self._clock()
        if passage.timer is not None:
            passage.timer.cancel()
        if there is not None:
            self._way.hear(now - passage.sent - there)
        if ending == "answered" and now <= passage.deadline:
            known = self._answers.setdefault(passage.task, deque(maxlen=RECENT))
            known.append((now, now - passage.sent))
        if ending != "other" and not passage.judged:
            self._judge(passage, ending, now)
        if not passage.overdue:
            self._free(passage.images)

    def _overdue(self, passage: Passage) -> None:
        """It keeps no place for others, and is late, unless its deadline is still to come."""
        passage.overdue = True
        now = self._clock()
        if now + ROUNDING >= passage.deadline:
            passage.judged = True
            self._judge(passage, "no_time", now)
        self._free(passage.images)

    def _judge(self, passage: Passage, ending: Ending, now: float) -> None:
        """What a query's end says of how much may be on its way."""
        if not self._possible(passage, now):
            return
        self._times.append(passage.seconds)
        took, usual = now - passage.arrived, self._usual()
        if ending == "answered" and now <= passage.deadline and took <= WELL * max(passage.seconds, usual):
            self._limit.good(passage.images, self._asked, self._replicas())
        elif (ending == "no_time" and 2 * passage.seconds >= usual) or took > max(passage.seconds, usual):
            self._limit.bad(passage.sent, now)

    def _possible(self, passage: Passage, now: float) -> bool:
        """Whether queries of its task were answered in as much time lately: deadlines that nobody meets say nothing of
        how much is on its way. While no task is answered, everything counts; while only others are, theirs do."""
        if mine := self._fresh(passage.task, now):
            return WELL * passage.seconds > min(mine)
        return not any(self._fresh(task, now) for task in self._answers)

    def _fresh(self, task: str, now: float) -> list[float]:
        """What its last answers in time took."""
        return [took for when, took in self._answers.get(task, ()) if now - when <= FRESH_SECONDS]

    def close(self) -> None:
        """Nobody who waits gets in any more."""
        for one in self._waiting:
            one.entered.set_result(False)
        self._waiting.clear()

    def _usual(self) -> float:
        """The lower quartile of the times that queries have."""
        return sorted(self._times)[len(self._times) // 4] if self._times else 0.0

    def _free(self, images: int) -> None:
        self._asked -= images
        self._let_in()

    def _let_in(self) -> None:
        """Those for whom there is room. A request that is larger than what is left of the limit enters if half of it is
        free, so that small ones do not keep it out for ever."""
        while self._waiting:
            first = self._waiting[-1]
            if self._asked > self.limit / 2 and self._asked + first.images > self.limit:
                return
            self._waiting.pop()
            self._asked += first.images
            first.entered.set_result(True)
