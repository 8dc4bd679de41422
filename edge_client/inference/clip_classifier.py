"""A student for programs: one clip in, as files or as arrays, class probabilities out; all on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.audiovisual.clip_format import ClipFormat
from fedstill.datasets.audiovisual.clip_tensors import clip_tensors
from fedstill.datasets.audiovisual.spectrogram_numpy import audio_features
from fedstill.edge_client.inference.clip_files import decode_clip, read_clip
from fedstill.edge_client.students.runtime_api import DeviceRuntime

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Classification:
    """What a student makes of one clip.

    Attributes:
        label: the most probable class.
        probability: of that class, from 0 to 1.
        probabilities: float32 (classes,), in the order of ``class_names``; they sum to 1.
        class_names: all classes that the student knows.
    """

    label: str
    probability: float
    probabilities: npt.NDArray[np.float32]
    class_names: tuple[str, ...]


class ClipClassifier:
    """A student, ready to classify. ``fedstill.load_student`` makes one.

    Attributes:
        class_names: the classes, in the order of the probabilities.
        version: hash of the student's weights.
        clip_format: how sound and frames become the student's inputs.
    """

    def __init__(self, runtime: DeviceRuntime, clip_format: ClipFormat) -> None:
        self._runtime = runtime
        self.clip_format = clip_format
        self.class_names, self.version = runtime.class_names, runtime.version

    def classify(
        self, audio: npt.NDArray[np.floating], sample_rate: int, frames: npt.NDArray[np.uint8]
    ) -> Classification:
        """Classify a clip that is in memory.

        Args:
            audio: float32 (samples,), mono, in about [-1, 1]. Any length: a short clip is repeated, a long one cut.
                Of a student that was trained on ready feature matrices: float32 (features, time).
            sample_rate: of ``audio`` in Hz; it is resampled where the student wants another. 0 for a feature matrix.
            frames: uint8 (n, height, width, 3), RGB in time order, uniformly spaced over the sound, any size and any
                n >= 1.

        Raises:
            DataError: arrays of another shape or type, naming which.
        """
        return self.classify_clip(
            Clip(ClipInfo("in memory", "private", "", None), audio, frames, sample_rate)
        )

    def classify_file(self, path: StrPath, pictures: StrPath | None = None) -> Classification:
        """Classify a clip on disk.

        Args:
            path: a video with sound; or a sound file.
            pictures: of a sound file: a video, an image or a folder of images. By default what lies beside it under
                its name.

        Raises:
            DataError: the files are no clip or cannot be decoded, naming the file.
        """
        count = self.clip_format.frames.count
        if pictures is None:
            return self.classify_clip(read_clip(Path(path), count))
        return self.classify_clip(decode_clip(Path(path), Path(pictures), count))

    def classify_clip(self, clip: Clip) -> Classification:
        """Classify a clip of a dataset (``dataset.load(position)``). Raises DataError as ``classify``."""
        _check(clip)
        wanted = self.clip_format
        made = clip_tensors(clip, wanted.audio, wanted.frames, audio_features, wanted.feature_steps)
        audio, frames = made.audio, np.array(made.frames)  # torch wants what it may write to
        try:
            features = self._runtime.features(audio[None], frames[None])
        except ValueError as error:  # an exported student takes one shape only
            raise DataError(str(error)) from error
        probabilities = self._runtime.probabilities(self._runtime.logits(features))[0]
        best = int(probabilities.argmax())
        return Classification(
            self.class_names[best], float(probabilities[best]), probabilities, self.class_names
        )


def _check(clip: Clip) -> None:
    """What a waveform must be is said where it is transformed; the rest is said here."""
    frames = clip.frames
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise DataError(f"frames: need uint8 (n, height, width, 3), got {frames.dtype} {frames.shape}")
    if clip.sample_rate == 0 and (clip.audio.dtype != np.float32 or clip.audio.ndim != 2):
        raise DataError(
            f"audio: a feature matrix (sample rate 0) is float32 (features, time), got {clip.audio.dtype} "
            f"{clip.audio.shape}"
        )
