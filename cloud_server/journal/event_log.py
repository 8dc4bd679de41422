"""The run's event log: one JSON line per event in ``metrics.jsonl``, losses also as TensorBoard scalars.

The launcher follows the file to draw progress, and reads finished jobs from it; after an interruption the same file
shows what is already done. A line cut short by a kill, and one that is no event, is ignored.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from fedstill.cloud_server.journal.progress_pace import ProgressPace

METRICS_FILE = "metrics.jsonl"


MOST_BYTES = 10_000_000
"""Of the event log of a service, which never ends; then the file is put aside, with ``.1`` at its end."""


class Metrics:
    """Append-only and thread-safe.

    Args:
        work: the run directory.
        most_bytes: of the file, before it is put aside; 0: all events stay in one file, as a report needs them.
    """

    def __init__(self, work: Path, most_bytes: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path, self._most_bytes = work / METRICS_FILE, most_bytes
        _end_cut_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(work / "tensorboard"))
        self._lock = threading.Lock()
        self._pace = ProgressPace()

    def emit(self, event: str, **values: Any) -> None:
        """Append an event; the line is on disk when this returns."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        with self._lock:
            if self._most_bytes and self._file.tell() + len(line) > self._most_bytes:
                self._file.close()
                self._path.replace(self._path.with_name(f"{METRICS_FILE}.1"))
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(line + "\n")
            self._file.flush()

    def loss(self, event: str, curve: str, epoch: int, value: float, **values: Any) -> None:
        """An epoch's loss, as an event and as a point of the TensorBoard curve ``curve``."""
        self.emit(event, epoch=epoch, loss=value, **values)
        with self._lock:
            self._board.add_scalar(f"loss/{curve}", value, epoch)

    def progress(self, event: str, job: object, **values: Any) -> None:
        """Append an event about a job that goes on, unless one was appended in the last two seconds."""
        if self._pace.is_time(job):
            self.emit(event, **values)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_events(work: Path) -> Iterator[dict[str, Any]]:
    """All complete events of a run directory, oldest first; none if the run has not begun."""
    path = work / METRICS_FILE
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        yield from _events(lines)


class EventTail:
    """The events since the last look, without reading the whole event log again."""

    def __init__(self, work: Path, from_end: bool = False) -> None:
        self._path = work / METRICS_FILE
        self._offset = self._path.stat().st_size if from_end and self._path.exists() else 0

    def new(self) -> list[dict[str, Any]]:
        """Complete events that were written since the last call, oldest first."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._offset:  # put aside meanwhile
                self._offset = 0
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(_events(whole.decode("utf-8", "replace").split("\n")))


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Lines that a kill cut short are left out, and others that are no event."""
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str) and _is_time(event.get("time")):
            yield event


def _is_time(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        datetime.fromtimestamp(value)
    except (ValueError, OverflowError, OSError):
        return False
    return True


def _end_cut_line(path: Path) -> None:
    """Finish a half-written last line, so that the next event starts on its own."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
