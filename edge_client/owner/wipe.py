"""Forgetting: what an agent keeps is deleted, as before a device is sold or given to somebody else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.errors import ConfigError
from fedstill.common.folder_lock import LOCK_FILE, sole_user
from fedstill.common.run_layout import PLAN_FILE
from fedstill.edge_client.folder import (
    ALLOWED_FILE,
    BAD_CLIPS_FILE,
    BEGUN_FILE,
    CHANGE_FILE,
    CLIPS_FILE,
    COMPRESSORS_FOLDER,
    DATA_FOLDER,
    DECODING_FILE,
    EXPECTED_FILE,
    EXPORT_FOLDER,
    FORMAT_FILE,
    JOINED_FOLDER,
    KEEP_FILE,
    KNOWN_CLIPS_FILE,
    LEARNED_FOLDER,
    LINK_FILE,
    METERED_FILE,
    PAUSE_FILE,
    ROOTS_FILE,
    SHELF_FOLDER,
    STATISTICS_FOLDER,
    TOKEN_FILE,
    WATCHED_FILE,
)
from fedstill.edge_client.privacy import upload_log
from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE
from fedstill.edge_client.privacy.privacy_policy import POLICY_FILE

OURS = (
    DATA_FOLDER, BAD_CLIPS_FILE, DECODING_FILE, FORMAT_FILE, SHELF_FOLDER, COMPRESSORS_FOLDER,
    STATISTICS_FOLDER, EXPORT_FOLDER,
    LEDGER_FILE, POLICY_FILE, upload_log.LOG_FILE, WATCHED_FILE, "canaries", "evaluations", "flower", "supernode",
    "warm_start", KNOWN_CLIPS_FILE, BEGUN_FILE, CHANGE_FILE, PAUSE_FILE, ALLOWED_FILE,
    LEARNED_FOLDER, JOINED_FOLDER, KEEP_FILE, LINK_FILE, EXPECTED_FILE, METERED_FILE, TOKEN_FILE, ROOTS_FILE,
)  # fmt: skip
"""Names in an agent's folder; of logs and databases, those that begin so, too."""


@dataclass(frozen=True)
class Kept:
    """What an agent keeps in its folder."""

    files: int
    bytes: int


def what_is_kept(folder: Path) -> Kept:
    """Of an agent's folder.

    Raises:
        ConfigError: it is none, and so nothing of ours to delete.
    """
    if not (folder / CLIPS_FILE).is_file() or (folder / PLAN_FILE).exists():
        raise ConfigError(f"{folder}: not an agent's folder: nothing is deleted")
    own = [path for path in _ours(folder) if not path.is_symlink()]
    inside = [part for path in own for part in ([path] if path.is_file() else path.rglob("*"))]
    sizes = [path.stat().st_size for path in inside if path.is_file() and not path.is_symlink()]
    return Kept(1 + len(sizes), (folder / CLIPS_FILE).stat().st_size + sum(sizes))


def wipe_folder(folder: Path) -> list[str]:
    """Delete what an agent keeps, and the folder if nothing else is in it; what links point to stays.

    The file by which an agent's folder is known goes last: what was interrupted can be done again.

    Returns:
        The names that are not ours, and stay.

    Raises:
        ConfigError: it is no agent's folder, or something cannot be deleted.
        FolderInUse: its agent runs.
    """
    what_is_kept(folder)
    with sole_user(folder):
        try:
            for path in _ours(folder):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            (folder / CLIPS_FILE).unlink()
            (folder / LOCK_FILE).unlink()
            left = sorted(path.name for path in folder.iterdir())
            if not left and not folder.is_symlink() and folder.resolve() != Path.cwd():
                folder.rmdir()
        except OSError as error:
            raise ConfigError(f"{error.filename or folder}: cannot be deleted ({error.strerror})") from error
    return left


def _ours(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        name = path.name.removeprefix(".")
        if path.name != CLIPS_FILE and any(
            name == one or name.startswith((f"{one}.", f"{one}-")) for one in OURS
        ):
            yield path
