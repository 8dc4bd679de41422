"""One process at a time uses a folder of state; the lock ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedstill.common.errors import UserError

LOCK_FILE = "lock"
LOOK_PATIENCE = 0.2
"""Seconds after which a lock is taken for another process's, and not for a look at it."""


class FolderInUse(UserError):
    """Another process of ours uses this state folder; one line."""


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Hold a state or run folder; the lock ends with the process, however that ends.

    Raises:
        FolderInUse: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a") as file:
        end = time.monotonic() + LOOK_PATIENCE
        while not _locked(file, fcntl.LOCK_EX):
            if time.monotonic() > end:
                raise FolderInUse(
                    f"{folder}: another fedstill process uses it; stop that one or choose another folder"
                )
            time.sleep(0.02)
        yield


def in_use(folder: Path) -> bool:
    """Whether a process holds this folder at the moment; the look itself lasts no longer than ``LOOK_PATIENCE``."""
    try:
        with (folder / LOCK_FILE).open("r") as file:
            return not _locked(file, fcntl.LOCK_SH)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _locked(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
