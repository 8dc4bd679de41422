"""A coordinator's folder as one file, also while the coordinator runs, and back."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from fedstill.cloud_server.journal.fleet_state import plan_of
from fedstill.common.errors import ConfigError
from fedstill.common.folder_lock import LOCK_FILE
from fedstill.common.run_layout import PLAN_FILE

DATABASE_SIDES = ("-wal", "-shm", "-journal")
LEFT_OUT = (LOCK_FILE, "superlink")
"""What the next start makes anew."""


def back_up(state: Path, target: Path) -> int:
    """Write the folder into a tar file, which replaces ``target`` at the end; returns its bytes.

    A SQLite database is copied at one moment. All other files are replaced as a whole whenever they change, or only
    grow at their end. A journal in another database is not in it.

    Raises:
        ConfigError: no coordinator's folder, or ``target`` lies in it.
        OSError: something cannot be read or written.
    """
    plan_of(state)
    if target.absolute().is_relative_to(state.absolute()):
        raise ConfigError(f"{target}: lies in the folder that it is to keep; choose another place")
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".backup-") as scratch:
        file = Path(scratch) / "state.tar"
        with tarfile.open(file, "w") as archive:
            for path in _files(state):
                name = str(path.relative_to(state))
                if path.suffix == ".db":
                    copy = Path(scratch) / "copy.db"
                    _copy_database(path, copy)
                    archive.add(copy, name)
                    copy.unlink()
                else:
                    _add(archive, path, name)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.chmod(0o600)
        size = file.stat().st_size
        file.replace(target)
    return size


def restore(source: Path, state: Path) -> None:
    """Make ``state``, which must not exist or be empty, from what ``back_up`` wrote.

    Raises:
        ConfigError: ``state`` holds something, or ``source`` is no backup.
        OSError: something cannot be read or written.
    """
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        raise ConfigError(f"{state}: is not empty; choose a new folder")
    made = state.parent / f".{state.name}.restoring"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True, mode=0o700)
    try:
        with tarfile.open(source) as archive:
            archive.extractall(made, filter="data")
        if not (made / PLAN_FILE).exists():
            raise ConfigError(f"{source}: holds no coordinator's folder")
        if state.exists():
            state.rmdir()
        made.replace(state)
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{source}: not a whole backup ({error})") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


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
            entry = archive.gettarinfo(arcname=name, fileobj=content)
            archive.addfile(entry, content)  # as many bytes as it had at this moment
    except FileNotFoundError:
        return  # deleted meanwhile: it belonged to something finished
