"""The device's own clips and those that it has learned from its watched folder, as one clip store.

It is written when either has changed, row by row, and mapped into memory like any other. So whoever reads a device's
clips need not know where they come from.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.capture_card import CARD_SIZE
from fedstill.datasets.audiovisual.clip import ClipInfo
from fedstill.datasets.audiovisual.store import (
    META_FILE,
    PROFILES_FILE,
    ClipStore,
    open_store,
    put_in_place,
    write_index,
)
from fedstill.edge_client.folder import JOINED_FOLDER, LEARNED_FOLDER
from fedstill.edge_client.inbox.learned_clips import LearnedClip, clips_kept, read_clip

LOG = logging.getLogger(__name__)

INDEX_FILE = "index.csv"
SPARE_BYTES = 10_000_000
"""So much of the disk is left to others."""
MARK = "joined"
"""In the store's description: of which clips it was made."""


def with_learned(own: ClipStore, folder: Path) -> ClipStore:
    """The device's own clips with those that it has learned; its own alone if there are none, or if they cannot be
    joined, which is a line in the log.

    A learned clip has neither a label nor a name, and is a recording of its own.
    """
    place, names = folder / JOINED_FOLDER, clips_kept(folder)
    if not names:
        shutil.rmtree(place, ignore_errors=True)
        return own
    mark = _mark(own, names)
    try:
        if (whole := _found(place, mark)) is not None:
            return whole
        # Read once, at most 100 MB: while they are joined, older ones may make way.
        found = ((path, read_clip(path)) for path in names)
        kept = [(path, clip) for path, clip in found if clip is not None and _fits(clip, own)]
        if len(kept) < len(names):
            LOG.warning("event=learned_clips_left_out count=%d", len(names) - len(kept))
        return _joined(own, kept, place, mark)
    except (OSError, DataError) as error:
        LOG.warning("event=learned_clips_not_joined reason=%s", json.dumps(str(error)))
        return own


def _mark(own: ClipStore, names: Sequence[Path]) -> str:
    stats = [(own.directory / name).stat() for name in (META_FILE, INDEX_FILE)]
    of_own = [str(own.directory), *(f"{stat.st_mtime_ns} {stat.st_size}" for stat in stats)]
    return sha256("\n".join([*of_own, *(path.name for path in names)]).encode()).hexdigest()


def _found(place: Path, mark: str) -> ClipStore | None:
    """The store that is there, if it is whole and of these clips."""
    try:
        meta = json.loads((place / META_FILE).read_text("utf-8"))
        return open_store(place) if meta[MARK] == mark else None
    except (OSError, ValueError, KeyError, TypeError):  # a DataError is a ValueError
        return None


def _fits(clip: LearnedClip, own: ClipStore) -> bool:
    """Whether it is of the form of the device's own clips."""
    return (clip.audio.shape, clip.frames.shape) == (own.audio.shape[1:], own.frames.shape[1:])


def _require_room(own: ClipStore, more: int, folder: Path) -> None:
    """Raise OSError if the disk is too small: a mapped file that does not fit ends its process instead."""
    arrays = own.audio, own.frames, own.profiles
    each = sum(array[:1].nbytes for array in arrays if array is not None)
    if shutil.disk_usage(folder).free < each * (len(own) + more) + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _joined(own: ClipStore, kept: Sequence[tuple[Path, LearnedClip]], place: Path, mark: str) -> ClipStore:
    _require_room(own, len(kept), place.parent)
    draft = place.with_name(f".{place.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(0o700)
    try:
        many, count = len(own), len(own) + len(kept)
        create = np.lib.format.open_memmap
        audio = create(draft / "audio.npy", "w+", np.float32, (count, *own.audio.shape[1:]))
        frames = create(draft / "frames.npy", "w+", np.uint8, (count, *own.frames.shape[1:]))
        audio[:many], frames[:many] = own.audio, own.frames
        profiles = None
        if own.profiles is not None:
            profiles = create(draft / PROFILES_FILE, "w+", np.float32, (count, CARD_SIZE))
            profiles[:many] = own.profiles
        for row, (_, clip) in enumerate(kept, many):
            audio[row], frames[row] = clip.audio, clip.frames
            if profiles is not None:
                profiles[row] = clip.profile
        names = [f"{LEARNED_FOLDER}/{path.stem.rpartition('-')[2]}" for path, _ in kept]
        write_index(draft / INDEX_FILE, [*own.info, *(ClipInfo(name, "private", "", None) for name in names)])
        meta = json.loads((own.directory / META_FILE).read_text("utf-8")) | {MARK: mark}
        (draft / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        put_in_place(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return open_store(place)
