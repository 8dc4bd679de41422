"""That a device's clips have changed since its student was made, as its process found and as the cloud is told.

``change.json`` in the device's folder belongs to the clips that are known now. Once they are others, because a new
student is being made, it counts no more. Reading it costs little: every hello does.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.edge_client.folder import CHANGE_FILE, KNOWN_CLIPS_FILE
from fedstill.edge_client.node.student_lock import is_kept
from fedstill.edge_client.privacy.privacy_policy import read_policy
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.protos.messages import CHANGES


@dataclass(frozen=True)
class ChangeNote:
    """What was found.

    Attributes:
        known: ``mark_of`` the known clips.
        change: one of ``messages.CHANGES``; empty: none so far.
        looks: how often drift was tested for.
        newer: how many newer recordings there were at the last test.
    """

    known: str
    change: str = ""
    looks: int = 0
    newer: int = 0

    def write(self, folder: Path) -> None:
        """Into the device's folder."""
        replace_file(folder / CHANGE_FILE, json.dumps(asdict(self)).encode(), PRIVATE)


def mark_of(folder: Path) -> str:
    """Another one for other known clips, or another job that made them known; empty if no clips are known."""
    try:
        return sha256((folder / KNOWN_CLIPS_FILE).read_bytes()).hexdigest()
    except OSError:
        return ""


def read_note(folder: Path, known: str) -> ChangeNote:
    """What was found so far, for clips with this mark."""
    try:
        found = json.loads((folder / CHANGE_FILE).read_text("utf-8"))
        note = ChangeNote(str(found["known"]), str(found["change"]), int(found["looks"]), int(found["newer"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ChangeNote(known)
    return note if note.known == known and note.change in ("", *CHANGES) else ChangeNote(known)


def announced(folder: Path) -> str:
    """What the cloud is told: one of ``messages.CHANGES``, or nothing, also if the owner does not want that, or keeps
    the student."""
    try:
        if not read_policy(folder).changes or is_kept(folder):
            return ""
    except DeviceError:  # a policy that cannot be understood allows nothing
        return ""
    known = mark_of(folder)
    return read_note(folder, known).change if known else ""
