"""The students that a device has: one file per version, named by its content, and a pointer to the one in use.

After any interruption a device comes back with a whole student. Files appear by rename. The pointer moves by rename,
and only after the new student passed its check. A file whose content does not match its name is never used. Nothing
here needs torch.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from fedstill.common.atomic_files import PRIVATE, locked, remove_parts, replace_file
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.students.pointer import POINTER, read_pointer, student_file
from fedstill.models.weights.delta import MOST_BYTES, apply_update, content_hash
from fedstill.protos.messages import LONGEST_REASON, Student, WireError

log = logging.getLogger(__name__)

KEPT = 4
"""Versions kept beside the two installed ones and the one just used: bases for personalisations that run at the
time."""


@dataclass(frozen=True)
class StoredModel:
    """A student as a device has it: weights by name (read-only), specification as JSON, order of the logits."""

    version: str
    spec: str
    class_names: tuple[str, ...]
    state: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Installation:
    """How an installation went.

    Attributes:
        installed: whether the new student is the current one now.
        agreement: the result of the check, 0 if it could not be made.
        reason: empty, or in one line why the student was rolled back.
        current: the version in use now; empty if there is none.
    """

    installed: bool
    agreement: float
    reason: str
    current: str


Check = Callable[[StoredModel], float]
"""The share of canary clips on which the student agrees with the teacher, from 0 to 1."""


class NotInStore(Exception):
    """A message refers to something that this device does not have (any more); the cloud can send it.

    Args:
        item, version: as in ``messages.MissingDependency``.
    """

    def __init__(self, item: str, version: str) -> None:
        super().__init__(f"{item}: version {version[:12]} is not on this device")
        self.item, self.version = item, version


class ModelStore:
    """The folder ``directory`` of one device; several processes may use it at the same time.

    Args:
        kept: the most recently used versions to keep beside the two installed ones and the one just used.
        most_bytes: a larger student is refused.
    """

    def __init__(self, directory: Path, kept: int = KEPT, most_bytes: int = MOST_BYTES) -> None:
        self.directory, self.kept, self.most_bytes = directory, kept, most_bytes

    def student(self, message: Student) -> StoredModel:
        """The student that a message refers to: from the store, or rebuilt from the message and stored.

        Raises:
            NotInStore: the base of the update is not here, or its file is damaged.
            WireError: the update is damaged or its result does not match the stated version; nothing is stored.
            DeviceError: the disk is full or cannot be written; what was there stays.
        """
        with self._at_work():
            found = self._read(message.version)
            if found is None:
                found = self._rebuilt(message)
                self._write(found)
            elif (found.spec, found.class_names) != (message.spec, message.class_names):
                raise WireError("version: is known here with another spec or other class_names")
            now = time.time_ns()  # the clock of the file system ticks too slowly to order two messages
            os.utime(self._path(found.version), ns=(now, now))
            self._prune({found.version})
            return found

    def install(
        self, version: str, check: Check, minimum: float, ready: Callable[[StoredModel], None] | None = None
    ) -> Installation:
        """Make a stored version the current one, if it passes ``check`` as read back from the disk.

        The check runs before the pointer moves, so that no kill can leave an unchecked student in use.

        Args:
            minimum: least agreement; below it the previous student stays current.
            ready: called with a student that has passed, before it is in use; if it raises, nothing has changed.

        Raises:
            DeviceError: the version is not (or no longer) in the store, or the disk is full or cannot be written.
        """
        candidate = self.load(version)
        try:
            agreement, reason = check(candidate), ""
        except ValueError as error:  # for example a specification that its weights do not fit
            agreement, reason = 0.0, " ".join(str(error).split())[:LONGEST_REASON]
        if not reason and not agreement >= minimum:
            reason = (
                f"agrees with the teacher on {agreement:.0%} of the canary clips, {minimum:.0%} are needed"
            )
        if not reason and ready is not None:
            ready(candidate)
        with self._at_work():
            current, previous = read_pointer(self.directory)
            if not reason and version != current:
                pointer = {"current": version, "previous": current}
                replace_file(self.directory / POINTER, json.dumps(pointer).encode(), PRIVATE)
                current, previous = version, current
            self._prune({version, previous})
        if reason:
            log.warning(
                "student rolled back version=%s current=%s reason=%r", version[:12], current[:12], reason
            )
        else:
            log.info("student installed version=%s agreement=%.3f", version[:12], agreement)
        return Installation(not reason, agreement, reason, current)

    def current(self) -> StoredModel | None:
        """The student in use; the previous one if the file was tampered with; None before the first installation.

        Raises:
            DeviceError: students were installed and none of them is readable.
        """
        with self._at_work():
            named = [version for version in read_pointer(self.directory) if version]
            for version in named:
                if found := self._read(version):
                    return found
                log.warning("student unusable version=%s: the one before it is used", version[:12])
        if named:
            raise DeviceError(
                "students: no installed student is readable; wait for the next one from the cloud"
            )
        return None

    def load(self, version: str) -> StoredModel:
        """A version as read from the disk. Raises DeviceError if it is missing or damaged."""
        with self._at_work():
            found = self._read(version)
        if found is None:
            raise DeviceError(f"students: version {version[:12]} is not on this device, or damaged")
        return found

    def versions(self) -> list[str]:
        """The stored versions, most recently used last."""
        return [path.stem for path in self._files()]

    def _rebuilt(self, message: Student) -> StoredModel:
        base = None
        if message.base:
            held = self._read(message.base)
            if held is None:
                raise NotInStore("base", message.base)
            base = held.state
        try:
            state = apply_update(message.weights.tobytes(), base, self.most_bytes)
        except ValueError as error:
            raise WireError(f"weights: {error}") from error
        reached = content_hash(state, (message.spec, *message.class_names))
        if reached != message.version:
            raise WireError(f"version: the update leads to {reached[:12]}, not to {message.version[:12]}")
        return StoredModel(message.version, message.spec, message.class_names, state)

    def _write(self, student: StoredModel) -> None:
        about = {"spec": student.spec, "class_names": json.dumps(student.class_names)}
        replace_file(self._path(student.version), safetensors.numpy.save(dict(student.state), about), PRIVATE)

    def _read(self, version: str) -> StoredModel | None:
        """None if there is no such file; a damaged one is removed, so that it can be sent again."""
        path = self._path(version)
        if not path.exists():
            return None
        try:
            return _parsed(version, path.read_bytes())
        except ValueError as error:
            log.warning("student damaged version=%s reason=%r", version[:12], str(error))
            path.unlink()
            return None

    def _prune(self, needed: set[str]) -> None:
        """Drop all but the needed, the two installed and the last used versions, and what a kill left behind."""
        remove_parts(self.directory)
        spared = {*needed, *read_pointer(self.directory)}
        others = [path for path in self._files() if path.stem not in spared]
        for path in others[: max(0, len(others) - self.kept)]:
            path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)

    def _path(self, version: str) -> Path:
        return student_file(self.directory, version)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        try:
            with locked(self.directory):
                yield
        except OSError as error:
            raise DeviceError(
                f"students: {error.strerror or error} in the device's folder; the current student stays"
            ) from error


def _parsed(version: str, content: bytes) -> StoredModel:
    """A student file whose content matches its name. Raises ValueError."""
    try:
        state = safetensors.numpy.load(content)
        length = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + length])["__metadata__"]
        spec, class_names = about["spec"], tuple(json.loads(about["class_names"]))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no student file ({type(error).__name__})") from error
    if content_hash(state, (spec, *class_names)) != version:
        raise ValueError("the content is not what the name says")
    for value in state.values():
        np.ndarray.setflags(value, write=False)
    return StoredModel(version, spec, class_names, state)
