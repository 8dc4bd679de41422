"""What can be wrong with a clip, as one of a few kinds: so that it can be counted, and told without the file's name.

The kinds travel from a device to its coordinator; the reasons, which name files, never do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MISSING, FOLDER, FORBIDDEN, EMPTY = "missing", "folder", "forbidden", "empty"
TRUNCATED, DAMAGED, UNDECODABLE = "truncated", "damaged", "undecodable"
NO_SOUND, NO_PICTURE, TINY, LARGE = "no sound", "no picture", "tiny", "large"
FORM, ROW, CLASS, PACKAGE = "form", "row", "class", "package"

FAULTS: Mapping[str, str] = {
    MISSING: "file not found",
    FOLDER: "a folder where a file should be",
    FORBIDDEN: "may not be read",
    EMPTY: "empty file",
    TRUNCATED: "ends too early",
    DAMAGED: "damaged",
    UNDECODABLE: "cannot be decoded",
    NO_SOUND: "no sound",
    NO_PICTURE: "no picture",
    TINY: "picture of a single pixel or line",
    LARGE: "picture too large",
    FORM: "another form than the other clips",
    ROW: "mistake in the manifest",
    CLASS: "a class that the coordinator does not have",
    PACKAGE: "needs a package that is not installed",
}
"""In words, by kind. A kind's name is on the wire and in journals: add kinds, and never rename one."""


@dataclass(frozen=True, slots=True)
class BadClip:
    """A clip that cannot be used.

    Attributes:
        clip_id: its name in the data set; the line of the table if it has none.
        fault: a key of ``FAULTS``.
        reason: one line for the owner, which may name files, and says what to do.
    """

    clip_id: str
    fault: str
    reason: str


def fault_of(error: BaseException) -> str:
    """The kind of what a library, or the operating system, has raised; a key of ``FAULTS``."""
    for kind, fault in (
        (FileNotFoundError, MISSING),
        (IsADirectoryError, FOLDER),
        (PermissionError, FORBIDDEN),
    ):
        if isinstance(error, kind):
            return fault
    return UNDECODABLE


def count_faults(bad: Iterable[BadClip]) -> dict[str, int]:
    """How many clips have each kind of fault, in the order of ``FAULTS``."""
    found = Counter(clip.fault for clip in bad)
    return {fault: found[fault] for fault in FAULTS if found[fault]}


def in_words(faults: Mapping[str, int]) -> str:
    """Such as ``empty file (2), no sound (1)``; a kind that only a newer fedstill knows has its own name."""
    return ", ".join(f"{FAULTS.get(fault, fault)} ({count})" for fault, count in faults.items())
