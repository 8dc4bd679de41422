"""The sound of a media file on the file's clock: what comes late is preceded by silence, a gap is silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import av
import numpy as np

from fedstill.datasets.decoding.media.channels import Channels, joined
from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.decoding.video.clock import JUMP_BACK

LATE_START = 0.005  # s; a sound that starts later than this after the picture is preceded by silence
JITTER = 0.015  # s; time stamps are rounded, and clocks of calls are uneven: less than a packet is no gap
LONGEST_SILENCE = 600.0  # s; hours of silence are a damaged time stamp, and more than the memory holds


def place_sound(frames: Iterable[av.AudioFrame], rate: int, zero: float) -> Channels:
    """Put decoded sound where its time stamps say.

    Args:
        frames: of one stream, in order; format, channels and rate may change on the way.
        rate: Hz, of the result.
        zero: the moment of the first sample (s), by the same time stamps.

    Returns:
        float32 (channels, samples); one channel, their mean, if the number of channels changes.

    Raises:
        MediaError: a gap of more than ten minutes.
    """
    pieces: list[Channels] = []
    written = 0
    for moment, samples in _timed(frames, rate):
        if moment is not None:
            zero = min(zero, moment) if not written else zero
            late = round((moment - zero) * rate) - written
            if late < -JUMP_BACK * rate:
                zero += late / rate  # parts one after the other, each with a clock of its own
            elif late < -JITTER * rate:
                samples = samples[:, -late:]
            elif late > LONGEST_SILENCE * rate:
                raise MediaError(f"its sound has a gap of {late / rate:.0f} s")
            elif late > (JITTER if written else LATE_START) * rate:
                pieces.append(np.zeros((len(samples), late), np.float32))
                written += late
        pieces.append(samples)
        written += samples.shape[1]
    return joined(pieces)


def _timed(frames: Iterable[av.AudioFrame], rate: int) -> Iterator[tuple[float | None, Channels]]:
    """(time of the first sample, channels x samples at ``rate``); no time where it continues the one before."""
    kind: tuple[str, str, int] | None = None
    converter: av.AudioResampler | None = None
    for frame in frames:
        changed = kind != (kind := (frame.format.name, frame.layout.name, frame.rate))
        if changed:
            yield from ((None, piece) for piece in _convert(converter, None))
            converter = av.AudioResampler(format="fltp", rate=rate)
        moment = frame.time if changed or frame.rate == rate else None
        for piece in _convert(converter, frame):
            yield moment, piece
            moment = None
    yield from ((None, piece) for piece in _convert(converter, None))


def _convert(converter: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[Channels]:
    """``frame`` None flushes."""
    for piece in converter.resample(frame) if converter else ():
        yield piece.to_ndarray().astype(np.float32, copy=False)
