"""Clips of the watched folder that join the device's own: kept as a student sees them, once they were answered.

What is kept are the inputs that the clip made and how it was recorded, not its files. So neither an archive nor
``--delete`` takes a clip away, nothing is decoded twice, and a clip has a known size. The newest ones stay. They never
travel: the next summary of the device counts them, as it counts its other clips.

Folder ``learned`` of the device is the owner's word: while it is there, clips are kept and used.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.common.atomic_files import PRIVATE, remove_parts, replace_file
from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.capture_card import CARD_SIZE, profile
from fedstill.datasets.audiovisual.clip import Clip
from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_from_json
from fedstill.datasets.audiovisual.clip_tensors import ClipTensors
from fedstill.datasets.audiovisual.specs import spec_values
from fedstill.edge_client.folder import FORMAT_FILE, JOINED_FOLDER, LEARNED_FOLDER

LOG = logging.getLogger(__name__)

MOST_CLIPS, MOST_BYTES = 256, 100_000_000
"""The oldest ones make way, so that the folder is never larger by more than one clip."""
SUFFIX = ".npz"
DIGITS = 16
NAME = re.compile(rf"[0-9a-f]{{{DIGITS}}}-[0-9a-f]+\{SUFFIX}")
OWNERS_ONLY = 0o700
SHOWN = 5


@dataclass(frozen=True)
class LearnedClip:
    """One clip as it is kept.

    Attributes:
        audio: float32 (bins, steps).
        frames: uint8 (count, channels, size, size).
        profile: float32 (CARD_SIZE,), how it was recorded.
    """

    audio: npt.NDArray[np.float32]
    frames: npt.NDArray[np.uint8]
    profile: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kept:
    """How many clips are kept, in which format soever, and their bytes on disk."""

    clips: int
    bytes: int


def learn(folder: Path, wanted: bool) -> Kept | None:
    """Follow the owner's word at a start of the agent.

    Returns:
        What is kept and goes on being used; if clips are not wanted, what has just been forgotten, None if that is
        nothing.

    Raises:
        OSError: the folder cannot be made or removed.
    """
    place = folder / LEARNED_FOLDER
    for draft in folder.glob(f".{JOINED_FOLDER}.*"):  # of a process that was killed
        shutil.rmtree(draft, ignore_errors=True)
    if wanted:
        place.mkdir(OWNERS_ONLY, parents=True, exist_ok=True)
        remove_parts(place)
        return kept(folder)
    before = kept(folder)
    if place.is_symlink():
        place.unlink()
    elif before is not None:
        _forget(folder)
    if (folder / JOINED_FOLDER).is_symlink():
        (folder / JOINED_FOLDER).unlink()
    elif (folder / JOINED_FOLDER).is_dir():
        shutil.rmtree(folder / JOINED_FOLDER)
    return before if before and before.clips else None


def _forget(folder: Path) -> None:
    """Delete the clips that are kept, and their folder unless somebody else's files are in it."""
    place = folder / LEARNED_FOLDER
    remove_parts(place)
    for path, _, _ in _files(folder):
        path.unlink(missing_ok=True)
    if left := sorted(path.name for path in place.iterdir()):
        LOG.warning("event=learned_folder_stays holds=%s", json.dumps(left[:SHOWN]))
    else:
        place.rmdir()


def kept(folder: Path) -> Kept | None:
    """Of a device's folder; None if clips of the watched folder are not among the device's."""
    if not (folder / LEARNED_FOLDER).is_dir():
        return None
    files = _files(folder)
    return Kept(len(files), sum(size for _, _, size in files))


def clips_kept(folder: Path) -> list[Path]:
    """Those of the coordinator's present format, by name; none without the owner's word, or before a format is known.

    A clip of another format cannot be used: its files may be gone.
    """
    try:
        key = _key(format_from_json((folder / FORMAT_FILE).read_text("utf-8")))
    except (OSError, DataError):
        return []
    return sorted(path for path, _, _ in _files(folder) if path.name.startswith(f"{key}-"))


def read_clip(path: Path) -> LearnedClip | None:
    """A clip that is kept; None if its file is damaged or gone."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = LearnedClip(arrays["audio"], arrays["frames"], arrays["profile"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    forms = found.audio.dtype == np.float32, found.frames.dtype == np.uint8, found.profile.dtype == np.float32
    return found if all(forms) and found.profile.shape == (CARD_SIZE,) else None


class ClipKeeper:
    """Keeps answered clips of one device; for one thread.

    Args:
        folder: the device's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: tuple[Clip, ClipTensors, ClipFormat] | None = None

    def classified(self, clip: Clip, made: ClipTensors, wanted: ClipFormat) -> None:
        """A clip has been classified; whether its answer counts is not known yet."""
        self._last = clip, made, wanted

    def answered(self) -> None:
        """The answer of the clip that was classified last counts: keep it. What cannot be kept is a line in the log."""
        last, self._last = self._last, None
        if last is None:
            return
        try:
            self._keep(*last)
        except OSError as error:  # such as a full disk: the clip is answered, and that is what counts
            LOG.warning("event=clip_not_kept reason=%s", json.dumps(error.strerror or str(error)))

    def _keep(self, clip: Clip, made: ClipTensors, wanted: ClipFormat) -> None:
        waveform = clip.audio if clip.sample_rate else None
        recorded = profile(waveform, clip.sample_rate, wanted.audio.sample_rate, made.frames)
        audio, frames = np.ascontiguousarray(made.audio), np.ascontiguousarray(made.frames)
        digest = sha256(audio.tobytes() + frames.tobytes()).hexdigest()[:DIGITS]
        content = io.BytesIO()
        np.savez(content, audio=audio, frames=frames, profile=recorded)
        place = self._folder / LEARNED_FOLDER
        path = place / f"{_key(wanted)}-{digest}{SUFFIX}"
        replace_file(path, content.getvalue(), PRIVATE)
        latest = max((changed for other, changed, _ in _files(self._folder) if other != path), default=0)
        if path.stat().st_mtime_ns <= latest:  # the clock went back: it is the newest all the same
            os.utime(path, ns=(latest + 1, latest + 1))
        newest_first = sorted(_files(self._folder), key=lambda one: (one[1], one[0]), reverse=True)
        size = 0
        for number, (path, _, bytes_) in enumerate(newest_first):
            size += bytes_
            if number >= MOST_CLIPS or size > MOST_BYTES:
                path.unlink(missing_ok=True)


def _key(wanted: ClipFormat) -> str:
    """Of clips that are seen alike: the names of their files begin with it."""
    specs = [spec_values(wanted.audio), spec_values(wanted.frames)]
    return sha256(json.dumps(specs, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _files(folder: Path) -> list[tuple[Path, int, int]]:
    """Path, time of the last change and size of every clip that is kept."""
    found = []
    for path in (folder / LEARNED_FOLDER).glob(f"[!.]*{SUFFIX}"):
        if NAME.fullmatch(path.name) is None:  # somebody else's
            continue
        try:
            stat = path.stat()
        except OSError:  # it has just made way
            continue
        found.append((path, stat.st_mtime_ns, stat.st_size))
    return found
