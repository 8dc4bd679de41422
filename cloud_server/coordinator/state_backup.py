"""A coordinator's folder as one file, also while the coordinator runs, and back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import cast

from fedstill.cloud_server.journal.fleet_state import plan_of
from fedstill.common.errors import ConfigError
from fedstill.common.folder_lock import LOCK_FILE
from fedstill.common.run_layout import PLAN_FILE

SUMS_FILE = "sha256.json"
"""Last in a backup: the sum of every file, so that a cut or damaged one is known."""
DATABASE_SIDES = ("-wal", "-shm", "-journal")
LEFT_OUT = (LOCK_FILE, "superlink")
"""What the next start makes anew."""


def back_up(state: Path, target: Path) -> int:
    """Write the folder into a tar file, which replaces ``target`` at the end; returns its bytes.

    A SQLite database is copied at one moment. All other files are replaced as a whole whenever they change, or only
    grow at their end. A journal in another place is not in it.

    Raises:
        ConfigError: no coordinator's folder, ``target`` lies in it, or something cannot be read or written.
    """
    plan_of(state)
    if target.resolve().is_relative_to(state.resolve()):
        raise ConfigError(f"{target}: lies in the folder that it is to keep; choose another place")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ConfigError(f"{target}: name a file in a folder that exists")
    with (
        _one_line(target),
        tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".backup-") as scratch,
    ):
        file = Path(scratch) / "state.tar"
        with tarfile.open(file, "w", dereference=True) as archive:
            for path in _files(state):
                name = str(path.relative_to(state))
                if path.suffix == ".db":
                    copy = Path(scratch) / "copy.db"
                    _copy_database(path, copy)
                    archive.add(copy, name)
                    copy.unlink()
                else:
                    _add(archive, path, name)
        content = json.dumps(_sums(file)).encode()
        with tarfile.open(file, "a") as archive:
            entry = tarfile.TarInfo(SUMS_FILE)
            entry.size = len(content)
            archive.addfile(entry, BytesIO(content))
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.chmod(0o600)
        size = file.stat().st_size
        file.replace(target)
    return size


def restore(source: Path, state: Path) -> None:
    """Make ``state``, which must not exist or be empty, from what ``back_up`` wrote.

    Raises:
        ConfigError: ``state`` holds something, ``source`` is no whole backup, or something cannot be read or written.
    """
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        raise ConfigError(f"{state}: is not empty; choose a new folder")
    with _one_line(source):
        is_new = not state.exists()
        made = state / ".restoring"
        made.mkdir(parents=True, mode=0o700)
        try:
            with tarfile.open(source, "r:") as archive:
                archive.extractall(made, filter="data")
            _check(made, source)
            for path in sorted(made.iterdir(), key=lambda path: path.name == PLAN_FILE):  # the plan last
                path.replace(state / path.name)
        except (tarfile.TarError, EOFError) as error:
            raise ConfigError(f"{source}: not a whole backup ({error})") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
            if is_new and not any(state.iterdir()):
                state.rmdir()


def _check(made: Path, source: Path) -> None:
    """Raises ConfigError unless all files are there as they were, and then forgets their sums."""
    try:
        sums = json.loads((made / SUMS_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: not a whole backup (its end is missing)") from error
    for name, wanted in sums.items():
        path = made / name
        if not path.is_file() or _sum_of(path) != wanted:
            raise ConfigError(f"{source}: not a whole backup ({name} is damaged or missing)")
    (made / SUMS_FILE).unlink()


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _one_line(about: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or about}: {error.strerror or error}") from error


def _files(state: Path) -> Iterator[Path]:
    for path in sorted(state.rglob("*")):
        parts = path.relative_to(state).parts
        passing = path.suffix == ".pid" or any(path.name.endswith(f".db{end}") for end in DATABASE_SIDES)
        if parts[0] not in LEFT_OUT and not passing and path.is_file() and not path.is_symlink():
            yield path


def _copy_database(path: Path, copy: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: cannot be copied ({error})") from error


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    try:
        with path.open("rb") as content:
            archive.addfile(
                archive.gettarinfo(arcname=name, fileobj=content), content
            )  # as long as it is now
    except FileNotFoundError:
        return  # deleted meanwhile: it belonged to something finished


def _sums(file: Path) -> dict[str, str]:
    """SHA-256 of every file in an archive."""
    found = {}
    with tarfile.open(file) as archive:
        for member in archive:
            content = cast(BufferedReader, archive.extractfile(member))  # only files are added
            found[member.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found
