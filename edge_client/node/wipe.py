"""Forgetting: a device's folder is deleted, as before it is sold or given to somebody else."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.errors import ConfigError
from fedstill.common.folder_lock import sole_user
from fedstill.edge_client.folder import CLIPS_FILE, FORMAT_FILE, SHELF_FOLDER


@dataclass(frozen=True)
class Kept:
    """What a folder holds."""

    files: int
    bytes: int


def what_is_kept(folder: Path) -> Kept:
    """Of an agent's folder.

    Raises:
        ConfigError: it is none, and so nothing of ours to delete.
    """
    if not any((folder / name).exists() for name in (CLIPS_FILE, FORMAT_FILE, SHELF_FOLDER)):
        raise ConfigError(f"{folder}: not an agent's folder: nothing is deleted")
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return Kept(len(files), sum(path.stat().st_size for path in files))


def wipe_folder(folder: Path) -> None:
    """Delete the folder; what links in it point to stays.

    Raises:
        ConfigError: it is no agent's folder.
        FolderInUse: its agent runs.
        OSError: something cannot be deleted.
    """
    what_is_kept(folder)
    with sole_user(folder):
        shutil.rmtree(folder)
