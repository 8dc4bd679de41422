"""Compute slots: as many jobs train at a time as there are slots. A job that waits for its device gives its slot up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """The run ends: nothing more is computed. What the journal has stays; the job goes on when the run does."""


class ComputeSlots:
    """``count`` slots, shared by the jobs of all devices.

    A job whose device has answered comes before one that has not begun: so devices are finished one after the other,
    and none waits until all others have been asked.
    """

    def __init__(self, count: int) -> None:
        self._free, self._back = count, 0
        self._changed = threading.Condition()
        self._stopped = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Compute inside. Raises Stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or (self._free > 0 and not self._back))
            self._go_on()
            self._free -= 1
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Wait inside, while another job computes; only if a slot is held. Raises Stopped, but only before: an answer
        that has come is not thrown away."""
        self._go_on()
        self._release()
        try:
            yield
        finally:
            with self._changed:
                self._back += 1
                self._changed.wait_for(lambda: self._free > 0)
                self._back -= 1
                self._free -= 1

    def stop(self) -> None:
        """Every job ends where it asks for a slot, or begins to wait for its device."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _release(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify_all()

    def _go_on(self) -> None:
        if self._stopped:
            raise Stopped
