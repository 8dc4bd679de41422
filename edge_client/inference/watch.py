"""Classify every clip that arrives in a folder, once each, with one JSON line per clip; or classify named clips.

A file is read when several looks at the folder found it unchanged, and its answer counts if it is unchanged afterwards.
So a file that is still being written is never half-read. It is safest to copy under a temporary name and to rename when
complete. Answered clips are recorded on disk, so a restart repeats nothing.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from fedstill.edge_client.inference.clip_files import clips_among, files_of_clip
from fedstill.edge_client.inference.cloud_inference import NoAnswer

LOG = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SETTLED = 3
"""Looks that must find a clip unchanged."""
SETTLED_EMPTY = 20
"""The same for a clip with an empty file, which has probably just been created."""
LOG_FILE = "watched.jsonl"

Classify = Callable[[Path], dict[str, Any]]
"""A clip's main file -> class, probability, path, rung, bytes, milliseconds, student."""
Look = tuple[tuple[str, int, int], ...]
"""Of each file of a clip: name, size and time of the last change."""


class WatchError(ValueError):
    """A folder that cannot be watched, or a damaged watch log; one line."""


class WatchLog:
    """Names of the clips that already have their line; survives kill -9 at any moment.

    The line is written before its name is recorded. A kill exactly between the two repeats that one line after the
    restart; the other order could lose it.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / LOG_FILE
        state.mkdir(parents=True, exist_ok=True)
        self._done = self._read()

    def __contains__(self, clip: str) -> bool:
        return clip in self._done

    def add(self, clip: str) -> None:
        """Record a clip as answered, on disk before this returns."""
        self._done.add(clip)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clip) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> set[str]:
        if not self._path.exists():
            return set()
        lines = self._path.read_bytes().split(b"\n")
        torn = lines.pop()  # empty, or the part of the last line that a kill left
        try:
            done = {json.loads(line) for line in lines}
        except ValueError as error:
            raise WatchError(f"{self._path}: damaged: remove it to classify all clips again") from error
        if torn:
            with self._path.open("r+b") as file:
                file.truncate(self._path.stat().st_size - len(torn))
        return done


def run_watch(
    classify: Classify,
    folder: Path,
    state: Path,
    out: TextIO,
    stop_event: threading.Event,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Watch until ``stop_event`` is set; the current clip is finished first.

    Args:
        classify: called with a clip's main file; what it raises becomes a line with ``error``.
        folder: where clips arrive; its sub-folders are not watched, since they may hold a clip's images.
        state: the agent's folder, for the watch log.
        out: gets one JSON line per clip, flushed.
        stop_event: set it (from a signal handler) to end.
        poll_seconds: between two looks.

    Raises:
        WatchError: no such folder, it disappears while it is watched, or a damaged watch log.
    """
    if not folder.is_dir():
        raise WatchError(f"{folder}: is no folder: make it, or watch another")
    answered = WatchLog(state)
    seen: dict[str, tuple[Look, int]] = {}
    while not stop_event.is_set():
        seen = _counted(seen, {name: look for name, look in _look(folder).items() if name not in answered})
        for name in _settled(seen):
            if stop_event.is_set():
                return
            line = _line(classify, folder / name)
            if _look(folder).get(name) == seen[name][0]:  # else it changed, or disappeared, while it was read
                _write(out, line)
                answered.add(name)
        stop_event.wait(poll_seconds)


def infer_files(classify: Classify, paths: Iterable[Path], out: TextIO) -> bool:
    """One JSON line per named clip, in their order; whether all of them were classified."""
    fine = True
    for path in paths:
        line = _line(classify, path)
        fine &= "error" not in line
        _write(out, line)
    return fine


def _line(classify: Classify, path: Path) -> dict[str, Any]:
    try:
        files_of_clip(path)
        return {"clip": path.name, **classify(path)}
    except (ValueError, OSError, NoAnswer) as error:  # DataError is a ValueError
        LOG.warning("event=clip_failed clip=%s reason=%s", path.name, error)
        return {"clip": path.name, "error": str(error).splitlines()[0]}
    except Exception as error:  # a defect of ours that one clip triggers must not stop the others
        LOG.exception("event=clip_broke_us clip=%s", path.name)
        return {"clip": path.name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _write(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def _look(folder: Path) -> dict[str, Look]:
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
        except FileNotFoundError:
            continue  # renamed or removed between listing and looking
        found[name] = tuple(
            (part.name, stat.st_size, stat.st_mtime_ns) for part, stat in zip(parts, stats, strict=True)
        )
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
