"""Classify every clip that arrives in a folder, once each, with one JSON line per clip; or classify named clips.

A file is read when several looks at the folder found it unchanged, and its answer counts if it is unchanged afterwards.
So a file that is still being written is never half-read. It is safest to copy under a temporary name and to rename when
complete. Answered clips are recorded on disk, so a restart repeats nothing. What will never be answered is logged once.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fedstill.common.errors import DataError, first_line
from fedstill.edge_client.inference.clip_files import clips_among, files_of_clip
from fedstill.edge_client.inference.cloud_inference import NoAnswer
from fedstill.edge_client.inference.finished_clips import Finish
from fedstill.edge_client.inference.left_out import LeftOut, in_no_clip
from fedstill.edge_client.inference.watch_log import Look, WatchError, WatchLog, digest_of

LOG = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SETTLED = 3
"""Looks that must find a clip unchanged."""
SETTLED_EMPTY = 20
"""The same for a clip with an empty file, which has probably just been created."""
FULL_LOOK_SECONDS = 5.0
"""A folder in which nothing was added, removed or renamed, and nothing waits, is looked through no more often."""
AGAIN_SECONDS = 60.0
"""After which an answered clip that could not be moved or deleted is tried again."""
SCHEMA = 1
"""Of the lines; a key may be added without another number."""

Classify = Callable[[Path], dict[str, Any]]
"""A clip's main file -> class, probability, path, rung, bytes, milliseconds, student."""
FULL_SECONDS = 10.0
"""After which a line that could not be written is tried again."""


class Lines(Protocol):
    """Where the lines go: ``StdoutLines``, a ``ResultsFile``, or a stream.

    A line that raises OSError must leave nothing behind: it is written again.
    """

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class Seen(NamedTuple):
    """A clip that waits: how it looked, its files, and how many looks in a row found it so."""

    look: Look
    files: tuple[Path, ...]
    times: int


def run_watch(
    classify: Classify,
    folder: Path,
    state: Path,
    out: Lines,
    stop_event: threading.Event,
    poll_seconds: float = POLL_SECONDS,
    finish: Finish | None = None,
    answered_well: Callable[[], None] | None = None,
) -> None:
    """Watch until ``stop_event`` is set; the current clip is finished first.

    Args:
        classify: called with a clip's main file; what it raises becomes a line with ``error``.
        folder: where clips arrive; its sub-folders are not watched, since they may hold a clip's images.
        state: the agent's folder, for the watch log.
        out: gets one JSON line per clip, flushed. A line that cannot be written is tried again, with its clip.
        stop_event: set it (from a signal handler) to end.
        poll_seconds: between two looks.
        finish: called with the files of an answered clip, such as ``finished_clips.archiving``; None leaves them.
        answered_well: called after the line of a clip that has a class, before the clip is recorded as answered.

    Raises:
        WatchError: no such folder, it disappears while it is watched, or a damaged watch log.
    """
    if not folder.is_dir():
        raise WatchError(f"{folder}: is no folder: make it, or watch another")
    answered = WatchLog(state)
    seen: dict[str, Seen] = {}
    left_out = LeftOut()
    tried: dict[str, float] = {}  # when an answered clip was last found, and to be finished
    looked, full_at = -1, 0.0
    while not stop_event.is_set():
        changed = _changed(folder)
        if seen or changed != looked or time.monotonic() >= full_at:
            looked, full_at = changed, time.monotonic() + FULL_LOOK_SECONDS
            listing = _listing(folder)
            found = _look(listing)
            new = {name: one for name, one in found.items() if not _known(answered, name, *one)}
            seen = _counted(seen, new)
            used = frozenset(file for _, files in found.values() for file in files)
            rest = {name: path for name, path in in_no_clip(listing, used).items() if not answered.has(name)}
            left_out.look(rest, frozenset(Path(name).stem for name in found), time.monotonic())
            if finish is not None:
                waiting = frozenset(file for one in seen.values() for file in one.files)
                for name, (_, files) in found.items():
                    if name not in new and answered.is_same(name) and _is_due(tried, name):
                        _finish(finish, tuple(file for file in files if file not in waiting))
        users = Counter(file for one in seen.values() for file in one.files)
        for name in _settled(seen):
            if stop_event.is_set():
                return
            line = _line(classify, folder / name)
            look, files, _ = seen[name]
            if _is_unchanged(folder / name, seen[name]):  # else it changed, or disappeared, while it was read
                if not _written(out, line):
                    stop_event.wait(FULL_SECONDS)
                    break
                if answered_well is not None and "error" not in line:
                    answered_well()
                users.subtract(files)
                if _noted(answered, name, look, files) and finish is not None:
                    _finish(finish, tuple(file for file in files if not users[file]))
        stop_event.wait(poll_seconds)


def _is_due(tried: dict[str, float], name: str) -> bool:
    """Whether an answered clip that is still there is to be finished, for the first time or once more."""
    now = time.monotonic()
    due = now >= tried.get(name, -AGAIN_SECONDS) + AGAIN_SECONDS
    if due:
        tried[name] = now
    return due


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
        LOG.warning("event=clip_gone clip=%s reason=%s", json.dumps(name), error.strerror or error)
        digest = ""  # its name alone is known, then
    answered.add(name, look, digest)
    return bool(digest)


def _finish(finish: Finish, files: tuple[Path, ...]) -> None:
    if not files:
        return
    try:
        finish(files)
    except OSError as error:  # the clip is answered; its files stay, and are not answered again
        LOG.warning("event=clip_stays clip=%s reason=%s", json.dumps(files[0].name), error.strerror or error)


def infer_files(classify: Classify, paths: Iterable[Path], out: Lines) -> bool:
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
        LOG.warning("event=clip_failed clip=%s reason=%s", json.dumps(path.name), error)
        return {"clip": path.name, "error": first_line(error)}
    except Exception as error:  # a defect of ours that one clip triggers must not stop the others
        LOG.exception("event=clip_broke_us clip=%s", json.dumps(path.name))
        return {"clip": path.name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _written(out: Lines, line: dict[str, Any]) -> bool:
    """Whether the line is out. Without it the clip is not answered, so a full disk loses nothing."""
    try:
        _write(out, line)
    except BrokenPipeError:  # nobody reads: that does not pass
        raise
    except OSError as error:
        clip, reason = json.dumps(line["clip"]), json.dumps(error.strerror or str(error))
        LOG.warning("event=results_not_written clip=%s reason=%s", clip, reason)
        return False
    return True


def _write(out: Lines, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def _changed(folder: Path) -> int:
    """When something was last added to the folder, removed or renamed; -2 if it is gone."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return -2


def _listing(folder: Path) -> dict[str, Path]:
    """What is in the folder, by name. Raises WatchError if it is gone."""
    try:
        return {path.name: path for path in folder.iterdir()}
    except FileNotFoundError as error:
        raise WatchError(f"{folder}: is gone: bring it back, or watch another") from error


def _look(listing: dict[str, Path]) -> dict[str, tuple[Look, tuple[Path, ...]]]:
    """The complete clips in a folder, by the name of their main file."""
    try:
        clips = clips_among(listing.values())
    except FileNotFoundError:
        return {}  # a folder of images disappeared during the listing: the next look decides
    looks = {name: (_look_at(files), files) for name, files in clips.items()}
    return {name: (look, files) for name, (look, files) in looks.items() if look and files[0].is_file()}


def _look_at(files: tuple[Path, ...]) -> Look:
    """The files of a clip as they are now.

    Empty for what is no clip, such as an empty folder or a link to itself that is named like one, for files that may
    not be looked at, and for those that were renamed or removed meanwhile.
    """
    try:
        parts = [part for file in files for part in (sorted(file.iterdir()) if file.is_dir() else [file])]
        stats = [part.stat() for part in parts]
    except OSError:
        return ()
    return tuple((part.name, stat.st_size, stat.st_mtime_ns) for part, stat in zip(parts, stats, strict=True))


def _is_unchanged(path: Path, seen: Seen) -> bool:
    """Whether a clip still has the same files, without a look at all the others."""
    try:
        return files_of_clip(path) == seen.files and _look_at(seen.files) == seen.look
    except (DataError, OSError):
        return False


def _counted(seen: dict[str, Seen], now: dict[str, tuple[Look, tuple[Path, ...]]]) -> dict[str, Seen]:
    """Each clip of this look, with the number of looks in a row that found it unchanged."""
    return {
        name: Seen(look, files, seen[name].times + 1 if name in seen and seen[name].look == look else 1)
        for name, (look, files) in now.items()
    }


def _settled(seen: dict[str, Seen]) -> list[str]:
    """Clips that can be read, oldest first."""
    ready = [
        name
        for name, one in seen.items()
        if one.times >= (SETTLED if all(size for _, size, _ in one.look) else SETTLED_EMPTY)
    ]
    return sorted(ready, key=lambda name: max(changed for _, _, changed in seen[name].look))
