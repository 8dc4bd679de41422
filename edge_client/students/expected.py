"""How accurate the cloud expects the device's student to be, kept beside it for its owner.

The note is there before the student is, and has its version: so who sees the student sees what belongs to it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.edge_client.folder import EXPECTED_FILE
from fedstill.edge_client.students.pointer import read_pointer


@dataclass(frozen=True)
class Expected:
    """Shares from 0 to 1: the accuracy, and its 90 % interval."""

    accuracy: float
    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse what is no estimate."""
        if not 0 <= self.low <= self.accuracy <= self.high <= 1:
            raise ValueError("needs low, accuracy and high in this order from 0 to 1")

    @property
    def in_words(self) -> str:
        """``80 % (74 % to 86 %)``."""
        return f"{self.accuracy:.0%} ({self.low:.0%} to {self.high:.0%})".replace("%", " %")


def keep_expected(folder: Path, shelf: Path, version: str, expected: Expected | None) -> None:
    """Note what to expect of a version that may be installed next; those of the students that are there stay.

    Args:
        folder: the device's.
        shelf: of its students.
    """
    notes = _notes(folder)
    wanted = {one: notes[one] for one in read_pointer(shelf) if one in notes and one != version}
    if expected is not None:
        wanted[version] = [expected.accuracy, expected.low, expected.high]
    if wanted != notes:
        with suppress(OSError):  # a full disk: the student matters more
            replace_file(folder / EXPECTED_FILE, json.dumps(wanted).encode(), PRIVATE)


def expected_of(folder: Path, version: str) -> Expected | None:
    """Of this version; None if nobody has told, or the note is damaged."""
    try:
        accuracy, low, high = _notes(folder)[version]
        return Expected(float(accuracy), float(low), float(high))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _notes(folder: Path) -> dict[str, list[float]]:
    try:
        found = json.loads((folder / EXPECTED_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
