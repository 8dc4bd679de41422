"""From sound and video files to plain arrays.

Everything is decoded completely and checked here, because a half-downloaded clip that "decodes" to its first second
would be used for training like any other. Each failure is one DataError that names the file and says what to do;
nothing is padded, skipped or guessed silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from math import gcd
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer

from fedstill.datasets.audiovisual.clip import DataError
from fedstill.datasets.audiovisual.decoder_errors import decoder_errors
from fedstill.datasets.audiovisual.image_files import REPLACE, Frames, check_exists
from fedstill.datasets.audiovisual.sound_files import read_sound_file

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
    return channels[0] if len(channels) == 1 else channels.mean(axis=0, dtype=np.float32), sample_rate


def read_channels(path: Path, data: bytes | None = None) -> tuple[npt.NDArray[np.float32], int]:
    """As ``read_audio``, but float32 (channels, samples)."""
    check_exists(path, data)
    channels, sample_rate = read_sound_file(path, data) or _read_audio_stream(path, data)
    if channels.shape[-1] == 0:
        raise DataError(f"{path}: holds no audio samples: {REPLACE}")
    if not np.isfinite(channels).all():
        raise DataError(f"{path}: holds NaN or infinite audio samples: {REPLACE}")
    return channels, sample_rate


def read_video_frames(
    path: Path, count: int, *, start: float = 0.0, end: float | None = None, data: bytes | None = None
) -> Frames:
    """Decode ``count`` frames, uniformly spaced in time, upright (a phone's rotation is applied).

    The stretch is cut into ``count`` equal parts and the frame on display in the middle of each is taken.
    So a video with fewer frames than ``count`` repeats its frames in order, and a video of one frame repeats that
    frame.

    Args:
        path: any video that FFmpeg reads.
        count: >= 1.
        start, end: the stretch, in seconds from the first frame; the whole video by default.
        data: the file's bytes if they are already in memory.

    Returns:
        uint8 RGB (count, height, width, 3).

    Raises:
        DataError: missing, unreadable or truncated file, no video stream, a stretch outside the video.
    """
    check_exists(path, data)
    first, last = _stream_times(path, "video", data)
    stop = last if end is None else min(first + end, last)
    begin = first + start
    if begin > stop:
        raise DataError(
            f"{path}: lasts {last - first:.1f} s, but {start} s to {end} s is asked for: correct the row"
        )
    middles = [begin + (stop - begin) * (2 * part + 1) / (2 * count) for part in range(count)]
    with _container(path, data) as container:
        shown = _on_display(container.decode(video=0), middles)
        pictures = [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in shown]
    if not pictures:
        raise DataError(f"{path}: holds no decodable video frame: {REPLACE}")
    return np.stack(pictures)


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


def _read_audio_stream(path: Path, data: bytes | None) -> tuple[npt.NDArray[np.float32], int]:
    _stream_times(path, "audio", data)
    with _container(path, data) as container:
        sample_rate = container.streams.audio[0].rate
        to_float = av.AudioResampler(format="fltp", rate=sample_rate)
        pieces = [
            piece.to_ndarray()  # (channels, samples)
            for frame in (*container.decode(audio=0), None)  # None flushes
            for piece in to_float.resample(frame)
        ]
    channels = np.concatenate(pieces, axis=1) if pieces else np.zeros((1, 0))
    return channels.astype(np.float32), sample_rate


@contextmanager
def _container(path: Path, data: bytes | None) -> Iterator[InputContainer]:
    """FFmpeg on ``path``; its errors become DataErrors."""
    source = str(path) if data is None else BytesIO(data)
    with decoder_errors(path), av.open(source, "r", metadata_errors="replace") as container:
        yield container


def _stream_times(path: Path, kind: Literal["audio", "video"], data: bytes | None) -> tuple[float, float]:
    """Begin and end in seconds of the first ``kind`` stream, from its packets, without decoding.

    The whole file is read, so that one which ends early (FFmpeg takes that for a normal end) is found. Up
    to a tenth, or 0.25 s, may lack: announced durations are not exact, and checksums exist for the rest.
    """
    with _container(path, data) as container:
        wanted = next((stream for stream in container.streams if stream.type == kind), None)
        if wanted is None:
            raise DataError(f"{path}: has no {kind} stream: {REPLACE}")
        times: list[tuple[float, float]] = []
        file_end = 0.0
        for packet in container.demux():
            if packet.pts is None or packet.time_base is None:
                continue
            begin = float(packet.pts * packet.time_base)
            end = begin + float((packet.duration or 0) * packet.time_base)
            file_end = max(file_end, end)
            if packet.stream.index == wanted.index:
                times.append((begin, end))
        announced = (container.duration or 0) / 1e6  # microseconds
        missing = announced - (file_end - (container.start_time or 0) / 1e6)
    if missing > max(0.25, 0.1 * announced):
        raise DataError(
            f"{path}: is truncated, the last {missing:.1f} of {announced:.1f} s are missing: {REPLACE}"
        )
    if not times:
        raise DataError(f"{path}: its {kind} stream holds nothing with a time stamp: {REPLACE}")
    first, last, end = min(times)[0], max(times)[0], max(end for _, end in times)
    if end == last and len(times) > 1:  # the last packet has no duration: assume that of the others
        end += (last - first) / (len(times) - 1)
    return first, end


def _on_display(frames: Iterable[av.VideoFrame], moments: Sequence[float]) -> list[av.VideoFrame]:
    """For each of the ascending ``moments`` (s), the last frame begun by then; none only if none exists."""
    chosen: list[av.VideoFrame] = []
    shown: av.VideoFrame | None = None
    for frame in frames:
        while shown is not None and len(chosen) < len(moments) and _time(frame) > moments[len(chosen)] + 1e-6:
            chosen.append(shown)
        shown = frame
        if len(chosen) == len(moments):
            break
    return chosen if shown is None else chosen + [shown] * (len(moments) - len(chosen))


def _time(frame: av.VideoFrame) -> float:
    return 0.0 if frame.time is None else frame.time
