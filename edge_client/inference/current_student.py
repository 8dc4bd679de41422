"""The student that a device uses now, ready to classify. It is loaded again when another one is installed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip
from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_from_json
from fedstill.datasets.audiovisual.clip_tensors import ClipTensors, clip_tensors
from fedstill.datasets.audiovisual.spectrogram_numpy import audio_features
from fedstill.edge_client.folder import COMPRESSORS_FOLDER, FORMAT_FILE, SHELF_FOLDER
from fedstill.edge_client.inference.clip_files import read_clip
from fedstill.edge_client.inference.cloud_connection import CloudConnection
from fedstill.edge_client.inference.cloud_inference import CLOUD_PATIENCE_MS, EdgeInference, Mode, NoAnswer
from fedstill.edge_client.inference.cloud_stream import Address
from fedstill.edge_client.students.level_files import CompressedRuntime, read_compressors
from fedstill.edge_client.students.own_statistics import installed, stamp
from fedstill.edge_client.students.runtime_api import LoadStudent
from fedstill.edge_client.students.students import ModelStore

LOOK_SECONDS = 1.0


class NoStudent(DataError):
    """Nothing is installed yet; one line."""


@dataclass
class CurrentStudent:
    """Classifies media files with what lies in a device's folder.

    Args:
        folder: the device's.
        load: makes a runtime of a student.
        mode: where the head runs.
        objective_ms: from the clip to its answer.
        address: of the cloud's inference service; None if there is none.
        uploads_allowed: False if the owner forbids that features leave the device.
        closed: why nothing may be sent at the moment, in words; empty if it may.
        classified: told of every clip that has got its answer, with what the student saw of it.
    """

    folder: Path
    load: LoadStudent
    mode: Mode
    objective_ms: float
    address: Address | None
    uploads_allowed: bool = True
    closed: Callable[[], str] = str
    classified: Callable[[Clip, ClipTensors, ClipFormat], None] | None = None
    _making: threading.Lock = field(default_factory=threading.Lock)
    _inference: EdgeInference | None = None
    _connection: CloudConnection | None = None
    _version: str = ""
    _statistics: int = 0
    _class_names: tuple[str, ...] = ()
    """The student's own: the format already names the classes of the next run while this student still answers."""

    def classify(self, path: Path) -> dict[str, Any]:
        """One clip, by its main file: class, probability, path, rung, bytes, milliseconds, student, reason.

        ``face`` and ``speech`` say whether there is any, if this student is shown only that.

        Raises:
            NoStudent: the cloud has not installed one yet.
            DataError: the file is no clip.
            NoAnswer: mode ``cloud``, and the cloud does not answer, or may not be asked now.
        """
        wanted = self._format()
        with self._making:
            inference = self._ready()
        clip = read_clip(path, wanted.frames.count)
        made = clip_tensors(clip, wanted.audio, wanted.frames, audio_features)
        answer = inference.classify(made.audio[None], made.frames[None])
        if self.classified is not None:
            self.classified(clip, made, wanted)
        best = int(answer.probabilities.argmax())
        return {
            "class": self._class_names[best],
            "probability": round(float(answer.probabilities[best]), 4),
            "path": answer.route.path,
            "rung": answer.route.level_name,
            "bytes": answer.bytes,
            "milliseconds": round(answer.milliseconds, 1),
            "student": self._version[:12],
            "reason": answer.route.reason,
            **made.found,
        }

    def wait(self, stop: threading.Event) -> None:
        """Return when a student is installed, or ``stop`` is set; clips that arrive before have to wait."""
        model_store = ModelStore(self.folder / SHELF_FOLDER)
        while model_store.current() is None and not stop.wait(LOOK_SECONDS):
            continue

    def tend(self) -> None:
        """Call about once a second: the connection to the cloud ends while nothing may be sent."""
        if not self._making.acquire(blocking=False):
            return  # a connection is being made; the next look may end it
        try:
            if self._connection is not None and self.closed():
                self._inference = None
                self.close()
        finally:
            self._making.release()

    def close(self) -> None:
        """End the connection to the cloud."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _connects(self) -> bool:
        """Whether it asks the cloud whenever it may."""
        return self.address is not None and self.mode != "local"

    def _format(self) -> ClipFormat:
        try:
            return format_from_json((self.folder / FORMAT_FILE).read_text())
        except FileNotFoundError:
            raise NoStudent("no student yet: this device has not met its coordinator") from None

    def _ready(self) -> EdgeInference:
        student = ModelStore(self.folder / SHELF_FOLDER).current()
        if student is None:
            raise NoStudent("no student yet: the coordinator has not installed one on this device")
        closed = self.closed() if self._connects else ""
        if closed and self.mode == "cloud":
            raise NoAnswer(f"no answer from the cloud: {closed}")
        connected = self._connects and not closed
        statistics = stamp(self.folder, student.version)
        if (
            self._inference is None
            or (student.version, statistics) != (self._version, self._statistics)
            or connected != (self._connection is not None)
        ):
            self.close()
            compressors = read_compressors(self.folder / COMPRESSORS_FOLDER, student.version)
            student = installed(self.folder, student)
            runtime = CompressedRuntime(
                self.load(student.state, student.spec, student.class_names, student.version), compressors
            )
            if connected:
                assert self.address is not None
                self._connection = CloudConnection(self.address, student.version, student.class_names)
                self._connection.start()
                if self.mode == "cloud":  # it has no other way to an answer
                    self._connection.wait(CLOUD_PATIENCE_MS / 1000)
            self._inference = EdgeInference(
                runtime,
                self._connection,
                "local" if closed else self.mode,
                self.objective_ms,
                uploads_allowed=self.uploads_allowed,
            )
            self._version, self._class_names = student.version, student.class_names
            self._statistics = statistics
        return self._inference
