"""The agent's eye on the device's clips: if they are others than at the last look, a process looks what that means."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fedstill.edge_client.folder import (
    CLIPS_FILE,
    DATA_FOLDER,
    KNOWN_CLIPS_FILE,
    LEARNED_FOLDER,
    SHELF_FOLDER,
)
from fedstill.edge_client.node.bad_clips import look_at
from fedstill.edge_client.privacy.privacy_policy import POLICY_FILE
from fedstill.edge_client.students.pointer import POINTER

LOG = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
CHECK_SECONDS = 3600.0
"""At least between two checks: one may decode all clips anew."""
LEARNING_SECONDS = 6 * CHECK_SECONDS
"""The same for a device that learns from its watched folder: most checks find new clips, and write all of them anew."""
ENDING_SECONDS = 0.5


class ChangeWatch:
    """A task of the agent.

    Args:
        folder: the device's.
        share: of new clips that is a change.
        check: looks once; by default in a process of its own.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        folder: Path,
        share: float,
        check: Callable[[Path, float, threading.Event], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._share, self._clock = folder, share, clock
        self._check = check or check_in_process
        self._seen: object = None
        self._next = clock()

    def __call__(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        while not stop.wait(LOOK_SECONDS):
            self.look(stop)

    def look(self, stop: threading.Event) -> None:
        """Check if anything is another than at the last check, and that was long enough ago."""
        if self._clock() < self._next or not (self._folder / KNOWN_CLIPS_FILE).exists():
            return
        seen = look_at(self._files())
        if seen != self._seen:
            learns = (self._folder / LEARNED_FOLDER).is_dir()
            self._seen, self._next = seen, self._clock() + (LEARNING_SECONDS if learns else CHECK_SECONDS)
            self._check(self._folder, self._share, stop)

    def _files(self) -> list[Path]:
        """What a change of clips, of the student, or of the owner's mind shows in."""
        try:
            data = Path(json.loads((self._folder / CLIPS_FILE).read_text())["data"])
        except (OSError, ValueError, TypeError, KeyError):
            data = self._folder / DATA_FOLDER
        own = KNOWN_CLIPS_FILE, POLICY_FILE, f"{SHELF_FOLDER}/{POINTER}", LEARNED_FOLDER
        return [data, data / "index.csv", *(self._folder / name for name in own)]


def check_in_process(folder: Path, share: float, stop: threading.Event) -> None:
    """One check; a failure is a line in the log."""
    command = [sys.executable, "-P", "-m", "fedstill.edge_client.node.change_check", str(folder), repr(share)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    said = ""
    while process.returncode is None:
        try:
            _, said = process.communicate(timeout=ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                process.kill()
    if process.returncode and not stop.is_set():
        reason = (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        LOG.warning("event=clips_unchecked reason=%s", json.dumps(reason))
