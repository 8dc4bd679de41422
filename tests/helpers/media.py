"""Small real media files, encoded on the spot, so that decoding is tested without any dataset at hand."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import soundfile

TONE = 440.0  # Hz
SOUND_RATE = 44_100  # Hz, of the sound of videos


def tone(seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    """float32 (samples,): a sine of 440 Hz; level 0 is silence."""
    return (level * np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_sound(path: Path, seconds: float = 1.0, rate: int = 16_000, level: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate, level), rate)
    return path


def write_video(
    path: Path,
    frames: int = 20,
    rate: int = 10,
    *,
    sound: bool = True,
    level: float = 0.5,
    picture: np.ndarray | None = None,
) -> Path:
    """64 x 48 pixels and mono sound; frame i is a plain grey of ``shade(i)``, or all are ``picture``.

    FLV holds Sorenson H.263 and MP3, MP4 holds MPEG-4 and AAC.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_flv = path.suffix == ".flv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("flv" if is_flv else "mpeg4", rate=rate)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = (
            container.add_stream("libmp3lame" if is_flv else "aac", rate=SOUND_RATE, layout="mono")
            if sound
            else None
        )
        if audio is not None:
            heard = av.AudioFrame.from_ndarray(tone(frames / rate, SOUND_RATE, level)[None], "fltp", "mono")
            heard.sample_rate = SOUND_RATE
            fifo = av.AudioFifo()
            fifo.write(heard)
        for number in range(frames):
            container.mux(video.encode(_picture(number, picture)))
            if audio is not None:
                block = fifo.read(SOUND_RATE // rate, partial=True)
                container.mux(audio.encode(block))
        container.mux(video.encode())
        if audio is not None:
            container.mux(audio.encode())
    return path


def _picture(number: int, picture: np.ndarray | None) -> av.VideoFrame:
    pixels = np.full((48, 64, 3), shade(number), np.uint8) if picture is None else picture
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


def shade(number: int) -> int:
    """Grey value of frame ``number``; far enough apart to survive compression."""
    return 20 + 10 * number


def cut(path: Path, share: float) -> Path:
    """Keep the first ``share`` of a file, as an interrupted download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
