"""What left a device, for its owner: one line per answer to the cloud, written before it is sent, never its content."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fedstill.common.atomic_files import locked
from fedstill.protos.messages import (
    CLIPS_CHANGED,
    EvaluationResult,
    GraphsResult,
    Hello,
    InstallResult,
    MissingDependency,
    PrototypeRequest,
    PrototypeUpload,
    faults_in,
)

LOG_FILE = "uploads.jsonl"
MOST_BYTES = 1_000_000
"""Then the file is put aside, with ``.1`` at its end; so the log never takes more than twice as much."""


@dataclass(frozen=True)
class Sent:
    """One answer.

    Attributes:
        time: seconds since 1970.
        what: in words.
        bytes: of its content on the wire.
    """

    time: float
    what: str
    bytes: int


def note(folder: Path, request: object, answer: object, size: int) -> None:
    """Write down that this answer leaves the device.

    Args:
        folder: the device's.
        size: bytes of its content.

    Raises:
        OSError: it cannot be written; then nothing may be sent.
    """
    line = json.dumps(asdict(Sent(round(time.time(), 3), in_words(request, answer), size))) + "\n"
    path = folder / LOG_FILE
    with locked(folder):
        if path.exists() and path.stat().st_size + len(line) > MOST_BYTES:
            path.replace(path.with_name(f"{LOG_FILE}.1"))
        with path.open("a", encoding="utf-8") as file:
            file.write(line)


def read_log(folder: Path) -> list[Sent]:
    """Everything that is known to have left the device, oldest first; a line that a kill cut short is left out."""
    found = []
    for path in (folder / f"{LOG_FILE}.1", folder / LOG_FILE):
        for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else ():
            try:
                one = Sent(**json.loads(line))
                found.append(Sent(float(one.time), str(one.what), int(one.bytes)))
            except (ValueError, OverflowError, TypeError, RecursionError):
                continue
    return found


class UploadTail:
    """What has left a device since the last look, also if the log was put aside meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: Sent | None = None

    def new(self) -> list[Sent]:
        """Oldest first; at the first look everything that the log holds."""
        sent = read_log(self._folder)
        begin = len(sent) - sent[::-1].index(self._last) if self._last in sent else 0
        self._last = sent[-1] if sent else self._last
        return sent[begin:]


def in_words(request: object, answer: object) -> str:
    """What an answer tells the cloud."""
    if isinstance(answer, PrototypeUpload) and isinstance(request, PrototypeRequest):
        clips = int(answer.counts.sum())
        rows = {
            "histogram": "mean class probabilities and a histogram of confidences",
            "samples": "the class probabilities of every clip",
            "dp": f"{len(answer.counts)} rows of class probabilities with noise, epsilon {request.epsilon:g}",
        }.get(request.kind, f"{len(answer.counts)} mean rows of class probabilities")
        card = ", and how they were recorded" if len(answer.card) else ""
        return f"{rows} of {_number(clips, 'clip')}{card}"
    if isinstance(answer, EvaluationResult):
        right = f"how many of {_number(answer.total, 'labelled clip')} a student gets right"
        return right + _bad(answer.bad_clips)
    if isinstance(answer, InstallResult):
        used = "that a student is in use now" if answer.installed else "why a student is not used"
        return used + _bad(answer.bad_clips)
    if isinstance(answer, Hello):
        return f"that {'many of its clips are new' if answer.change == CLIPS_CHANGED else 'its newer clips differ'}"
    if isinstance(answer, GraphsResult):
        return "that graphs for its students have arrived"
    if isinstance(answer, MissingDependency):
        return f"that {answer.item} of a student must be sent"
    return type(answer).__name__


def _bad(bad_clips: tuple[str, ...]) -> str:
    count = sum(faults_in(bad_clips).values())
    return f", and that {_number(count, 'clip')} cannot be used, by kind of fault" if count else ""


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
