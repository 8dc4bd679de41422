"""Sound files as careless programs leave them, made on the spot: sizes of pipes, no length, joined, cut, with holes."""

from __future__ import annotations

from io import BytesIO

import av
import numpy as np
import soundfile

RATE = 16_000


def noise(seconds: float, rate: int = RATE, level: float = 0.2) -> np.ndarray:
    """float32 (samples,): always the same; it compresses badly, so that each second has its bytes."""
    rng = np.random.default_rng(5)
    return (level * rng.uniform(-1, 1, round(seconds * rate))).astype(np.float32)


def encoded(samples: np.ndarray, form: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    """(samples,) or (samples, channels) as a file of libsndfile."""
    file = BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def encoded_by_ffmpeg(
    samples: np.ndarray,
    codec: str,
    form: str,
    rate: int = RATE,
    container_options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    """Mono ``samples`` as a file of FFmpeg."""
    file = BytesIO()
    with av.open(file, "w", format=form, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono", options=codec_options or {})
        heard = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], "s16", "mono")
        heard.sample_rate = rate
        context = stream.codec_context
        context.open()
        converter = av.AudioResampler(context.format, "mono", rate, frame_size=context.frame_size or None)
        for frame in (*converter.resample(heard), *converter.resample(None)):
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def mp3(samples: np.ndarray, *, xing: bool, variable: bool = False, rate: int = RATE) -> bytes:
    """With or without the frame that tells the length; at one bitrate or as many as the sound needs."""
    quality = {"flags": "+qscale", "global_quality": str(4 * 118)} if variable else {}
    return encoded_by_ffmpeg(samples, "libmp3lame", "mp3", rate, {"write_xing": str(int(xing))}, quality)


def with_bytes(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


def with_wav_sizes(content: bytes, riff: int | None, data: int | None) -> bytes:
    """A plain WAV that announces ``riff`` and ``data`` bytes; None leaves a size as it is."""
    place = content.index(b"data")
    for position, size in ((4, riff), (place + 4, data)):
        if size is not None:
            content = with_bytes(content, position, size.to_bytes(4, "little"))
    return content


def with_flac_length(content: bytes, samples: int) -> bytes:
    """A FLAC that announces ``samples`` (0: unknown) and, as from a pipe, no checksum of them."""
    length = (content[21] & 0xF0) << 32 | samples
    return with_bytes(content, 21, length.to_bytes(5, "big") + bytes(16))


def with_hole(content: bytes, begin: float, end: float) -> bytes:
    """Zeros from one share of the file to another, as a download that skipped a block leaves."""
    first, last = int(len(content) * begin), int(len(content) * end)
    return with_bytes(content, first, bytes(last - first))
