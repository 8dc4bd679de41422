"""The lines about watched clips in a file that never grows beyond a size: then it is put aside, with ``.1`` at its end.

Lines are whole: what a full disk lets through of one is taken back, so that it can be written again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from fedstill.common.atomic_files import append
from fedstill.edge_client.inference.watch_log import WatchError

MOST_BYTES = 10_000_000
"""Both files together never take more than twice as much."""
OURS = b'{"clip": "'
"""How each line begins."""


class ResultsFile:
    """A file for lines of JSON.

    Args:
        path: of the file; its folder is there. Who reads it may move it away.
        most_bytes: before it is put aside.

    Raises:
        WatchError: something else is there, such as a folder or a device.
    """

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        if path.exists() and not path.is_file():
            raise WatchError(f"{path}: is no file, which results need: name another, or leave --results out")
        self._path, self._most = path, most_bytes
        self._end_cut_line()

    def write(self, text: str) -> None:
        """Append a line, on disk before this returns. Raises OSError; the file is as it was then."""
        content = text.encode()
        if self._path.exists() and self._path.stat().st_size + len(content) > self._most:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        append(self._path, content)

    def flush(self) -> None:
        """Nothing is left to do."""

    def _end_cut_line(self) -> None:
        """Remove what a kill has left of a line: its clip gets another one. Other lines are ended."""
        if not self._path.exists():
            self._path.touch()
        with self._path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - self._most))
            tail = file.read()
            cut = tail[tail.rfind(b"\n") + 1 :]
            if not cut:
                return
            if (cut.startswith(OURS) or OURS.startswith(cut)) and not _is_json(cut):
                file.truncate(size - len(cut))
            else:
                file.write(b"\n")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
