"""Sound effects do to a waveform what their docstrings say in dB, Hz and seconds, and nothing at strength 0."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import correlate, welch

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.capture.babble import Babble
from fedstill.datasets.audiovisual.capture.effects import SOUND_EFFECTS, with_babble
from fedstill.datasets.audiovisual.capture.signals import active_power
from fedstill.datasets.audiovisual.capture.sound_effects import (
    impulse_response,
    mu_law,
    noise_strength,
)
from fedstill.datasets.audiovisual.synthetic import SyntheticSource

RATE = 16_000
EFFECTS = {**SOUND_EFFECTS["development"], **SOUND_EFFECTS["test"]}
FROM = {"low_pass": 0.5}  # below it, the cut-off is above all that 16 kHz can hold
Sound = np.ndarray


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def apply(name: str, waveform: Sound, strength: float = 1.0, seed: int = 0, rate: int = RATE) -> Sound:
    return EFFECTS[name](waveform, rate, strength, rng(seed))


def noise(seconds: float = 4.0, rate: int = RATE, level: float = 0.1) -> Sound:
    return (level * rng(99).standard_normal(round(seconds * rate))).astype(np.float32)


def tone(hertz: float, rate: int = RATE, level: float = 0.2) -> Sound:
    return (level * np.sin(2 * np.pi * hertz * np.arange(2 * rate) / rate)).astype(np.float32)


def decibels(ratio: float) -> float:
    return float(10 * np.log10(ratio))


def gain(name: str, hertz: float, rate: int, strength: float = 1.0) -> float:
    """dB of the band of about 30 Hz around ``hertz``."""
    before = noise(8.0, rate)
    after = apply(name, before, strength, rate=rate)
    frequencies, into = welch(before, rate, nperseg=rate // 30)
    _, out = welch(after, rate, nperseg=rate // 30)
    near = int(np.argmin(np.abs(frequencies - hertz)))
    return decibels(out[near] / into[near])


@pytest.fixture(scope="module")
def speech() -> Sound:
    return SyntheticSource(seed=1, public_per_class=1).load(1).audio


@pytest.mark.parametrize("name", EFFECTS)
def test_strength_0_is_the_waveform_itself(name: str, speech: Sound) -> None:
    assert apply(name, speech, 0.0) is speech


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_a_strength_that_means_nothing_is_refused(name: str, strength: float, speech: Sound) -> None:
    with pytest.raises(DataError, match="strength"):
        apply(name, speech, strength)


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("count", [1, 2, 7, 333, 16_001])
@pytest.mark.parametrize("strength", [0.01, 3.0])
def test_any_length_is_kept_and_the_original_untouched(name: str, count: int, strength: float) -> None:
    waveform = noise(2.0)[:count]
    before = waveform.copy()
    after = apply(name, waveform, strength)
    assert (after.shape, after.dtype) == ((count,), np.float32)
    assert np.isfinite(after).all()
    assert np.array_equal(waveform, before)


@pytest.mark.parametrize("name", EFFECTS)
def test_the_generator_alone_decides(name: str, speech: Sound) -> None:
    assert np.array_equal(apply(name, speech, seed=3), apply(name, speech, seed=3))


@pytest.mark.parametrize("name", ["white_noise", "pink_noise", "reverberation", "babble", "brown_noise"])
def test_what_is_random_differs(name: str, speech: Sound) -> None:
    assert not np.array_equal(apply(name, speech, seed=3), apply(name, speech, seed=4))


@pytest.mark.parametrize("name", EFFECTS)
def test_the_damage_grows_with_strength(name: str, speech: Sound) -> None:
    strengths = [strength for strength in (0.1, 0.25, 0.5, 1.0, 2.0, 3.0) if strength >= FROM.get(name, 0)]
    damage = [float(np.linalg.norm(apply(name, speech, strength) - speech)) for strength in strengths]
    assert all(less < more for less, more in zip([0.0, *damage], damage, strict=False)), damage


@pytest.mark.parametrize("name", EFFECTS)
def test_silence_stays_silence(name: str) -> None:
    silence = np.zeros(RATE, np.float32)
    assert np.array_equal(apply(name, silence), silence)


def test_pauses_do_not_count_as_speech() -> None:
    spoken = noise(1.0)
    paused = np.concatenate([np.zeros(2 * RATE, np.float32), spoken, 0.001 * spoken])
    assert active_power(paused, RATE) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("name", ["white_noise", "pink_noise", "babble"])
@pytest.mark.parametrize(("strength", "expected"), [(1.0, 5.0), (noise_strength(20.0), 20.0), (2.0, -1.0)])
def test_the_signal_to_noise_ratio_is_that_of_the_speech(name: str, strength: float, expected: float) -> None:
    spoken = np.concatenate([np.zeros(2 * RATE, np.float32), noise(1.0)])
    added = apply(name, spoken, strength) - spoken
    assert decibels(0.01 / np.mean(added**2)) == pytest.approx(expected, abs=0.5)


def test_brown_noise_is_as_loud_as_the_speech_behind_the_high_pass() -> None:
    spoken = tone(2_000)  # far above 120 Hz
    added = apply("brown_noise", spoken) - spoken
    assert decibels(np.mean(spoken**2) / np.mean(added**2)) == pytest.approx(0.0, abs=0.5)
    low, high = (
        np.sum(np.abs(np.fft.rfft(added))[2 * start : 2 * stop] ** 2) for start, stop in [(1, 30), (60, 89)]
    )
    assert low < high  # without the high-pass it would be a hundred times more


@pytest.mark.parametrize(
    ("name", "slope"), [("white_noise", 0.0), ("pink_noise", -3.0), ("brown_noise", -6.0)]
)
def test_the_colour_of_noise(name: str, slope: float) -> None:
    spoken = tone(100)
    frequencies, power = welch(apply(name, np.tile(spoken, 8)), RATE, nperseg=1024)
    octaves = [
        decibels(power[(frequencies >= start) & (frequencies < 2 * start)].mean())
        for start in (1000, 2000, 4000)
    ]
    assert np.diff(octaves) == pytest.approx([slope, slope], abs=0.7)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_tilt_goes_both_ways_and_keeps_the_loudness(strength: float) -> None:
    spoken = noise()
    slopes = []
    for seed in range(8):
        tilted = apply("spectral_tilt", spoken, strength, seed)
        assert np.mean(tilted**2) == pytest.approx(np.mean(spoken**2), rel=1e-3)
        frequencies, power = welch(tilted, RATE, nperseg=1024)
        slopes.append(
            decibels(power[np.searchsorted(frequencies, 4000)] / power[np.searchsorted(frequencies, 500)]) / 3
        )
    assert np.abs(slopes) == pytest.approx(np.full(8, 6 * strength), abs=1.0)
    assert min(slopes) < 0 < max(slopes)


def test_the_low_pass_ends_at_4_khz() -> None:
    assert gain("low_pass", 4_000, 48_000) == pytest.approx(-3, abs=1)
    assert gain("low_pass", 2_000, 48_000) == pytest.approx(0, abs=0.2)
    assert gain("low_pass", 8_000, 48_000) < -40
    assert gain("low_pass", 2_000, 48_000, strength=2.0) == pytest.approx(-3, abs=1)


@pytest.mark.parametrize(("strength", "seconds"), [(0.5, 0.3), (1.0, 0.6), (2.0, 1.2)])
def test_the_reverberation_time(strength: float, seconds: float) -> None:
    room = impulse_response(RATE, strength, rng(5))
    left = 10 * np.log10(np.cumsum(room[::-1] ** 2)[::-1] / np.sum(room**2))  # Schroeder's integral
    begin, end = np.searchsorted(-left, [5, 25])  # T20
    assert 3 * (end - begin) / RATE == pytest.approx(seconds, rel=0.2)
    assert np.sum(room[1:] ** 2) == pytest.approx(strength * room[0] ** 2, rel=1e-3)


def test_a_room_answers_a_click_with_its_impulse_response() -> None:
    click = np.zeros(RATE, np.float32)
    click[100] = 1
    room = impulse_response(RATE, 1.0, rng(7))
    heard = apply("reverberation", click, seed=7)
    assert heard[100 : 100 + len(room)] == pytest.approx(room, abs=1e-5)
    assert heard[:100] == pytest.approx(np.zeros(100), abs=1e-5)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_the_band_of_a_telephone(rate: int) -> None:
    edges = [gain("telephone", hertz, rate) for hertz in (300, 3_400)]
    assert edges == pytest.approx([-3, -3], abs=1)
    assert gain("telephone", 1_000, rate) == pytest.approx(0, abs=0.2)
    assert max(gain("telephone", hertz, rate) for hertz in (100, 7_000)) < -20


def test_mu_law_has_256_codes_and_the_noise_of_g711() -> None:
    spoken = noise(level=0.2).clip(-1, 1)
    coded = mu_law(spoken, 256)
    assert 200 < len(np.unique(coded)) <= 257
    assert np.array_equal(mu_law(coded, 256), coded)
    assert decibels(np.mean(spoken**2) / np.mean((coded - spoken) ** 2)) == pytest.approx(38, abs=1.5)


def test_clipping_cuts_at_a_quarter_of_the_peak() -> None:
    spoken = tone(203.7)
    heard = apply("clipping", spoken)
    assert np.abs(heard).max() == pytest.approx(0.2)
    assert np.mean(np.abs(heard) > 0.1999) == pytest.approx(
        1 - 2 / np.pi * np.arcsin(10 ** (-12 / 20)), abs=0.01
    )


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("strength", [0.25, 1.0, 3.0])
def test_opus_keeps_time(rate: int, strength: float) -> None:
    loud = np.repeat(rng(1).uniform(0, 1, 20), rate // 10).astype(np.float32)
    hum = apply("low_pass", noise(len(loud) / rate, rate)[: len(loud)], 4.0, rate=rate)
    spoken = loud * hum
    heard = apply("opus", spoken, strength, rate=rate)
    lags = correlate(heard, spoken, "full", "fft")
    assert abs(int(np.argmax(lags)) - len(spoken) + 1) <= 0.002 * rate


def test_opus_loses_more_at_a_lower_rate(speech: Sound) -> None:
    lost = [
        np.linalg.norm(apply("opus", speech, strength) - speech) / np.linalg.norm(speech)
        for strength in (0.1, 1)
    ]
    assert lost[0] < 0.2 < lost[1]


def test_babble_takes_the_given_voices(speech: Sound) -> None:
    voices = (tone(440, level=0.9), tone(660, level=0.01))
    crowd = with_babble(Babble(voices, RATE))["test"]["babble"]
    added = crowd(speech, RATE, 1.0, rng(2)) - speech
    power = np.abs(np.fft.rfft(added)) ** 2
    hertz = np.fft.rfftfreq(len(added), 1 / RATE)
    in_voices = sum(power[np.abs(hertz - voice) < 20].sum() for voice in (440, 660))
    assert in_voices > 0.98 * power.sum()
    assert all(power[np.abs(hertz - voice) < 20].sum() > 0.02 * power.sum() for voice in (440, 660))
    assert SOUND_EFFECTS["test"]["babble"] is not crowd


def test_babble_brings_voices_to_the_rate_of_the_clip() -> None:
    crowd = Babble((tone(440, rate=8_000),), 8_000, talkers=1)
    spoken = np.tile(noise(1.0, 48_000), 3)
    added = crowd(spoken, 48_000, 1.0, rng(2)) - spoken
    peak = np.argmax(np.abs(np.fft.rfft(added))) * 48_000 / len(added)
    assert peak == pytest.approx(440, abs=2)


def test_a_silent_voice_adds_nothing(speech: Sound) -> None:
    crowd = Babble((np.zeros(RATE, np.float32),), RATE)
    assert np.array_equal(crowd(speech, RATE, 1.0, rng()), speech)
