"""When an agent's SuperNode runs: all the time, or now and then for as long as there is something to do.

An idle SuperNode asks the coordinator every three seconds, which Flower lets nobody change, and it has most of the
memory of an agent at rest. So a device may end it, and start it again after a pause of its owner's choice. It stays
while the coordinator could miss it: until it was spoken to and all is quiet, and while a student is being made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from fedstill.edge_client.folder import KNOWN_CLIPS_FILE, SHELF_FOLDER
from fedstill.edge_client.students.pointer import POINTER, version_in_use

LOG = logging.getLogger(__name__)

QUIET_SECONDS = 60.0
"""Without a message, after the last one."""
LONGEST_VISIT = 6 * 3600.0
"""Seconds from a summary of the device's clips until its student is not waited for any longer."""


class Contacts:
    """The pauses between the contacts of one device.

    Args:
        folder: the device's.
        pause: seconds between two contacts; 0: it stays connected.
        clock: seconds that only grow.

    Attributes:
        resting: whether this is a pause, which begins only after a contact that was well.
    """

    def __init__(self, folder: Path, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._pause, self._clock = folder, pause, clock
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
            self.resting, self._until = True, self._clock() + self._pause
            LOG.info("event=contact_over next_in_minutes=%g", round(self._pause / 60, 1))
        return not self.resting

    def _is_awaited(self) -> bool:
        """Whether the device has no student yet, or has told about its clips and not got the student for it."""
        shelf = self._folder / SHELF_FOLDER
        if not version_in_use(shelf):
            return True
        try:
            told = (self._folder / KNOWN_CLIPS_FILE).stat().st_mtime
            return told > (shelf / POINTER).stat().st_mtime and time.time() - told < LONGEST_VISIT
        except FileNotFoundError:
            return False
