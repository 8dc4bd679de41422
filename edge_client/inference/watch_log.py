"""The clips that already have their line, on disk: by name and content, so that a reused name is another clip."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from fedstill.common.atomic_files import append
from fedstill.common.errors import UserError
from fedstill.edge_client.folder import WATCHED_FILE

LOG = logging.getLogger(__name__)

Look = tuple[tuple[str, int, int], ...]
"""Of each file of a clip: name, size and time of the last change."""


class WatchError(UserError):
    """A folder that cannot be watched, or a damaged watch log; one line."""


class WatchLog:
    """Survives kill -9 at any moment.

    The line is written before its clip is recorded. A kill exactly between the two repeats that one line after the
    restart; the other order could lose it.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / WATCHED_FILE
        state.mkdir(parents=True, exist_ok=True)
        self._content, self._looks = self._read(), dict[str, Look]()
        self._waiting = b""

    def has(self, clip: str) -> bool:
        """Whether a clip of this name was answered, whatever its content."""
        return clip in self._content

    def knows(self, clip: str, look: Look, files: Iterable[Path]) -> bool:
        """Whether this clip was answered. Its files are read again only if they have changed since the last look."""
        if clip not in self._content:
            return False
        if self._looks.get(clip) != look:
            kept = self._content[clip]
            if kept and kept != digest_of(files):
                return False
            self._looks[clip] = look
        return True

    def is_same(self, clip: str) -> bool:
        """Whether a clip that ``knows`` has just found has the very content that was answered."""
        return bool(self._content.get(clip))

    def add(self, clip: str, look: Look, content: str) -> None:
        """Record a clip as answered, on disk before this returns; if the disk is full, with the next one.

        Args:
            content: ``digest_of`` its files; empty if they could not be read: then every content counts as answered.
        """
        self._content[clip], self._looks[clip] = content, look
        self._waiting += (json.dumps([clip, content]) + "\n").encode()
        try:
            append(self._path, self._waiting)
        except OSError as error:  # it is known as long as this process lives
            LOG.warning("event=clip_not_noted clip=%s reason=%s", json.dumps(clip), error.strerror or error)
        else:
            self._waiting = b""

    def _read(self) -> dict[str, str]:
        """Content by name; empty for a line of an older fedstill, which kept names alone."""
        if not self._path.exists():
            return {}
        lines = self._path.read_bytes().split(b"\n")
        torn = lines.pop()  # empty, or the part of the last line that a kill left
        found = {}
        try:
            for line in map(json.loads, lines):
                name, content = (line, "") if isinstance(line, str) else line
                found[str(name)] = str(content)
        except (ValueError, TypeError, RecursionError) as error:
            raise WatchError(f"{self._path}: damaged: remove it to classify all clips again") from error
        if torn:
            with self._path.open("r+b") as file:
                file.truncate(self._path.stat().st_size - len(torn))
        return found


def digest_of(files: Iterable[Path]) -> str:
    """Of the content of a clip's files, hexadecimal; of a folder's, in the order of their names."""
    found = hashlib.sha256()
    for path in files:
        for part in sorted(path.iterdir()) if path.is_dir() else [path]:
            if not part.is_file():  # a folder of thumbnails, or a pipe, which would never end
                continue
            with part.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
