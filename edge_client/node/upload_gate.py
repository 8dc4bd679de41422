"""When a device may send: in the hours and as much in a month as its owner gives, and not while it is paused.

The hours are those of a clock on the wall, looked at again and again. So neither the change to summer time nor a clock
that is set leaves the gate in the wrong state for longer than until the next look.

And when it has to be there for its coordinator: all the time, or now and then for as long as there is something to do.
An idle SuperNode asks every three seconds, which Flower lets nobody change, and it has most of the memory of an agent
at rest. So a device may end it, and start it again after a pause of its owner's choice. It stays while the coordinator
could miss it: until it was spoken to and all is quiet, and while a student is being made.
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedstill.edge_client.folder import BEGUN_FILE, KNOWN_CLIPS_FILE, PAUSE_FILE, SHELF_FOLDER
from fedstill.edge_client.link.monthly_bytes import MonthlyBytes
from fedstill.edge_client.students.pointer import POINTER, version_in_use

LOG = logging.getLogger(__name__)

DAY = 24 * 60
QUIET_SECONDS = 30.0
"""Without a message, after the last one."""
SPREAD = 0.2
"""A pause is longer or shorter by up to this part: devices that began together, as after a power cut or when their
coordinator came back, would for ever meet it all at once."""
LONGEST_VISIT = 6 * 3600.0
"""Seconds from a summary of the device's clips, or from when it heard that a student is being made, until it does not
wait for that any longer."""
WINDOW = re.compile(r"([0-9]{1,2})(?::([0-9]{2}))?-([0-9]{1,2})(?::([0-9]{2}))?", re.ASCII)


@dataclass(frozen=True)
class UploadHours:
    """Parts of the day.

    Attributes:
        text: as the owner wrote it.
        windows: (begin, end) of each in minutes since midnight, the end not included; one may span midnight.
    """

    text: str
    windows: tuple[tuple[int, int], ...]

    def hold(self, now: float) -> bool:
        """Whether this moment, in seconds since 1970, is in one of them."""
        wall = time.localtime(now)
        minute = 60 * wall.tm_hour + wall.tm_min
        return any(
            begin <= minute < end if begin < end else minute >= begin or minute < end
            for begin, end in self.windows
        )


def read_hours(text: str) -> UploadHours:
    """Windows with commas between, as in ``22-6`` or ``12:30-13,22-6``.

    Raises:
        ValueError: it means something else; one line.
    """
    windows = []
    for part in text.replace(" ", "").split(","):
        found = WINDOW.fullmatch(part)
        minutes = [60 * int(found[hour]) + int(found[hour + 1] or 0) for hour in (1, 3)] if found else []
        wrong = not found or any(int(found[hour] or 0) > 59 for hour in (2, 4)) or max(minutes) > DAY
        if wrong or minutes[0] == minutes[1]:
            raise ValueError(f"{part!r} is no part of a day: write hours such as 22-6 or 12:30-13,22-6")
        windows.append((minutes[0], minutes[1]))
    return UploadHours(text, tuple(windows))


class UploadGate:
    """Whether the agent of a folder may send now; a change is a line in its log.

    Args:
        folder: the device's; it is paused while the file ``pause`` is there.
        hours: None: at any time.
        clock: seconds since 1970.
        budget: of a metered link; None: it may move any number of bytes.
    """

    def __init__(
        self,
        folder: Path,
        hours: UploadHours | None = None,
        clock: Callable[[], float] = time.time,
        budget: MonthlyBytes | None = None,
    ) -> None:
        self._folder, self._hours, self._clock, self._budget = folder, hours, clock, budget
        self._told = ""

    @property
    def closed(self) -> str:
        """Why nothing may be sent, in words; empty if it may."""
        if (self._folder / PAUSE_FILE).exists():
            return f"paused by the file {PAUSE_FILE}"
        if self._hours is not None and not self._hours.hold(self._clock()):
            return f"outside the upload hours {self._hours.text}"
        if self._budget is not None and self._budget.spent:
            return self._budget.in_words
        return ""

    def look(self) -> bool:
        """Whether it is open; call about once a second."""
        if (closed := self.closed) != self._told:
            self._told = closed
            if closed:
                LOG.info("event=sending_stopped reason=%s", json.dumps(closed))
            else:
                LOG.info("event=sending_resumed")
        return not closed


class Contacts:
    """The pauses between the contacts of one device.

    Args:
        folder: the device's.
        pause: seconds between two contacts, on average; 0: it stays connected.
        clock: seconds that only grow.
        rng: of the lengths of pauses; None: another one on each device.

    Attributes:
        resting: whether this is a pause, which begins only after a contact that was well.
    """

    def __init__(
        self,
        folder: Path,
        pause: float,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._folder, self._pause, self._clock = folder, pause, clock
        self._rng = rng or random.Random()
        self._until = 0.0
        self.resting = False

    def look(self, idle: float) -> bool:
        """Whether the SuperNode is to run; call about once a second.

        Args:
            idle: ``SuperNode.idle``.
        """
        if self.resting:
            self.resting = self._clock() < self._until
        elif self._pause and idle >= QUIET_SECONDS and not self._is_awaited():
            pause = self._pause * self._rng.uniform(1 - SPREAD, 1 + SPREAD)
            self.resting, self._until = True, self._clock() + pause
            LOG.info("event=contact_over next_in_minutes=%g", round(pause / 60, 1))
        return not self.resting

    def _is_awaited(self) -> bool:
        """Whether the device has no student yet, or has told about its clips or heard that a student is being made, and
        not got it."""
        shelf = self._folder / SHELF_FOLDER
        if not version_in_use(shelf):
            return True
        try:
            installed = (shelf / POINTER).stat().st_mtime
        except OSError:
            return False
        now = time.time()  # times that lie ahead are of a clock that was: they say nothing
        return any(
            (told > installed or installed > now) and 0 <= now - told < LONGEST_VISIT
            for told in map(_written, (self._folder / KNOWN_CLIPS_FILE, self._folder / BEGUN_FILE))
        )


def _written(file: Path) -> float:
    """Seconds since 1970; long ago if it is not there."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
