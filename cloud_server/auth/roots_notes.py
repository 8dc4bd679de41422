"""What devices say that they trust, on its way into the register: a thread of its own writes it, after the answer.

Every note replaces the register as a whole, so a device must not be able to ask for more of them than it needs: of one
device at most one note waits, the newest, and it gets so many at once and then one a minute. Token renewals are in
another thread, and the end of the process waits for no note: the device says it again at its next connection.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

LOG = logging.getLogger(__name__)

NOTE_SECONDS = 60.0
"""Between two notes of one device, in the long run."""
NOTES_AT_ONCE = 4
"""Of one device: a step of a roll-over changes what it trusts once, so this is more than it ever needs in a minute."""
RETRY_SECONDS = 1.0
"""After a note that could not be written: a command may have the register's lock."""
END_SECONDS = 2.0

Trusted = tuple[str, ...]


class RootsNotes:
    """See the top of the file. ``put`` what devices say, ``close`` it at the end.

    Args:
        write: notes the newest of several devices, and says whether it could; reads and writes files.
        clock: seconds, which only grow.
    """

    def __init__(
        self, write: Callable[[Mapping[str, Trusted]], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._changed = threading.Condition()
        self._waiting: dict[str, Trusted] = {}
        self._used_until: dict[str, float] = {}
        """Per device: when all its notes so far would have been due, a minute apart."""
        self._closing = False
        self._thread: threading.Thread | None = None

    def put(self, name: str, trusted: Trusted) -> None:
        """Instead of what waits of this device, if anything does. Never waits for a file."""
        with self._changed:
            known, self._waiting[name] = name in self._waiting, trusted
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="roots-notes", daemon=True)
                self._thread.start()
            if not known:
                self._changed.notify()

    def due(self) -> dict[str, Trusted]:
        """Take out what may be written now."""
        now = self._clock()
        names = [name for name in self._waiting if self._seconds(name, now) <= 0]
        for name in names:
            self._used_until[name] = max(now, self._used_until.get(name, now)) + NOTE_SECONDS
        return {name: self._waiting.pop(name) for name in names}

    def close(self) -> None:
        """Begin no other note; one that is being written is waited for, but not long."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(END_SECONDS)

    def _seconds(self, name: str, now: float) -> float:
        """Until this device's next note."""
        return self._used_until.get(name, now) - now - (NOTES_AT_ONCE - 1) * NOTE_SECONDS

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closing and not (notes := self.due()):
                    now = self._clock()
                    self._changed.wait(
                        min((self._seconds(name, now) for name in self._waiting), default=None)
                    )
                if self._closing:
                    return
            if not self._written(notes):
                with self._changed:
                    self._waiting = notes | self._waiting
                    for name in notes:  # what was not written costs nothing
                        self._used_until[name] -= NOTE_SECONDS
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)

    def _written(self, notes: dict[str, Trusted]) -> bool:
        try:
            return self._write(notes)
        except Exception:
            LOG.exception("event=roots_not_noted devices=%d", len(notes))
            return False
