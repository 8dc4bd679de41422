"""From a decoded clip to what a model is given: the one place where sound and frames of a clip are taken.

Preparation, simulation, an agent and a program with a student all come through here, so that what is evaluated is what
is deployed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.spectrogram_numpy import resample
from fedstill.datasets.audiovisual.waveform import AudioTransform, check_waveform
from fedstill.datasets.decoding.image_files import resize_frames, spread
from fedstill.datasets.focus.face_crop import crop_to_face
from fedstill.datasets.focus.faces import require_faces
from fedstill.datasets.focus.speech import RATE, require_speech
from fedstill.datasets.focus.speech_window import Stretch, speech_stretch

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ClipTensors:
    """The inputs that one clip makes.

    Attributes:
        audio: float32 (bins, steps).
        frames: uint8 (count, channels, size, size).
        face, speech: whether there is any; None if nobody asked.
    """

    audio: npt.NDArray[np.float32]
    frames: Frames
    face: bool | None = None
    speech: bool | None = None

    @property
    def found(self) -> dict[str, bool]:
        """``face`` and ``speech``, as far as they were looked for."""
        return {
            name: value for name, value in (("face", self.face), ("speech", self.speech)) if value is not None
        }


@dataclass(frozen=True, slots=True)
class FocusedClip:
    """A clip whose sound and frames are the part that the specifications ask for.

    Attributes:
        clip: its frames are as many as the model wants, not resized yet.
        face, speech: see ``ClipTensors``.
    """

    clip: Clip
    face: bool | None
    speech: bool | None


class FocusCount:
    """In how many clips a face and speech were found."""

    def __init__(self) -> None:
        self._clips = {"face": 0, "speech": 0}
        self._found = {"face": 0, "speech": 0}

    def add(self, one: ClipTensors | FocusedClip) -> None:
        """One more clip."""
        for name, found in (("face", one.face), ("speech", one.speech)):
            if found is not None:
                self._clips[name] += 1
                self._found[name] += found

    def lines(self) -> list[str]:
        """``face found in 5 of 6 clips``; nothing of what was not looked for."""
        return [
            f"{name} found in {self._found[name]} of {clips} clips"
            for name, clips in self._clips.items()
            if clips
        ]


def clip_tensors(
    clip: Clip,
    audio: AudioSpec,
    frames: FrameSpec,
    transform: AudioTransform,
    feature_steps: int | None = None,
) -> ClipTensors:
    """The inputs of a model.

    Args:
        clip: decoded, whole.
        audio, frames: the model's specifications.
        transform: makes waveforms into matrices.
        feature_steps: columns of ready feature matrices; None: as many as they have.

    Raises:
        DataError: naming the clip: a waveform that cannot be transformed; or a detector that is not installed.
    """
    focused = focus(clip, audio, frames)
    return ClipTensors(
        audio_tensor(focused.clip, audio, transform, feature_steps),
        frame_tensor(focused.clip.frames, frames),
        focused.face,
        focused.speech,
    )


def focus(clip: Clip, audio: AudioSpec, frames: FrameSpec) -> FocusedClip:
    """The part of a clip that these specifications ask for: its speech, the frames of that time, the face in them.

    Raises:
        DataError: a detector is not installed.
    """
    speech = None
    if audio.voice and clip.sample_rate:
        with _named(clip):
            check_waveform(clip.audio, clip.sample_rate, RATE)
        stretch, speech = speech_stretch(clip.audio, clip.sample_rate, audio.seconds, resample)
        if stretch is not None:
            clip = _within(clip, stretch)
    chosen = clip.frames[spread(frames.count, len(clip.frames))]
    face = clip.face if frames.crop == "face" else None
    if frames.crop == "face" and clip.face is None:
        chosen, face = crop_to_face(chosen)
    return FocusedClip(replace(clip, frames=chosen), face, speech)


def require_detectors(audio: AudioSpec, frames: FrameSpec) -> None:
    """Raises DataError, one line, if a detector is asked for and not installed."""
    if audio.voice:
        require_speech()
    if frames.crop == "face":
        require_faces()


def frame_tensor(frames: Frames, spec: FrameSpec) -> Frames:
    """uint8 (stored, height, width, 3) -> uint8 (count, channels, size, size), picked by ``spread``."""
    chosen = frames[spread(spec.count, len(frames))]
    if spec.channels == 1:  # ITU-R 601 luma; grey pictures keep their values
        grey = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in chosen])
        chosen = np.repeat(grey[..., None], 3, axis=-1)
    return resize_frames(chosen, spec.size)[..., : spec.channels].transpose(0, 3, 1, 2)


def audio_tensor(
    clip: Clip, spec: AudioSpec, transform: AudioTransform, feature_steps: int | None = None
) -> npt.NDArray[np.float32]:
    """float32 (bins, steps) of a clip. A ready feature matrix stays, but for its length if ``feature_steps`` says one.

    Raises DataError naming the clip.
    """
    if clip.sample_rate == 0:
        return clip.audio if feature_steps is None else fit_steps(clip.audio, feature_steps)
    with _named(clip):
        return transform(clip.audio, clip.sample_rate, spec)


def fit_steps(features: npt.NDArray[np.float32], steps: int) -> npt.NDArray[np.float32]:
    """float32 (features, time) -> (features, steps): repeated until it is full, then cut, as a waveform is."""
    if features.shape[1] == steps:
        return features
    return np.ascontiguousarray(features[:, np.arange(steps) % features.shape[1]])


@contextmanager
def _named(clip: Clip) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"clip {clip.info.clip_id}: {error}") from error


def _within(clip: Clip, stretch: Stretch) -> Clip:
    """The clip's sound and frames of this time."""
    if clip.frames_between is not None:
        frames = clip.frames_between(stretch.start, stretch.end)
    else:
        count = len(clip.frames)
        times = (np.arange(count) + 0.5) / count * (len(clip.audio) / clip.sample_rate)
        inside = np.flatnonzero((times >= stretch.start) & (times < stretch.end))
        nearest = int(np.abs(times - (stretch.start + stretch.end) / 2).argmin())
        frames = clip.frames[inside if len(inside) else [nearest]]
    return replace(clip, audio=stretch.of(clip.audio, clip.sample_rate), frames=frames, frames_between=None)
