"""A device without torch sees the same matrices as the cloud that trained its student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import signal

from fedstill.datasets.audiovisual import spectrogram, spectrogram_numpy
from fedstill.datasets.audiovisual.specs import AudioSpec
from fedstill.datasets.decoding.decode import read_audio

LIGHT = AudioSpec()
SPECS = {
    "log_mel": LIGHT,
    "log_mel_fixed": replace(LIGHT, normalise="fixed", skip_silence=True),
    "log_mel_quickstart": replace(LIGHT, seconds=2.0, hop=512),
    "thesis_3_s": AudioSpec(representation="spectrogram", seconds=3.0),
    "thesis_10_s": AudioSpec(representation="spectrogram", seconds=10.0),
}
TOLERANCE = {"spectrogram": 2e-5, "log_mel": 5e-4}
"""Of values with unit deviation. The logarithm of a nearly empty mel band shows the rounding of torch's single FFT."""

every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def largest_difference(waveform: npt.NDArray[np.float32], rate: int, spec: AudioSpec) -> float:
    light = spectrogram_numpy.audio_features(waveform, rate, spec)
    reference = spectrogram.audio_features(waveform, rate, spec)
    assert light.dtype == np.float32
    assert light.shape == reference.shape
    assert reference.std() > 0.1  # there is something to compare
    return float(np.abs(light - reference).max())


def chirp(rate: int) -> npt.NDArray[np.float32]:
    time = np.arange(3 * rate) / rate
    noise = np.random.default_rng(0).normal(0, 0.01, len(time))
    return (0.5 * signal.chirp(time, 50.0, 3.0, 7_000.0) + noise).astype(np.float32)


@every_spec
@pytest.mark.parametrize("rate", [16_000, 8_000, 22_050, 44_100, 48_000])
def test_numpy_equals_torch(spec: AudioSpec, rate: int) -> None:
    assert largest_difference(chirp(rate), rate, spec) <= TOLERANCE[spec.representation]


@pytest.mark.data
@every_spec
def test_speech_equals_torch(data_dir: Path, spec: AudioSpec) -> None:
    speech, rate = read_audio(data_dir / "cremad_sample/AudioWAV/1001_DFA_HAP_XX.wav")
    assert largest_difference(speech, rate, spec) <= TOLERANCE[spec.representation]


@pytest.mark.parametrize(("source", "target"), [(48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (7, 5)])
def test_resampling_equals_torchaudio(source: int, target: int) -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, 5_001).astype(np.float32)
    np.testing.assert_allclose(
        spectrogram_numpy.resample(noise, source, target),
        spectrogram.resample(noise, source, target),
        rtol=0,
        atol=5e-7,
    )


@every_spec
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_silence_is_all_zeros_here_too(spec: AudioSpec, rate: int) -> None:
    features = spectrogram_numpy.audio_features(np.full(30_000, 0.3, np.float32), rate, spec)
    np.testing.assert_array_equal(features, np.zeros_like(features))
