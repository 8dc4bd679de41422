"""Classify every clip that arrives in a folder, once each, with one JSON line per clip; or classify named clips.

A file is read when several looks at the folder found it unchanged, and its answer counts if it is unchanged afterwards.
So a file that is still being written is never half-read. It is safest to copy under a temporary name and to rename when
complete. Answered clips are recorded on disk, so a restart repeats nothing.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from fedstill.edge_client.inference.clip_files import clips_among, files_of_clip
from fedstill.edge_client.inference.cloud_inference import NoAnswer
from fedstill.edge_client.inference.watch_log import Look, WatchError, WatchLog, digest_of

LOG = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SETTLED = 3
"""Looks that must find a clip unchanged."""
SETTLED_EMPTY = 20
"""The same for a clip with an empty file, which has probably just been created."""
FULL_LOOK_SECONDS = 5.0
"""A folder in which nothing was added, removed or renamed, and nothing waits, is looked through no more often."""
SCHEMA = 1
"""Of the lines; a key may be added without another number."""

Classify = Callable[[Path], dict[str, Any]]
"""A clip's main file -> class, probability, path, rung, bytes, milliseconds, student."""
Finish = Callable[[tuple[Path, ...]], None]
"""What becomes of the files of an answered clip."""


def run_watch(
    classify: Classify,
    folder: Path,
    state: Path,
    out: TextIO,
    stop_event: threading.Event,
    poll_seconds: float = POLL_SECONDS,
    finish: Finish | None = None,
) -> None:
    """Watch until ``stop_event`` is set; the current clip is finished first.

    Args:
        classify: called with a clip's main file; what it raises becomes a line with ``error``.
        folder: where clips arrive; its sub-folders are not watched, since they may hold a clip's images.
        state: the agent's folder, for the watch log.
        out: gets one JSON line per clip, flushed.
        stop_event: set it (from a signal handler) to end.
        poll_seconds: between two looks.
        finish: called with the files of an answered clip, such as ``archiving`` or ``delete``; None leaves them.

    Raises:
        WatchError: no such folder, it disappears while it is watched, or a damaged watch log.
    """
    if not folder.is_dir():
        raise WatchError(f"{folder}: is no folder: make it, or watch another")
    answered = WatchLog(state)
    seen: dict[str, tuple[Look, int]] = {}
    looked, full_at = -1, 0.0
    while not stop_event.is_set():
        changed = _changed(folder)
        if seen or changed != looked or time.monotonic() >= full_at:
            looked, full_at = changed, time.monotonic() + FULL_LOOK_SECONDS
            found = _look(folder)
            seen = _counted(
                seen,
                {
                    name: look
                    for name, (look, files) in found.items()
                    if not _known(answered, name, look, files)
                },
            )
        for name in _settled(seen):
            if stop_event.is_set():
                return
            line = _line(classify, folder / name)
            look, files = _look(folder).get(name, ((), ()))
            if look == seen[name][0]:  # else it changed, or disappeared, while it was read
                _write(out, line)
                if _noted(answered, name, look, files) and finish is not None:
                    _finish(finish, files)
        stop_event.wait(poll_seconds)


def _known(answered: WatchLog, name: str, look: Look, files: tuple[Path, ...]) -> bool:
    """Whether a clip was answered. One that has just gone, or may not be read, is asked about again."""
    try:
        return answered.knows(name, look, files)
    except OSError:
        return False


def _noted(answered: WatchLog, name: str, look: Look, files: tuple[Path, ...]) -> bool:
    """Record an answered clip; False if it has gone meanwhile."""
    try:
        digest = digest_of(files)
    except OSError as error:
        LOG.warning("event=clip_gone clip=%s reason=%s", name, error.strerror or error)
        digest = ""  # its name alone is known, then
    answered.add(name, look, digest)
    return bool(digest)


def archiving(folder: Path) -> Finish:
    """Moves answered clips into ``folder``; a name that is taken there gets a number. Raises WatchError."""
    if not folder.is_dir():
        raise WatchError(f"{folder}: is no folder: make it, or archive elsewhere")

    def archive(files: tuple[Path, ...]) -> None:
        number = 1
        while any((folder / _numbered(file, number)).exists() for file in files):
            number += 1
        for file in files:
            shutil.move(file, folder / _numbered(file, number))

    return archive


def delete(files: tuple[Path, ...]) -> None:
    """Removes an answered clip."""
    for file in files:
        shutil.rmtree(file) if file.is_dir() else file.unlink()


def _numbered(file: Path, number: int) -> str:
    return file.name if number == 1 else f"{file.stem}-{number}{file.suffix}"


def _finish(finish: Finish, files: tuple[Path, ...]) -> None:
    try:
        finish(files)
    except OSError as error:  # the clip is answered; its files stay, and are not answered again
        LOG.warning("event=clip_stays clip=%s reason=%s", files[0].name, error.strerror or error)


def infer_files(classify: Classify, paths: Iterable[Path], out: TextIO) -> bool:
    """One JSON line per named clip, in their order; whether all of them were classified."""
    fine = True
    for path in paths:
        line = _line(classify, path)
        fine &= "error" not in line
        _write(out, line)
    return fine


def _line(classify: Classify, path: Path) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {**_answer(classify, path), "time": now, "schema": SCHEMA}


def _answer(classify: Classify, path: Path) -> dict[str, Any]:
    try:
        files_of_clip(path)
        return {"clip": path.name, **classify(path)}
    except (ValueError, OSError, NoAnswer) as error:  # DataError is a ValueError
        LOG.warning("event=clip_failed clip=%s reason=%s", path.name, error)
        return {"clip": path.name, "error": (str(error).splitlines() or [type(error).__name__])[0]}
    except Exception as error:  # a defect of ours that one clip triggers must not stop the others
        LOG.exception("event=clip_broke_us clip=%s", path.name)
        return {"clip": path.name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _write(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def _changed(folder: Path) -> int:
    """When something was last added to the folder, removed or renamed; -2 if it is gone."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return -2


def _look(folder: Path) -> dict[str, tuple[Look, tuple[Path, ...]]]:
    """The complete clips in the folder, by the name of their main file. Raises WatchError if it is gone."""
    found = {}
    try:
        clips = clips_among(folder.iterdir())
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise WatchError(f"{folder}: is gone: bring it back, or watch another") from error
        return {}  # a folder of images disappeared during the listing: the next look decides
    for name, files in clips.items():
        try:
            parts = [part for file in files for part in (sorted(file.iterdir()) if file.is_dir() else [file])]
            stats = [part.stat() for part in parts]
        except OSError:
            continue  # renamed or removed between listing and looking, a link to itself, or not ours to read
        if not parts or not files[0].is_file():
            continue  # an empty folder or a pipe that is named like a clip
        look = tuple(
            (part.name, stat.st_size, stat.st_mtime_ns) for part, stat in zip(parts, stats, strict=True)
        )
        found[name] = look, files
    return found


def _counted(seen: dict[str, tuple[Look, int]], now: dict[str, Look]) -> dict[str, tuple[Look, int]]:
    """Each clip of this look, with the number of looks in a row that found it unchanged."""
    return {
        name: (look, seen[name][1] + 1 if name in seen and seen[name][0] == look else 1)
        for name, look in now.items()
    }


def _settled(seen: dict[str, tuple[Look, int]]) -> list[str]:
    """Clips that can be read, oldest first."""
    ready = [
        name
        for name, (look, times) in seen.items()
        if times >= (SETTLED if all(size for _, size, _ in look) else SETTLED_EMPTY)
    ]
    return sorted(ready, key=lambda name: max(changed for _, _, changed in seen[name][0]))
