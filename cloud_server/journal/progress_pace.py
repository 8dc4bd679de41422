"""Trainings of many devices go on at the same time, so that their progress is told now and then and not always."""

from __future__ import annotations

import threading
import time

PROGRESS_SECONDS = 2.0
"""Between two lines about the training of one job."""


class ProgressPace:
    """Says when to tell of a job's progress; thread-safe."""

    def __init__(self) -> None:
        self._told: dict[object, float] = {}
        self._lock = threading.Lock()

    def is_time(self, job: object) -> bool:
        """Whether ``PROGRESS_SECONDS`` have passed since this was true for the job; at first, it is."""
        now = time.monotonic()
        with self._lock:
            if now - self._told.get(job, -PROGRESS_SECONDS) < PROGRESS_SECONDS:
                return False
            self._told[job] = now
        return True
