"""From a media file to what a Runtime takes: one clip's arrays, decoded and transformed as the training clips were.

Torch is not needed; the spectrogram is numpy's, which equals the one that trained the student.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedstill.datasets.decode import IMAGE_SUFFIXES, read_audio, read_images, read_video_frames
from fedstill.datasets.specs import AudioSpec, FrameSpec
from fedstill.datasets.spectrogram_numpy import audio_features
from fedstill.datasets.store import frame_tensor


class ClipInput(NamedTuple):
    """One clip as a batch: audio float32 (1, bins, steps), frames uint8 (1, count, channels, size, size)."""

    audio: npt.NDArray[np.float32]
    frames: npt.NDArray[np.uint8]


def read_clip(sound: Path, pictures: Path, audio: AudioSpec, frames: FrameSpec) -> ClipInput:
    """Decode one clip.

    Args:
        sound: a sound file, or a video with sound.
        pictures: a video (may be the same file), an image, or a folder of images.
        audio, frames: what the student expects; an export's description has them.

    Raises:
        DataError: a file that cannot be decoded; one line that says what to do.
    """
    waveform, rate = read_audio(sound)
    still = pictures.is_dir() or pictures.suffix.lower() in IMAGE_SUFFIXES
    shown = (read_images if still else read_video_frames)(pictures, frames.count)
    return ClipInput(audio_features(waveform, rate, audio)[None], frame_tensor(shown, frames)[None])
