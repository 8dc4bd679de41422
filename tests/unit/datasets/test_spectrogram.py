"""Every clip, however short, silent or odd, becomes one matrix of the promised shape or a clear error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.specs import AudioSpec
from fedstill.datasets.audiovisual.spectrogram import LogMel, LogSpectrogram, audio_features, resample
from fedstill.datasets.audiovisual.waveform import feature_shape, fit_length

LIGHT = AudioSpec()
THESIS = AudioSpec(representation="spectrogram", seconds=3.0)
BOTH = pytest.mark.parametrize("spec", [LIGHT, THESIS], ids=["log_mel", "spectrogram"])


def tone(hertz: float, samples: int, sample_rate: int = 16_000) -> npt.NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / sample_rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [(LIGHT, (64, 157)), (THESIS, (257, 299)), (replace(THESIS, seconds=10.0), (257, 1004))],
)
def test_shapes_of_the_thesis_and_of_the_light_variant(spec: AudioSpec, shape: tuple[int, int]) -> None:
    features = audio_features(tone(440, 30_000), 16_000, spec)
    assert feature_shape(spec) == features.shape == shape
    assert features.dtype == np.float32


@BOTH
def test_features_are_z_scored(spec: AudioSpec) -> None:
    loud = np.random.default_rng(0).normal(0, 0.2, 50_000).astype(np.float32)
    features = audio_features(loud, 16_000, spec)
    assert features.mean() == pytest.approx(0.0, abs=1e-4)
    assert features.std() == pytest.approx(1.0, abs=1e-3)


def test_log_mel_is_blind_to_gain() -> None:
    loud = np.random.default_rng(0).normal(0, 0.2, 50_000).astype(np.float32)
    difference = audio_features(loud, 16_000, LIGHT) - audio_features(0.1 * loud, 16_000, LIGHT)
    assert np.abs(difference).max() < 0.05


@BOTH
@pytest.mark.parametrize("level", [0.0, 0.3])
@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
def test_silence_becomes_zeros(spec: AudioSpec, level: float, sample_rate: int) -> None:
    features = audio_features(np.full(30_000, level, np.float32), sample_rate, spec)
    np.testing.assert_array_equal(features, np.zeros(feature_shape(spec), np.float32))


@pytest.mark.parametrize("module", [LogSpectrogram(), LogMel(LIGHT)])
def test_a_silent_clip_in_a_batch_leaves_the_others_alone(module: torch.nn.Module) -> None:
    speech = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(0)) * 0.1
    both = module(torch.cat([speech, torch.full_like(speech, 0.2)]))
    torch.testing.assert_close(both[:1], module(speech))
    assert (both[1] == 0).all()


def test_a_tone_lights_up_its_own_bin() -> None:
    features = audio_features(tone(1_000, 48_000), 16_000, THESIS)
    assert (features.argmax(axis=0) == 1_000 * 512 // 16_000).all()


def test_the_thesis_spectrogram_can_be_exported() -> None:
    """torch.export is the first half of ONNX export; an FFT would need complex numbers, which ONNX lacks."""
    example = torch.randn(2, 48_000, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(LogSpectrogram(), (example,))
    assert not [node for node in program.graph.nodes if "fft" in str(node.target)]
    torch.testing.assert_close(program.module()(example), LogSpectrogram()(example))


def test_a_short_clip_repeats_and_a_long_one_is_cut() -> None:
    ramp = np.linspace(-1, 1, 15_000, dtype=np.float32)
    fitted = fit_length(ramp, 16_000, LIGHT, resample)
    np.testing.assert_array_equal(fitted, np.tile(ramp, 3)[:40_000])
    np.testing.assert_array_equal(fit_length(np.tile(ramp, 9), 16_000, LIGHT, resample), fitted)


def test_samples_are_clamped() -> None:
    assert fit_length(np.array([3.0, -7.0, 0.25], np.float32), 16_000, LIGHT, resample)[:3].tolist() == [
        1.0,
        -1.0,
        0.25,
    ]


def test_resampling_keeps_the_tone() -> None:
    fitted = fit_length(tone(440, 3 * 44_100, 44_100), 44_100, LIGHT, resample)
    assert fitted.shape == (40_000,)
    assert np.abs(fitted - tone(440, 40_000))[100:-100].max() < 0.01


def test_leading_silence_is_skipped_only_when_asked() -> None:
    speech = tone(200, 40_000)
    recorded = np.concatenate([np.full(16_000, 0.004, np.float32), speech])  # 42 dB below the peak
    assert fit_length(recorded, 16_000, LIGHT, resample)[0] == np.float32(0.004)
    skipped = fit_length(recorded, 16_000, replace(LIGHT, skip_silence=True), resample)
    np.testing.assert_array_equal(skipped[:39_000], speech[1:39_001])  # the tone itself starts with one zero
    assert not fit_length(np.zeros(9, np.float32), 16_000, replace(LIGHT, skip_silence=True), resample).any()


def test_the_callers_samples_are_left_alone() -> None:
    recorded = 3 * tone(200, 1_000)
    before = recorded.copy()
    fit_length(recorded, 44_100, LIGHT, resample)[:] = 0
    fit_length(recorded, 16_000, LIGHT, resample)[:] = 0
    np.testing.assert_array_equal(recorded, before)


@pytest.mark.parametrize(
    ("waveform", "sample_rate", "says"),
    [
        (np.array([], np.float32), 16_000, "empty"),
        (np.array([0.1, np.nan], np.float32), 16_000, "NaN"),
        (np.array([0.1, np.inf], np.float32), 16_000, "infinite"),
        (np.zeros((2, 9), np.float32), 16_000, "one channel"),
        (np.zeros(9, np.int16), 16_000, "scale them to floats"),
        (np.zeros(9, np.float32), 0, "sample rate is 0"),
        (np.zeros(9, np.float32), 44_099, "convert the clip to 16000 Hz"),
    ],
)
def test_unusable_audio_is_a_data_error(
    waveform: npt.NDArray[np.float32], sample_rate: int, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        audio_features(waveform, sample_rate, LIGHT)


@BOTH
def test_too_short_a_spec_is_a_data_error(spec: AudioSpec) -> None:
    with pytest.raises(DataError, match=r"raise audio\.seconds"):
        feature_shape(replace(spec, seconds=0.02))
