"""How many bytes a device may move over its link in a calendar month, and how many it has moved.

The month is that of the local clock at the moment of each look, and every month has its own count. So a clock that
jumps leaves nothing behind: when it is right again, the count of the right month goes on.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.edge_client.folder import METERED_FILE

LOG = logging.getLogger(__name__)

SAVE_BYTES, SAVE_SECONDS, SAVES = 64 * 1024, 60.0, 200
"""The count is written after so many further bytes, or a part of so many of the month's, or after so many seconds: a
kill forgets no more, and a disk does not wait for every piece."""
MOST_MONTHS = 120
MOST_BYTES = 2**62


class MonthlyBytes:
    """The count of one device; thread-safe.

    Args:
        folder: the device's.
        most: bytes in each calendar month, both directions together.
        text: the limit as its owner wrote it.
        clock: seconds since 1970.
        steady: seconds that only grow.
    """

    def __init__(
        self,
        folder: Path,
        most: int,
        text: str = "",
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._most, self._text = folder / METERED_FILE, most, text or f"{most} B"
        self._clock, self._steady = clock, steady
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._months = read_months(folder)
        self._unsaved, self._saved_at, self._step = 0, steady(), max(SAVE_BYTES, most // SAVES)
        self._written = b""

    @property
    def spent(self) -> bool:
        """Whether this month's are spent."""
        return self.moved >= self._most

    @property
    def moved(self) -> int:
        """Bytes of this month so far."""
        with self._lock:
            return self._months.get(month_of(self._clock()), 0)

    @property
    def in_words(self) -> str:
        """Why nothing may be sent; only if they are spent."""
        return f"the {self._text} of {month_of(self._clock())} are spent"

    def count(self, size: int) -> None:
        """So many bytes have been moved now."""
        with self._lock:
            month = month_of(self._clock())
            self._months[month] = (
                self._months.pop(month, 0) + size
            )  # the month of the newest bytes is the last
            while len(self._months) > MOST_MONTHS:
                self._months.pop(next(iter(self._months)))
            self._unsaved += size
            due = self._unsaved >= self._step or self._steady() - self._saved_at >= SAVE_SECONDS
            if due:
                self._unsaved, self._saved_at = 0, self._steady()
        if due:
            self.save()

    def save(self) -> None:
        """Write the count; also to be called at the end."""
        with self._writing:  # what is written last is the newest
            with self._lock:
                content = json.dumps(self._months).encode()
            if content != self._written and self._months:
                with suppress(OSError):  # a full disk: it is written at the next occasion
                    replace_file(self._file, content, PRIVATE)
                    self._written = content


def month_of(seconds: float) -> str:
    """``2026-11``, by the local clock."""
    try:
        wall = time.localtime(seconds)
    except (OverflowError, ValueError, OSError):
        return "a month that no calendar has"
    return f"{wall.tm_year:04}-{wall.tm_mon:02}"


def read_months(folder: Path) -> dict[str, int]:
    """Bytes by month of a device's folder, oldest first; none if nothing is counted, or the count is damaged."""
    path = folder / METERED_FILE
    try:
        found = json.loads(path.read_bytes())
        return {str(month): min(max(0, int(size)), MOST_BYTES) for month, size in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        LOG.warning("event=metered_forgotten file=%s reason=damaged", METERED_FILE)
        return {}
