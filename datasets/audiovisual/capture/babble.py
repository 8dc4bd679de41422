"""Several people who talk in the background: of a given set of recordings, or invented."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedstill.datasets.audiovisual.capture.signals import (
    Waveform,
    active_power,
    add_noise,
    filtered,
    low_pass_gain,
)
from fedstill.datasets.audiovisual.capture.sound_effects import snr_at
from fedstill.datasets.decoding.decode import resample

SYLLABLES = 4.0  # per second: how fast the level of speech changes
SPEECH_KNEE = 500.0  # Hz; above it the long-term spectrum of speech falls by about 6 dB per octave


@dataclass(frozen=True)
class Babble:
    """A sound effect: ``talkers`` voices, equally loud, at 5 dB of signal-to-noise ratio at strength 1.

    Attributes:
        voices: float32 (samples,) each, at ``rate`` Hz; those of training speakers, say. Which of them talk, and
            from where in their recording, is drawn. Without any, the voices are noise with the spectrum and the
            syllables of speech, so that nothing has to be at hand.
        rate: of the voices.
        talkers: how many are heard at once.
    """

    voices: tuple[Waveform, ...] = ()
    rate: int = 16_000
    talkers: int = 5

    def __call__(self, waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
        mixed = np.zeros(len(waveform), np.float32)
        for _ in range(self.talkers):
            voice = self._voice(len(waveform), rate, rng)
            power = active_power(voice, rate)
            if power:
                mixed += voice / np.float32(np.sqrt(power))
        return add_noise(waveform, mixed, rate, snr_at(strength))

    def _voice(self, count: int, rate: int, rng: np.random.Generator) -> Waveform:
        """float32 (count,) at ``rate``; a short recording repeats."""
        if not self.voices:
            return invented_voice(count, rate, rng)
        chosen = self.voices[rng.integers(len(self.voices))]
        start = rng.uniform()  # of the recording's length, so that the rate does not change what is drawn
        needed = min(len(chosen), -(-count * self.rate // rate))
        cut = np.roll(chosen, -int(start * len(chosen)))[:needed]
        return np.resize(resample(cut, self.rate, rate), count)


def invented_voice(count: int, rate: int, rng: np.random.Generator) -> Waveform:
    """float32 (count,): noise with the long-term spectrum of speech, four times a second loud and soft."""
    speech = filtered(rng.standard_normal(count, np.float32), rate, low_pass_gain(SPEECH_KNEE, 1))
    syllables = filtered(rng.standard_normal(count, np.float32), rate, low_pass_gain(SYLLABLES, 2))
    return speech * np.maximum(syllables, 0)
