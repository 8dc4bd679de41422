"""From sound and video files to plain arrays.

Everything is decoded completely and checked here, because a half-downloaded clip that "decodes" to its first second
would be used for training like any other. Each failure is one DataError that names the file and says what to do;
nothing is padded, skipped or guessed silently.
"""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedstill.datasets.decoding.decoder_errors import check_exists, decoder_errors
from fedstill.datasets.decoding.image_files import Frames
from fedstill.datasets.decoding.media.channels import Channels
from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.decoding.sound_files import read_sound_file
from fedstill.datasets.files.faults import NO_SOUND

if TYPE_CHECKING:
    from fedstill.datasets.decoding.media.file import Source

Waveform = npt.NDArray[np.float32]


def read_audio(path: Path, data: bytes | None = None) -> tuple[Waveform, int]:
    """Decode a sound file, or the sound of a video, to one channel.

    Args:
        path: a sound file or a video; its content decides which, not its ending.
        data: the file's bytes if they are already in memory (a zip member); ``path`` then only names them.

    Returns:
        float32 (samples,), the mean of all channels, in about [-1, 1], and the sample rate in Hz.

    Raises:
        DataError: missing, unreadable or truncated file, no audio stream, no samples, NaN or infinity.
    """
    channels, sample_rate = read_channels(path, data)
    return mixed(channels), sample_rate


def mixed(channels: Channels) -> Waveform:
    """The mean of float32 (channels, samples), float32 (samples,)."""
    mix: Waveform = channels[0] if len(channels) == 1 else channels.mean(axis=0, dtype=np.float32)
    return mix


def read_channels(path: Path, data: bytes | None = None) -> tuple[Channels, int]:
    """As ``read_audio``, but float32 (channels, samples)."""
    check_exists(path, data)
    with decoder_errors(path):
        channels, sample_rate = read_sound_file(path, data) or _sound_of_film(path if data is None else data)
        if channels.shape[-1] == 0:
            raise MediaError("holds no audio samples", fault=NO_SOUND)
        if not np.isfinite(channels).all():
            raise MediaError("holds NaN or infinite audio samples")
    return channels, sample_rate


def read_video_frames(
    path: Path,
    count: int,
    *,
    start: float = 0.0,
    end: float | None = None,
    hold: bool = False,
    data: bytes | None = None,
) -> Frames:
    """Decode ``count`` frames, uniformly spaced in time, upright: a phone's rotation and mirroring are applied.

    The stretch is cut into ``count`` equal parts and the frame on display in the middle of each is taken.
    So a video with fewer frames than ``count`` repeats its frames in order, and a video of one frame repeats that
    frame.

    Args:
        path: any video that FFmpeg reads.
        count: >= 1.
        start, end: the stretch, in seconds from the first moment of the file's picture or sound; the whole video by
            default. Before a picture that starts late, its first frame is on display.
        hold: a stretch may go beyond the picture's end, where its last frame stays on display.
        data: the file's bytes if they are already in memory.

    Returns:
        uint8 RGB (count, height, width, 3); frames of more than 4K may come in a smaller size.

    Raises:
        DataError: missing, unreadable or truncated file, no video stream, a stretch outside the video, more than
            70 million pixels.
    """
    check_exists(path, data)
    with decoder_errors(path):
        from fedstill.datasets.decoding.video.film import film_frames

        return film_frames(path if data is None else data, count, start, end, hold=hold)


def resample(waveform: Waveform, source_rate: int, target_rate: int) -> Waveform:
    """float32 (samples,) at ``source_rate`` Hz -> float32 at ``target_rate`` Hz, polyphase, band-limited."""
    if source_rate == target_rate:
        return waveform
    from scipy.signal import (
        resample_poly,  # imported here: it costs a second and 60 MB, and a device's inference does not need it
    )

    common = gcd(source_rate, target_rate)
    resampled = resample_poly(waveform, target_rate // common, source_rate // common)
    return np.asarray(resampled, dtype=np.float32)


def _sound_of_film(source: Source) -> tuple[Channels, int]:
    from fedstill.datasets.decoding.video.film import film_sound

    return film_sound(source)
