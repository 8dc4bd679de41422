"""The clips of a real device, where its handlers look for them: ``STATE/data``, a clip store."""

from __future__ import annotations

import os
from pathlib import Path

from fedstill.datasets.clip import DataError
from fedstill.datasets.store import open_store


def use_clips(data: Path, state: Path) -> None:
    """Let the state folder's ``data`` be the prepared clips in ``data``.

    Raises:
        DataError: there is no clip store.
    """
    if not data.exists():
        raise DataError(f"{data}: no such file or folder; give --data a manifest.csv or a prepared folder")
    open_store(data)
    state.mkdir(parents=True, exist_ok=True)
    draft = state / f".data.{os.getpid()}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(data.resolve())
    draft.replace(state / "data")
