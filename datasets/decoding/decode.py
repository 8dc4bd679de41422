"""From sound and video files to plain arrays.

Everything is decoded completely and checked here, because a half-downloaded clip that "decodes" to its first second
would be used for training like any other. Each failure is one DataError that names the file and says what to do;
nothing is padded, skipped or guessed silently.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from math import gcd
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from fedstill.datasets.decoding.decoder_errors import check_exists, decoder_errors
from fedstill.datasets.decoding.image_files import Frames
from fedstill.datasets.decoding.media.channels import Channels
from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.decoding.media.file import Source, opened, picture_of, sound_of
from fedstill.datasets.decoding.sound_files import read_sound_file
from fedstill.datasets.decoding.video.clock import Timeline, read_timeline
from fedstill.datasets.decoding.video.display_matrix import upright_pictures
from fedstill.datasets.decoding.video.timed_sound import place_sound
from fedstill.datasets.files.faults import NO_PICTURE, NO_SOUND

MOST_PIXELS = 70_000_000
"""Of one frame: 8192 x 8192. A decoder keeps several."""

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
        channels, sample_rate = read_sound_file(path, data) or _read_audio_stream(
            path if data is None else data
        )
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
    source = path if data is None else data
    with decoder_errors(path):
        timeline = read_timeline(source, "video")
        # A picture that is less than half a frame late belongs to the start: so much the delay of a sound's codec
        # makes, and half a frame is what the eye cannot tell.
        zero = timeline.begin if timeline.begin - timeline.zero < timeline.shortest / 2 else timeline.zero
        stop = timeline.end if end is None else zero + end if hold else min(zero + end, timeline.end)
        begin = zero + start
        if begin > stop:
            raise MediaError(
                f"lasts {timeline.end - zero:.1f} s, but {start} s to {end} s is asked for",
                remedy="correct the row",
            )
        middles = [begin + (stop - begin) * (2 * part + 1) / (2 * count) for part in range(count)]
        with opened(source) as container:
            stream = picture_of(container)
            assert stream is not None  # it has a timeline
            if stream.width * stream.height > MOST_PIXELS:
                raise MediaError(
                    f"has too many pixels ({stream.width} x {stream.height})", remedy="make it smaller"
                )
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # it may grow in mid-stream
            pictures = upright_pictures(_on_display(container.decode(stream), middles, timeline), count)
            if not len(pictures):
                raise MediaError("holds no decodable video frame", fault=NO_PICTURE)
            return pictures


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


def _read_audio_stream(source: Source) -> tuple[Channels, int]:
    timeline = read_timeline(source, "audio")
    with opened(source) as container:
        stream = sound_of(container)
        assert stream is not None  # it has a timeline
        channels = place_sound(container.decode(stream), stream.rate, timeline.zero, timeline.edited_end)
        return channels, stream.rate


def _on_display(
    frames: Iterable[av.VideoFrame], moments: Sequence[float], timeline: Timeline
) -> Iterator[tuple[av.VideoFrame, int]]:
    """The frames that are on display at the ascending ``moments`` (s), and at how many: the last one begun by then."""
    shown: av.VideoFrame | None = None
    done = 0
    time = timeline.begin - timeline.interval
    for frame, packet_time in zip(frames, chain(timeline.times, repeat(None)), strict=False):
        stamp = frame.time if packet_time is None else packet_time
        time = time + timeline.interval if stamp is None else stamp
        passed = bisect_left(moments, time - 1e-6, lo=done)
        if shown is not None and passed > done:
            yield shown, passed - done
            done = passed
        shown = frame
        if done == len(moments):
            return
    if shown is not None:
        yield shown, len(moments) - done
