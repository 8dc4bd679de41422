"""The files in a watched folder that will never be part of an answered clip: each is said once, with its reason.

A sound may wait for its pictures, and a copy for its name; so a file is said after it has not changed for a while.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from fedstill.datasets.files.file_names import is_system_file
from fedstill.datasets.files.picture_formats import IMAGE_SUFFIXES
from fedstill.edge_client.inference.clip_files import SOUND_SUFFIXES, VIDEO_SUFFIXES

LOG = logging.getLogger(__name__)

LEFT_OUT_SECONDS = 60.0
"""For so long a file must be unchanged and in no clip."""

Look = tuple[int, int]


class LeftOut:
    """Remembers what was said of the files in one folder."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[Look, float]] = {}
        self._said: set[str] = set()

    def look(self, rest: Mapping[str, Path], stems: frozenset[str], now: float) -> None:
        """Say what is new.

        Args:
            rest: the files and folders that are in no clip, by name.
            stems: names of clips, without endings, that are in the folder.
            now: seconds on any clock.
        """
        self._said &= rest.keys()
        self._since = {name: seen for name, seen in self._since.items() if name in rest}
        for name in rest.keys() - self._said:
            look = _look_at(rest[name])
            before, since = self._since.setdefault(name, (look, now))
            if look != before:
                self._since[name] = look, now
            elif now - since >= LEFT_OUT_SECONDS:
                self._said.add(name)
                reason = reason_of(rest[name], stems)
                LOG.warning("event=left_out file=%s reason=%s", json.dumps(name), json.dumps(reason))


def in_no_clip(listing: Mapping[str, Path], used: frozenset[Path]) -> dict[str, Path]:
    """What is in a folder beside clips, by name, but for hidden files and those of operating systems."""
    return {
        name: path
        for name, path in listing.items()
        if path not in used and not name.startswith(".") and not is_system_file(name)
    }


def reason_of(path: Path, stems: frozenset[str]) -> str:
    """Why a file or folder is in no clip, and what to do; ``stems`` as in ``LeftOut.look``."""
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            return (
                f"a folder: of pictures, it needs a sound file {path.name}.wav; clips in it are not looked at"
            )
        path.stat()
    except OSError as error:
        return f"cannot be looked at ({error.strerror or error})"
    if not path.is_file():
        return "no file, but a pipe or a device"
    if path.stem in stems:
        return "beside a clip of the same name, which does not need it"
    if suffix in SOUND_SUFFIXES:
        return f"a sound without pictures: put {path.stem}.jpg or {path.stem}.mp4 beside it"
    if suffix in IMAGE_SUFFIXES:
        return f"a picture without sound: put {path.stem}.wav beside it"
    if suffix in VIDEO_SUFFIXES:
        return "it cannot be read: check what it is, and whose"
    return f"its name has no ending of a sound, a video or a picture ({suffix or 'none'})"


def _look_at(path: Path) -> Look:
    try:
        found = path.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns
