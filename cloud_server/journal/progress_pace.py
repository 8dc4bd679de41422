"""Trainings of many devices go on at the same time, so that their progress is told now and then and not always."""

from __future__ import annotations

import math
import threading
import time

PROGRESS_SECONDS = 2.0
"""Between two lines about the training of one job."""


class ProgressPace:
    """Says when to tell of a job's progress; thread-safe."""

    def __init__(self) -> None:
        self._told: dict[object, float] = {}
        self._lock = threading.Lock()

    def is_time(self, job: object, now: float | None = None) -> bool:
        """Whether ``PROGRESS_SECONDS`` have passed since this was true for the job; at first, it is.

        now: seconds by any clock, which may be set back; by default by one that only grows.
        """
        now = time.monotonic() if now is None else now
        with self._lock:
            if 0 <= now - self._told.get(job, -math.inf) < PROGRESS_SECONDS:
                return False
            self._told[job] = now
        return True
