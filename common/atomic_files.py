"""Files that survive a kill, a crash of the machine and a full disk: a reader finds the old content or the new one.

Every file is written beside its place, forced to disk and renamed, and then its folder is forced to disk. So once a
function here has returned, its content survives a power cut. An error before the rename leaves the old file as it was.
Several processes may write the same file: the last one wins.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"
"""The suffix of a file that is not complete yet. Such files are never read."""
PRIVATE = 0o600
"""For secrets, and for data of a device about its owner."""
PUBLIC = 0o644
"""For files that other users need, such as certificates, whatever the umask is."""


def replace_file(path: Path, content: bytes, mode: int | None = None) -> None:
    """Make ``content`` the whole of the file.

    Args:
        mode: permissions, also while the file is written; None: what the process' umask gives a new file.

    Raises:
        OSError: it could not be written; ``path`` is as it was.
    """
    with _part_of(path) as part:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
        try:
            if mode is not None:
                os.fchmod(handle, mode)  # the umask may have taken some of it
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)


def replace_text(path: Path, text: str) -> Path:
    """The same for text in UTF-8; makes the folder, and returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The same for a file that a library writes: a name beside ``path`` that replaces it if the block succeeds."""
    with _part_of(path) as part:
        yield part
        _sync(part)


def remove_parts(folder: Path) -> None:
    """Remove half-written files that a kill left; only for the holder of the folder's lock."""
    for part in folder.glob(f".*{PART}"):
        part.unlink(missing_ok=True)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, on disk before this returns; for one process at a time.

    Raises:
        OSError: it could not be written; what got through is taken back.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(handle).st_size
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and be the only process (and thread) in it. The kernel frees the lock of a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
