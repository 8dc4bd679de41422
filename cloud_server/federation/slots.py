"""Compute slots: as many jobs train at a time as there are slots. A job that waits for its device gives its slot up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ComputeSlots:
    """``count`` slots, shared by the jobs of all devices."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Compute inside."""
        with self._free:
            yield

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Wait inside, while another job computes; only if a slot is held."""
        self._free.release()
        try:
            yield
        finally:
            self._free.acquire()
