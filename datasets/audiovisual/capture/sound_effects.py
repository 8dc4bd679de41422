"""Microphones and rooms: what is added to, or taken from, the sound of a clip.

Every effect is (waveform, rate, strength, rng) -> waveform of equal length. Strength 1 is the value that its
docstring gives, a smaller one does less, and up to about 3 the speech is still there. None clips to [-1, 1]: several
may follow each other, and the caller clips once. Strength 0 is answered by ``SoundEffect`` and never arrives here.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture.signals import (
    Waveform,
    add_noise,
    band_pass_gain,
    coloured_noise,
    filtered,
    high_pass_gain,
    low_pass_gain,
)

NOISE_SNR = 5.0  # dB at strength 1: white, pink, babble
BROWN_SNR = 0.0
RUMBLE_CUTOFF = 120.0  # Hz
TILT = 6.0  # dB per octave
TILT_PIVOT, TILT_FLOOR = 1_000.0, 100.0  # Hz: where the gain is 1; below the floor it no longer changes
LOW_PASS_CUTOFF, LOW_PASS_ORDER = 4_000.0, 8
REVERBERATION_TIME = 0.6  # s until the sound has fallen by 60 dB
TELEPHONE_BAND, TELEPHONE_ORDER = (300.0, 3_400.0), 4
MU, CODES = 255.0, 256.0  # ITU-T G.711
OVERDRIVE = 12.0  # dB


def snr_at(strength: float, nominal: float = NOISE_SNR) -> float:
    """The amplitude of a noise is proportional to its strength."""
    return nominal - 20 * math.log10(strength)


def noise_strength(snr_db: float) -> float:
    """The strength of white or pink noise at this ratio: 1 at 5 dB, 0.18 at 20 dB."""
    return float(10 ** ((NOISE_SNR - snr_db) / 20))


def white_noise(waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
    """At 5 dB of signal-to-noise ratio."""
    noise = rng.standard_normal(len(waveform), np.float32)
    return add_noise(waveform, noise, rate, snr_at(strength))


def pink_noise(waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
    """At 5 dB of signal-to-noise ratio; as loud in each octave as in the next."""
    return add_noise(waveform, coloured_noise(len(waveform), rate, 1.0, rng), rate, snr_at(strength))


def spectral_tilt(waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
    """By 6 dB per octave, up or down as ``rng`` draws. The clip stays as loud as it was."""
    slope = math.copysign(TILT * strength, rng.uniform(-1, 1)) / (20 * math.log10(2))
    tilted = filtered(
        waveform,
        rate,
        lambda hertz: (
            (np.maximum(hertz, np.float32(TILT_FLOOR)) / np.float32(TILT_PIVOT)) ** np.float32(slope)
        ),
    )
    before, after = float(np.vdot(waveform, waveform)), float(np.vdot(tilted, tilted))
    return tilted * np.float32(math.sqrt(before / after)) if after else waveform


def low_pass(waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
    """A low-pass at 4 kHz / strength."""
    return filtered(waveform, rate, low_pass_gain(LOW_PASS_CUTOFF / strength, LOW_PASS_ORDER))


def reverberation(waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
    """A room with a reverberation time of 0.6 s, in which direct and reflected sound have equal energy.

    Both the time and the energy of the reflections grow with strength, as they do in one room with harder walls.
    The reflections are Gaussian noise that decays exponentially (Polack's model); ``rng`` draws the room.
    """
    from scipy.signal import fftconvolve  # which takes a second, and a plan that names effects does without

    heard = fftconvolve(waveform, impulse_response(rate, strength, rng))
    return np.asarray(heard[: len(waveform)], np.float32)


def impulse_response(rate: int, strength: float, rng: np.random.Generator) -> Waveform:
    """float32 (samples,): 1 at time 0 for the direct sound, then the reflections until they are at -60 dB."""
    seconds = REVERBERATION_TIME * strength
    times = np.arange(1, max(2, round(seconds * rate)), dtype=np.float32) / np.float32(rate)
    reflections = rng.standard_normal(len(times), np.float32) * 10 ** (-3 * times / np.float32(seconds))
    reflections *= np.float32(math.sqrt(strength / float(np.vdot(reflections, reflections))))
    return np.concatenate([np.ones(1, np.float32), reflections])


def telephone(waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
    """300 to 3400 Hz, 256 codes of mu-law: both edges move inwards and the codes become fewer with strength."""
    low, high = TELEPHONE_BAND
    line = band_pass_gain(low * math.sqrt(strength), high / math.sqrt(strength), TELEPHONE_ORDER)
    heard = filtered(waveform, rate, line)
    rounding = mu_law(heard, CODES / strength) - heard
    return heard + filtered(rounding, rate, line)


def mu_law(waveform: Waveform, codes: float) -> Waveform:
    """Round to ``codes`` levels between -1 and 1 that lie closer near 0; 0 stays 0."""
    step = np.float32(2 / codes)
    code = np.sign(waveform) * np.log1p(np.float32(MU) * np.abs(waveform)) / np.float32(math.log1p(MU))
    rounded = np.round(code / step) * step
    expanded: npt.NDArray[np.float32] = np.expm1(np.abs(rounded) * np.float32(math.log1p(MU)))
    return np.sign(rounded) * expanded / np.float32(MU)


def brown_noise(waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
    """Brown noise at 0 dB (wind, an engine) behind a microphone that leaves out what is below 120 Hz.

    The ratio is that of what is recorded: both are behind the high-pass.
    """
    microphone = high_pass_gain(RUMBLE_CUTOFF * strength, 1)
    noise = coloured_noise(len(waveform), rate, 2.0, rng)
    speech, heard = (filtered(sound, rate, microphone) for sound in (waveform, noise))
    return add_noise(speech, heard, rate, snr_at(strength, BROWN_SNR))


def clipping(waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
    """Amplified by 12 dB too much, so that everything above a quarter of the peak is cut off at the peak."""
    peak = np.abs(waveform).max(initial=0)
    return np.asarray(np.clip(waveform * np.float32(10 ** (OVERDRIVE * strength / 20)), -peak, peak))
