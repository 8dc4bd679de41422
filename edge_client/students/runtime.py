"""A student under onnxruntime, for a device that has no room for torch.

The files come from ``fedstill export``. The fp32 graphs hold no weights, so the same files also run any later
student of the same architecture, given as a plain numpy state dict; an int8 graph belongs to one student only.
Nothing here, nor in what this file imports, needs torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime import InferenceSession

from fedstill.common.export_manifest import (
    DESCRIPTION,
    ENCODERS,
    HEAD,
    INT8_ENCODERS,
    STATISTICS,
    ExportedStudent,
    compressor_file,
    from_json,
)
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.students import level_numpy
from fedstill.edge_client.students.runtime_api import FeatureArrays, OtherNetwork
from fedstill.models.audiovisual.levels import Precision
from fedstill.models.audiovisual.own_clips import FEWEST_CLIPS, OWN

State = Mapping[str, npt.NDArray[Any]]
FEATURES = ("audio_features", "visual_features")
BATCH = 64


@dataclass(frozen=True)
class ExportFolder:
    """The files of ``fedstill export``, checked against their hashes once."""

    directory: Path
    described: ExportedStudent

    @classmethod
    def open(cls, directory: Path) -> ExportFolder:
        """Read and check. Raises DeviceError in one line that says what to do."""
        try:
            described = from_json((directory / DESCRIPTION).read_text(encoding="utf-8"))
            for name, digest in described.files.items():
                if _hash(directory / name) != digest:
                    raise DeviceError(f"{directory / name}: is not what was exported: export it again")
        except FileNotFoundError as error:
            raise DeviceError(f"{error.filename}: no such file: make it with fedstill export") from error
        except DeviceError:
            raise
        except (OSError, ValueError) as error:
            raise DeviceError(f"{directory}: is no exported student ({error}): export it again") from error
        return cls(directory, described)

    def runtime(self, *, int8: bool = False) -> OnnxRuntime:
        """The exported student itself. Raises DeviceError if ``int8`` was not exported."""
        if int8 and INT8_ENCODERS not in self.described.files:
            raise DeviceError(f"{self.directory}: holds no int8 graph: export it with --int8")
        encoders = _session(self.directory / (INT8_ENCODERS if int8 else ENCODERS))
        compressors = {
            rate: _session(self.directory / compressor_file(rate)) for rate in self.described.rates
        }
        about = self.described
        return OnnxRuntime(
            encoders, _session(self.directory / HEAD), compressors, about, about.class_names, about.version
        )

    def load(self, state: State, spec: str, class_names: tuple[str, ...], version: str) -> OnnxRuntime:
        """Another student of this architecture, in fp32 and without compressors.

        Args:
            state: its state dict; what the graphs do not need is ignored.
            spec: JSON of its network specification.
            class_names: order of its logits.
            version: hash of its weights.

        Raises:
            OtherNetwork: the architecture differs from the exported one.
            ValueError: a tensor is missing or has another shape.
        """
        if json.loads(spec) != self.described.network:
            raise OtherNetwork(
                f"{self.directory}: was exported for another network than this student's: export it again"
            )
        kept = {name: _values(state, self.described.weights[name]) for name in (ENCODERS, HEAD)}
        encoders, head = (_session_with(self.directory / name, values) for name, values in kept.items())

        def statistics() -> InferenceSession | None:
            if STATISTICS not in self.described.files:
                if self.described.version:  # the owner's own export, which stays as it is
                    return None
                raise OtherNetwork(f"{self.directory}: has no graph for batch norm statistics")
            kept[STATISTICS] = _values(state, self.described.weights[STATISTICS])
            return _session_with(self.directory / STATISTICS, kept[STATISTICS])

        return OnnxRuntime(encoders, head, {}, self.described, class_names, version, kept, statistics)


class OnnxRuntime:
    """A Runtime (``runtime_api.py``) over three kinds of onnxruntime sessions."""

    def __init__(
        self,
        encoders: InferenceSession,
        head: InferenceSession,
        compressors: Mapping[float, InferenceSession],
        described: ExportedStudent,
        class_names: tuple[str, ...],
        version: str,
        kept: object = None,
        statistics: Callable[[], InferenceSession | None] = lambda: None,
    ) -> None:
        self.class_names, self.version = class_names, version
        self._kept = kept  # sessions use these values in place and do not own them
        self._statistics = statistics
        self._encoders, self._head, self._compressors = encoders, head, compressors
        self._described = described

    def features(self, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8]) -> FeatureArrays:
        """Audio float32 (n, bins, steps), frames uint8 (n, count, channels, size, size) -> (n, width) each.

        Raises:
            ValueError: the clips' shape differs from the exported student's.
        """
        about = self._described
        _require_shape("audio", audio, np.float32, about.audio_shape)
        _require_shape("frames", frames, np.uint8, about.frame_shape)
        if not len(audio):
            nothing = np.empty((0, about.feature_width), np.float32)
            return FeatureArrays(nothing, nothing)
        parts = [
            self._encoders.run(
                FEATURES, {"audio": audio[start : start + BATCH], "frames": frames[start : start + BATCH]}
            )
            for start in range(0, len(audio), BATCH)
        ]
        return FeatureArrays(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def logits(self, features: FeatureArrays) -> npt.NDArray[np.float32]:
        """The local joint head: float32 (n, classes)."""
        found: npt.NDArray[np.float32] = self._head.run(None, _as_inputs(features))[0]
        return found

    def compress(self, features: FeatureArrays, rate: float) -> FeatureArrays:
        """Features at one compression rate; the identity at rate 1. Raises ValueError for a rate not exported."""
        if rate == 1:
            return features
        if rate not in self._compressors:
            known = ", ".join(f"{one:g}" for one in (1.0, *self._compressors))
            raise ValueError(f"rate: {rate:g} has no compressor here (known: {known})")
        return FeatureArrays(*self._compressors[rate].run(None, _as_inputs(features)))

    def statistics(
        self, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8], weight: float
    ) -> dict[str, npt.NDArray[np.float32]]:
        """See ``runtime_api.DeviceRuntime``."""
        if len(audio) < FEWEST_CLIPS:
            raise ValueError(f"{len(audio)} clips: batch statistics need at least {FEWEST_CLIPS}")
        session = self._statistics()
        if session is None:
            return {}
        names = [output.name for output in session.get_outputs()]
        inputs = {"audio": audio, "frames": frames, "weight": np.array([weight], np.float32)}
        found = session.run(names, inputs)
        return {name.removeprefix(OWN): value for name, value in zip(names, found, strict=True)}

    def probabilities(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Softmax of (n, classes) logits."""
        return level_numpy.softmax(logits)

    def level_logits(
        self, features: FeatureArrays, rate: float, precision: Precision, weights: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float32]:
        """What the cloud would answer at one compression level: float32 (n, classes); ``weights`` as in an
        EvaluationRequest."""
        return level_numpy.level_logits(features, len(self.class_names), rate, precision, weights)


def _hash(path: Path) -> str:
    with path.open("rb") as file:  # piece by piece: a device has little memory
        return hashlib.file_digest(file, "sha256").hexdigest()


def _session(path: Path) -> InferenceSession:
    return InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])


def _session_with(path: Path, values: Mapping[str, onnxruntime.OrtValue]) -> InferenceSession:
    options = _options()
    options.add_external_initializers(list(values), list(values.values()))
    return InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _values(state: State, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, onnxruntime.OrtValue]:
    values = {}
    for name, shape in shapes.items():
        found = state.get(name)
        if found is None or found.shape != shape or found.dtype != np.float32:
            got = "missing" if found is None else f"{found.dtype} {found.shape}"
            raise ValueError(f"weights: {name} needs float32 {shape}, is {got}")
        values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(found))
    return values


def _options() -> onnxruntime.SessionOptions:
    """One thread: a real device has little compute, simulated ones share a machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _as_inputs(features: FeatureArrays) -> dict[str, npt.NDArray[np.float32]]:
    return dict(zip(FEATURES, features, strict=True))


def _require_shape(field: str, values: npt.NDArray[Any], dtype: npt.DTypeLike, clip: tuple[int, ...]) -> None:
    if values.dtype != np.dtype(dtype) or values.shape[1:] != clip:
        raise ValueError(
            f"{field}: needs {np.dtype(dtype).name} (clips, {', '.join(map(str, clip))}), "
            f"got {values.dtype} {values.shape}"
        )
