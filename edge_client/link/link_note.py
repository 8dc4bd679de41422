"""What an agent knows of its link, written down for whoever asks about its folder: ``link.json``.

It is written when it changes. Whether the agent still runs, the lock of its folder says.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.edge_client.folder import LINK_FILE

CONNECTED, RESTING, CLOSED, CONNECTING = "in the fleet", "between two contacts", "sends nothing", "connecting"
"""States of a link."""


@dataclass(frozen=True)
class LinkNote:
    """How the link is.

    Attributes:
        state: one of the above.
        reason: why it is closed, or what went wrong last; may be empty.
        since: seconds since 1970.
    """

    state: str
    reason: str
    since: float


class LinkNotes:
    """Writes the note of one folder.

    Args:
        folder: the device's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told = ("", "")

    def look(self, settled: bool, resting: bool, closed: str, trouble: str) -> None:
        """Call about once a second.

        Args:
            settled: whether the SuperNode has been accepted.
            resting: whether this is a pause between two contacts.
            closed: why nothing may be sent; empty if it may.
            trouble: why the last SuperNode ended; empty if none has since it was last well.
        """
        found = (CLOSED, closed) if closed else (RESTING, "") if resting else (CONNECTED, "")
        if not (closed or resting or settled):
            found = CONNECTING, trouble
        if found != self._told:
            with suppress(OSError):  # a full disk: it is written at the next look
                note = LinkNote(*found, round(time.time(), 3))
                replace_file(self._folder / LINK_FILE, json.dumps(asdict(note)).encode(), PRIVATE)
                self._told = found


def read_link(folder: Path) -> LinkNote | None:
    """Of a device's folder; None if there is no note, or a damaged one."""
    try:
        found = json.loads((folder / LINK_FILE).read_text("utf-8"))
        return LinkNote(str(found["state"]), str(found["reason"]), float(found["since"]))
    except (OSError, ValueError, OverflowError, TypeError, KeyError, RecursionError):
        return None
