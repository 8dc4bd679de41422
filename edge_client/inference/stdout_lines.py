"""The lines about watched clips on stdout, without a buffer.

Python's own stdout keeps a line that a full disk refused, and writes it again with the next one; without its buffer
(``PYTHONUNBUFFERED``) it loses the end of a line that was only written in part.
"""

from __future__ import annotations

import os
import select
import stat


class StdoutLines:
    """A file descriptor for lines of JSON.

    Args:
        handle: where the lines go; it is left open.
    """

    def __init__(self, handle: int = 1) -> None:
        self._handle = handle

    def write(self, text: str) -> None:
        """Write a line. Raises OSError; what a full disk let through of it is then taken back."""
        content = text.encode()
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._some(rest) :]
        except OSError:
            self._take_back(len(content) - len(rest))
            raise

    def flush(self) -> None:
        """Nothing is left to do."""

    def _some(self, rest: memoryview) -> int:
        try:
            return os.write(self._handle, rest)
        except BlockingIOError:  # a pipe that does not block, and is full
            select.select([], [self._handle], [])
            return 0

    def _take_back(self, count: int) -> None:
        """Only from a file's end, where nobody else has written since."""
        status = os.fstat(self._handle)
        if count and stat.S_ISREG(status.st_mode):
            place = os.lseek(self._handle, 0, os.SEEK_CUR)
            if place == status.st_size:
                os.ftruncate(self._handle, place - count)
                os.lseek(self._handle, place - count, os.SEEK_SET)
