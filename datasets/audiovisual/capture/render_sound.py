"""Sound as another device would have recorded it: every band amplified, and noise added, as its capture card says.

What has to be done to public sound is found by doing it: render a sample, make its card, correct by what is still
missing, and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft

from fedstill.datasets.audiovisual.capture_card import (
    BANDS,
    BANDWIDTH,
    SILENCE_DB,
    SOUND,
    CaptureCard,
    mel_points,
    sound_profile,
)

Floats = npt.NDArray[np.float32]

STEPS = 5
LEAST_GAIN, MOST_GAIN = -60.0, 40.0
NO_NOISE = SILENCE_DB - 20.0
LEVEL_JITTER, NOISE_JITTER, TILT_JITTER = 2.0, 2.0, 1.0
"""Standard deviations in dB, dB and dB per octave: a card is an average, and clips differ."""
TILT_CENTRE = 1000.0


@dataclass(frozen=True)
class SoundRendering:
    """What turns public sound into a device's.

    Attributes:
        gain: float32 (BANDS,), decibels by band.
        noise: float32 (BANDS,), decibels by band as in a card; ``NO_NOISE`` for none.
        sample_rate: in Hz.
    """

    gain: Floats
    noise: Floats
    sample_rate: int

    def __call__(self, waveform: Floats, rng: np.random.Generator, jitter: float = 1.0) -> Floats:
        """The waveform, float32 (samples,), as the device would have recorded it; not clipped.

        Args:
            jitter: scales how much renderings differ; 0: the card's average.
        """
        size = scipy.fft.next_fast_len(len(waveform), real=True)
        spectrum = scipy.fft.rfft(np.asarray(waveform, np.float32), size)
        drawn = jitter * rng.standard_normal(3)
        octaves = np.log2(np.maximum(_centres(self.sample_rate), 50) / TILT_CENTRE)
        gain = self.gain + LEVEL_JITTER * drawn[0] + TILT_JITTER * drawn[1] * octaves
        noise = self.noise + NOISE_JITTER * drawn[2]
        frequencies = scipy.fft.rfftfreq(size, 1 / self.sample_rate)
        spectrum *= _curve(frequencies, gain, self.sample_rate)
        if (noise > SILENCE_DB).any():
            scale = np.float32(
                np.sqrt(size * self.sample_rate / (4 * BANDWIDTH))
            )  # of a band's power to a spectrum's
            parts = rng.standard_normal((2, len(spectrum)), dtype=np.float32)
            parts *= scale * _curve(frequencies, noise, self.sample_rate)
            spectrum.real += parts[0]
            spectrum.imag += parts[1]
        rendered: Floats = scipy.fft.irfft(spectrum, size)[: len(waveform)]
        return rendered


def fit_sound(
    card: CaptureCard, sample: Sequence[Floats], sample_rate: int, rng: np.random.Generator
) -> SoundRendering:
    """The rendering after which the sample, public waveforms, has the card's floors and levels."""
    wanted_floor, wanted_level = card.values[SOUND].reshape(2, BANDS)
    found_floor, found_level = _card(sample, sample_rate)
    gain = np.clip(wanted_level - found_level, LEAST_GAIN, MOST_GAIN)
    noise = np.where(wanted_floor > found_floor + gain + 1, wanted_floor, NO_NOISE)
    for _ in range(STEPS):
        rendering = SoundRendering(_smooth(gain), _smooth(noise), sample_rate)
        floor, level = _card([rendering(one, rng, jitter=0) for one in sample], sample_rate)
        gain = np.clip(gain + wanted_level - level, LEAST_GAIN, MOST_GAIN)
        noise = np.clip(noise + 1.5 * (wanted_floor - floor), NO_NOISE, wanted_floor + 10)
    return SoundRendering(_smooth(gain), _smooth(noise), sample_rate)


def _card(sample: Sequence[Floats], sample_rate: int) -> npt.NDArray[np.float64]:
    profiles = [sound_profile(one, sample_rate, sample_rate) for one in sample]
    return np.mean(profiles, axis=0, dtype=np.float64).reshape(2, BANDS)


def _smooth(values: npt.NDArray[np.floating]) -> Floats:
    """Each band with a quarter of each neighbour: a card is exact, what it is made from is not."""
    padded = np.pad(np.asarray(values, np.float64), 1, mode="edge")
    return (padded[:-2] / 4 + padded[1:-1] / 2 + padded[2:] / 4).astype(np.float32)


def _centres(sample_rate: int) -> npt.NDArray[np.float64]:
    return mel_points(sample_rate)[1:-1]


def _curve(
    frequencies: npt.NDArray[np.float64], decibels: npt.NDArray[np.floating], sample_rate: int
) -> Floats:
    """Amplitudes at these frequencies of a curve that is given by band."""
    curve: Floats = (10 ** (np.interp(frequencies, _centres(sample_rate), decibels) / 20)).astype(np.float32)
    return curve
