"""Memory that nobody uses goes back to the system.

The engine's allocator settings (``engine/environment.py``) keep what was freed, since the next batch wants it again. A
burst, or a picture of many pixels, leaves more of it than calm traffic ever uses.
"""

from __future__ import annotations

import ctypes
import logging
import math
import time
from collections.abc import Callable

import psutil

LOG = logging.getLogger(__name__)

PAUSE_SECONDS = 30.0
"""Between two trims. One takes some ten milliseconds by GiB, and the next batch as long again for its pages."""
LEAST_BYTES, LEAST_SHARE = 64 * 2**20, 0.1
"""Growth since the last trim that is worth one."""


class FreeMemory:
    """To be called every now and then, from any thread.

    Args:
        resident: bytes of this process.
        trim: gives free pages back.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        resident: Callable[[], int] | None = None,
        trim: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resident = resident or (lambda: int(psutil.Process().memory_info().rss))
        self._trim, self._clock = trim or trim_heap, clock
        self._floor, self._trimmed_at = 0, -math.inf  # a start leaves much, too

    def give_back(self) -> None:
        """Trim, if the process has grown and the last trim is long enough ago."""
        now = self._clock()
        if now - self._trimmed_at < PAUSE_SECONDS:
            return
        resident = self._resident()
        if resident - self._floor < max(LEAST_BYTES, LEAST_SHARE * self._floor):
            return
        self._trim()
        self._floor, self._trimmed_at = self._resident(), now
        LOG.info("event=memory_given_back before=%d after=%d", resident, self._floor)


def trim_heap() -> None:
    """Free pages of all arenas of glibc; nothing with another C library."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
