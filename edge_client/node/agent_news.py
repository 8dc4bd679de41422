"""What a device's owner wants to hear while the agent runs: that the cloud asks for it, and that a student arrived."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from fedstill.datasets.files.faults import BadClip
from fedstill.edge_client.folder import BAD_CLIPS_FILE, CHANGE_FILE, FORMAT_FILE, SHELF_FOLDER
from fedstill.edge_client.node.bad_clips import bad_clips_of
from fedstill.edge_client.node.change_note import announced
from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE
from fedstill.edge_client.privacy.privacy_policy import read_policy
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.privacy.upload_log import LOG_FILE, UploadTail
from fedstill.edge_client.privacy.yearly_budget import spent_in_a_year
from fedstill.edge_client.students.expected import expected_of
from fedstill.edge_client.students.pointer import version_in_use

LOG = logging.getLogger(__name__)

AGAIN_SECONDS = 86_400.0
"""Then it says once more that the coordinator still accepts it."""


class AgentNews:
    """Looks at what the handlers of messages left in the device's folder; one line of log per change.

    Args:
        folder: the device's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._greeted = self._time_of(FORMAT_FILE)
        self._student = version_in_use(self._folder / SHELF_FOLDER)
        self._uploads = UploadTail(folder)
        self._uploads.new()
        self._log_time = self._time_of(LOG_FILE)
        self._spent_time = self._time_of(LEDGER_FILE)
        self._bad_time, self._said = 0, set[BadClip]()
        self._change_time = 0
        self._connection: float | None = None
        self._again = 0.0

    def look(self, connection: float = 0.0) -> None:
        """Call about once a second.

        Args:
            connection: another number for every SuperNode: the coordinator asks one again and again who it is.
        """
        if (greeted := self._time_of(FORMAT_FILE)) != self._greeted:
            self._greeted = greeted
            if connection != self._connection or time.monotonic() > self._again:
                self._connection, self._again = connection, time.monotonic() + AGAIN_SECONDS
                LOG.info("event=accepted by=coordinator")
        if (changed := self._time_of(LOG_FILE)) != self._log_time:
            self._log_time = changed
            for one in self._uploads.new():
                LOG.info('event=sent bytes=%d what="%s"', one.bytes, one.what)
        if (changed := self._time_of(LEDGER_FILE)) != self._spent_time:
            self._spent_time = changed
            self._say_what_is_spent()
        if (student := version_in_use(self._folder / SHELF_FOLDER)) != self._student:
            expected = expected_of(self._folder, student)
            told = f' expected="{expected.in_words}"' if expected else ""
            before = self._student[:12] or "none"
            LOG.info("event=student_arrived version=%s before=%s%s", student[:12], before, told)
            self._student = student
        if (changed := self._time_of(CHANGE_FILE)) != self._change_time:
            self._change_time = changed
            if change := announced(self._folder):
                LOG.info("event=clips_changed change=%s", change)
        if (changed := self._time_of(BAD_CLIPS_FILE)) != self._bad_time:
            self._bad_time = changed
            self._say_bad_clips()

    def _say_what_is_spent(self) -> None:
        """Of the yearly budget; ``fedstill privacy`` has the rest."""
        try:
            most, spent = read_policy(self._folder).most_a_year, spent_in_a_year(self._folder)
        except DeviceError:  # of which the answer to the cloud speaks
            return
        if most is not None:
            LOG.info("event=privacy_spent personalisations=%d of=%d days=365", spent, most)

    def _say_bad_clips(self) -> None:
        """Each one once, with its file, which the coordinator is not told."""
        for clip in bad_clips_of(self._folder):
            if clip not in self._said:
                self._said.add(clip)
                name, reason = json.dumps(clip.clip_id), json.dumps(clip.reason)
                LOG.warning("event=bad_clip clip=%s fault=%s reason=%s", name, json.dumps(clip.fault), reason)

    def _time_of(self, name: str) -> int:
        try:
            return (self._folder / name).stat().st_mtime_ns
        except OSError:
            return 0
