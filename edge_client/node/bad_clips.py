"""The clips of a device that cannot be used: remembered, so that they are tried once and not for every message.

``bad_clips.json`` in the device's folder names them, for its owner. Only numbers by kind of fault leave the device.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.datasets.files.faults import FAULTS, BadClip
from fedstill.edge_client.folder import BAD_CLIPS_FILE

Look = tuple[tuple[int, int], ...]
"""Size and time of the last change of each file of a clip."""


@dataclass(frozen=True)
class Tried:
    """A bad clip, and its files when it was tried; no files if the manifest's row is bad by itself."""

    clip: BadClip
    look: Look = ()


@dataclass(frozen=True)
class BadClips:
    """What is remembered.

    Attributes:
        tried_for: the format of clips, the version of fedstill and the start of the agent; all are tried again for
            another one.
    """

    tried_for: str = ""
    clips: tuple[Tried, ...] = ()

    def write(self, folder: Path) -> None:
        """Into the device's folder, unless it says that already."""
        if self == read_bad_clips(folder):
            return
        rows = [[one.clip.clip_id, one.clip.fault, one.clip.reason, one.look] for one in self.clips]
        content = json.dumps({"tried_for": self.tried_for, "clips": rows}, indent=1)
        replace_file(folder / BAD_CLIPS_FILE, content.encode(), PRIVATE)


def read_bad_clips(folder: Path) -> BadClips:
    """What is remembered in a device's folder; nothing if the file is absent or damaged: then all are tried again."""
    try:
        found = json.loads((folder / BAD_CLIPS_FILE).read_text("utf-8"))
        clips = tuple(
            Tried(
                BadClip(str(name), str(fault), str(reason)),
                tuple((int(size), int(time)) for size, time in look),
            )
            for name, fault, reason, look in found["clips"]
            if fault in FAULTS
        )
        return BadClips(str(found["tried_for"]), clips)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return BadClips()


def bad_clips_of(folder: Path) -> tuple[BadClip, ...]:
    """The clips of a device that cannot be used, as far as they have been tried."""
    return tuple(one.clip for one in read_bad_clips(folder).clips)


def look_at(files: Iterable[Path]) -> Look:
    """Files as they are now; one that cannot be looked at has no size."""
    return tuple(_size_and_time(file) for file in files)


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_ctime_ns
