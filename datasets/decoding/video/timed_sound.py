"""The sound of a media file on the file's clock: what comes late is preceded by silence, a gap is silence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np

from fedstill.datasets.decoding.media.channels import PACKED, Channels, joined, samples_of
from fedstill.datasets.decoding.media.error import MediaError
from fedstill.datasets.decoding.video.clock import JUMP_BACK

PRECISE = 0.005  # s; what nobody hears: a start that is later is preceded by silence
JITTER = 0.015  # s; time stamps are rounded, and clocks of calls are uneven: less than a packet is no gap
LONGEST_SILENCE = 600.0  # s; hours of silence are a damaged time stamp, and more than the memory holds


def place_sound(frames: Iterable[av.AudioFrame], rate: int, zero: float, end: float = math.inf) -> Channels:
    """Put decoded sound where its time stamps say.

    Args:
        frames: of one stream, in order; format, channels and rate may change on the way.
        rate: Hz, of the result.
        zero: the moment of the first sample (s), by the same time stamps.
        end: the moment after the last one; what the last frame holds beyond it fills the codec's block.

    Returns:
        float32 (channels, samples); one channel, their mean, if the number of channels changes.

    Raises:
        MediaError: a gap of more than ten minutes.
    """
    pieces: list[Channels] = []
    written = block = 0
    for moment, samples, jitter in _timed(frames, rate):
        if moment is not None:
            zero = min(zero, moment) if not written else zero
            late = round((moment - zero) * rate) - written
            if late < -JUMP_BACK * rate:
                zero += late / rate  # parts one after the other, each with a clock of its own
            elif late < -jitter * rate:
                samples = samples[:, -late:]
            elif late > LONGEST_SILENCE * rate:
                raise MediaError(f"its sound has a gap of {late / rate:.0f} s")
            elif late > (jitter if written else PRECISE) * rate:
                pieces.append(np.zeros((len(samples), late), np.float32))
                written += late
        pieces.append(samples)
        block = samples.shape[1]
        written += block
    padding = 0 if math.isinf(end) else written - round((end - zero) * rate)
    if 0 < padding < block:
        pieces[-1] = pieces[-1][:, :-padding]
    return joined(pieces)


def _timed(frames: Iterable[av.AudioFrame], rate: int) -> Iterator[tuple[float | None, Channels, float]]:
    """(time of the first sample, channels x samples at ``rate``, how far (s) the time may be off by accident).

    No time where it continues the one before. Time stamps that count samples are meant as they are: MP4 has no others.
    """
    kind: tuple[str, str, int] | None = None
    converter: av.AudioResampler | None = None
    for frame in frames:
        changed = kind != (kind := (frame.format.name, frame.layout.name, frame.rate))
        if changed:
            yield from ((None, piece, JITTER) for piece in _convert(converter, None))
            converter = av.AudioResampler(format=PACKED, rate=rate)
        moment = frame.time if changed or frame.rate == rate else None
        jitter = PRECISE if frame.time_base == Fraction(1, frame.rate) else JITTER
        for piece in _convert(converter, frame):
            yield moment, piece, jitter
            moment = None
    yield from ((None, piece, JITTER) for piece in _convert(converter, None))


def _convert(converter: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[Channels]:
    """``frame`` None flushes."""
    for piece in converter.resample(frame) if converter else ():
        yield samples_of(piece)
