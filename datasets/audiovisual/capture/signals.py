"""What the sound effects share: the level of the speech, filters, noise of any colour.

Filters are gains on the spectrum, without delay, so that a clip stays aligned with what was said in it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len, rfft

Waveform = npt.NDArray[np.float32]
Gain = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating]]
"""Frequencies in Hz, ascending from 0 -> factors of the amplitude."""

FRAME_SECONDS = 0.02
ACTIVE_RANGE = 1e-3  # frames within 30 dB of the loudest are speech, as in ITU-T P.56 without its hangover
FILTER_ROOM = 0.04  # s of silence behind a clip, so that its end does not ring into its beginning
LOWEST_NOISE = 20.0  # Hz; below it a coloured noise is no louder than there


def active_power(waveform: Waveform, rate: int) -> float:
    """Mean power of the frames of 20 ms within 30 dB of the loudest one, so that pauses do not count.

    Args:
        waveform: float32 (samples,).
        rate: in Hz.

    Returns:
        0 for a clip without sound or without samples.
    """
    size = max(1, min(len(waveform), round(FRAME_SECONDS * rate)))
    whole = len(waveform) // size * size
    if not whole:
        return 0.0
    powers = np.square(waveform[:whole]).reshape(-1, size).mean(axis=1)
    return float(powers[powers >= ACTIVE_RANGE * powers.max()].mean())


def add_noise(waveform: Waveform, noise: Waveform, rate: int, snr_db: float) -> Waveform:
    """Add ``noise`` so that the speech is ``snr_db`` dB above it.

    Speech counts where it is active, noise everywhere. A clip without sound has nothing to be compared with and
    stays as it is, because later code takes constant samples for "nothing was recorded".
    """
    speech, loudness = active_power(waveform, rate), float(np.mean(np.square(noise)))
    if speech == 0 or loudness == 0:
        return waveform
    return waveform + noise * np.float32(np.sqrt(speech / loudness) * 10 ** (-snr_db / 20))


def filtered(waveform: Waveform, rate: int, gain: Gain) -> Waveform:
    """float32 (samples,) -> float32 (samples,): each frequency scaled by ``gain``, none delayed."""
    padded = next_fast_len(len(waveform) + round(FILTER_ROOM * rate), real=True)
    spectrum = rfft(waveform, padded)
    spectrum *= gain(_frequencies(padded, rate))
    return np.ascontiguousarray(irfft(spectrum, padded)[: len(waveform)])


def low_pass_gain(cutoff: float, order: int) -> Gain:
    """Butterworth: -3 dB at ``cutoff`` Hz, then ``order`` times 6 dB per octave."""
    return lambda hertz: 1 / np.sqrt(1 + (hertz / np.float32(cutoff)) ** (2 * order))


def high_pass_gain(cutoff: float, order: int) -> Gain:
    """The mirror image of ``low_pass_gain``; stops 0 Hz completely."""

    def gain(hertz: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        power = (hertz / np.float32(cutoff)) ** (2 * order)
        return np.sqrt(power / (1 + power))

    return gain


def band_pass_gain(low: float, high: float, order: int) -> Gain:
    """Both edges are -3 dB points if they are far apart."""
    above, below = high_pass_gain(low, order), low_pass_gain(high, order)
    return lambda hertz: above(hertz) * below(hertz)


def coloured_noise(count: int, rate: int, slope: float, rng: np.random.Generator) -> Waveform:
    """Gaussian noise whose power falls with frequency to the power of ``slope``: 1 is pink, 2 is brown.

    Returns:
        float32 (count,), at no particular level.
    """
    length = next_fast_len(max(count, 2), real=True)
    spectrum = rng.standard_normal(2 * (length // 2 + 1), np.float32).view(np.complex64)
    hertz = np.maximum(_frequencies(length, rate), LOWEST_NOISE)
    spectrum *= hertz ** np.float32(-slope / 2)
    spectrum[0] = 0
    return np.ascontiguousarray(irfft(spectrum, length)[:count])


def _frequencies(length: int, rate: int) -> npt.NDArray[np.float32]:
    """Of the bins of ``rfft``, in Hz."""
    return np.arange(length // 2 + 1, dtype=np.float32) * np.float32(rate / length)
